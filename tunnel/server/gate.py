"""The one public port: TLS, the HTTP head, then a session (`/control`) or a data channel for one (`/data`).

Each connection is a task of its own behind a wall; nothing a stranger sends is heard by anybody but this module before
a token or ticket was good. Handshake and head have deadlines; the handshakes in flight have a cap, above which new
connections wait in the kernel's backlog.
"""

import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

import trio
from attrs import evolve

from tunnel.backoff import Policy
from tunnel.config import Grant, ServerConfig
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.logs import log_fields
from tunnel.messages import Farewell
from tunnel.protocol import EPOCH, INSTANCE
from tunnel.rate_limited import RateLimited
from tunnel.relay import Engine
from tunnel.server.admission import Admission, source_of
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.snapshot import EventStream
from tunnel.sockets import PASSING, SHORTAGES, tunnel_options
from tunnel.state import find_grant
from tunnel.tls import TlsStream
from tunnel.upgrade import Head, read_head, refuse, switching_protocols

log = logging.getLogger(__name__)

MAX_CHANNELS = 80  # of one session: a client keeps 64 at most, and the lost ones may not be noticed yet
MAX_PLACE = 64  # characters by which a client calls one of our addresses
MAX_HANDSHAKES = 64  # in flight; each costs 1.4 ms of CPU here (measured, P-256)
REFUSE_SECONDS = 2.0  # for an answer that says no, and the peer's FIN
SHORTAGE_SECONDS = 0.1  # accepting pauses so long when descriptors or memory run out


class Gate:
    """`serve` one or more listening sockets with it, each in a task of its own."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        context: Callable[[], ssl.SSLContext],
        grants: Callable[[], tuple[Grant, ...]],
        engine: Engine,
        registry: Registry[Session],
        events: EventStream,
        remember_port: Callable[[str, str, int], None],
    ) -> None:
        self.is_draining = False
        self._config = config
        self._context = context
        self._grants = grants
        self._engine = engine
        self._registry = registry
        self._events = events
        self._remember_port = remember_port
        self._admission = Admission()
        self._handshakes = trio.CapacityLimiter(MAX_HANDSHAKES)
        self._sessions: dict[Session, None] = {}
        self._told = RateLimited(log, trio.current_time, count=1, interval_seconds=60.0)  # for each source

    async def serve(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept until cancelled; connections live in `connections`, which outlives the accepting.

        Closes the listener. Raises `OSError` when nothing can be accepted from it any more.
        """
        with listener:
            try:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    async with self._handshakes:  # a place for the next handshake; above the cap the backlog waits
                        pass
                    await self._accept(listener, connections)
            finally:
                trio.lowlevel.notify_closing(listener)

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        try:
            sock, address = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            if exc.errno in SHORTAGES:
                self._told.log(logging.ERROR, "accepting connections pauses: %s", exc.strerror, key="shortage")
                await trio.sleep(SHORTAGE_SECONDS)
            elif exc.errno not in PASSING:
                raise
            return
        source = source_of(address[0])
        if not self._admission.admit(source, trio.current_time()):
            sock.close()
            self._tell(logging.WARNING, "too many unauthenticated connections: one from %s dropped", source)
            return
        connections.start_soon(self._guarded, sock, source, name=f"connection from {address[0]}")

    def apply(self, bind_retry: Policy) -> None:
        """A new default for the rounds of bind retry that begin from now on; no await: all sessions have it or none."""
        self._config = evolve(self._config, bind_retry=bind_retry)
        for session in self._sessions:
            session.bind_retry = bind_retry

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those alive: one that was replaced may still be saying goodbye, and holds nothing any more."""
        return tuple(session for session in self._sessions if not session.ended.is_set())

    def _tell(self, level: int, message: str, source: str, *args: str) -> None:
        """At most a line a minute for each source."""
        self._told.log(level, message, source, *args, key=source)

    async def _guarded(self, sock: socket.socket, source: str) -> None:
        visit = _Visit(self._admission, source)
        with log_fields(peer=source):
            try:
                await self._handle(self._stream(sock), visit)
            except* (trio.BrokenResourceError, trio.ClosedResourceError, PeerLost, OSError) as lost:
                log.debug("connection lost: %s", lost.exceptions[0])
            except* (RemoteProtocolError, trio.TooSlowError) as bad:
                word = str(bad.exceptions[0]) or "too slow"
                self._tell(logging.INFO, "connection from %s refused: %s", source, word)
            except* Exception:
                log.exception("a connection's task failed")
            finally:
                visit.end()

    def _stream(self, sock: socket.socket) -> TlsStream:
        try:
            sock.setblocking(False)
            tunnel_options(sock)
            return TlsStream(sock, self._context(), server_side=True)
        except BaseException:
            sock.close()
            raise

    async def _handle(self, stream: TlsStream, visit: "_Visit") -> None:
        limits = self._config.limits
        try:
            async with self._handshakes:
                with trio.fail_after(limits.handshake_seconds):
                    await stream.do_handshake()
            with trio.fail_after(limits.head_seconds):
                head = await read_head(stream)
        except RemoteProtocolError as exc:
            try:
                await self._refuse(stream, 400, "bad_request", str(exc))
            finally:
                stream.close()
            raise
        except BaseException:
            stream.abort()
            raise
        try:
            await self._route(stream, head, visit)
        finally:
            stream.close()

    async def _route(self, stream: TlsStream, head: Head, visit: "_Visit") -> None:
        if head.path == "/control":
            await self._control(stream, head, visit)
        elif head.path == "/data":
            await self._data(stream, head, visit)
        else:
            await self._refuse(
                stream, 404, "not_found", "this is a trio-tunnel server; connect with `trio-tunnel connect`"
            )

    async def _refuse(self, stream: TlsStream, status: int, reason: str, message: str, **more: str) -> None:
        with trio.move_on_after(REFUSE_SECONDS):
            await refuse(stream, status, reason, message, **more)

    # Data channels

    async def _data(self, stream: TlsStream, head: Head, visit: "_Visit") -> None:
        session = self._registry.redeem(head.bearer, now=trio.current_time())
        if session is None or session.ended.is_set():
            self._tell(logging.WARNING, "a data channel with a bad ticket from %s", visit.source)
            await self._refuse(stream, 401, "ticket_refused", "the ticket is unknown, used or expired")
            return
        if not head.is_upgrade:
            await self._refuse(stream, 426, "upgrade_required", "a data channel is a WebSocket")
            return
        visit.login()
        if len(session.relay.channels) >= MAX_CHANNELS:
            await self._refuse(stream, 503, "too_many_channels", f"at most {MAX_CHANNELS} data channels for a session")
            return
        with trio.fail_after(self._config.limits.head_seconds):
            await stream.send_all(switching_protocols(head))
        stream.push_back(head.rest)
        if session.ended.is_set() or len(session.relay.channels) >= MAX_CHANNELS:  # others came while it was answered
            return
        parts = stream.detach()
        session.relay.add_channel(
            parts, masks=False, on_lost=partial(log.debug, "data channel ended: %s"),
            place=head.headers.get("trio-tunnel-place", "")[:MAX_PLACE],  # the client's own word for it, and its affair
        )  # fmt: skip

    # Sessions

    async def _control(self, stream: TlsStream, head: Head, visit: "_Visit") -> None:
        grant = find_grant(self._grants(), head.bearer)
        if grant is None:
            self._tell(logging.WARNING, "a wrong token from %s", visit.source)
            await self._refuse(
                stream,
                401,
                "token_refused",
                "the server does not know this token; make one there: trio-tunnel token new NAME",
            )
            return
        instance, epoch = head.headers.get("trio-tunnel-instance", ""), head.headers.get("trio-tunnel-epoch", "")
        if not head.is_upgrade or head.rest or not INSTANCE.match(instance) or not EPOCH.match(epoch):
            await self._refuse(stream, 400, "bad_request", "no upgrade of a control channel as this version makes them")
            return
        visit.login()
        with log_fields(client=grant.name):
            if "trio-tunnel-session" in head.headers:
                await self._attach(stream, head, grant, instance, int(epoch))
                return
            refusal = None if self.is_draining else await self._make_room(grant, instance, int(epoch))
            if self.is_draining:  # or does so since
                await self._refuse(stream, 503, "server_stopping", "the server is stopping; try again")
            elif refusal is None:
                await self._host(stream, head, grant, instance, int(epoch))
            else:
                await self._refuse(stream, 409, "identity_held", refusal)

    async def _host(self, stream: TlsStream, head: Head, grant: Grant, instance: str, epoch: int) -> None:
        with self._engine.attach(max_streams=grant.max_visitors) as relay:
            session = Session(
                grant=grant, config=self._config, registry=self._registry, relay=relay,
                events=self._events, remember_port=self._remember_port,
            )  # fmt: skip
            # No await since the identity was found free: nobody can have taken it.
            self._registry.enter(grant.name, session, instance=instance, epoch=epoch, since=session.since)
            self._sessions[session] = None
            self._events.publish("session.started", client=grant.name)
            log.info("client '%s' connected", grant.name)
            try:
                stream.push_back(head.raw)
                await session.run(stream)
            finally:
                del self._sessions[session]
                self._events.publish("session.ended", client=grant.name)
                log.info("client '%s' disconnected", grant.name)

    async def _attach(self, stream: TlsStream, head: Head, grant: Grant, instance: str, epoch: int) -> None:
        """A planned change of a living session's control channel, by the very process that has the session.

        Its id is compared like any word: who knows the token gains nothing by guessing it.
        """
        wanted = head.headers["trio-tunnel-session"]
        holder = self._registry.holder(grant.name)
        known = holder and (holder.instance, holder.epoch, holder.session.id)
        if self.is_draining:
            await self._refuse(stream, 503, "server_stopping", "the server is stopping; try again")
        elif holder is None or known != (instance, epoch, wanted) or not holder.session.can_attach:
            word = f"the session {wanted[:40]!r} of client '{grant.name}' has ended or is ending; make a new one"
            await self._refuse(stream, 409, "session_gone", word)
        elif holder.session.is_changing:
            word = f"another control channel of client '{grant.name}' is being attached; one at a time"
            await self._refuse(stream, 409, "attach_under_way", word)
        else:  # no await since it was seen to be free
            log.info("client '%s' changes its control channel", grant.name)
            stream.push_back(head.raw)
            await holder.session.attach(stream)

    async def _make_room(self, grant: Grant, instance: str, epoch: int) -> str | None:
        """Settle whose the identity is (design §5). None: the newcomer's; otherwise why not.

        Asked again after every wait, for the holder may have changed.
        """
        while True:
            claim = self._registry.claim(grant.name, instance, epoch)
            holder = claim.holder
            if holder is None:
                return None
            if claim.verdict == "stale":
                return f"client '{grant.name}' already has a newer session of this very process"
            if claim.verdict == "contest" and await holder.session.answers():
                word = f"client '{grant.name}' is connected from another process since {holder.since}"
                return f"{word}; stop that one, or use another token here"
            if not holder.session.ended.is_set():
                holder.session.close(Farewell.REPLACED, f"a newer session of client '{grant.name}' took over")
                await holder.session.ended.wait()


class _Visit:
    """A connection's time as a stranger: ends at the login, or with the connection."""

    def __init__(self, admission: Admission, source: str) -> None:
        self.source = source
        self._admission = admission
        self._over = False

    def login(self) -> None:
        self._admission.login(self.source, trio.current_time())
        self.end()

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._admission.leave(self.source)
