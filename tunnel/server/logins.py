"""The half of the gate behind `/control`: whose token it is, whose the identity is then, and the session it starts."""

import logging
from collections.abc import Callable

from attrs import evolve

from tunnel.backoff import Policy
from tunnel.config import Grant, ServerConfig
from tunnel.logs import log_fields
from tunnel.messages import Farewell
from tunnel.protocol import EPOCH, INSTANCE
from tunnel.relay import Engine
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.server.strangers import Stranger
from tunnel.snapshot import EventStream
from tunnel.state import find_grant
from tunnel.tls import TlsStream
from tunnel.upgrade import Head

log = logging.getLogger(__name__)


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
        self._sessions: dict[Session, None] = {}

    def apply(self, bind_retry: Policy) -> None:
        """A new default for the rounds of bind retry that begin from now on; no await: all sessions have it or none."""
        self._config = evolve(self._config, bind_retry=bind_retry)
        for session in self._sessions:
            session.bind_retry = bind_retry

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those alive: one that was replaced may still be saying goodbye, and holds nothing any more."""
        return tuple(session for session in self._sessions if not session.ended.is_set())

    async def serve(self, stream: TlsStream, head: Head, stranger: Stranger) -> None:
        """Until the session that `head` asks for has ended, or it is answered why there is none. The caller closes."""
        grant = find_grant(self._grants(), head.bearer)
        if grant is None:
            stranger.tell(logging.WARNING, "a wrong token from %s")
            word = "the server does not know this token; make one there: trio-tunnel token new NAME"
            await stranger.refuse(stream, 401, "token_refused", word)
            return
        instance, epoch = head.headers.get("trio-tunnel-instance", ""), head.headers.get("trio-tunnel-epoch", "")
        if not head.is_upgrade or head.rest or not INSTANCE.match(instance) or not EPOCH.match(epoch):
            word = "no upgrade of a control channel as this version makes them"
            await stranger.refuse(stream, 400, "bad_request", word)
            return
        stranger.login()
        with log_fields(client=grant.name):
            if "trio-tunnel-session" in head.headers:
                await self._attach(stream, head, stranger, grant, instance, int(epoch))
                return
            refusal = None if self.is_draining else await self._make_room(grant, instance, int(epoch))
            if self.is_draining:  # or does so since
                await stranger.refuse(stream, 503, "server_stopping", "the server is stopping; try again")
            elif refusal is None:
                await self._host(stream, head, grant, instance, int(epoch))
            else:
                await stranger.refuse(stream, 409, "identity_held", refusal)

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

    async def _attach(
        self, stream: TlsStream, head: Head, stranger: Stranger, grant: Grant, instance: str, epoch: int
    ) -> None:
        """A planned change of a living session's control channel, by the very process that has the session.

        Its id is compared like any word: who knows the token gains nothing by guessing it.
        """
        wanted = head.headers["trio-tunnel-session"]
        holder = self._registry.holder(grant.name)
        known = holder and (holder.instance, holder.epoch, holder.session.id)
        if self.is_draining:
            await stranger.refuse(stream, 503, "server_stopping", "the server is stopping; try again")
        elif holder is None or known != (instance, epoch, wanted) or not holder.session.can_attach:
            word = f"the session {wanted[:40]!r} of client '{grant.name}' has ended or is ending; make a new one"
            await stranger.refuse(stream, 409, "session_gone", word)
        elif holder.session.is_changing:
            word = f"another control channel of client '{grant.name}' is being attached; one at a time"
            await stranger.refuse(stream, 409, "attach_under_way", word)
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
