"""Many clients in one process, of whom nobody wants anything: `python -m tests.bench.sessions FILE`.

The file (JSON) names the server, its pin, the target and the channels of each session; for each client its token and
the ports it publishes. Prints `ready` once every proxy is healthy, and stays until it is ended.
"""

import json
import sys
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

import tunnel
from tunnel import ClientConfig, HostPort, ProxyConfig, parse_pin, parse_target
from tunnel.addresses import parse_host_port
from tunnel.config import DATA_CHANNELS

START_SECONDS = 60.0


def make_config(plan: dict[str, Any], client: dict[str, Any]) -> ClientConfig:
    target = parse_target(plan["target"])
    return ClientConfig(
        servers=(parse_host_port(plan["server"]),),
        token=client["token"],
        pin=parse_pin(plan["pin"]),
        proxies=tuple(ProxyConfig(f"idle-{port}", HostPort("127.0.0.1", port), (target,)) for port in client["ports"]),
        data_channels=evolve(DATA_CHANNELS, min=plan["channels"], min_per_address=plan["channels"]),
    )


async def stay(config: ClientConfig, *, task_status: trio.TaskStatus[None]) -> None:
    async with tunnel.connect(config) as client:
        await client.wait_healthy()
        task_status.started()
        await trio.sleep_forever()


async def run(plan: dict[str, Any]) -> None:
    async with trio.open_nursery() as clients:
        with trio.fail_after(START_SECONDS):
            for client in plan["clients"]:  # one by one: a server takes few strangers of one source at a time
                await clients.start(stay, make_config(plan, client))
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(run, json.loads(Path(sys.argv[1]).read_text()))
