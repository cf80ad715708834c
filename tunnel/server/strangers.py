"""Those at the gate who have not proved anything yet: who may stay, for how long, and what it costs to come to nothing.

What a stranger does is counted by reason, and told at a bounded rate. A source that is known (a session lives there, or
a good token or ticket came from there within the hour) has more room and is heard in spite of a penalty: the clients
behind one NAT address are not shut out by a guesser among them. Their tickets are good or not, and so are their tokens;
only a wrong token hears of the penalty.
"""

import logging
import math
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trio

from tunnel.rate_limited import RateLimited
from tunnel.server.admission import MAX_IN_ALL, Admission, Place
from tunnel.server.penalties import NO_LOGIN_SECONDS, TOO_LATE_SECONDS, WRONG_TOKEN_SECONDS, Penalties
from tunnel.tls import TlsStream
from tunnel.upgrade import refuse

log = logging.getLogger(__name__)

REFUSE_SECONDS = 2.0  # for an answer that says no, and the peer's FIN
TOLD_SECONDS = 60.0  # one line about a source in so long,
MAX_TOLD = 60  # and about so many sources by name
REASONS = (  # why a connection came to nothing: closed list, for metrics
    # Closed unheard
    "penalty", "source_full", "crowd", "proxy_header",
    # Cut
    "crowded_out", "silent", "slow_handshake", "slow_head", "slow_upgrade",
    # Nonsense, or gone by itself
    "tls", "bad_request", "not_found", "left",
    # Answered by a word that says why
    "token_refused", "ticket_refused", "upgrade_required", "too_many_channels", "server_busy", "server_stopping",
    "identity_held", "session_gone", "attach_under_way",
)  # fmt: skip


class Strangers:
    """One for a gate. `arrive` is asked before a connection costs anything but its descriptor."""

    def __init__(self, *, in_all: int = MAX_IN_ALL) -> None:
        self.refusals = dict.fromkeys(REASONS, 0)
        self.logins = 0  # good tokens and tickets
        self._admission = Admission(in_all=in_all)
        self._penalties = Penalties()
        self._here: dict[Place, Stranger] = {}
        self._told = RateLimited(log, trio.current_time, count=1, interval_seconds=TOLD_SECONDS, max_keys=MAX_TOLD)

    def arrive(self, source: str) -> "Stranger | None":
        """The newcomer, whose `leave` must follow; None if it is to be closed unheard."""
        now = trio.current_time()
        if self._penalties.wait(source, now) and not self._admission.is_known(source, now):
            self.count("penalty")
            return None
        for place in self._admission.overdue(source, now):
            self._here[place].cut()
        objection = self._admission.objection(source, now)
        if objection is not None:
            self.count(objection)
            self.tell(logging.WARNING, "too many unauthenticated connections: one from %s dropped", source)
            return None
        place = self._admission.enter(source, now)
        stranger = self._here[place] = Stranger(self, place)
        return stranger

    def count(self, reason: str) -> None:
        """One of `REASONS`."""
        self.refusals[reason] += 1

    def tell(self, level: int, message: str, source: str, *args: object) -> None:
        """At most a line a minute for each source, and for many sources together."""
        self._told.log(level, message, source, *args, key=source)

    def known(self) -> dict[str, float]:
        """Sources that have more room, with the seconds since their last login."""
        return self._admission.known(trio.current_time())

    def recall(self, ages: Mapping[str, float]) -> None:
        """What `known` gave an earlier process; before anybody arrives."""
        self._admission.recall(ages, trio.current_time())

    def stats(self) -> dict[str, Any]:
        return {
            "strangers": self._admission.strangers,
            "logins": self.logins,
            "refusals": dict(self.refusals),
            "penalised_sources": len(self._penalties),
        }

    # For `Stranger` alone

    def _remove(self, place: Place) -> None:
        del self._here[place]
        self._admission.leave(place)

    def _welcome(self, source: str) -> None:
        self.logins += 1
        self._admission.login(source, trio.current_time())

    def _penalise(self, source: str, seconds: float) -> float:
        now = trio.current_time()
        if self._penalties.add(source, seconds, now) and not self._admission.is_known(source, now):
            word = "connections from %s come to nothing too often: closed unheard for %d s"
            self._told.log(logging.WARNING, word, source, self._penalties.wait(source, now), key=f"penalty {source}")
        return self._penalties.wait(source, now)

    @contextmanager
    def _living(self, source: str) -> Iterator[None]:
        self._admission.begin(source)
        try:
            yield
        finally:
            self._admission.end(source, trio.current_time())


class Stranger:
    """A connection's time as a stranger: ends at the login, or with the connection.

    `scope` is around all the connection does; it is cancelled when the stranger has to make room.
    """

    def __init__(self, strangers: Strangers, place: Place) -> None:
        self.source = place.source
        self.scope = trio.CancelScope()
        self._strangers = strangers
        self._place = place
        self._is_here = True
        self._owes = 0.0  # if it leaves now

    @property
    def has_spoken(self) -> bool:
        return self._owes > 0.0

    def speak(self) -> None:
        """Its first byte has come. Before that it may be a balancer's check, or the loser of a race of dials."""
        self._owes = NO_LOGIN_SECONDS

    @contextmanager
    def phase(self, seconds: float, *, slow: str) -> Iterator[None]:
        """A deadline; `slow` is the reason when it passes. What goes wrong before is counted, and on its account."""
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            reason = slow if self.has_spoken else "silent"
            self.is_late(reason)
            raise trio.TooSlowError(f"{reason.replace('_', ' ')}, cut after {seconds:g} s") from None
        except ssl.SSLError as exc:
            self.is_gone("left" if isinstance(exc, ssl.SSLEOFError) else "tls")
            raise
        except (OSError, trio.BrokenResourceError):
            self.is_gone("left")
            raise

    def is_late(self, reason: str) -> None:
        """A deadline has passed."""
        self._strangers.count(reason)
        self._owes = TOO_LATE_SECONDS

    def is_gone(self, reason: str = "left") -> None:
        """It went by itself, or its bytes make no sense."""
        if self._is_here:
            self._strangers.count(reason)

    def cut(self) -> None:
        """Make room, at once."""
        self.is_late("crowded_out")
        self.scope.cancel(reason="others want the place")
        self.leave()

    def login(self) -> None:
        """It has shown a good token or ticket."""
        self._owes = 0.0
        self._strangers._welcome(self.source)
        self.leave()

    def leave(self) -> None:
        """Again is nothing."""
        if self._is_here:
            self._is_here = False
            self._strangers._remove(self._place)
            if self._owes:
                self._strangers._penalise(self.source, self._owes)

    def fail(self) -> int:
        """It has shown a wrong token. For how many seconds its source has to wait now; mostly 0."""
        self._owes = 0.0
        return math.ceil(self._strangers._penalise(self.source, WRONG_TOKEN_SECONDS))

    @contextmanager
    def living(self) -> Iterator[None]:
        """After `login`: its session's control channel is here as long as the body runs."""
        with self._strangers._living(self.source):
            yield

    def tell(self, level: int, message: str, *args: object) -> None:
        """`message` names the source first."""
        self._strangers.tell(level, message, self.source, *args)

    async def refuse(
        self, stream: TlsStream, status: int, reason: str, message: str, *, retry_after: int | None = None
    ) -> None:
        """Answer with one of `REASONS`; the caller closes the stream."""
        self._strangers.count(reason)
        with trio.move_on_after(REFUSE_SECONDS):
            await refuse(stream, status, reason, message, retry_after=retry_after)
