"""One session at the client: the control channel's nursery, its data channels, and what the server says meanwhile.

`run` ends when the session does, and raises why: `PeerLost`, `Refused`, `RemoteProtocolError`, or returns the server's
`Goodbye`. By then all that belonged to the session is gone: streams, channels, dials, checks.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio
from attrs import field, frozen

from tunnel.client.channels import Channels, Tickets
from tunnel.client.checks import Checks
from tunnel.client.control_place import keep_control_placed
from tunnel.client.dialer import Dialer, Reached, Turns
from tunnel.client.resolver import Resolver, ServerAddress
from tunnel.client.routes import RouteTable
from tunnel.config import ClientConfig
from tunnel.control import ControlChannel, open_client_control
from tunnel.control_line import ControlLine, open_line
from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.heartbeat import keep_beating
from tunnel.messages import (
    ATTACH,
    PROTOCOL_VERSION,
    SILENCE,
    ChannelsSilent,
    ControlMoved,
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProxyStatusUpdate,
    RetryProxy,
    TicketRequest,
    Welcome,
)
from tunnel.messages import (
    Tickets as TicketsMessage,
)
from tunnel.pool.figures import Figures
from tunnel.protocol import HEARD_BY_CLIENT, Law
from tunnel.relay import Engine
from tunnel.version import __version__

log = logging.getLogger(__name__)

WELCOME_SECONDS = 10.0
WRITE_SECONDS = 30.0  # for one message; a server that does not read for so long is gone
WITHDRAW_SECONDS = 5.0  # for the word that the listeners are closed; a server that is away will not say it
MAX_OUTBOX = 4096  # messages waiting: health of a thousand proxies, a few times over
HEARTBEAT_SECONDS = (0.05, 60.0)  # what we let a server ask of us


@frozen
class Identity:
    """Who we are to the server: the secret, this process, and which of its sessions this is."""

    token: str = field(repr=False)
    instance: str
    epoch: int

    def headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Trio-Tunnel-Instance": self.instance,
            "Trio-Tunnel-Epoch": str(self.epoch),
        }


class ClientSession:
    """`connected` is called with the server's Welcome, `heard` with each status, in order, `drained` (with why) when
    the server takes no new visitors any more."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        dialer: Dialer,
        resolver: Resolver,
        turns: Turns,
        engine: Engine,
        routes: RouteTable,
        figures: Figures,
        connected: Callable[[Welcome], None],
        heard: Callable[[ProxyStatusUpdate], None],
        drained: Callable[[str], None],
    ) -> None:
        self._config = config
        self._dialer = dialer
        self._resolver = resolver
        self._turns = turns
        self._engine = engine
        self._routes = routes
        self._figures = figures
        self._connected = connected
        self._heard = heard
        self._drained = drained
        self.control_at: ServerAddress | None = None  # where the control channel goes, from `run` on
        self._line: ControlLine  # likewise
        self._identity: Identity  # likewise
        self._welcome: Welcome | None = None
        self._law = Law(HEARD_BY_CLIENT)
        self._outbox: deque[Message] = deque()
        self._wake = trio.Event()
        self._last_heard = 0.0
        self._beats = self._answered = 0
        self._was_answered = trio.Event()
        self._tickets: Tickets | None = None
        self.channels: Channels | None = None
        self._nursery: trio.Nursery | None = None  # while in session
        self._closing = trio.CancelScope()
        self._closed_because = ""
        self._checks = Checks(self.say)
        self.relay = engine.attach(route=routes.find)

    async def run(self, reached: Reached, identity: Identity) -> Goodbye:
        """Be in session over the connection reached until it ends; closes it."""
        try:
            self._identity = identity
            self.control_at = reached.address
            async with open_line(self._opening(reached)) as self._line:
                with self.relay:
                    with self._closing:
                        return await self._serve(reached.address)
                    if self._welcome is not None:
                        await self.say_goodbye(self._closed_because)
                    return Goodbye(Farewell.STOPPING, self._closed_because)
        except BaseExceptionGroup as group:
            raise _only_cause(group) from group

    def close(self, why: str) -> None:
        """End it now, with a goodbye; `run` returns one that means: come back."""
        self._closed_because = why
        self._closing.cancel(reason=why)

    def _opening(self, reached: Reached, **more: str) -> AbstractAsyncContextManager[ControlChannel]:
        headers = {**self._identity.headers(), **more}
        return open_client_control(reached.stream, host=str(reached.address.server), path="/control", headers=headers)

    async def _serve(self, address: ServerAddress) -> Goodbye:
        with trio.move_on_after(WELCOME_SECONDS) as waiting:
            await self._line.send(Hello(PROTOCOL_VERSION, __version__, (SILENCE,)))
            welcome = await self._receive()
        if waiting.cancelled_caught:
            raise PeerLost("the server did not answer the greeting", answered=True)
        if isinstance(welcome, Goodbye):
            return welcome
        assert isinstance(welcome, Welcome)
        self._welcome = welcome
        self._tickets = Tickets(welcome.tickets, lambda count: self.say(TicketRequest(count)))
        self.channels = Channels(
            self._config.data_channels,
            dialer=self._dialer,
            tickets=self._tickets,
            relay=self.relay,
            control_at=lambda: self.control_at,
            figures=self._figures,
        )
        self._connected(welcome)
        async with trio.open_nursery() as nursery:
            try:
                self.say(self._routes.next_set())
                nursery.start_soon(self._write, name="control writer")
                nursery.start_soon(self._beat, _within(welcome.heartbeat_seconds, HEARTBEAT_SECONDS), name="heartbeat")
                nursery.start_soon(self.channels.run, name="data channels")
                nursery.start_soon(self._follow_addresses, self.channels, name="server's addresses")
                nursery.start_soon(self._keep_control_placed, address, name="control channel's place")
                self._nursery = nursery
                self._checks.keep(self._routes.routes.values(), nursery)
                goodbye = await self._read()
                nursery.cancel_scope.cancel(reason="the server said goodbye")
            finally:
                self._nursery = None
                self._was_answered.set()
        return goodbye

    # Addresses

    def apply(self, config: ClientConfig) -> None:
        """Other data channels from now on."""
        self._config = config
        if self.channels is not None:
            self.channels.apply(config.data_channels)

    async def _follow_addresses(self, channels: Channels) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._resolver.keep, lambda: self._config.resolve_seconds, name="look-ups")
            while True:
                changed = self._resolver.changed  # before the look: a change after this line sets *this* event
                channels.use(self._resolver.addresses)
                await changed.wait()

    async def _keep_control_placed(self, address: ServerAddress) -> None:
        await keep_control_placed(
            address, self.change_control, turns=self._turns, resolver=self._resolver,
            config=lambda: self._config.data_channels,
        )  # fmt: skip

    @property
    def control_peer(self) -> str:
        """The server's address that the control channel goes to, ``host:port``; empty before `run`."""
        return self._line.peer if self._welcome is not None else ""

    async def change_control(self, reached: Reached) -> None:
        """Move the control channel to another connection to this server; visitors and streams do not notice.

        Returns once the server has followed; the connection is the session's from the call on. Raises `Refused` or
        `PeerLost` when the change came to nothing: the session goes on with the channel it has, unless that was lost,
        which `run` tells. If cancelled while the new channel is being opened, it is given up; later, it ends in the
        background.
        """
        welcome, problem = self._welcome, self._unchangeable()
        if problem is not None or welcome is None:
            reached.close()
            raise problem or PeerLost("there was no greeting yet")
        await self._line.change_to(self._opening(reached, **{"Trio-Tunnel-Session": welcome.session}))
        self.control_at = reached.address

    def _unchangeable(self) -> Refused | PeerLost | None:
        """Why the control channel cannot be changed now."""
        if self._welcome is None or self._nursery is None:
            return PeerLost("there is no session whose control channel could be changed")
        if ATTACH not in self._welcome.features:
            return Refused("attach_unsupported", "the server is too old to change the control channel", trust=False)
        if self._line.is_changing:
            return Refused("attach_under_way", "the control channel is being changed already", trust=False)
        return None

    # Hearing

    async def _receive(self) -> Message:
        message = await self._line.receive()
        self._last_heard = trio.current_time()
        self._law.heard(message)
        return message

    async def _read(self) -> Goodbye:
        while True:
            match await self._receive():
                case Heartbeat(seq):
                    self.say(HeartbeatReply(seq))
                case HeartbeatReply(seq):
                    self._answered = seq
                    self._was_answered.set()
                    self._was_answered = trio.Event()
                case ProxyStatusUpdate() as update:
                    self._heard(update)
                case TicketsMessage(tickets):
                    if self._tickets is not None:
                        self._tickets.add(tickets)
                case ChannelsSilent():
                    if self.channels is not None:
                        self.channels.doubt()
                case ControlMoved():
                    await self._line.follow()
                case Goodbye(Farewell.DRAINING) as goodbye:
                    log.info("the server is stopping; visitors inside may finish")
                    self._drained("the server is stopping; visitors inside may finish")
                    await self._watch_end()
                    return goodbye
                case Goodbye() as goodbye:
                    return goodbye
                case other:
                    raise RemoteProtocolError(f"{type(other).__name__} is the client's word")

    async def _watch_end(self) -> None:
        """The server drains: stay until it ends the session. It alone knows of visitors that are on their way here."""
        try:
            while True:
                message = await self._line.receive()
                self._last_heard = trio.current_time()
                if isinstance(message, ControlMoved):
                    await self._line.follow()
        except (PeerLost, RemoteProtocolError):
            return

    # Saying

    def say(self, message: Message) -> None:
        """Queue a message for the server. `PeerLost` when the server has stopped reading."""
        if len(self._outbox) >= MAX_OUTBOX:
            raise PeerLost("the server does not read its control channel", answered=True)
        self._outbox.append(message)
        self._wake.set()
        self._wake = trio.Event()

    def retry(self, name: str) -> None:
        self.say(RetryProxy(name))

    def publish(self) -> None:
        """The routes have changed: tell the server; what stayed as it is is not touched."""
        if self._nursery is not None:
            self.say(self._routes.next_set())
            self._checks.keep(self._routes.routes.values(), self._nursery)

    async def withdraw(self) -> None:
        """Publish nothing any more: the listeners close, visitors inside go on. Returns once all inside are known here,
        or the server is silent.

        The caller holds the deadline.
        """
        self.say(self._routes.empty_set())
        self._say_beat()
        mine = self._beats  # its answer: the listeners are closed
        with trio.move_on_after(WITHDRAW_SECONDS):
            while self._answered < mine and self._nursery is not None:
                await self._was_answered.wait()
        await trio.sleep(
            max((channel.round_trip for channel in self.relay.channels), default=0.0)
        )  # for the last OPENs

    async def say_goodbye(self, why: str = "the client is stopping") -> None:
        """Our last word."""
        with trio.move_on_after(1.0, shield=True):
            try:
                await self._line.send(Goodbye(Farewell.STOPPING, why))
            except PeerLost:
                pass  # they went first

    async def _write(self) -> None:
        while True:
            wake = self._wake  # before the look: what is added after it sets this very event
            while self._outbox:
                with trio.move_on_after(WRITE_SECONDS) as writing:
                    await self._line.send(self._outbox.popleft())
                if writing.cancelled_caught:
                    raise PeerLost("the server does not read its control channel", answered=True)
            await wake.wait()

    async def _beat(self, seconds: float) -> None:
        silent = await keep_beating(seconds, beat=self._say_beat, heard=lambda: self._last_heard)
        raise PeerLost(f"the server was silent for {silent:.0f} s", answered=True)

    def _say_beat(self) -> None:
        self._beats += 1
        self.say(Heartbeat(self._beats))


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _only_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Why a session's nursery ended: what the peer did explains more than what followed from it."""
    leaves: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        exc = queue.pop()
        if isinstance(exc, BaseExceptionGroup):
            queue.extend(exc.exceptions)
        else:
            leaves.append(exc)
    for kind in (RemoteProtocolError, Refused, PeerLost):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0] if len(leaves) == 1 else group
