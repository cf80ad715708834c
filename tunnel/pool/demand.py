"""How many connections to have ready: from the rate of arrivals, the time one takes to open, and the load. Pure."""

import math
from collections.abc import Iterator

from attrs import define

RATE_SECONDS = 5.0  # what an arrival counts for fades with this time constant: a burst is remembered for some seconds
OPEN_SHARE = 0.25  # of a new measurement in the smoothed opening time
HEADROOM = 2.0  # times the arrivals during one opening: what a Poisson stream of a few rarely exceeds


@define
class Rate:
    """Events a second, exponentially smoothed over `RATE_SECONDS`."""

    _value: float = 0.0
    _at: float = 0.0

    def add(self, count: int, now: float) -> None:
        self._value = self.per_second(now) + count / RATE_SECONDS
        self._at = now

    def per_second(self, now: float) -> float:
        return self._value * math.exp(-max(now - self._at, 0.0) / RATE_SECONDS)


@define
class Pause:
    """Of opening ahead of need at one address: see `waste`."""

    is_on: bool = False
    ended_at: float = -math.inf  # or when connections died there for the first time
    delays: Iterator[float] | None = None  # from then on


@define
class Smoothed:
    """A measured duration in seconds, each new one counting for a quarter; None before the first."""

    value: float | None = None

    def add(self, seconds: float) -> None:
        self.value = seconds if self.value is None else self.value + OPEN_SHARE * (seconds - self.value)


def wanted(*, least: int, most: int, rate: float, open_seconds: float, users: int, capacity: int) -> int:
    """Members to have, ready or in use: room for the users there are and for those who come while one more opens.

    `least` 0 means that nothing is opened ahead of need, whatever the demand.
    """
    if least == 0:
        return 0
    room = users + HEADROOM * rate * open_seconds
    return max(least, min(math.ceil(room / capacity), most))


@define
class Tokens:
    """A bucket that fills at `rate` a second up to a second's worth (one at least); openings ahead of need cost one."""

    rate: float
    _level: float = 1.0
    _at: float = -math.inf

    def take(self, now: float) -> bool:
        most = max(self.rate, 1.0)
        if self._at == -math.inf:
            self._level = most
        else:
            self._level = min(self._level + (now - self._at) * self.rate, most)
        self._at = now
        if self._level < 1 - 1e-9:
            return False
        self._level -= 1
        return True

    def next_at(self, now: float) -> float:
        """When there will be one, if nothing is taken until then."""
        return now + max(1 - self._level, 0.0) / self.rate if self.rate > 0 else math.inf
