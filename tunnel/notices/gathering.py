"""Puts what is to be told at about the same time into few notices: of a thousand proxies failing at once, one. Pure."""

from math import inf

from attrs import define, evolve, field

from tunnel.notices.notice import MAX_NAMED, RECOVERED, Group, Subject

# Whatever happens, a receiver gets so many notices at once, and then one a minute; what comes meanwhile is gathered.
BURST, PER_SECOND = 10, 1 / 60


@define(eq=False)
class Gathering:
    """Opens with the first finding, and is told `seconds` later. Of one thing only the newest finding is kept."""

    seconds: float
    _found: dict[object, tuple[str, Subject]] = field(factory=dict, init=False)
    _due_at: float = field(default=inf, init=False)
    _tokens: float = field(default=BURST, init=False)
    _dripped_at: float | None = field(default=None, init=False)

    def add(self, key: object, kind: str, subject: Subject, now: float) -> None:
        if not self._found:
            self._due_at = now + self.seconds
        before = self._found.pop(key, None)
        if before is not None:  # it was not told: what has happened since then happened twice, or more often
            subject = evolve(subject, times=_sum_of(*before, kind, subject))
        self._found[key] = kind, subject

    @property
    def next_at(self) -> float:
        return self._due_at

    def due(self, now: float) -> list[Group]:
        """A group of each kind, in the order in which each was first found; nothing while it is too early."""
        if now < self._due_at:
            return []
        self._drip(now)
        kinds: dict[str, list[tuple[object, Subject]]] = {}
        for key, (kind, subject) in self._found.items():
            kinds.setdefault(kind, []).append((key, subject))
        groups = []
        for kind, members in kinds.items():
            if self._tokens < 1:
                break
            self._tokens -= 1
            groups.append(Group(kind, len(members), tuple(subject for _, subject in members[:MAX_NAMED])))
            for key, _ in members:
                del self._found[key]
        self._due_at = now + (1 - self._tokens) / PER_SECOND if self._found else inf
        return groups

    def flush(self) -> list[Group]:
        """All there is, now: this is the end."""
        self._due_at, self._tokens = -inf, BURST
        return self.due(0.0)

    def _drip(self, now: float) -> None:
        if self._dripped_at is not None:
            self._tokens = min(BURST, self._tokens + (now - self._dripped_at) * PER_SECOND + 1e-9)
        self._dripped_at = now


def _sum_of(before_kind: str, before: Subject, kind: str, subject: Subject) -> int:
    """The end of a trouble that was not told yet is not another trouble."""
    return max(before.times, subject.times) if kind == RECOVERED != before_kind else before.times + subject.times
