"""Many clients in one process: says when each has all its proxies healthy, and when and why it has not.

    python crowd.py PLAN      a JSON file; ends when its standard input does

Each line it writes is JSON: {"client": NAME, "at": SECONDS, "why": null or a text}, by the system's monotonic clock.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import trio

import tunnel
from tunnel.limits import raise_descriptor_limit


async def be_client(plan: dict[str, Any], name: str) -> None:
    config = tunnel.ClientConfig(
        servers=(tunnel.HostPort("127.0.0.1", plan["port"]),),
        token=plan["tokens"][name],
        pin=bytes.fromhex(plan["pin"].removeprefix("sha256:")),
        proxies=tuple(
            tunnel.ProxyConfig(f"p{port}", tunnel.HostPort("127.0.0.1", port), (tunnel.parse_target(plan["target"]),))
            for port in plan["publish"][name]
        ),
        limits=tunnel.Limits(max_visitors=100),
    )
    async with tunnel.connect(config) as client:
        while True:
            await client.wait_healthy()
            say(name, None)
            async for update in client.follow():
                if update.status is not tunnel.Status.HEALTHY:
                    say(name, update.error_message)
                elif all(status.status is tunnel.Status.HEALTHY for status in client.statuses.values()):
                    say(name, None)


def say(name: str, why: str | None) -> None:
    print(json.dumps({"client": name, "at": time.monotonic(), "why": why}), flush=True)


async def main(plan: dict[str, Any]) -> None:
    async with trio.open_nursery() as clients:
        for name in plan["tokens"]:
            clients.start_soon(be_client, plan, name)
        async for _ in trio.lowlevel.FdStream(0):
            pass
        clients.cancel_scope.cancel(reason="whoever started this is gone")


if __name__ == "__main__":
    logging.disable()
    raise_descriptor_limit()
    trio.run(main, json.loads(Path(sys.argv[1]).read_text()))
