"""A session closed on request, at the server and at its client: both in one Trio run, over real sockets."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

import tunnel
from tunnel import Client, ClientConfig, HostPort, ProxyConfig, Server, ServerConfig, parse_target
from tunnel.certificates import certificate_pin_of_file
from tunnel.state import StateDir


class Home:
    """A server and its client "home", which publishes "web"."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server, self.client = server, client

    def ends(self) -> list[tuple[str, str]]:
        """How sessions ended, by the server."""
        ended = [event.fields for event in self.server.events.recent if event.kind == "session.ended"]
        return [(fields["reason"], fields["message"]) for fields in ended]

    def told(self) -> list[tuple[str, str]]:
        """What the client did, with why."""
        kinds = ("session.connected", "session.lost")
        return [(event.kind, event.fields["detail"]) for event in self.client.events.recent if event.kind in kinds]

    async def until_back(self, times: int = 1) -> None:
        while [kind for kind, _ in self.told()].count("session.connected") <= times:
            await trio.sleep(0.005)
        await self.client.wait_healthy("web")


async def echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):  # a visitor was cut
        async for chunk in stream:
            await stream.send_all(chunk)


@asynccontextmanager
async def open_home(folder: Path) -> AsyncIterator[Home]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(30):
            (target,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            where = parse_target(f"127.0.0.1:{target.socket.getsockname()[1]}")
            token = StateDir.open(folder).new_token("home")
            server = await nursery.start(
                tunnel.serve, ServerConfig(listen=(HostPort("127.0.0.1", 0),), state_dir=folder)
            )
            config = ClientConfig(
                (server.where,),
                token,
                pin=certificate_pin_of_file(server.cert_file),
                proxies=(ProxyConfig("web", HostPort("127.0.0.1", 0), (where,)),),
            )
            async with tunnel.connect(config) as client:
                await client.wait_healthy("web")
                yield Home(server, client)
        nursery.cancel_scope.cancel()


async def visit(home: Home) -> trio.SocketStream:
    visitor = await trio.open_tcp_stream("127.0.0.1", home.client.statuses["web"].publish_port)
    await visitor.send_all(b"hello")
    assert await visitor.receive_some() == b"hello"
    return visitor


@pytest.mark.slow
async def test_a_session_closed_at_the_server_is_told_why_loses_its_visitors_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    async with open_home(tmp_path) as home, await visit(home) as visitor:
        port = home.client.statuses["web"].publish_port
        with pytest.raises(LookupError, match="no client 'lab' is connected; there are home"):
            home.server.close_session("lab")
        assert home.server.close_session("home") == ["home"]
        with pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some()
        await home.until_back()
        assert home.ends() == [("closed", "the server's operator closed this session")]
        assert home.told() == [
            ("session.connected", "home"),
            ("session.lost", "the server's operator closed this session"),
            ("session.connected", "home"),
        ]
        assert home.client.statuses["web"].publish_port == port
        await (await visit(home)).aclose()
    assert "the session of client 'home' is closed on request" in caplog.messages
    assert "no session: the server's operator closed this session" in caplog.messages


@pytest.mark.slow
async def test_a_client_that_closes_its_session_says_so_and_is_back_at_once_again_and_again(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        with pytest.raises(LookupError, match="this client is 'home', not 'lab'"):
            home.client.close_session("lab")
        for times in (1, 2, 3):
            assert home.client.close_session("home") == ["home"]
            await home.until_back(times)
        word = "this client's operator closed the session"
        assert home.ends() == [("goodbye", word)] * 3
        assert home.told()[1::2] == [("session.lost", word)] * 3
        lost = [event for event in home.client.events.recent if event.kind == "session.lost"]
        assert [event.fields["retry_in"] for event in lost] == [0.0] * 3
        await (await visit(home)).aclose()


@pytest.mark.slow  # makes a key
async def test_closing_what_nobody_is_connected_to_says_so(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(tunnel.serve, ServerConfig(listen=(HostPort("127.0.0.1", 0),), state_dir=tmp_path))
        with pytest.raises(LookupError, match="no client 'home' is connected; there is none"):
            server.close_session("home")
        nursery.cancel_scope.cancel()
