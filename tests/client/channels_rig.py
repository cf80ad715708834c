"""A relay, a server and their addresses that are a script: what each step meets, in virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import trio
from attrs import Factory, define, evolve, field
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.client.channels import Channels, Tickets
from tunnel.client.resolver import ServerAddress
from tunnel.config import DATA_CHANNELS, PoolConfig
from tunnel.errors import PeerLost
from tunnel.faults import Phase
from tunnel.pool.figures import Figures

HOME = HostPort("home.example", 8443)
A, B, C = (ServerAddress(f"10.0.0.{number}", 8443, HOME) for number in (1, 2, 3))
HANGS = 1000.0
REFUSED = PeerLost("Connection refused", errno=111)
CONFIG = evolve(DATA_CHANNELS, min=2, min_per_address=1, age_jitter=0.0)  # figures of these tests alone

Outcome = float | Exception


@define(eq=False)
class Stream:
    """A TLS connection until it is the relay's."""

    address: ServerAddress
    is_open: bool = True
    pushed: bytes = b""

    def push_back(self, data: bytes) -> None:
        self.pushed = data

    def detach(self) -> "Stream":
        return self

    def close(self) -> None:
        self.is_open = False


@define(eq=False)
class Channel:
    """The relay's."""

    relay: "Relay"
    parts: Stream
    on_lost: Callable[[str], None]
    users: int = 0
    is_proven: bool = False
    is_retiring: bool = False
    alive: bool = True
    round_trip: float = field(default=Factory(lambda self: self.relay.world.round_trip, takes_self=True))
    closed_at: float | None = None  # by us
    echoes: int = 0

    async def wait_proven(self) -> None:
        await self.echo()
        self.is_proven = True

    async def echo(self) -> None:
        self.echoes += 1
        await self.relay.world.meet(self.relay.world.echoes, self.parts.address)
        if not self.alive:
            raise PeerLost("the channel ended", answered=True)

    def lost(self, why: str) -> None:
        if self.alive:
            self.alive = self.parts.is_open = False
            self.relay.channels.remove(self)
            self.on_lost(why)

    def close(self) -> None:
        if self.alive:
            self.closed_at = trio.current_time()
            self.lost("closed")


@define(eq=False)
class Relay:
    world: "World"
    opened_total: int = 0
    channels: list[Channel] = field(factory=list)
    retired: list[tuple[float, Channel]] = field(factory=list)

    def add_channel(self, parts: Stream, *, masks: bool, on_lost: Callable[[str], None], place: str = "") -> Channel:
        assert masks, "a client masks what it sends"
        self.channels.append(Channel(self, parts, on_lost))
        return self.channels[-1]

    def retire(self, channel: Channel) -> None:
        channel.is_retiring = True
        self.retired.append((trio.current_time(), channel))

    def come(self, visitors: int) -> None:
        """The server puts so many on the first channel."""
        self.opened_total += visitors
        self.channels[0].users += visitors

    @property
    def serving(self) -> list[str]:
        """Where those channels go that are not being left."""
        return sorted(one.parts.address.ip for one in self.channels if not one.is_retiring)


@define(eq=False)
class World:
    """What each step meets, by address; at once by default."""

    dials: dict[str, Outcome] = field(factory=dict)
    upgrades: dict[str, Outcome] = field(factory=dict)
    echoes: dict[str, Outcome] = field(factory=dict)
    dialled: list[tuple[float, str]] = field(factory=list)
    phases: list[Phase] = field(factory=list)
    streams: list[Stream] = field(factory=list)
    asked: list[tuple[str, str, str]] = field(factory=list)
    asked_tickets: list[tuple[float, int]] = field(factory=list)
    numbers: Any = field(factory=lambda: count(1))
    wanted: trio.Event = field(factory=trio.Event)
    control_at: ServerAddress = A
    round_trip: float = 0.02
    figures: Figures = field(factory=Figures)
    relay: Relay = field(init=False)
    tickets: Tickets = field(init=False)
    channels: Channels = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.relay = Relay(self)
        self.tickets = Tickets((), self.ask)
        self.make(CONFIG)

    def make(self, config: PoolConfig) -> None:
        self.channels = Channels(
            config,
            dialer=self,
            tickets=self.tickets,
            relay=self.relay,
            control_at=lambda: self.control_at,
            figures=self.figures,
        )  # type: ignore[arg-type]

    def ask(self, number: int) -> None:
        self.asked_tickets.append((trio.current_time(), number))
        self.wanted.set()

    async def give_tickets(self) -> None:
        """The server."""
        given = 0
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            for _, number in self.asked_tickets[given:]:
                self.tickets.add(tuple(f"ticket {next(self.numbers)}" for _ in range(number)))
            given = len(self.asked_tickets)

    async def meet(self, outcomes: dict[str, Outcome], address: ServerAddress) -> None:
        outcome = outcomes.get(address.ip, 0.0)
        await trio.sleep(0 if isinstance(outcome, Exception) else outcome)
        if isinstance(outcome, Exception):
            raise outcome

    async def dial(self, address: ServerAddress, enter: Callable[[Phase], None]) -> Stream:
        self.dialled.append((trio.current_time(), address.ip))
        enter(Phase.DIAL)
        await self.meet(self.dials, address)
        self.streams.append(Stream(address))
        return self.streams[-1]

    async def request_upgrade(self, stream: Stream, host: str, path: str, headers: dict[str, str]) -> bytes:
        self.asked.append((host, path, headers["Authorization"]))
        await self.meet(self.upgrades, stream.address)
        return b"already there"

    @asynccontextmanager
    async def running(self, *addresses: ServerAddress) -> AsyncIterator[Relay]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.give_tickets)
            nursery.start_soon(self.channels.run)
            self.channels.use(addresses)
            await wait_all_tasks_blocked()
            yield self.relay
            nursery.cancel_scope.cancel()

    @property
    def stats(self) -> dict[str, Any]:
        return self.channels.pool.stats()
