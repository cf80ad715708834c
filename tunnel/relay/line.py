"""Listeners that paused at a bound, in the order in which they came to it: who has waited longest goes on first. Pure.

A place that gets free is one visitor's. Would all of a thousand listeners go on because of it, 999 would pause again.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from attrs import Factory, define

LOOKS = 64  # in one turn, at listeners whose own bound (proxy's, client's) may stand though the process has room


class Waiter(Protocol):
    """A listener."""

    @property
    def is_at_bound(self) -> bool: ...


W = TypeVar("W", bound=Waiter)


@define(eq=False)
class Line(Generic[W]):
    """`unseen` is how many are yet to be looked at since a bound was last found further away: so often `next` pays."""

    unseen: int = 0
    _waiting: "OrderedDict[W, None]" = Factory(OrderedDict)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._waiting

    def add(self, waiter: W) -> None:
        self._waiting[waiter] = None

    def discard(self, waiter: W) -> None:
        self._waiting.pop(waiter, None)

    def look_again(self) -> None:
        """A bound is further away than it was, whosever that is."""
        self.unseen = len(self._waiting)

    def next(self) -> W | None:
        """The first one that is not at a bound any more, and is in line no more; of LOOKS at most."""
        waiting = self._waiting
        looks = min(self.unseen, LOOKS, len(waiting))
        self.unseen = min(self.unseen, len(waiting)) - looks
        for left in range(looks, 0, -1):
            waiter = next(iter(waiting))
            if not waiter.is_at_bound:
                del waiting[waiter]
                self.unseen += left - 1
                return waiter
            waiting.move_to_end(waiter)
        return None
