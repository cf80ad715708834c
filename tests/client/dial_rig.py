"""Services on loopback for what dials targets, and counts of what dialling leaves open."""

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trustme

from tunnel.client import target_dial
from tunnel.sockets import listen
from tunnel.tls import TlsStream


@contextmanager
def nothing_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def trusted_service(name: str, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of a service of that name, whose CA `shake_hands` trusts from now on."""
    ca = trustme.CA()
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    monkeypatch.setattr(target_dial, "target_context", lambda: trusting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context


@asynccontextmanager
async def http_service(context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Answers one request of each connection with 204, over TLS if there is a context; yields its port."""

    async def serve(sock: object) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        if context is not None:
            stream = TlsStream(sock, context, server_side=True)
        try:
            async with stream:
                if context is not None:
                    await stream.do_handshake()
                if await stream.receive_some():
                    await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (ssl.SSLError, trio.BrokenResourceError):
            pass  # they do not trust us, or have gone

    with listen("127.0.0.1", 0) as listener:

        async def accept() -> None:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock = listener.accept()[0]
                sock.setblocking(False)
                nursery.start_soon(serve, sock)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


async def cancelled_everywhere(act: Callable[[], Awaitable[object]]) -> int:
    """Run `act` again and again, each time cancelled one pass of Trio later, until it ends by itself.

    Returns how often it was cancelled.
    """
    for cancelled in range(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            for _ in range(cancelled):
                await trio.lowlevel.checkpoint()
                if not nursery.child_tasks:
                    return cancelled
            nursery.cancel_scope.cancel()
    raise AssertionError("it never ends")
