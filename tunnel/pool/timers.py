"""What is due, in order: the calls that `rules` has put off."""

import heapq
from collections.abc import Callable
from itertools import count
from math import inf


class Timers:
    """Each calls back once; what has become pointless until then finds that out by itself."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def at(self, when: float, act: Callable[[float], None]) -> None:
        """Call `act(now)` once it is `when`; infinity is never."""
        if when < inf:
            heapq.heappush(self._due, (when, next(self._numbers), act))

    def run(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2](now)

    @property
    def next_at(self) -> float:
        return self._due[0][0] if self._due else inf
