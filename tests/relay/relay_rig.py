"""Two relay engines in one Trio run, joined by real TLS data channels: what the tests of `tunnel.relay` stand on.

visitor ──TCP──▶ listener [server engine] ══ TLS ══▶ [client engine] ──▶ target
"""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache, partial

import trio
import trustme

from tunnel.config import Limits
from tunnel.relay import Engine, Listener, RelaySession, Stream, Tally
from tunnel.relay.poller import available
from tunnel.sockets import listen
from tunnel.tls import Detached, TlsStream

POLLERS = available()
SOON = 30.0  # seconds; a bound for what takes milliseconds, so that a hang fails


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's, as `tunnel.tls` makes them."""
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.num_tickets = 0
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    ca.configure_trust(client)
    return server, client


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: RST and buffers behave as on the wire, which they do not on a socketpair."""
    with listen("127.0.0.1", 0) as listener:
        ours = socket.create_connection(listener.getsockname())
        listener.setblocking(True)
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


async def tls_pair(
    connect: Callable[[], tuple[socket.socket, socket.socket]] = connected_pair,
) -> tuple[TlsStream, TlsStream]:
    """(server, client), hands shaken."""
    server_context, client_context = contexts()
    ours, theirs = connect()
    server = TlsStream(ours, server_context, server_side=True)
    client = TlsStream(theirs, client_context, server_side=False, server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    return server, client


class Lost(list[str]):
    """Why a channel was lost; called once."""

    def __call__(self, why: str) -> None:
        self.append(why)


class LiteralRoute:
    """Dials one literal address in the engine, as the client's plain TCP targets."""

    def __init__(self, address: object, family: int = socket.AF_INET) -> None:
        self.address, self.family = address, family
        self.tally = Tally()
        self.dialled = 0

    def dial(self, stream: Stream) -> None:
        self.dialled += 1
        stream.dial(self.family, self.address)


class SilentRoute:
    """Keeps the streams it is given: a target that is dialled elsewhere."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.streams: list[Stream] = []

    def dial(self, stream: Stream) -> None:
        self.streams.append(stream)


class Rig:
    """`server` and `client` are the relay sessions; `visit` connects to the one listener."""

    def __init__(self, server: Engine, client: Engine, nursery: trio.Nursery) -> None:
        self.server_engine, self.client_engine = server, client
        self.nursery = nursery
        self.server: RelaySession
        self.client: RelaySession
        self.listener: Listener
        self.route: LiteralRoute | SilentRoute
        self.tally = Tally()  # of the proxy at the server
        self.lost: list[tuple[Lost, Lost]] = []
        self.address: tuple[str, int] = ("", 0)

    async def add_channel(self, place: str = "") -> None:
        server, client = await tls_pair()
        ends = Lost(), Lost()
        self.lost.append(ends)
        self.server.add_channel(server.detach(), masks=False, on_lost=ends[0], place=place)
        self.client.add_channel(client.detach(), masks=True, on_lost=ends[1], place=place)

    async def add_raw_channel(self, *, side: str = "server") -> tuple[TlsStream, Lost]:
        """A data channel of `side` whose other end is ours to misuse."""
        server, client = await tls_pair()
        lost = Lost()
        if side == "server":
            self.server.add_channel(server.detach(), masks=False, on_lost=lost)
            return client, lost
        self.client.add_channel(client.detach(), masks=True, on_lost=lost)
        return server, lost

    def listen(self, host: str = "127.0.0.1") -> None:
        sock = listen(host, 0)
        self.address = sock.getsockname()[:2]
        self.listener = self.server.listen(sock, index=0, version=1, tally=self.tally, on_lost=lambda exc: None)

    async def visit(self) -> trio.SocketStream:
        """Not by `open_tcp_stream`: it takes a reset that comes at once for a failure to connect."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(socket.create_connection(self.address)))

    @property
    def engines(self) -> tuple[Engine, Engine]:
        return self.server_engine, self.client_engine


Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def start_target(nursery: trio.Nursery, handler: Handler, *, host: str = "127.0.0.1") -> tuple[str, int]:
    listeners = await nursery.start(partial(trio.serve_tcp, quiet(handler), 0, host=host))
    return listeners[0].socket.getsockname()[:2]


def quiet(handler: Handler) -> Handler:
    """A target's handler that is over when its connection breaks."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            await stream.aclose()

    return handle


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.send_eof()


@asynccontextmanager
async def open_rig(
    poller: Callable[[], object],
    target: Handler | object = echo,
    *,
    channels: int = 1,
    server_limits: Limits | None = None,
    client_limits: Limits | None = None,
    max_streams: int | None = None,
    family: int = socket.AF_INET,
    keeps_time: bool = True,
    is_alone: bool = True,
) -> AsyncIterator[Rig]:
    """`target` is a handler, an address, or a route. `is_alone` as in processes that are nothing but a tunnel's end.

    At the end everything must be gone, or this fails.
    """
    before = descriptors()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            rig = Rig(Engine(server_limits, poller=poller), Engine(client_limits, poller=poller), nursery)
            budgets = [engine.bounds.budget.free for engine in rig.engines]
            for engine in rig.engines:
                engine.is_alone = is_alone
                await nursery.start(engine.run)
                if keeps_time:
                    nursery.start_soon(keep_time, engine)
            if hasattr(target, "dial"):
                rig.route = target
            else:
                address = await start_target(nursery, target) if callable(target) else target
                rig.route = LiteralRoute(address, family)
            rig.server = rig.server_engine.attach(max_streams=max_streams)
            rig.client = rig.client_engine.attach(route=lambda index, version: rig.route if index == 0 else None)
            with rig.server, rig.client:
                rig.listen()
                for _ in range(channels):
                    await rig.add_channel()
                yield rig
            for engine, budget in zip(rig.engines, budgets, strict=True):
                assert_bare(engine, budget)
            nursery.cancel_scope.cancel()
    await until(lambda: descriptors() <= before)


async def keep_time(engine: Engine) -> None:
    """A deadline added while the engine sleeps may be a second late; the tests do not wait so long."""
    while True:
        await trio.sleep(0.02)
        engine.expire(engine.now())


def assert_bare(engine: Engine, budget: int) -> None:
    """Nothing is left of any session."""
    assert engine.sessions == set()
    assert not engine.bounds.waiting
    assert [*engine._entries.values(), *engine._arrived.values()] == [engine._wakee]
    assert [len(queue) for queue in engine._queues] == [0] * len(engine._queues)
    assert (engine.bounds.open_streams, engine.bounds.budget.free) == (0, budget)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


async def until(condition: Callable[[], bool], seconds: float = SOON) -> None:
    """Bounded polling, for what nobody tells."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)


def arrived_bytes(sock: socket.socket) -> int:
    """How many wait in the kernel to be read, as far as one look shows."""
    try:
        return len(sock.recv(1024 * 1024, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


async def read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def saw_reset(stream: trio.SocketStream, within: float = 5.0) -> bool:
    """Read until the end: True for RST, False for FIN."""
    with trio.fail_after(within):
        try:
            async for _ in stream:
                pass
        except trio.BrokenResourceError as exc:
            return isinstance(exc.__cause__, ConnectionResetError)
    return False


def reset_now(stream: trio.SocketStream) -> None:
    """Close with RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


__all__ = [
    "POLLERS", "SOON", "Detached", "LiteralRoute", "Lost", "Rig", "SilentRoute", "arrived_bytes", "assert_bare",
    "connected_pair", "contexts", "descriptors", "echo", "open_rig", "read_exactly", "read_to_end", "reset_now",
    "saw_reset", "start_target", "tls_pair", "until",
]  # fmt: skip
