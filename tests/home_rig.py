"""A server and its client "home" in one Trio run, over real sockets, for tests of what both do together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from ports import free_port

import tunnel
from tunnel import Client, ClientConfig, HostPort, ProxyConfig, Server, ServerConfig, parse_target
from tunnel.api import run_client
from tunnel.certificates import certificate_pin_of_file
from tunnel.state import StateDir


class Home:
    """`admin` are the admin addresses of "server" and "client", where there are any; `token` is theirs."""

    def __init__(self, server: Server, client: Client, admin: dict[str, HostPort], token: str) -> None:
        self.server, self.client, self.admin, self.token = server, client, admin, token

    def ends(self) -> list[tuple[str, str]]:
        """How sessions ended, by the server."""
        ended = [event.fields for event in self.server.events.recent if event.kind == "session.ended"]
        return [(fields["reason"], fields["message"]) for fields in ended]

    def told(self) -> list[tuple[str, str]]:
        """What became of the client's sessions, with why."""
        kinds = ("session.connected", "session.lost")
        return [(event.kind, event.fields["detail"]) for event in self.client.events.recent if event.kind in kinds]

    async def until_back(self, times: int = 1) -> None:
        """Until the client has come back so many times."""
        while [kind for kind, _ in self.told()].count("session.connected") <= times:
            await trio.sleep(0.005)
        await self.client.wait_healthy("web")

    async def visit(self) -> trio.SocketStream:
        visitor = await trio.open_tcp_stream("127.0.0.1", self.client.statuses["web"].publish_port)
        await visitor.send_all(b"hello")
        assert await visitor.receive_some() == b"hello"
        return visitor


@asynccontextmanager
async def open_home(folder: Path, *more: ProxyConfig, admin: bool = False) -> AsyncIterator[Home]:
    """The client publishes "web", which echoes, and `more`."""
    addresses = {side: free_address() for side in ("server", "client")} if admin else {}
    server_config = ServerConfig(
        listen=(HostPort("127.0.0.1", 0),), state_dir=folder / "state", admin=addresses.get("server")
    )
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            (target,) = await nursery.start(partial(trio.serve_tcp, _echo, 0, host="127.0.0.1"))
            where = parse_target(f"127.0.0.1:{target.socket.getsockname()[1]}")
            state = StateDir.open(folder / "state")
            token = state.new_token("home")
            server = await nursery.start(tunnel.serve, server_config)
            config = ClientConfig(
                (server.where,),
                token,
                pin=certificate_pin_of_file(server.cert_file),
                proxies=(ProxyConfig("web", HostPort("127.0.0.1", 0), (where,)), *more),
                admin=addresses.get("client"),
                state_dir=folder / "state",
            )
            client = await nursery.start(run_client, config)
            await client.wait_healthy("web")
            yield Home(server, client, addresses, state.admin_token())
        nursery.cancel_scope.cancel(reason="the test is over")


def free_address() -> HostPort:
    return HostPort("127.0.0.1", free_port())


async def _echo(stream: Any) -> None:
    with suppress(trio.BrokenResourceError):  # a visitor was cut
        async for chunk in stream:
            await stream.send_all(chunk)
