"""Hot connections over real sockets and a real relay: banners, services that hang up, and leases that end."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from dial_rig import trusted_service
from relay_rig import POLLERS, Rig, open_rig, quiet, read_exactly, read_to_end, reset_now, saw_reset, until

from tunnel.addresses import HostPort, Target
from tunnel.client import target_pool
from tunnel.client.targets import ProxyRoute
from tunnel.config import HOT_TARGETS, ProxyConfig
from tunnel.frames import Abort

Serve = Callable[[trio.abc.Stream], Awaitable[None]]
BANNER = b"220 ready when you are\r\n"


class Service:
    """On loopback, over TLS if there is a context; `connections` are those it has."""

    def __init__(self, serve: Serve, context: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._context = context
        self.accepted = 0
        self.served = 0
        self.connections: list[trio.SocketStream] = []

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, quiet(self._handle), 0)
            task_status.started(listeners[0].socket.getsockname()[1])

    async def _handle(self, raw: trio.SocketStream) -> None:
        self.accepted += 1
        self.connections.append(raw)
        try:
            stream: Any = raw
            if self._context is not None:
                stream = trio.SSLStream(raw, self._context, server_side=True)
                await stream.do_handshake()
            async with stream:
                self.served += 1
                await self._serve(stream)
        except trio.ClosedResourceError:
            pass  # by the test
        finally:
            self.connections.remove(raw)


@asynccontextmanager
async def published(
    service: Service, *, hot: int, kind: str = "tcp", targets: int = 1
) -> AsyncIterator[tuple[Rig, ProxyRoute]]:
    """A relay that takes visitors to `service`; what is to be hot is."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(service.run)
        where = HostPort("127.0.0.1", port)
        wanted = [Target(kind, "service.example", number, connect_to=where) for number in range(1, targets + 1)]
        config = ProxyConfig("web", HostPort("0.0.0.0", 1), tuple(wanted), pool=evolve(HOT_TARGETS, min=hot))
        route = ProxyRoute(config, dial_seconds=10.0)
        async with trio.open_nursery() as tasks, open_rig(POLLERS[0], route) as rig:
            route.start(tasks)
            await until(lambda: ready(route) >= hot and service.served >= hot)
            yield rig, route
            route.stop()
            tasks.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def ready(route: ProxyRoute) -> int:
    assert route.pool is not None
    return route.pool.stats()["states"]["available"]


def figures(route: ProxyRoute) -> dict[str, Any]:
    assert route.pool is not None
    return route.pool.stats()


@pytest.fixture(autouse=True)
def all_hang_ups_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_pool, "BRIEF_SECONDS", 0.0)


@pytest.fixture(params=["tcp", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_service(kind: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Serve], Service]:
    context = trusted_service("service.example", monkeypatch) if kind == "tls" else None
    return lambda serve: Service(serve, context)


async def greet_and_echo(stream: trio.abc.Stream) -> None:
    await stream.send_all(BANNER)
    while data := await stream.receive_some(1000):
        await stream.send_all(data)


async def test_what_a_service_said_before_its_visitor_came_reaches_the_visitor_whole(
    kind: str, make_service: Callable[[Serve], Service]
) -> None:
    service = make_service(greet_and_echo)
    async with published(service, hot=2, kind=kind) as (rig, route):
        await trio.sleep(0.02)  # the banners are there
        for _ in range(4):
            async with await rig.visit() as visitor:
                await visitor.send_all(b"EHLO")
                assert await read_exactly(visitor, len(BANNER) + 4) == BANNER + b"EHLO"
        assert figures(route)["hits"] >= 2


async def test_a_long_greeting_is_whole_too(kind: str, make_service: Callable[[Serve], Service]) -> None:
    greeting = bytes(range(256)) * 2000

    async def greet(stream: trio.abc.Stream) -> None:
        await stream.send_all(greeting)
        await stream.receive_some(1)

    async with published(make_service(greet), hot=1, kind=kind) as (rig, _):
        await trio.sleep(0.02)
        async with await rig.visit() as visitor:
            assert await read_exactly(visitor, len(greeting)) == greeting


@pytest.mark.parametrize("says", [b"", BANNER], ids=["silently", "after a banner"])
async def test_one_whose_service_hung_up_is_dropped_and_the_visitor_gets_another_at_once(
    says: bytes, kind: str, make_service: Callable[[Serve], Service]
) -> None:
    hang_up = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        if not hang_up.is_set():
            if says:
                await stream.send_all(says)
            await hang_up.wait()
        else:
            await greet_and_echo(stream)

    service = make_service(serve)
    async with published(service, hot=3, kind=kind) as (rig, route):
        hang_up.set()
        await until(lambda: not service.connections)
        began = trio.current_time()
        async with await rig.visit() as visitor:
            assert await read_exactly(visitor, len(BANNER)) == BANNER
        assert trio.current_time() - began < 0.5
        assert figures(route)["retired"]["dead"] == 3


async def test_one_whose_service_reset_it_is_dropped_too(kind: str, make_service: Callable[[Serve], Service]) -> None:
    service = make_service(greet_and_echo)
    async with published(service, hot=2, kind=kind) as (rig, route):
        await until(lambda: len(service.connections) == 2)
        for raw in list(service.connections):
            reset_now(raw)
        async with await rig.visit() as visitor:
            assert await read_exactly(visitor, len(BANNER)) == BANNER
        assert figures(route)["retired"]["dead"] == 2


async def test_each_visitor_has_a_connection_of_its_own(kind: str, make_service: Callable[[Serve], Service]) -> None:
    service = make_service(greet_and_echo)
    async with published(service, hot=2, kind=kind) as (rig, route):
        for _ in range(5):
            async with await rig.visit() as visitor:
                await read_exactly(visitor, len(BANNER))
        await until(lambda: ready(route) == 2 and service.accepted == 7)
        assert figures(route)["reuse"] == 0


async def visitor_ends(visitor: trio.SocketStream, service: Service, rig: Rig) -> None:
    await visitor.send_eof()
    assert await read_to_end(visitor) == b""


async def visitor_vanishes(visitor: trio.SocketStream, service: Service, rig: Rig) -> None:
    reset_now(visitor)


async def service_vanishes(visitor: trio.SocketStream, service: Service, rig: Rig) -> None:
    for raw in list(service.connections):
        reset_now(raw)
    assert await saw_reset(visitor)


async def channel_is_lost(visitor: trio.SocketStream, service: Service, rig: Rig) -> None:
    rig.client.channels[0].lost("cut")
    assert await saw_reset(visitor)


async def session_ends(visitor: trio.SocketStream, service: Service, rig: Rig) -> None:
    rig.client.close()
    assert await saw_reset(visitor)


ENDS = [visitor_ends, visitor_vanishes, service_vanishes, channel_is_lost, session_ends]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_a_lease_ends_with_its_stream_whatever_ends_that(
    end: Callable[..., Awaitable[None]], kind: str, make_service: Callable[[Serve], Service]
) -> None:
    async with published(service := make_service(greet_and_echo), hot=1, kind=kind) as (rig, route):
        visitor = await rig.visit()
        await read_exactly(visitor, len(BANNER))
        assert figures(route)["lent"] == 1
        await end(visitor, service, rig)
        await until(lambda: figures(route)["lent"] == 0)
        await visitor.aclose()


async def test_a_service_that_speaks_no_tls_is_refused_within_a_tenth_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusted_service("service.example", monkeypatch)

    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with published(Service(serve), hot=0, kind="tls") as (rig, route):
        began = trio.current_time()
        async with await rig.visit() as visitor:
            assert await saw_reset(visitor)
        assert trio.current_time() - began < 0.25
        await until(lambda: route.tally.refused == {Abort.DIAL_FAILED.name.lower(): 1})


async def test_a_stopped_route_closes_its_unused_connections_and_no_others(
    kind: str, make_service: Callable[[Serve], Service]
) -> None:
    service = make_service(greet_and_echo)
    async with published(service, hot=3, kind=kind) as (rig, route), await rig.visit() as visitor:
        await read_exactly(visitor, len(BANNER))
        await until(lambda: len(service.connections) == 4)
        route.stop()
        await until(lambda: len(service.connections) == 1)
        await visitor.send_all(b"still here")
        assert await read_exactly(visitor, 10) == b"still here"


@pytest.mark.parametrize("ready", [0, 2])
async def test_a_service_that_speaks_and_hangs_up_at_once_is_heard_to_its_end(
    ready: int, kind: str, make_service: Callable[[Serve], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """daytime and its like: by the time a connection is looked at, all it had to say may be there, the end too."""
    opened = target_pool.open_connection

    async def open_slowly(*args: Any) -> target_pool.TargetConnection:
        connection = await opened(*args)
        try:
            await trio.sleep(0.02)
        except BaseException:
            connection.close()
            raise
        return connection

    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(BANNER)

    monkeypatch.setattr(target_pool, "open_connection", open_slowly)
    monkeypatch.setattr(target_pool, "BRIEF_SECONDS", 1.0)
    async with published(make_service(serve), hot=ready, kind=kind, targets=2) as (rig, route):
        for _ in range(3):
            async with await rig.visit() as visitor:
                assert await read_to_end(visitor) == BANNER
        assert (route.tally.refused, figures(route)["failures"]) == ({}, {})


async def test_one_that_said_something_and_hung_up_long_ago_is_dropped(
    kind: str, make_service: Callable[[Serve], Service]
) -> None:
    """What it said was its farewell to somebody who did not come in time, a 408 perhaps."""
    farewell = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        if farewell.is_set():
            await greet_and_echo(stream)
        else:
            await farewell.wait()
            await stream.send_all(b"too late")

    service = make_service(serve)
    async with published(service, hot=1, kind=kind) as (rig, route):
        farewell.set()
        await until(lambda: not service.connections)
        async with await rig.visit() as visitor:
            assert await read_exactly(visitor, len(BANNER)) == BANNER
        assert figures(route)["retired"]["dead"] == 1
