"""How many new visitors a second a session takes in: a bucket of tokens that its listeners share.

The bucket holds a second's worth, so that a browser's burst is not held up. A listener for which there is no token
pauses; its visitors wait in the kernel. While several wait, each gets a share, so that a crowd at one proxy does not
shut the others out.
"""

import random
from collections.abc import Callable

DUST = 1e-6  # of a token: three times a third is a whole one
WAITING_SECONDS = 0.5  # a listener that was held up so lately still wants its share


class Pace:
    """`rate` is of visitors a second, `held_up` is called each time a listener has to wait. Asked with the time."""

    def __init__(self, rate: float, now: float, *, held_up: Callable[[], None] = lambda: None) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._tokens = self._most
        self._at = now
        self._held_up = held_up
        self._waiting: dict[object, float] = {}  # which listeners, and since when they rest

    def quota(self, listener: object, now: float, most: int) -> int:
        """How many visitors `listener` may take in now, at most `most`; each is to be counted."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._waiting.pop(listener, None)
        late = [other for other, since in self._waiting.items() if now - since > WAITING_SECONDS]
        for other in late:
            del self._waiting[other]
        share = self._tokens / (1 + len(self._waiting))
        lots = random.random() if self._waiting else 0.0  # noqa: S311  parts of a visitor are shared by chance
        return min(int(share + lots + DUST), int(self._tokens + DUST), most)

    def count(self) -> None:
        """A visitor was taken in."""
        self._tokens -= 1.0

    def rests(self, listener: object) -> None:
        """It took what it might, and pauses."""
        self._waiting[listener] = self._at
        self._held_up()
