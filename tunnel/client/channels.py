"""The client's data channels: a pool over every address of the server, sized by visitors, replaced one by one."""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio
from attrs import evolve

from tunnel.client.dialer import Dialer
from tunnel.client.resolver import ServerAddress
from tunnel.config import PoolConfig
from tunnel.errors import PeerLost
from tunnel.faults import Phase
from tunnel.pool import Place, Pool, Unavailable, Use
from tunnel.pool.figures import Figures
from tunnel.pool.renewal import keep_running
from tunnel.relay import Channel, RelaySession
from tunnel.upgrade import request_upgrade

log = logging.getLogger(__name__)

TICKET_SECONDS = 6.0  # a ticket is good for 10 s at the server; the rest is for the way there
MAX_TICKETS = 64  # kept, the newest: one for each channel there can be
STREAMS_PER_CHANNEL = 256  # with more, another is opened while there may be one: a lost packet then stalls fewer
RETIRE_SECONDS = 120.0  # for the streams of a retired channel to move to others; then they are cut
URGENT_SECONDS = 5.0  # between openings that no quarantine holds up; what ends sooner is no accident
ARRIVALS_SECONDS = 1.0  # between looks at how many visitors came
ANSWER_SECONDS = 0.5  # a channel's time to answer when the server, which has waited as long, hears nothing on any
ANSWER_ROUND_TRIPS = 3  # or so many, on a long path
LONG_PATH_SECONDS = 0.04  # a round trip: the path is long
LONG_PATH_CHANNELS = 4  # ten first packets each (RFC 6928): some 35 of a sudden crowd in the first round trip, measured


class Tickets:
    """Tickets at hand, and who waits for one. `ask` sends a request for so many over the control channel."""

    def __init__(self, first: tuple[str, ...], ask: Callable[[int], None]) -> None:
        self._tickets: deque[tuple[str, float]] = deque(maxlen=MAX_TICKETS)  # a server may send as many as it likes
        self._ask = ask
        self._arrived = trio.Event()
        self.add(first)

    def add(self, tickets: tuple[str, ...]) -> None:
        self._tickets.extend((ticket, trio.current_time() + TICKET_SECONDS) for ticket in tickets)
        self._arrived.set()
        self._arrived = trio.Event()

    async def take(self) -> str:
        """A fresh ticket, asked for if there is none. The caller holds the deadline."""
        asked = False
        while True:
            while self._tickets:
                ticket, expires = self._tickets.popleft()
                if expires > trio.current_time():
                    return ticket
            if not asked:
                asked = True
                self._ask(1)
            await self._arrived.wait()


class DataChannel:
    """A relay's channel as its pool sees it: shared by the streams that the server puts on it."""

    def __init__(self, lost: "Callable[[DataChannel, str], None]", retire: "Callable[[DataChannel], None]") -> None:
        self.channel: Channel  # from the moment the relay has it
        self.ended = trio.Event()
        self._why = ""
        self._lost = lost
        self._retire = retire

    def on_lost(self, why: str) -> None:
        """The relay's last word."""
        log.debug("data channel ended: %s", why)
        self._why = why
        self.ended.set()
        self._lost(self, why)

    def peek(self) -> str | None:
        return self._why if self.ended.is_set() else None

    @property
    def users(self) -> int:
        return self.channel.users

    def close(self) -> None:
        """Its streams move to the other channels, then it ends."""
        if not self.ended.is_set():
            self._retire(self)


class Channels:
    """The data channels of one session. `run` keeps them; leaving `relay` closes them. `figures` outlive it."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        dialer: Dialer,
        tickets: Tickets,
        relay: RelaySession,
        control_at: Callable[[], ServerAddress | None],
        figures: Figures,
    ) -> None:
        self._figures = figures
        self.pool = self._make_pool(config)
        self._dialer = dialer
        self._tickets = tickets
        self._relay = relay
        self._control_at = control_at  # where the control channel goes: an address that is well
        self._addresses: tuple[ServerAddress, ...] = ()
        self._bereft = trio.Event()  # no channel is left
        self._doubted = trio.Event()  # the server hears nothing
        self._opened: set[DataChannel] = set()  # until they end
        self._is_long_path = False
        self._tasks: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._run_pool, name="data channels")
                self._tasks.start_soon(self._count_arrivals, name="arrivals")
                self._tasks.start_soon(self._keep_one, name="the last data channel")
                self._tasks.start_soon(self._replace_silent, name="silent data channels")
        finally:
            self._tasks = None

    def _make_pool(self, config: PoolConfig) -> Pool[ServerAddress, DataChannel]:
        use = Use(open=self._open, validate=self._validate, capacity=STREAMS_PER_CHANNEL)
        return Pool(use, config, name="data channels", figures=self._figures)

    async def _run_pool(self) -> None:
        await keep_running(self.pool, self._renew_pool, whose="data channels")

    def _renew_pool(self) -> Pool[ServerAddress, DataChannel]:
        self.pool = self._make_pool(self.pool.rules.config)
        self.use(self._addresses)
        return self.pool

    def apply(self, config: PoolConfig) -> None:
        """Other figures from now on."""
        self.pool.apply(self._fitting(config))

    def _fitting(self, config: PoolConfig) -> PoolConfig:
        """`min` for the path there is: far away a crowd needs more channels, for TCP begins slowly on each."""
        least = min(LONG_PATH_CHANNELS, config.max) if self._is_long_path else 0
        return evolve(config, min=max(config.min, least))

    async def _validate(self, one: DataChannel) -> None:
        await _answers(one)
        if one.channel.round_trip >= LONG_PATH_SECONDS and not self._is_long_path:
            self._is_long_path = True
            self.apply(self.pool.rules.config)

    def use(self, addresses: Iterable[ServerAddress]) -> None:
        """Be connected to exactly these; streams move away from others."""
        here = self._control_at()
        self._addresses = tuple(sorted(addresses, key=lambda address: address != here))
        self.pool.list_places(map(Place, self._addresses))

    async def _open(self, address: ServerAddress, enter: Callable[[Phase], None]) -> DataChannel:
        stream = await self._dialer.dial(address, enter)
        try:
            ticket = await self._tickets.take()
            headers = {"Authorization": f"Bearer {ticket}", "Trio-Tunnel-Place": address.place}
            stream.push_back(await request_upgrade(stream, str(address.server), "/data", headers))
            # No await until the relay has it: a cancel here would orphan the connection.
            opened = DataChannel(self._lost, self._retire)
            opened.channel = self._relay.add_channel(
                stream.detach(), masks=True, on_lost=opened.on_lost, place=str(address)
            )
        except BaseException:
            with suppress(trio.ClosedResourceError):
                stream.close()
            raise
        if not opened.ended.is_set():
            self._opened.add(opened)
        return opened

    def _lost(self, one: DataChannel, why: str) -> None:
        self._opened.discard(one)
        self.pool.lost(one, why)
        if not self._relay.channels:
            self._bereft.set()

    async def _keep_one(self) -> None:
        """When the last channel is lost visitors wait, and no quarantine may: the control channel's address is well."""
        while True:
            await self._bereft.wait()
            here = self._control_at()
            with suppress(Unavailable):  # the pool tries on
                (await self.pool.take("visitors who wait", here if here in self._addresses else None)).release()
            await trio.sleep(URGENT_SECONDS)
            if self._relay.channels:
                self._bereft = trio.Event()

    def doubt(self) -> None:
        """The server has put visitors on all channels, and hears nothing. Where it is right, there will be others."""
        self._doubted.set()

    async def _replace_silent(self) -> None:
        """No stream is cut for it: a channel that answers after all gives its own away to the others."""
        while True:
            await self._doubted.wait()
            async with trio.open_nursery() as asking:
                for one in self._opened:  # nothing is started before the loop is over
                    if not one.channel.is_retiring:
                        asking.start_soon(self._replace_if_silent, one)
            await trio.sleep(ARRIVALS_SECONDS)
            self._doubted = trio.Event()

    async def _replace_if_silent(self, one: DataChannel) -> None:
        seconds = max(ANSWER_SECONDS, ANSWER_ROUND_TRIPS * one.channel.round_trip)
        with trio.move_on_after(seconds) as waiting, suppress(PeerLost):
            await _answers(one)
        if waiting.cancelled_caught:
            log.warning("a data channel does not answer within %.1f s; it is replaced", seconds)
            self.pool.lost(one, "no answer")
            self._bereft.set()  # it may be the last one that the server could use

    def _retire(self, one: DataChannel) -> None:
        if one.channel.is_proven and self._tasks is not None:
            self._relay.retire(one.channel)
            self._tasks.start_soon(self._cut_late, one, name="retiring data channel")
        else:
            one.channel.close()

    async def _cut_late(self, one: DataChannel) -> None:
        """A server that does not take its streams away has had its time; there must have been somewhere to go, though:
        addresses that are new may not answer, and the old ones serve until one does."""
        while True:
            had_refuge = self._has_refuge
            with trio.move_on_after(RETIRE_SECONDS):
                await one.ended.wait()
                return
            if had_refuge and self._has_refuge:
                one.channel.close()
                return

    @property
    def _has_refuge(self) -> bool:
        return any(not channel.is_retiring for channel in self._relay.channels)

    async def _count_arrivals(self) -> None:
        """The server puts visitors on channels without asking the pool; it has to know how many there are."""
        counted = self._relay.opened_total
        while True:
            await trio.sleep(ARRIVALS_SECONDS)
            came, counted = self._relay.opened_total - counted, self._relay.opened_total
            if came:
                self.pool.arrived(came)


async def _answers(one: DataChannel) -> None:
    """A nonce goes there and back."""
    await (one.channel.echo() if one.channel.is_proven else one.channel.wait_proven())
