"""The protocol's page is enough: a client written from it alone serves visitors through a real server."""

import hashlib
import random
from pathlib import Path

import pytest
import trio

import tunnel
from tunnel.addresses import HostPort
from tunnel.certificates import certificate_pin_of_file, pin_text
from tunnel.config import Grant, ServerConfig

from .least_client import LeastClient

TOKEN = "a-token-of-more-than-forty-characters-0123456789"
BULK = random.Random(7).randbytes(6 * 1024 * 1024)


async def echo(stream: trio.SocketStream) -> None:
    """Answers after the end, so that a half-close must have come through."""
    digest, size = hashlib.sha256(), 0
    async for data in stream:
        digest.update(data)
        size += len(data)
    await stream.send_all(f"{size} {digest.hexdigest()}".encode())


async def give(stream: trio.SocketStream) -> None:
    await stream.send_all(BULK)


async def serve(handler: object, nursery: trio.Nursery) -> tuple[str, int]:
    async def guarded(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await handler(stream)
        except trio.BrokenResourceError:
            pass  # the visitor hung up

    listeners = await nursery.start(trio.serve_tcp, guarded, 0)
    return "127.0.0.1", listeners[0].socket.getsockname()[1]


async def visit(port: int, data: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        return b"".join([chunk async for chunk in stream])


@pytest.mark.slow
async def test_a_client_written_from_the_page_alone_serves_visitors(nursery: trio.Nursery, tmp_path: Path) -> None:
    grant = Grant("home", tunnel.hash_token(TOKEN), allow_ports=None)
    config = ServerConfig((HostPort("127.0.0.1", 0),), state_dir=tmp_path, clients=(grant,))
    server = await nursery.start(tunnel.serve, config)
    proxies = []
    for name, handler in (("echo", echo), ("give", give), ("gone", None)):
        target = await serve(handler, nursery) if handler else ("127.0.0.1", 1)
        proxies.append(({"name": name, "publish_addr": "127.0.0.1", "publish_port": 0}, target))
    pin = pin_text(certificate_pin_of_file(server.cert_file))
    client = LeastClient("127.0.0.1", server.where.port, pin, TOKEN, proxies)
    nursery.start_soon(client.run)
    with trio.fail_after(60):
        while len(client.statuses) < 3 or client.channels < 2:
            await trio.sleep(0.01)
        assert {status["status"] for status in client.statuses.values()} == {"healthy"}
        ports = {name: status["publish_port"] for name, status in client.statuses.items()}
        for data in (b"", b"hello", BULK):
            expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
            assert await visit(ports["echo"], data) == expected
        assert await visit(ports["give"], b"") == BULK
        while not client.moved:  # bulk leaves the channel of small requests, which the page says of a server
            await visit(ports["echo"], BULK)
        stream = await trio.open_tcp_stream("127.0.0.1", ports["gone"])
        with pytest.raises(trio.BrokenResourceError):  # reset, for its target refuses
            await stream.receive_some()
        await stream.aclose()
        assert await visit(ports["echo"], b"after that") != b""
        while client.streams:
            await trio.sleep(0.01)
    nursery.cancel_scope.cancel()
