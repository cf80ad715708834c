"""`connect`: the root of a client and its reconnect loop."""

import logging
import math
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeGuard

import trio
from attrs import evolve, frozen

from tunnel.addresses import HostPort
from tunnel.attached import Attached
from tunnel.client.board import Board, own_status
from tunnel.client.dialer import Turns, make_dialer
from tunnel.client.meters import client_meters
from tunnel.client.patience import Patience
from tunnel.client.reach import reach
from tunnel.client.resolver import Resolver, leave_name, look_up
from tunnel.client.routes import RouteTable
from tunnel.client.session import ClientSession, Identity
from tunnel.config import ClientConfig, ProxyConfig
from tunnel.config.actions import Action, SetTrust
from tunnel.config.diff import applied
from tunnel.errors import PeerLost, Refused, RemoteProtocolError, TunnelError
from tunnel.limits import socket_bound, visitor_bound
from tunnel.messages import Farewell, Goodbye, ProxyStatusUpdate, Reason, Welcome
from tunnel.meters import Meters
from tunnel.pool.figures import Figures
from tunnel.relay import Engine, Room
from tunnel.snapshot import EventStream, SessionView, Snapshot, utc_now
from tunnel.version import __version__
from tunnel.wording import no_such_proxy

log = logging.getLogger(__name__)

_FOR_ALL = ("identity_held", "proxy_auth", "proxy_refused")  # refusals that another address would not change


@frozen
class Connection:
    """Where the client stands: `state` is ``connecting``, ``connected`` or ``lost``; `detail` our name or why."""

    state: str
    detail: str = ""
    retry_in: float | None = None


class Client:
    """A running client, as `connect` yields it. Use it from the task that opened it or its children."""

    def __init__(self, config: ClientConfig, *, linger: bool = False) -> None:
        self.config = config
        self.events = EventStream()
        self.attached: Attached[ClientConfig] = Attached()  # what runs beside it
        self.connection = Connection("connecting")
        self._retry_at: float | None = None
        self._dialer = make_dialer(config)  # may raise: before anything that would have to be closed
        self.engine = Engine(visitor_bound(config.limits), linger=linger, room=Room(socket_bound()))
        self._resolver = Resolver(config.servers, look_up=self._look_up)
        self._turns = Turns(self._dialer, self._resolver)
        self._routes = RouteTable(config.proxies, dial_seconds=config.limits.dial_seconds)
        self._figures = Figures()  # of the data channels of all sessions
        self._instance = secrets.token_hex(16)
        self._epoch = 0
        self._session: ClientSession | None = None
        self._since = utc_now()
        self._name = ""
        self._reached_at = math.inf  # when the server last answered
        self._was_away = False  # somebody was dialled since the last session, and nobody was there
        self._at_once = trio.Event()  # somebody wants no wait before the next try
        self._is_draining = False  # no new visitors come in this session
        self._refusal: Refused | None = None  # one address's word, while others are asked
        self._board = Board()
        for proxy in config.proxies:
            self._post_own(proxy, Reason.CONNECTING, "not connected yet")

    async def _look_up(self, server: HostPort) -> list[str]:
        """Here, or where the proxy is that we go out by now, if it does that."""
        via = self._dialer.via
        return await (leave_name if via is not None and via.resolves else look_up)(server)

    # Lifetime

    async def run(self, *, once: bool = False) -> None:
        """Connect, and reconnect for ever. With `once`, raise why the first session ended or was not had."""
        patience = Patience()
        while True:
            self._move("connecting", self.connection.detail)
            self._reached_at, self._was_away = math.inf, False
            self._at_once = trio.Event()
            why: TunnelError | None = None
            goodbye = ""
            try:
                goodbye = await self._one_session(once=once)
            except (Refused, PeerLost, RemoteProtocolError) as exc:
                why = exc
            told = why or PeerLost(goodbye)
            if self._is_wanted_elsewhere(told):
                self._refusal = told
                self._lose(told, 0.0)
                continue
            refusal, self._refusal = self._refusal, None
            if once:
                is_unanswered = isinstance(told, PeerLost) and not told.answered
                raise refusal if refusal is not None and is_unanswered else told
            lasted = trio.current_time() - self._reached_at
            delay = patience.after(why, lasted=lasted, was_away=self._was_away)
            self._lose(told, 0.0 if self._at_once.is_set() else delay)
            with trio.move_on_after(delay):
                await self._at_once.wait()

    async def _one_session(self, *, once: bool) -> str:
        """Returns after a goodbye that means: come back; says why."""
        reached = await reach(self._turns.dial, failed=self._unanswered, once=once)
        self._reached_at = trio.current_time()
        self._epoch += 1
        identity = Identity(self.config.token, self._instance, self._epoch)
        session = self._session = ClientSession(
            self.config, dialer=self._dialer, resolver=self._resolver, turns=self._turns,
            engine=self.engine, routes=self._routes, figures=self._figures,
            connected=self._welcomed, heard=self._post, drained=self._drained,
        )  # fmt: skip
        try:
            return self._part(await session.run(reached, identity))
        except Refused as exc:
            if _is_for_address(exc):
                self._turns.refuse(reached.address)
            raise
        except (PeerLost, RemoteProtocolError):
            self._turns.avoid(session.control_at or reached.address)
            raise
        finally:
            self._session = None

    def _is_wanted_elsewhere(self, why: TunnelError) -> TypeGuard[Refused]:
        """Whether one address refused us, and another might not: `servers` may name a stranger by mistake."""
        return _is_for_address(why) and self._turns.has_another

    async def run_routes(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections to targets, in and between sessions, until cancelled."""
        await self._routes.run(task_status=task_status)

    def _part(self, goodbye: Goodbye) -> str:
        word = goodbye.message or goodbye.reason.value
        match goodbye.reason:
            case Farewell.DRAINING:
                return "the server is stopping"
            case Farewell.STOPPING:
                return goodbye.message or "the server is stopping"
            case Farewell.REPLACED:
                raise Refused("identity_held", f"another client took over: {word}", trust=True)
            case Farewell.REVOKED:
                raise Refused("token_refused", f"the token was revoked: {word}", trust=True)
            case Farewell.VERSION_UNSUPPORTED:
                raise Refused("version_unsupported", word, trust=True)
            case Farewell.PROTOCOL_ERROR:
                raise RemoteProtocolError(f"the server ended the session: {word}")

    async def drain(self, grace_seconds: float) -> None:
        """Stop gracefully: say goodbye once the visitors inside are done, at most so long."""
        session = self._session
        if session is None or self.connection.state != "connected":
            return
        self._drained("this client is stopping; visitors inside may finish")
        try:
            with trio.move_on_after(grace_seconds):
                await session.withdraw()
                await session.relay.wait_empty()
            await session.say_goodbye()
        except PeerLost as exc:  # it went first, or does not read
            log.info("stopping without a goodbye: %s", exc)

    # What happened

    def _welcomed(self, welcome: Welcome) -> None:
        self._name, self._since, self._refusal = welcome.client, utc_now(), None
        self._is_draining = False
        log.debug("connected to %s as '%s'", self._session and self._session.control_at, welcome.client)
        self._move("connected", welcome.client)

    def _unanswered(self, problem: PeerLost) -> None:
        self._was_away = True
        if self._refusal is not None:  # that nobody answers elsewhere must not hide what a person has to mend
            problem = PeerLost(f"{self._refusal}; {problem}")
        if self.connection.detail == str(problem):
            return  # told once, however often it is tried
        self._move("connecting", str(problem))
        log.warning("%s; trying on", problem)
        self._explain(problem, None)

    def _lose(self, why: TunnelError, delay: float) -> None:
        log.warning("no session: %s%s", why, f"; trying again in {delay:.0f} s" if delay >= 1 else "")
        self._move("lost", str(why), delay)
        self._explain(why, math.ceil(delay))

    def _drained(self, why: str) -> None:
        self._is_draining = True
        self._explain(PeerLost(why), None, Reason.DRAINING)

    def _explain(self, why: TunnelError, retry_after_seconds: int | None, reason: Reason = Reason.SESSION_LOST) -> None:
        """Each proxy's status while no server can say it."""
        for status in self._board.explained(str(why), retry_after_seconds, reason):
            self._post(status)

    def _move(self, state: str, detail: str = "", retry_in: float | None = None) -> None:
        self.connection = Connection(state, detail, retry_in)
        self._retry_at = None if retry_in is None else trio.current_time() + retry_in
        self.events.publish(f"session.{state}", client=self._name, detail=detail, retry_in=retry_in)
        self._board.notify()

    def _post(self, update: ProxyStatusUpdate) -> None:
        if update.proxy_name not in self._routes.routes:
            return  # of a proxy that we do not publish (any more)
        self._board.post(update)
        self.events.publish("proxy.status", client=self._name, proxy=update.proxy_name, update=update)

    def _post_own(self, proxy: ProxyConfig, reason: Reason, message: str) -> None:
        self._post(own_status(proxy.name, proxy.publish.host, proxy.publish.port, reason, message))

    # Seeing and steering

    @property
    def statuses(self) -> dict[str, ProxyStatusUpdate]:
        """The newest of each proxy."""
        return self._board.statuses

    def follow(self) -> AsyncIterator[ProxyStatusUpdate]:
        """Every proxy's newest status, then each change; a slow reader gets the newest of each, not a queue."""
        return self._board.follow()

    async def wait_healthy(self, *names: str) -> None:
        """Until the named proxies (all, if none is named) are healthy. The caller holds the deadline."""
        await self._board.wait_healthy(names or tuple(self._routes.routes))

    def is_ready(self) -> bool:
        """Whether new visitors can be served: the session is up, and neither side is stopping."""
        return self.connection.state == "connected" and not self._is_draining

    def why_not_ready(self) -> str:
        """In words; empty when it is ready."""
        if self.connection.state != "connected":
            return f"no session: {self.connection.detail}" if self.connection.detail else "no session yet"
        return "one side is stopping, and takes no new visitors" if self._is_draining else ""

    def retry(self, name: str) -> list[str]:
        """Ask the server to start a proxy's bind retry afresh. `LookupError` for a name we do not publish."""
        name = name.rpartition("/")[2]
        if name not in self._routes.routes:
            raise LookupError(no_such_proxy(name, list(self._routes.routes)))
        if self._session is None:
            raise ValueError("there is no session; it starts afresh with the next one anyway")
        self._session.retry(name)
        return [name]

    def close_session(self, client: str = "") -> list[str]:
        """Drop the session, its visitors with it, and connect again at once. Without one, try again now instead of
        waiting on.

        Returns our name if there was a session, else nothing. `LookupError` for a `client` that is not our name.
        """
        if client and self._name and client != self._name:
            raise LookupError(f"this client is {self._name!r}, not {client!r}")
        log.info("the session is closed on request" if self._session else "trying again now, on request")
        self._at_once.set()
        if self._session is None:
            return []
        self._session.close("this client's operator closed the session")
        return [self._name] if self.connection.state == "connected" else []

    def publish(self, *proxies: ProxyConfig) -> None:
        """Publish exactly these from now on. `ValueError` for two of one name.

        A proxy that stays at its public address keeps its listener, and its retries save those of a policy that
        changed; one that moved starts afresh, one that is missing is closed. Visitors inside go on.
        """
        if len({proxy.name for proxy in proxies}) != len(proxies):
            raise ValueError("two proxies have one name")
        before = self._routes.routes
        self.config = evolve(self.config, proxies=proxies)
        self._routes.replace(proxies)
        routes = self._routes.routes
        self._board.forget(
            [
                name
                for name in self.statuses
                if name not in routes or routes[name].config.publish != before[name].config.publish
            ]
        )
        for name in before.keys() - routes.keys():
            self.events.publish("proxy.removed", client=self._name, proxy=name)
        for proxy in proxies:
            if proxy.name not in self.statuses:
                self._post_own(proxy, Reason.PENDING if self.is_ready() else Reason.CONNECTING, "not published yet")
        if self._session is not None:
            self._session.publish()

    def apply(self, actions: Sequence[Action]) -> None:
        """Carry out what a changed configuration asks for; `NeedsRestart` is left to the caller to tell. No await.

        `TunnelError`, and nothing has changed, where the certificate or the CA file is unusable.
        """
        before, now = self.config, applied(self.config, actions)
        dialer = make_dialer(now) if any(isinstance(action, SetTrust) for action in actions) else None
        self.config = now
        if dialer is not None:
            self._dialer.become(dialer)
        if now.servers != before.servers:
            self._resolver.replace(now.servers)
        if now.limits != before.limits:
            self.engine.apply(visitor_bound(now.limits))
            self._routes.limit(now.limits.dial_seconds)
        if self._session is not None:
            self._session.apply(now)
        if dialer is not None or now.token != before.token:
            self._try_with_that(now.token != before.token)
        if self.config.proxies != before.proxies:
            self.publish(*self.config.proxies)
        self.attached.apply(self.config)

    def _try_with_that(self, is_new_token: bool) -> None:
        """What may have been refused for our token or our trust is tried again now. A session stays, save for a new
        token: who changes that is about to revoke the old one."""
        self._turns.forgive()
        if is_new_token or self.connection.state != "connected":
            self._at_once.set()
        if is_new_token and self._session is not None:
            self._session.close("the client has another token now, and comes back with it")

    def stats(self) -> dict[str, Any]:
        """How the client stands to its server, and the figures of the connections kept ready: to it, and to targets."""
        channels = self._session and self._session.channels
        at = self._retry_at
        return {
            "connection": {
                "state": self.connection.state,
                "detail": self.connection.detail,
                "servers": [str(server) for server in self.config.servers],
                "retry_after_seconds": None if at is None else max(0, math.ceil(at - trio.current_time())),
            },
            "connection_pool": {
                "data_channels": channels.pool.stats() if channels else None,
                "targets": self._routes.stats(),
            },
            **self.attached.stats(),
        }

    def meters(self) -> Meters:
        """What is counted here, for the metrics."""
        ends = self._dialer.seen.ends
        return client_meters(
            self.engine, self._session if self.connection.state == "connected" else None,
            name=self._name, since=self._since, routes=self._routes.routes, board=self._board,
            is_ready=self.is_ready(), is_draining=self._is_draining,
            certificate_ends=None if ends is None else ends.timestamp(),
        )  # fmt: skip

    def snapshot(self) -> Snapshot:
        return Snapshot("client", __version__, tuple(self.views()))

    def views(self) -> Iterator[SessionView]:
        """The sessions of a snapshot; a client has one."""
        proxies = tuple(self._board.view(name, route) for name, route in self._routes.routes.items())
        yield SessionView(self._name, self._since, proxies)


def _is_for_address(why: TunnelError) -> bool:
    """Whether that is the word of one address of the server, and for a person to mend."""
    return isinstance(why, Refused) and why.trust and why.reason not in _FOR_ALL


@asynccontextmanager
async def open_client(config: ClientConfig, *, linger: bool = False) -> AsyncIterator[Client]:
    """Run a client inside the caller's task until the body ends or is cancelled; its reconnect loop is `Client.run`.

    Raises `TunnelError` when the configuration cannot be used (a CA file that cannot be read).
    """
    client = Client(config, linger=linger)
    async with trio.open_nursery() as root:
        await root.start(client.engine.run, name="relay")
        await root.start(client.run_routes, name="targets")
        yield client
        root.cancel_scope.cancel(reason="the client is closing")
