"""One thing that may be in trouble, and what has been told of it. Pure: time is handed in, seconds on one clock.

    fine ──trouble──▶ troubled ──after N s──▶ counted ──not within the interval──▶ told
      ▲                                                                              │
      └───────────────── mended: who was told of the trouble is told of its end ─────┘

Trouble within the interval after a notice is counted, and told at its end in one notice: flapping costs its reader two
notices an interval, the first trouble's and its end's, and then the sum.
"""

from math import inf

from attrs import define, evolve, field, frozen

from tunnel.notices.notice import (
    BIND_FAILED,
    CERTIFICATE_EXPIRING,
    CONFIG_REFUSED,
    RECOVERED,
    SESSION_LOST,
    UNHEALTHY,
    Subject,
)

DAY = 86_400.0
_DAILY = DAY - 3600  # seconds; the daily look may come a little early
# Worse trouble is told at once, whenever the lesser one was; the lesser is no news to who knows the worse.
_RANK = {None: 0, UNHEALTHY: 1, BIND_FAILED: 2, SESSION_LOST: 1, CERTIFICATE_EXPIRING: 1, CONFIG_REFUSED: 1}


@frozen
class Policy:
    """What is told, and when: of a notice's configuration."""

    events: frozenset[str]
    after: float  # seconds that trouble must last which may pass by itself
    interval: float  # seconds between two notices of trouble about one thing

    def patience(self, kind: str) -> float:
        return self.after if kind in (UNHEALTHY, SESSION_LOST) else 0.0

    def pause(self, kind: str) -> float:
        return max(self.interval, _DAILY) if kind == CERTIFICATE_EXPIRING else self.interval


@define(eq=False)
class Case:
    """`subject` is how it stands; its owner calls `look` at `wake_at` and after each change."""

    subject: Subject
    policy: Policy
    kind: str | None = None  # of the trouble there is
    is_away: bool = False  # what to say of it, its session will say
    scheduled_at: float = inf  # the owner's
    _began: float = -inf
    _ended: float = -inf
    _say_end_at: float = -inf
    _counted: bool = False  # this trouble is among `_times`, or is not to be
    _times: int = 0  # troubles that nobody has been told of
    _named: str = UNHEALTHY  # the trouble that was counted last
    _told: str | None = None  # the trouble that its reader believes there is
    _last: str = field(default=UNHEALTHY)
    _quiet_until: float = -inf

    def trouble(self, kind: str, subject: Subject, now: float, *, again: bool = False) -> None:
        """It is in trouble. The same trouble once more is no news, unless it came `again`."""
        self.is_away = False
        if self.kind is None:
            self._began = now
            self.subject = subject
        is_news = kind != self.kind or again
        self.kind = self._last = kind
        if is_news:
            self._counted = self._is_no_matter
        self.subject = evolve(subject, since=self.subject.since)

    @property
    def _is_no_matter(self) -> bool:
        return self.kind not in self.policy.events or _RANK[self.kind] < _RANK[self._told]

    def apply(self, policy: Policy) -> None:
        """By another policy from now on; what was told, or waits to be, stays so."""
        self.policy = policy
        if self.kind is not None and self.kind != self._told and not self._times:
            self._counted = self._is_no_matter

    def mend(self, now: float, *, status: str = "healthy", grace: float = 0.0) -> None:
        """It is fine, or nobody's any more. Who was told of trouble learns it after `grace` seconds."""
        self.is_away = False
        if self.kind is not None:
            self._ended, self._say_end_at = now, now + grace
        self._say_end_at = min(self._say_end_at, now + grace)
        self.kind = None
        self.subject = evolve(self.subject, status=status)

    def suspend(self) -> None:
        """Its session is away: how it stands is not known, and nothing is said, until it is told of again."""
        self.is_away = True

    @property
    def wake_at(self) -> float:
        """When `look` may have something to say; infinity while only a change can give it."""
        if self.is_away:
            return inf
        if self.kind is None:
            return self._say_end_at if self._told else self._quiet_until  # there to be forgotten, at the least
        if not self._counted:
            return self._began + self.policy.patience(self.kind)
        return self._quiet_until if self._times else inf

    def look(self, now: float) -> tuple[str, Subject] | None:
        """What is to be told now, as a kind and its subject."""
        if self.is_away or now < self.wake_at:
            return None
        if self.kind is None:
            return self._look_back(now)
        if not self._counted:
            self._counted = True
            self._times += 1
            self._named = self.kind
        kind = self.kind if self.kind in self.policy.events else self._named  # lesser trouble that nobody asked for
        is_worse = self._told is not None and _RANK[kind] > _RANK[self._told]
        if now < self._quiet_until and not is_worse:
            return None
        self._told = kind
        return self._tell(kind, now)

    def _look_back(self, now: float) -> tuple[str, Subject] | None:
        """It is fine. Who does not want to hear that of each trouble hears of those that were not told, at least."""
        wants_end = RECOVERED in self.policy.events
        was_told, self._told = self._told, None
        if was_told and wants_end:
            times, self._times = self._times, 0
            return RECOVERED, self._past(max(times, 1))
        if self._times and now >= self._quiet_until:
            return self._tell(RECOVERED if wants_end else self._named, now)
        return None

    def _tell(self, kind: str, now: float) -> tuple[str, Subject]:
        times, self._times = self._times, 0
        self._quiet_until = now + self.policy.pause(kind)
        return kind, self._past(times) if self.kind is None else evolve(self.subject, times=times)

    def _past(self, times: int) -> Subject:
        return evolve(self.subject, times=times, seconds=round(max(0.0, self._ended - self._began), 3), was=self._last)

    def is_spent(self, now: float) -> bool:
        """Nothing is wrong, nothing is left to say, and no interval runs that a new trouble would have to wait for."""
        is_quiet = self.kind is None and not self.is_away and self._told is None and not self._times
        return is_quiet and now >= self._quiet_until
