"""A local TLS (or plain) service for the tests of the pool as a library: it answers lines, and can be made hostile."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache

import trio
import trustme
from attrs import Factory, define

LINE = b"hello\n"


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


@define(eq=False)
class Service:
    """Answers each piece it is sent with `answer`, and remembers. `behave` says otherwise; `streams` are its ends."""

    address: str
    port: int = 0
    behave: str = "answers"
    answer: bytes = LINE
    accepted: int = 0
    handshakes: int = 0  # ended well; without TLS, connections
    names: list[str | None] = Factory(list)  # what TLS was asked for
    received: list[bytes] = Factory(list)
    streams: list[trio.abc.Stream] = Factory(list)

    async def handle(self, raw: trio.SocketStream, context: ssl.SSLContext | None) -> None:
        self.accepted += 1
        if self.behave == "hangs":
            await trio.sleep_forever()
        if self.behave == "resets":
            await raw.receive_some(1)
            raw.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        stream: trio.abc.Stream = raw
        if context is not None:
            stream = trio.SSLStream(raw, context, server_side=True)
            await stream.do_handshake()
        self.handshakes += 1
        self.streams.append(stream)
        while data := await stream.receive_some():
            self.received.append(data)
            await self._answer(stream)

    async def _answer(self, stream: trio.abc.Stream) -> None:
        if self.behave == "trickles":
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.01)
        if self.behave == "ends":
            await stream.aclose()
        elif self.behave != "is silent":
            await stream.send_all(self.answer)


@asynccontextmanager
async def serving(
    *, address: str = "127.0.0.1", port: int = 0, names: tuple[str, ...] = ("localhost",), tls: bool = True
) -> AsyncIterator[Service]:
    """A service on an address of its own, for the length of the body."""
    service = Service(address)
    context = server_context(*names) if tls else None
    if context is not None:
        context.sni_callback = lambda _ssl, name, _context: service.names.append(name)

    async def guarded(raw: trio.SocketStream) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await service.handle(raw, context)
        await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=address)
        service.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, guarded, listeners)
        yield service
        nursery.cancel_scope.cancel()
