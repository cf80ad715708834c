"""The engine's deadlines: one queue for each duration, in which the order of adding is the order of expiring.

Most deadlines never come: a dial of ten seconds is answered in a millisecond. A heap would keep its entry for the ten
seconds, ten thousand dials a second would keep a hundred thousand; a dict forgets at once and needs no sifting.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class DeadlineQueue(Generic[T]):
    """Owners that expire `seconds` after they were added; `expired` is called for each that was not discarded."""

    def __init__(self, seconds: float, expired: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._expired = expired
        self._deadlines: dict[T, float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def become(self, seconds: float) -> None:
        """Another duration, also for those under way, who began when they did: their order stays."""
        more, self.seconds = seconds - self.seconds, seconds
        if more:
            self._deadlines = {owner: deadline + more for owner, deadline in self._deadlines.items()}

    def add(self, owner: T, now: float) -> None:
        """Start, or start again."""
        self._deadlines.pop(owner, None)
        self._deadlines[owner] = now + self.seconds

    def discard(self, owner: T) -> None:
        self._deadlines.pop(owner, None)

    def next(self) -> float | None:
        """When the first one expires."""
        return next(iter(self._deadlines.values()), None)

    def expire(self, now: float) -> None:
        """Call `expired` for each whose time has come, in order. It may add and discard."""
        while self._deadlines:
            owner, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                return
            del self._deadlines[owner]
            self._expired(owner)
