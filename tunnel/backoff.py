"""How long to wait before trying again, and whether at all: pure values with iterators of delays, and a budget.

One definition everywhere: *retries = attempts - 1*. A policy with ``max_retries=10`` makes eleven attempts, one with 0
makes one, one with None never gives up. Policies say when one thing is tried again; `RetryBudget` how much of it all
the things together may cause.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from attrs import Attribute, define, field, frozen, validators


def _check_max_retries(_policy: object, _attribute: "Attribute[Any]", value: int | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"max_retries must be 0 or more, not {value}; None is for ever")


@frozen
class RetryPolicy:
    """Exponential growth up to a ceiling, for a bounded number of retries.

    The defaults are the bind retry of the first seed system: waits of 2, 4, 8, 16, 32, 60, 60, 60, 60, 60 seconds,
    that is 362 s over 11 attempts (the seed's text says 402; its sum is wrong). Units are seconds; `jitter` is the
    share (0 to 1) by which a delay may be shortened at random; `max_retries` None means for ever.
    """

    initial_delay: float = field(default=2.0, validator=validators.gt(0))
    factor: float = field(default=2.0, validator=validators.ge(1))
    max_delay: float = field(default=60.0, validator=validators.gt(0))
    max_retries: int | None = field(default=10, validator=_check_max_retries)
    jitter: float = field(default=0.0, validator=[validators.ge(0), validators.le(1)])

    def delays(self, rand: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the wait before each retry; `rand` returns [0, 1). Ends when the retries are used up."""
        delay, made = min(self.initial_delay, self.max_delay), 0
        while self.max_retries is None or made < self.max_retries:
            yield delay * (1 - self.jitter * rand()) if self.jitter else delay
            delay = min(delay * self.factor, self.max_delay)
            made += 1


@frozen
class LinearPolicy:
    """Waits that grow by `step` seconds each time, the first retry at once: 0, 1, 2, 3 s (the second seed's).

    `max_retries` None means for ever; the waits then grow without a ceiling, though ever more slowly in proportion.
    """

    step: float = field(default=1.0, validator=validators.ge(0))
    max_retries: int | None = field(default=4, validator=_check_max_retries)

    def delays(self, rand: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the wait before each retry. Ends when the retries are used up. `rand` is there for the likeness."""
        made = 0
        while self.max_retries is None or made < self.max_retries:
            yield self.step * made
            made += 1


Policy = RetryPolicy | LinearPolicy


def exponential(
    initial: float = 1.0,
    factor: float = 2.0,
    max_delay: float = 30.0,
    max_retries: int | None = None,
    jitter: float = 1.0,
) -> RetryPolicy:
    """For what many try at once: 1, 2, 4, 8, 16, 30, 30, … s, each shortened at random, for ever."""
    return RetryPolicy(initial, factor, max_delay, max_retries, jitter)


def linear(step: float = 1.0, max_retries: int | None = 4) -> LinearPolicy:
    """For what somebody waits for: 0, 1, 2, 3 s, so five attempts within 6 s."""
    return LinearPolicy(step, max_retries)


FULL = 1 - 1e-9  # of a token: ten times a tenth is a little less than one


@define(eq=False)
class RetryBudget:
    """How many retries all the users of one thing may make together, so that a mass failure is no storm.

    Without it, `n` retries each multiply the load by n + 1 just when least can be borne. Each first attempt earns
    `ratio` of a retry, kept up to `most`; and there are `floor_per_second` retries a second besides, of which one
    second's worth (one at least) is kept, so that a quiet user may retry, too. The shape is that of the retry budget
    in Twitter's Finagle, whose well-known numbers are 20 % and 10 a second; the floor is lower here, where a budget
    belongs to one pool and not to a whole service. Over any time, retries <= most + ratio * attempts + floor * seconds
    (and the second's worth).

    Time is handed in (seconds on any one clock that does not go back). No retry is owed: who is refused one fails, or
    waits for the next need.
    """

    ratio: float = field(default=0.2, validator=[validators.ge(0), validators.le(1)])
    most: float = field(default=100.0, validator=validators.ge(0))
    floor_per_second: float = field(default=2.0, validator=validators.ge(0))
    earned: float = field(default=0.0, init=False)
    _floor: float = field(default=0.0, init=False)
    _floor_at: float | None = field(default=None, init=False)

    def note_attempt(self, now: float) -> None:
        """A first attempt is being made; retries are not reported here."""
        self._let_drip(now)
        self.earned = min(self.earned + self.ratio, self.most)

    def allow_retry(self, now: float) -> bool:
        """Whether one retry may be made now; if so, it is paid for. The floor's are spent first: they come back."""
        self._let_drip(now)
        if self._floor >= FULL:
            self._floor = max(self._floor - 1, 0.0)
        elif self.earned >= FULL:
            self.earned = max(self.earned - 1, 0.0)
        else:
            return False
        return True

    def _let_drip(self, now: float) -> None:
        kept = max(self.floor_per_second, 1.0) if self.floor_per_second else 0.0
        if self._floor_at is None:
            self._floor = kept  # it begins full
        else:
            self._floor = min(self._floor + max(now - self._floor_at, 0.0) * self.floor_per_second, kept)
        self._floor_at = now


# The server answered and broke off, or said it was busy: at once, then 1 s doubling to 30 s with full jitter.
RECONNECT = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None, jitter=1.0)
# Token, pin or certificate refused: only a person can mend that, so slowly; 30 s growing to 5 min.
RECONNECT_REFUSED = RetryPolicy(initial_delay=30.0, factor=2.0, max_delay=300.0, max_retries=None)
