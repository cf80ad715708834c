"""The tunnel that one would write first, kept for comparison: a task per direction, a TLS connection per visitor.

`server ADDRESS:PORT CERT_AND_KEY PUBLISH=TARGET…` and `client ADDRESS:PORT CERT PUBLISH=TARGET…`. The client's first
connection is the control connection. For each visitor the server writes a line there, the number of the visitor and of
its proxy; the client dials the target and the server, names the visitor in the first line, and both relay.
"""

import ssl
import sys
from collections.abc import Callable

import trio

from .certificate import NAME

CHUNK_BYTES = 65536
LINE_BYTES = 32


async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, ended: Callable[[], None]) -> None:
    while data := await source.receive_some(CHUNK_BYTES):
        await sink.send_all(data)
    ended()


async def relay(plain: trio.SocketStream, secured: trio.SSLStream[trio.SocketStream]) -> None:
    """Until one direction has ended: TLS under Trio has no half-close."""
    try:
        async with plain, secured, trio.open_nursery() as directions:
            directions.start_soon(copy, plain, secured, directions.cancel_scope.cancel)
            directions.start_soon(copy, secured, plain, directions.cancel_scope.cancel)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # a visitor or a service who hung up


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        if not byte or len(line) > LINE_BYTES:
            raise trio.BrokenResourceError("no line")
        line += byte
    return line.strip()


class Server:
    def __init__(self) -> None:
        self.control: trio.SSLStream[trio.SocketStream] | None = None
        self.control_lock = trio.Lock()
        self.waiting: dict[bytes, tuple[trio.SocketStream, trio.Event]] = {}  # visitors, and what ends their task
        self.visitors = 0

    async def serve_channel(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        """A connection of the client's: control, or one visitor's."""
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            line = await read_line(secured)
        except (trio.BrokenResourceError, OSError):
            return
        if line == b"control":
            self.control = secured
            await trio.sleep_forever()
        elif line in self.waiting:
            visitor, done = self.waiting.pop(line)
            await relay(visitor, secured)
            done.set()

    async def serve_visitor(self, visitor: trio.SocketStream, proxy: int) -> None:
        if self.control is None:
            return
        self.visitors += 1
        number = b"%d" % self.visitors
        done = trio.Event()
        self.waiting[number] = (visitor, done)
        async with self.control_lock:
            await self.control.send_all(b"%s %d\n" % (number, proxy))
        await done.wait()


async def run_server(address: str, both: str, proxies: list[str]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    server = Server()
    host, _, port = address.rpartition(":")
    async with trio.open_nursery() as nursery:

        async def serve_channel(stream: trio.SocketStream) -> None:
            await server.serve_channel(stream, context)

        listeners = await trio.open_tcp_listeners(int(port), host=host, backlog=4096)
        nursery.start_soon(trio.serve_listeners, serve_channel, listeners)
        for index, proxy in enumerate(proxies):

            async def serve_visitor(stream: trio.SocketStream, index: int = index) -> None:
                await server.serve_visitor(stream, index)

            public = await trio.open_tcp_listeners(int(proxy.partition("=")[0]), host="127.0.0.1", backlog=4096)
            nursery.start_soon(trio.serve_listeners, serve_visitor, public)


async def run_client(address: str, cert: str, proxies: list[str]) -> None:
    context = ssl.create_default_context(cafile=cert)
    host, _, port = address.rpartition(":")

    async def dial() -> trio.SSLStream[trio.SocketStream]:
        stream = await trio.open_tcp_stream(host, int(port))
        return trio.SSLStream(stream, context, server_hostname=NAME, https_compatible=True)

    async def serve_visitor(number: bytes, target: str) -> None:
        try:
            target_host, _, target_port = target.rpartition(":")
            plain = await trio.open_tcp_stream(target_host, int(target_port))
            secured = await dial()
            await secured.send_all(number + b"\n")
        except (OSError, trio.BrokenResourceError):
            return
        await relay(plain, secured)

    targets = [proxy.partition("=")[2] for proxy in proxies]
    control = await dial()
    await control.send_all(b"control\n")
    async with trio.open_nursery() as visitors:
        while True:
            number, _, index = (await read_line(control)).partition(b" ")
            visitors.start_soon(serve_visitor, number, targets[int(index)])


if __name__ == "__main__":
    _, end, address, certificate, *proxies = sys.argv
    trio.run({"server": run_server, "client": run_client}[end], address, certificate, proxies)
