"""One client's stay at the server: a nursery with one child per proxy, the control reader, writer and heartbeat.

`run` ends when the client says goodbye, is lost, breaks the protocol, or the session is closed from outside; by then
every retry, listener, stream and data channel of it is gone, and nothing else was touched.
"""

import logging
import math
import secrets
from collections.abc import Callable

import trio
from attrs import evolve

from tunnel.backoff import Policy
from tunnel.config import Grant, Limits, ServerConfig
from tunnel.control import open_server_control
from tunnel.control_line import ControlLine, open_line
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.heartbeat import keep_beating
from tunnel.messages import (
    ATTACH,
    PROTOCOL_VERSION,
    SILENCE,
    ControlMoved,
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    ProxySet,
    RetryProxy,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
)
from tunnel.protocol import HEARD_BY_SERVER, Law, Phase
from tunnel.relay import RelaySession
from tunnel.server.outbox import WRITE_SECONDS, Outbox
from tunnel.server.proxy import Proxy
from tunnel.server.published import Published
from tunnel.server.registry import Registry
from tunnel.snapshot import EventStream, SessionView, utc_now
from tunnel.tls import TlsStream
from tunnel.version import __version__

log = logging.getLogger(__name__)

FIRST_TICKETS = 4  # sent with Welcome, so that the first data channels cost no round trip more
SET_SECONDS = 0.0005  # for each proxy of a set, until the next is looked at: a set of 1,000 takes the loop about 0.1 s
ANSWER_SECONDS = 1.0  # a holder's time to prove that it lives when another process wants its identity


class Session:
    """`run` it in a task of its own; `close` it from anywhere."""

    def __init__(
        self,
        *,
        grant: Grant,
        config: ServerConfig,
        registry: "Registry[Session]",
        relay: RelaySession,
        events: EventStream,
        remember_port: Callable[[str, str, int], None] | None,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.client = grant.name
        self.relay = relay
        self.since = utc_now()
        self.ended = trio.Event()
        self._line: ControlLine  # from `run` on
        self._config = config
        self._registry = registry
        self._law = Law(HEARD_BY_SERVER)
        self._scope = trio.CancelScope()
        self._outbox = Outbox(grant.name)
        self._published = Published(
            grant, config, registry=registry, relay=relay, outbox=self._outbox, events=events,
            remember_port=remember_port,
        )  # fmt: skip
        self._last_heard = trio.current_time()
        self._next_set_at = -math.inf
        self._farewell: Goodbye | None = None
        self._known_as = ""  # the reason of our farewell, where events have a word of their own for it
        self.ended_by = "lost", ""  # reason (as in the event) and why in words; true once `ended` is set
        self._heard = trio.Event()

    @property
    def grant(self) -> Grant:
        """What the client may do, as of now."""
        return self._published.grant

    @property
    def proxies(self) -> dict[str, Proxy]:
        """Those of the client's proxy set, by name."""
        return self._published.proxies

    @property
    def bind_retry(self) -> Policy:
        """Where a proxy brings no policy of its own; counts from its next round."""
        return self._published.bind_retry

    @bind_retry.setter
    def bind_retry(self, bind_retry: Policy) -> None:
        self._published.bind_retry = bind_retry

    def limit(self, limits: Limits) -> None:
        """Other bounds from now on, save the heartbeat, which was agreed upon at the start."""
        self._config = evolve(
            self._config, limits=evolve(limits, heartbeat_seconds=self._config.limits.heartbeat_seconds)
        )
        self._published.limit(limits.max_visitors_per_proxy)

    # Lifetime

    async def run(self, stream: TlsStream) -> None:
        """Serve until the end; says goodbye if it was us who ended it. `stream` is upgraded, and closed at the end.

        When `ended` is set, its addresses, streams, channels and identity are free, whatever ended it.
        """
        try:
            async with open_line(open_server_control(stream)) as self._line:
                with self._scope:
                    await self._walled()
                self._free()
                if self._farewell is not None:
                    await self._say_last(self._farewell)
        finally:
            self._free()

    def _free(self) -> None:
        if self._farewell is not None:
            self.ended_by = self._known_as or self._farewell.reason.value, self._farewell.message
        self._published.stop("the session ended")
        self.relay.close()
        self._registry.leave(self)
        self.ended.set()

    async def _walled(self) -> None:
        try:
            await self._serve()
        except* PeerLost as lost:
            self.ended_by = "lost", str(lost.exceptions[0])
            log.info("session lost: %s", lost.exceptions[0])
        except* trio.TooSlowError:
            self.ended_by = "lost", f"client '{self.client}' was too slow"
            log.info("session lost: client '%s' was too slow", self.client)
        except* RemoteProtocolError as broken:
            log.warning("client '%s' broke the protocol: %s", self.client, broken.exceptions[0])
            self._farewell = Goodbye(Farewell.PROTOCOL_ERROR, str(broken.exceptions[0])[:500])

    async def _serve(self) -> None:
        await self._greet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outbox.write, self._line, name="control writer")
            nursery.start_soon(self._beat, name="heartbeat")
            await self._read(nursery)
            nursery.cancel_scope.cancel(reason="the client said goodbye")

    @property
    def can_attach(self) -> bool:
        """Whether another control channel may be attached: the session was greeted, and is not about to end."""
        is_leaving = self._farewell is not None or self._published.is_draining or self.ended.is_set()
        return self._law.phase is Phase.READY and not is_leaving

    @property
    def is_changing(self) -> bool:
        """Whether another control channel is being attached or moved to just now."""
        return self._line.is_changing

    async def attach(self, stream: TlsStream) -> None:
        """Hold another control channel for the client to move to, until it leaves that one or the session ends.

        The caller has just seen `can_attach`, and not `is_changing`. `stream` is upgraded, and closed at the end.
        """
        await self._line.attach(open_server_control(stream))

    def close(self, reason: Farewell, message: str = "", *, known_as: str = "") -> None:
        """End it now: ports are free when `ended` is set. `known_as` is the reason that events give, if another one."""
        if self._farewell is None:
            self._farewell, self._known_as = Goodbye(reason, message), known_as
        self._scope.cancel(reason=message or reason.value)

    def regrant(self, grant: Grant) -> None:
        """The client may do something else from now on: what it may not is closed with its reason, the rest goes on."""
        self._published.regrant(grant)

    def drain(self) -> None:
        """Tell the client, take no new visitors, leave those inside alone."""
        try:
            self._outbox.reply(Goodbye(Farewell.DRAINING, "the server is stopping; come back when it listens again"))
        except PeerLost:  # it does not read; the others must be told all the same
            self.close(Farewell.DRAINING)
        self._published.drain()

    async def _say_last(self, word: Goodbye) -> None:
        with trio.move_on_after(1.0, shield=True):
            try:
                await self._line.send(word)
            except PeerLost:
                pass  # they went first

    async def _greet(self) -> None:
        with trio.fail_after(self._config.limits.login_seconds):
            hello = await self._line.receive()
        self._note_life()
        self._law.heard(hello)
        assert isinstance(hello, Hello)
        if hello.version != PROTOCOL_VERSION:
            word = f"this server speaks version {PROTOCOL_VERSION}, the client {hello.version}; upgrade the older one"
            self.close(Farewell.VERSION_UNSUPPORTED, word)
            await trio.lowlevel.checkpoint()
        tickets = self._issue(FIRST_TICKETS)
        beat = self._config.limits.heartbeat_seconds
        with trio.fail_after(WRITE_SECONDS):
            await self._line.send(Welcome(self.id, self.client, tickets, beat, __version__, (ATTACH,)))
        if SILENCE in hello.features:
            self.relay.on_silent = self._outbox.tell_silence

    # Hearing

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            message = await self._line.receive()
            self._note_life()
            self._law.heard(message)
            match message:
                case Heartbeat(seq):
                    self._outbox.reply(HeartbeatReply(seq))
                case HeartbeatReply():
                    pass  # having been heard is what counts
                case ProxySet():
                    await trio.sleep_until(self._next_set_at)  # who sends set after set waits, and nobody else
                    self._published.take(message, nursery)
                    self._next_set_at = trio.current_time() + len(message.proxies) * SET_SECONDS
                case TargetHealth():
                    if proxy := self.proxies.get(message.proxy_name):
                        proxy.hear(message)
                case RetryProxy(name):
                    if proxy := self.proxies.get(name):
                        proxy.retry()
                case TicketRequest(count):
                    self._outbox.reply(Tickets(self._issue(count)))
                case ControlMoved():
                    await self._line.follow()
                case Goodbye():
                    self.ended_by = "goodbye", message.message or message.reason.value
                    log.info("client '%s' said goodbye: %s", self.client, message.message or message.reason.value)
                    return
                case _:
                    raise RemoteProtocolError(f"{type(message).__name__} is the server's word")

    def _note_life(self) -> None:
        self._last_heard = trio.current_time()
        self._heard.set()
        self._heard = trio.Event()

    def _issue(self, count: int) -> tuple[str, ...]:
        now = trio.current_time()
        return self._registry.issue_tickets(self, count, expires=now + self._config.limits.ticket_seconds, now=now)

    # Saying

    async def _beat(self) -> None:
        seconds = self._config.limits.heartbeat_seconds
        silent = await keep_beating(seconds, beat=self._outbox.beat, heard=lambda: self._last_heard)
        raise PeerLost(f"client '{self.client}' was silent for {silent:.0f} s")

    async def answers(self) -> bool:
        """Whether the client gives a sign of life within a second (asked when another process wants its place)."""
        self._outbox.ask()
        with trio.move_on_after(ANSWER_SECONDS):
            await self._heard.wait()
            return True
        return False

    # Seeing

    def view(self) -> SessionView:
        return SessionView(self.client, self.since, tuple(proxy.view() for proxy in self.proxies.values()))
