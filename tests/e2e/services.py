"""Local services behind the tunnel, all in one thread of the test process; and what they saw."""

import hashlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any

import trio

Handler = Callable[[trio.SocketStream], Awaitable[None]]
GREETING = b"220 the server speaks first\r\n"


def reset_on_close(sock: Any) -> None:
    """From now on closing sends RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Services:
    """`with Services() as services: port = services.add(echo)`."""

    def __init__(self) -> None:
        self.page = b"a page\n"
        self.http_status = 200
        self.seen: Queue[Any] = Queue()  # what handlers that report put there
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._run), daemon=True)

    def __enter__(self) -> "Services":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join(10)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    def add(self, handler: Handler, *, port: int = 0, host: str = "127.0.0.1") -> int:
        """Serve it; returns the port."""
        listeners = trio.from_thread.run(
            partial(trio.open_tcp_listeners, port, host=host, backlog=4096), trio_token=self._token
        )
        self._serve(listeners, handler)
        return listeners[0].socket.getsockname()[1]

    def add_unix(self, handler: Handler, path: Path) -> None:
        async def listen() -> list[trio.SocketListener]:
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await sock.bind(str(path))
            sock.listen()
            return [trio.SocketListener(sock)]

        self._serve(trio.from_thread.run(listen, trio_token=self._token), handler)

    def add_tls(self, handler: Handler, context: Any) -> int:
        async def secured(stream: trio.SocketStream) -> None:
            await handler(trio.SSLStream(stream, context, server_side=True))

        return self.add(secured)

    def _serve(self, listeners: list[trio.SocketListener], handler: Handler) -> None:
        async def guarded(stream: trio.SocketStream) -> None:
            try:
                async with stream:
                    await handler(stream)
            except (OSError, trio.BrokenResourceError):
                pass  # a visitor who left; tests look at `seen`

        trio.from_thread.run_sync(
            partial(self._nursery.start_soon, trio.serve_listeners, guarded, listeners), trio_token=self._token
        )

    # Handlers

    async def http(self, stream: trio.SocketStream) -> None:
        """Any GET: `page`, with `http_status`; one request a connection."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return
            head += more
        lines = f"HTTP/1.1 {self.http_status} X\r\nContent-Length: {len(self.page)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(lines.encode() + self.page)

    async def digest(self, stream: trio.SocketStream) -> None:
        """Reads to the visitor's FIN, then answers with the SHA-256 of it all: data after FIN."""
        found = hashlib.sha256()
        while data := await stream.receive_some(262144):
            found.update(data)
        await stream.send_all(found.hexdigest().encode())
        await stream.send_eof()

    async def first_to_end(self, stream: trio.SocketStream) -> None:
        """Speaks, ends its own direction first, and then reports what the visitor still sent."""
        await stream.send_all(b"my last word")
        await stream.send_eof()
        rest = b""
        while data := await stream.receive_some():
            rest += data
        self.seen.put(rest)

    async def resets(self, stream: trio.SocketStream) -> None:
        """Waits for a byte, then resets the connection."""
        await stream.receive_some()
        reset_on_close(stream.socket)

    async def reports_end(self, stream: trio.SocketStream) -> None:
        """Says hello, then reports how the visitor ended: "fin" or the exception's cause."""
        await stream.send_all(b"hello")
        try:
            while await stream.receive_some():
                pass
            self.seen.put("fin")
        except trio.BrokenResourceError as exc:
            self.seen.put(type(exc.__cause__))


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    if isinstance(stream, trio.SocketStream):
        await stream.send_eof()


async def greet_then_echo(stream: trio.SocketStream) -> None:
    await stream.send_all(GREETING)
    await echo(stream)


async def hold(stream: trio.SocketStream) -> None:
    """Silent until the visitor leaves."""
    while await stream.receive_some():
        pass
