"""Routes without sockets: what a route asks of a stream, and targets that a script answers for, in virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, evolve, field

from tunnel.addresses import HostPort, Target, parse_target
from tunnel.client.routes import RouteTable
from tunnel.client.targets import ProxyRoute
from tunnel.config import HOT_TARGETS, ProxyConfig
from tunnel.faults import Phase
from tunnel.frames import Abort

DIAL_SECONDS = 10.0
Meeting = float | Exception  # seconds until it answers, or how it fails


def proxy(name: str, *targets: str | Target, **changes: Any) -> ProxyConfig:
    wanted = [parse_target(target) if isinstance(target, str) else target for target in targets]
    return ProxyConfig(name, HostPort("0.0.0.0", 8001), tuple(wanted or [Target("tcp", "127.0.0.1", 80)]), **changes)


def hot(number: int, **changes: Any) -> dict[str, Any]:
    """So many connections are kept ready."""
    return {"pool": evolve(HOT_TARGETS, min=number, age_jitter=0.0, **changes)}


class Engine:
    woken = 0

    def wake(self) -> None:
        self.woken += 1

    def wall(self, stream: "Stream", exc: Exception) -> None:
        stream.end("wall", type(exc).__name__)


class Stream:
    """What a route asks of a stream. `asked` is what became of it, and when."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.session = self
        self.engine = Engine()
        self.alive = True
        self.dialling: trio.CancelScope | None = None
        self.lease: Any = None
        self.connection: Any = None
        self.over = trio.Event()

    def end(self, *what: Any) -> None:
        self.asked.append(what)
        self.over.set()

    def dial(self, family: int, address: object) -> bool:
        self.end("dial", family, address)
        return True

    def connected(self, connection: object, entry: object = None) -> None:
        self.connection = connection
        self.end("connected", trio.current_time())

    def refuse(self, reason: Abort) -> None:
        self.end("refuse", reason, trio.current_time())

    def leave(self) -> None:
        """The visitor goes, as `tunnel.relay.stream` does it."""
        self.alive = False
        if self.dialling is not None:
            self.dialling.cancel()
        if self.lease is not None:
            self.lease.release()


@define(eq=False)
class Connection:
    """Stands in for `TargetConnection`."""

    target: str
    is_dead: bool = False
    closed: int = 0
    users: int = 0
    stream: Stream | None = None

    def peek(self) -> str | None:
        return "ended" if self.is_dead else None

    def hand_over(self, stream: Stream) -> None:
        assert self.stream is None, "it is used twice"
        assert not self.closed
        self.stream = stream
        stream.connected(self)

    def close(self) -> None:
        self.closed += 1


@define(eq=False)
class Targets:
    """`meets` tells by target what its dials meet in their order, the last one again and again; at once by default."""

    meets: dict[str, list[Meeting]] = field(factory=dict)
    dials: list[tuple[float, str]] = field(factory=list)
    connections: list[Connection] = field(factory=list)
    dialling: int = 0
    most_dialling: int = 0

    async def open(self, target: Target, enter: Callable[[Phase], None]) -> Connection:
        name = str(target)
        self.dials.append((round(trio.current_time(), 6), name))
        steps = self.meets.get(name, [0.0])
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        self.dialling += 1
        self.most_dialling = max(self.most_dialling, self.dialling)
        try:
            await trio.sleep(0.0 if isinstance(step, Exception) else step)
        finally:
            self.dialling -= 1
        if isinstance(step, Exception):
            raise step
        self.connections.append(Connection(name))
        return self.connections[-1]

    @property
    def dialled(self) -> list[str]:
        return [name for _, name in self.dials]

    @property
    def unused(self) -> list[Connection]:
        """Open, and nobody's."""
        return [one for one in self.connections if one.stream is None and not one.closed]


@asynccontextmanager
async def published(*proxies: ProxyConfig) -> AsyncIterator[RouteTable]:
    """Their routes, running; what is hot is ready. At the end no unused connection may be left."""
    routes = RouteTable(proxies, dial_seconds=DIAL_SECONDS)
    async with trio.open_nursery() as nursery:
        await nursery.start(routes.run)
        yield routes
        nursery.cancel_scope.cancel()


async def visit(route: ProxyRoute) -> Stream:
    """A visitor, once it is connected or refused."""
    stream = Stream()
    route.dial(stream)  # type: ignore[arg-type]
    await stream.over.wait()
    return stream


def begin(route: ProxyRoute) -> Stream:
    """A visitor that has just come."""
    stream = Stream()
    route.dial(stream)  # type: ignore[arg-type]
    return stream
