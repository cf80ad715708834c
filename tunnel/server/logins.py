"""The half of the gate behind `/control`: whose token it is, whose the identity is then, and the session it starts."""

import logging
import math
from collections import Counter
from collections.abc import Callable

import trio
from attrs import evolve, frozen

from tunnel.backoff import Policy
from tunnel.config import Grant, Limits, ServerConfig
from tunnel.logs import log_fields
from tunnel.messages import Farewell
from tunnel.protocol import EPOCH, INSTANCE
from tunnel.rate_limited import Quota
from tunnel.relay import Engine
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.server.strangers import Stranger
from tunnel.server.takeover import Ask, Step, take_over
from tunnel.snapshot import EventStream
from tunnel.state import find_grant
from tunnel.tls import TlsStream
from tunnel.upgrade import Head

log = logging.getLogger(__name__)

# Logins of one client, at once and then a second. A supervisor that restarts it without end comes less often, and of
# some hundred sessions that are cut off one after another each is followed by the next at once; but a token is no
# licence to keep the server at greetings and farewells.
LOGINS, LOGINS_PER_SECOND = 256, 2.0
MAX_WAITING = 16  # logins of one client that wait for its holder's word or end; a good token is no licence to pile up
LOOK_SECONDS = 60.0  # for one that yields; it takes a second
_LOOKS = "looks whether it could connect"  # `trio-tunnel doctor`
_OF_BEFORE = ": its session of before, in whose place is another"
_ONE_TOO_MANY = "where two processes have its token, stop one, or give each a token of its own"


class Logins:
    """One for a gate; `serve` each control channel in its connection's own task."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        grants: Callable[[], tuple[Grant, ...]],
        engine: Engine,
        registry: Registry[Session],
        events: EventStream,
        remember_port: Callable[[str, str, int], None],
    ) -> None:
        self.is_draining = False
        self._config = config
        self._grants = grants
        self._engine = engine
        self._registry = registry
        self._events = events
        self._remember_port = remember_port
        self._sessions: dict[Session, bool] = {}  # whether it yields
        self._waiting: Counter[str] = Counter()  # of each client: logins that are being judged
        self._shares = Quota(LOGINS, LOGINS_PER_SECOND)  # of each client

    def apply(self, bind_retry: Policy) -> None:
        """A new default for the rounds of bind retry that begin from now on; no await: all sessions have it or none."""
        self._config = evolve(self._config, bind_retry=bind_retry)
        for session in self._sessions:
            session.bind_retry = bind_retry

    def limit(self, limits: Limits) -> None:
        self._config = evolve(self._config, limits=limits)
        for session, yields in self._sessions.items():
            if not yields:  # which would have visitors then
                session.limit(limits)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those alive: one that was replaced may still be saying goodbye, and holds nothing any more."""
        return tuple(session for session in self._sessions if not session.ended.is_set())

    async def serve(self, stream: TlsStream, head: Head, stranger: Stranger) -> None:
        """Until the session that `head` asks for has ended, or it is answered why there is none. The caller closes."""
        grant = find_grant(self._grants(), head.bearer)
        if grant is None:
            await _refuse_token(stream, stranger)
            return
        instance, epoch = head.headers.get("trio-tunnel-instance", ""), head.headers.get("trio-tunnel-epoch", "")
        if not head.is_upgrade or head.rest or not INSTANCE.match(instance) or not EPOCH.match(epoch):
            word = "no upgrade of a control channel as this version makes them"
            await stranger.refuse(stream, 400, "bad_request", word)
            return
        stranger.login()
        newcomer = _Newcomer(
            grant, instance, int(epoch), head.headers.get("trio-tunnel-session"), stranger.source,
            yields="trio-tunnel-yields" in head.headers,
        )  # fmt: skip
        with log_fields(client=grant.name):
            refusal = self._why_too_often(grant.name, stranger) or await self._judge(newcomer)
            if refusal is not None:
                if refusal.reason == "identity_held" and not newcomer.yields:
                    stranger.tell(logging.WARNING, "a login from %s is refused: %s", refusal.message)
                await stranger.refuse(stream, refusal.status, refusal.reason, refusal.message)
                return
            # No await since it was judged: nobody can have taken the identity, or attached another channel.
            with stranger.living():
                stream.push_back(head.raw)
                await (self._host(stream, newcomer) if newcomer.wanted is None else self._attach(stream, newcomer))

    def _why_too_often(self, name: str, stranger: Stranger) -> "_Refusal | None":
        if self._shares.spend(name, trio.current_time()) is not None:
            return None
        word = "from %s client '%s' logs in again and again; refused beyond %g times a second: see what ends it there"
        stranger.tell(logging.WARNING, word, name, LOGINS_PER_SECOND)
        word = (
            f"client '{name}' has logged in {LOGINS} times within minutes; it may {LOGINS_PER_SECOND:g} times a second"
        )
        return _Refusal(503, "server_busy", f"{word}; see what ends its sessions")

    async def _judge(self, newcomer: "_Newcomer") -> "_Refusal | None":
        """Why it cannot have its session; None if it can, now."""
        name = newcomer.grant.name
        if self._waiting[name] >= MAX_WAITING:
            return _Refusal(503, "server_busy", f"{MAX_WAITING} logins of client '{name}' are waiting; try again")
        self._waiting[name] += 1
        try:
            refusal = (
                self._why_not_attached(newcomer) if newcomer.wanted is not None else await self._make_room(newcomer)
            )
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
        if self.is_draining:  # or does so since
            return _Refusal(503, "server_stopping", "the server is stopping; try again")
        return refusal

    async def _host(self, stream: TlsStream, newcomer: "_Newcomer") -> None:
        grant = newcomer.grant
        # Who only looks while a client is away must not be told of as its return, nor its leaving as meant. So nobody
        # hears of it; and nobody shall work unheard of: it serves no visitor, and does not stay.
        events = EventStream() if newcomer.yields else self._events
        config = _without_visitors(self._config) if newcomer.yields else self._config
        with self._engine.attach(max_streams=grant.max_visitors) as relay:
            session = Session(
                grant=grant, config=config, registry=self._registry, relay=relay,
                events=events, remember_port=None if newcomer.yields else self._remember_port,
            )  # fmt: skip
            self._registry.enter(
                grant.name, session, instance=newcomer.instance, epoch=newcomer.epoch, since=session.since,
                yields=newcomer.yields,
            )  # fmt: skip
            self._sessions[session] = newcomer.yields
            events.publish("session.started", client=grant.name, peer=newcomer.peer)
            began = trio.current_time()
            log.info("client '%s' %s", grant.name, _LOOKS if newcomer.yields else "connected")
            try:
                with trio.move_on_after(LOOK_SECONDS if newcomer.yields else math.inf):
                    await session.run(stream)
            finally:
                del self._sessions[session]
                reason, message = session.ended_by
                seconds = round(trio.current_time() - began, 3)
                events.publish("session.ended", client=grant.name, reason=reason, message=message, seconds=seconds)
                is_replaced = self._registry.holder(grant.name) is not None  # it has left itself
                log.info("client '%s' disconnected%s", grant.name, _OF_BEFORE if is_replaced else "")

    async def _attach(self, stream: TlsStream, newcomer: "_Newcomer") -> None:
        holder = self._registry.holder(newcomer.grant.name)
        assert holder is not None
        log.info("client '%s' changes its control channel", holder.client)
        await holder.session.attach(stream)

    def _why_not_attached(self, newcomer: "_Newcomer") -> "_Refusal | None":
        """A planned change of a living session's control channel, by the very process that has the session.

        Its id is compared like any word: who knows the token gains nothing by guessing it.
        """
        name, wanted = newcomer.grant.name, newcomer.wanted or ""
        holder = self._registry.holder(name)
        known = holder and (holder.instance, holder.epoch, holder.session.id)
        if holder is None or known != (newcomer.instance, newcomer.epoch, wanted) or not holder.session.can_attach:
            word = f"the session {wanted[:40]!r} of client '{name}' has ended or is ending; make a new one"
            return _Refusal(409, "session_gone", word)
        if holder.session.is_changing:
            word = f"another control channel of client '{name}' is being attached; one at a time"
            return _Refusal(409, "attach_under_way", word)
        return None

    async def _make_room(self, newcomer: "_Newcomer") -> "_Refusal | None":
        """Settle whose the identity is. None: the newcomer's, or the server drains; otherwise why not."""
        name = newcomer.grant.name
        steps = take_over(self._registry, name, newcomer.instance, newcomer.epoch, yields=newcomer.yields)
        answer: bool | None = None  # a generator begins with it
        while not self.is_draining:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return None if end.value is None else _Refusal(409, "identity_held", end.value)
            answer = await self._take(step)
        return None

    async def _take(self, step: Step[Session]) -> bool:
        session = step.holder.session
        if isinstance(step, Ask):
            return await session.answers()
        if not session.ended.is_set():
            session.close(Farewell.REPLACED, f"a newer session of client '{session.client}'; {_ONE_TOO_MANY}")
            await session.ended.wait()
        return False


def _without_visitors(config: ServerConfig) -> ServerConfig:
    return evolve(config, limits=evolve(config.limits, max_visitors_per_proxy=0))


@frozen
class _Newcomer:
    """Who shows a good token: a process (`instance`) in its `epoch`, and the living session it wants to attach to.

    One that `yields` only looks, and gives way to whoever comes.
    """

    grant: Grant
    instance: str
    epoch: int
    wanted: str | None
    peer: str = ""
    yields: bool = False


@frozen
class _Refusal:
    status: int
    reason: str
    message: str


async def _refuse_token(stream: TlsStream, stranger: Stranger) -> None:
    stranger.tell(logging.WARNING, "a wrong token from %s")
    word = "the server does not know this token; make one there: trio-tunnel token new NAME"
    wait = stranger.fail()
    if wait:
        word = f"{word}; and {wait} s are to be waited after so many wrong ones from {stranger.source}"
        await stranger.refuse(stream, 429, "token_refused", word, retry_after=wait)
    else:
        await stranger.refuse(stream, 401, "token_refused", word)
