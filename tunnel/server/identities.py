"""Who may log in, and what for: the configuration's entries, and the tokens of the state directory.

`trio-tunnel token` changes the directory beside the running server, which looks at it twice a second. A session whose
token is good no more ends then and is told so; one that may do less, or more, is held to it (`Session.regrant`).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from tunnel.config import Grant
from tunnel.errors import TunnelError
from tunnel.messages import Farewell
from tunnel.state import StateDir

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # so that whoever revokes a token sees the session end within a second


class Held(Protocol):
    """What is needed of a session."""

    client: str

    @property
    def grant(self) -> Grant: ...

    def regrant(self, grant: Grant) -> None: ...

    def close(self, reason: Farewell, message: str) -> None: ...


class Identities:
    """Raises `TunnelError` when the state directory's files are damaged at the start; later those change nothing."""

    def __init__(self, clients: tuple[Grant, ...], state: StateDir | None) -> None:
        self._clients = clients
        self._state = state
        self._stamp: tuple[object, ...] = ()
        self._made: tuple[Grant, ...] = ()  # as read at `_stamp`
        self._revoked: frozenset[bytes] = frozenset()
        self._grants: tuple[Grant, ...] = ()
        self._dead: tuple[str, ...] = ()  # entries whose token was revoked
        if state is not None:
            self._take(*_read(state))
        self._merge()

    def grants(self) -> tuple[Grant, ...]:
        """All, as of now: for a login. Reads the files only if they have changed."""
        if self._state is not None and self._state.stamp() != self._stamp:
            try:
                self._take(*_read(self._state))
            except TunnelError as exc:
                self._tell(self._state, exc)
        return self._grants

    def replace(self, clients: tuple[Grant, ...]) -> None:
        """Other entries of the configuration from now on; `review` is the caller's."""
        self._clients = clients
        self._merge()

    def review(self, sessions: Iterable[Held]) -> None:
        """Hold each to what its client may do now. No await: a visitor meets all of it or nothing."""
        known = {grant.name: grant for grant in self._grants}
        for session in sessions:
            grant = known.get(session.client)
            if grant == session.grant:
                continue
            if grant is not None and grant.token_sha256 == session.grant.token_sha256:
                log.info("what client '%s' may do has changed", session.client)
                session.regrant(grant)
            else:
                self._end(session)

    async def watch(self, sessions: Callable[[], Iterable[Held]]) -> None:
        """Look for changes until cancelled, and review the sessions each time: one may just have come with a grant of
        before."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self._state is not None:
                await self._look(self._state)
            self.review(sessions())

    async def _look(self, state: StateDir) -> None:
        """In a thread: a disk that hangs holds up nobody."""
        if await trio.to_thread.run_sync(state.stamp, abandon_on_cancel=True) == self._stamp:
            return
        try:
            self._take(*await trio.to_thread.run_sync(_read, state, abandon_on_cancel=True))
        except TunnelError as exc:
            self._tell(state, exc)

    def _tell(self, state: StateDir, problem: TunnelError) -> None:
        """Once for each change."""
        self._stamp = state.stamp()
        log.error("tokens count as before, for they cannot be read again: %s", problem)

    def _take(self, stamp: tuple[object, ...], made: tuple[Grant, ...], revoked: frozenset[bytes]) -> None:
        self._stamp, self._made, self._revoked = stamp, made, revoked
        self._merge()

    def _merge(self) -> None:
        """Where both know a client's name or its token, the entry alone counts: `token new` allows anything, and the
        entry is there to allow less. A token that was revoked counts nowhere."""
        entries = tuple(grant for grant in self._clients if grant.token_sha256 not in self._revoked)
        dead = tuple(grant.name for grant in self._clients if grant.token_sha256 in self._revoked)
        if dead != self._dead:
            self._dead = dead
            for name in dead:
                log.warning("client '%s' cannot log in: the token of its entry was revoked; give it another one", name)
        names, tokens = {grant.name for grant in self._clients}, {grant.token_sha256 for grant in self._clients}
        spoken_for = (
            tokens | self._revoked
        )  # a revoking that was cut short, or a copy put back, leaves it among the made
        self._grants = entries + tuple(
            grant for grant in self._made if grant.name not in names and grant.token_sha256 not in spoken_for
        )

    def _end(self, session: Held) -> None:
        heir = next((grant.name for grant in self._grants if grant.token_sha256 == session.grant.token_sha256), None)
        if heir is not None:  # an entry got another name: what is published belongs to the name
            word = f"this client is called '{heir}' now; it comes back as that"
            log.warning("client '%s' is called '%s' now: its session ends", session.client, heir)
            session.close(Farewell.STOPPING, word)
            return
        log.warning("client '%s': its token is good no more, and its session ends", session.client)
        word = f"the server knows no client '{session.client}' with this token any more"
        session.close(Farewell.REVOKED, f"{word}; ask there for another: trio-tunnel token new NAME")


def _read(state: StateDir) -> tuple[tuple[object, ...], tuple[Grant, ...], frozenset[bytes]]:
    stamp = state.stamp()  # first: a change while they are read is noticed
    return stamp, state.grants(), state.revoked()
