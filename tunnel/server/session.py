"""One client's stay at the server: a nursery with one child per proxy, the control reader, writer and heartbeat.

`run` ends when the client says goodbye, is lost, breaks the protocol, or the session is closed from outside; by then
every retry, listener, stream and data channel of it is gone, and nothing else was touched.
"""

import logging
import secrets
from collections.abc import Callable

import trio

from tunnel.addresses import HostPort
from tunnel.backoff import Policy
from tunnel.config import Grant, ServerConfig
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
    ProxySpec,
    Reason,
    RetryProxy,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
)
from tunnel.protocol import HEARD_BY_SERVER, Law, Phase
from tunnel.relay import Listener, RelaySession, Tally
from tunnel.server.allowance import bound, hold_to
from tunnel.server.asked_policy import policy_of
from tunnel.server.binding import BindFailed
from tunnel.server.outbox import WRITE_SECONDS, Outbox
from tunnel.server.proxy import Proxy
from tunnel.server.publication import Publication, take_address
from tunnel.server.registry import Registry
from tunnel.snapshot import EventStream, SessionView, utc_now
from tunnel.sockets import listen
from tunnel.tls import TlsStream
from tunnel.version import __version__

log = logging.getLogger(__name__)

FIRST_TICKETS = 4  # sent with Welcome, so that the first data channels cost no round trip more
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
        remember_port: Callable[[str, str, int], None],
    ) -> None:
        self.id = secrets.token_hex(8)
        self.client = grant.name
        self.grant = grant
        self.relay = relay
        bound(relay, grant)
        self.since = utc_now()
        self.proxies: dict[str, Proxy] = {}
        self.ended = trio.Event()
        self.is_draining = False
        self._line: ControlLine  # from `run` on
        self.bind_retry = config.bind_retry  # where a proxy brings no policy of its own; counts from its next round
        self._config = config
        self._registry = registry
        self._events = events
        self._remember_port = remember_port
        self._law = Law(HEARD_BY_SERVER)
        self._scope = trio.CancelScope()
        self._outbox = Outbox(grant.name)
        self._last_heard = trio.current_time()
        self._farewell: Goodbye | None = None
        self._version = 0  # of the client's proxy set
        self._index: dict[str, int] = {}  # of each proxy in it
        self._listeners: dict[Listener, str] = {}
        self._heard = trio.Event()

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
        for proxy in self.proxies.values():
            proxy.stop("the session ended")
        self.relay.close()
        self._registry.leave(self)
        self.ended.set()

    async def _walled(self) -> None:
        try:
            await self._serve()
        except* PeerLost as lost:
            log.info("session lost: %s", lost.exceptions[0])
        except* trio.TooSlowError:
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
        is_leaving = self._farewell is not None or self.is_draining or self.ended.is_set()
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

    def close(self, reason: Farewell, message: str = "") -> None:
        """End it now: ports are free when `ended` is set."""
        self._farewell = self._farewell or Goodbye(reason, message)
        self._scope.cancel(reason=message or reason.value)

    def regrant(self, grant: Grant) -> None:
        """The client may do something else from now on: what it may not is closed with its reason, the rest goes on."""
        self.grant = grant
        bound(self.relay, grant)
        hold_to(grant, self.proxies.values())

    def drain(self) -> None:
        """Tell the client, take no new visitors, leave those inside alone."""
        self.is_draining = True
        try:
            self._outbox.reply(Goodbye(Farewell.DRAINING, "the server is stopping; come back when it listens again"))
        except PeerLost:  # it does not read; the others must be told all the same
            self.close(Farewell.DRAINING)
        for proxy in self.proxies.values():
            proxy.drain()

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
                    self._take_proxy_set(message, nursery)
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

    def _take_proxy_set(self, wanted: ProxySet, nursery: trio.Nursery) -> None:
        """Close what is no longer wanted, start what is new or elsewhere now, revise the rest where it is.

        No await: a visitor accepted now goes by the old set or by the new one, never by half of each.
        """
        self._version = wanted.version
        self._index = {spec.name: index for index, spec in enumerate(wanted.proxies)}
        specs = {spec.name: spec for spec in wanted.proxies}
        moved: dict[str, Proxy] = {}
        for name, proxy in list(self.proxies.items()):
            spec = specs.get(name)
            if spec is not None and proxy.is_at(spec):
                proxy.revise(spec)
                continue
            proxy.stop("removed from the proxy set, or its address changed")
            moved[name] = self.proxies.pop(name)
            self._outbox.forget(name)
        for listener, name in self._listeners.items():
            if name in self.proxies:
                listener.index, listener.version = self._index[name], self._version
        for spec in wanted.proxies:
            if spec.name not in self.proxies:
                self._start(spec, moved.get(spec.name), nursery)

    def _start(self, spec: ProxySpec, before: Proxy | None, nursery: trio.Nursery) -> None:
        proxy = Proxy(spec, policy=self._policy_of, take=self._take, report=self._report)
        if before is not None and spec.checked:
            proxy.target_health = before.target_health  # the client tells what changes, not what it has told
        self.proxies[spec.name] = proxy
        if self.is_draining:
            proxy.drain()
        else:
            nursery.start_soon(proxy.run, name=f"proxy {self.client}/{spec.name}")

    def _policy_of(self, spec: ProxySpec) -> Policy:
        return self.bind_retry if spec.bind_retry is None else policy_of(spec.bind_retry)

    def _take(self, spec: ProxySpec, tally: Tally) -> Publication:
        """One bind attempt for one of our proxies."""
        if len(self._listeners) >= self.grant.max_proxies:
            word = (
                f"client '{self.client}' already has {self.grant.max_proxies} proxies; raise max_proxies at the server"
            )
            raise BindFailed(Reason.NOT_ALLOWED, word, final=True)
        if not self.relay.may_hold_more:
            word = (
                f"client '{self.client}' has {len(self._listeners)} proxies, and the server no descriptors for more; "
                "raise its limit there (ulimit -n, LimitNOFILE=)"
            )
            raise BindFailed(Reason.OUT_OF_DESCRIPTORS, word)
        sock, address = take_address(self.grant, spec, self._registry, listen)
        publication = Publication(address, HostPort(address.addr, address.port), self._registry)
        listener = self.relay.listen(
            sock, index=self._index[spec.name], version=self._version, tally=tally, on_lost=publication.on_lost
        )
        listener.max_visitors = self._config.limits.max_visitors_per_proxy
        publication.listener = listener
        self._listeners[listener] = spec.name
        listener.on_closed = lambda: self._listeners.pop(listener, None)
        if spec.publish_port == 0 and self._registry.choose_port(self.client, spec.name, address.port):
            self._remember_port(self.client, spec.name, address.port)
        return publication

    # Saying

    def _report(self, proxy: Proxy) -> None:
        """A proxy's status changed: the client gets the newest, in the order of first change."""
        if self.proxies.get(proxy.spec.name) is not proxy:
            return  # the last word of one that was stopped must not overtake its successor's
        self._outbox.post(proxy)
        self._events.publish(
            "proxy.status", client=self.client, proxy=proxy.spec.name,
            status=proxy.status.value, reason=proxy.reason and proxy.reason.value, attempt=proxy.attempt,
            message=proxy.error_message,
        )  # fmt: skip

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
