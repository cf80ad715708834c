"""How long to wait before trying again: pure values with iterators of delays.

One definition everywhere: *retries = attempts - 1*. A policy with ``max_retries=10`` makes eleven attempts.
"""

import random
from collections.abc import Callable, Iterator

from attrs import field, frozen, validators


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
    max_retries: int | None = field(default=10)
    jitter: float = field(default=0.0, validator=[validators.ge(0), validators.le(1)])

    @max_retries.validator
    def _check_max_retries(self, _attribute: object, value: int | None) -> None:
        if value is not None and value < 0:
            raise ValueError(f"max_retries must be 0 or more, not {value}")

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

    `max_retries` None means for ever.
    """

    step: float = field(default=1.0, validator=validators.ge(0))
    max_retries: int | None = field(default=4)

    def delays(self, rand: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the wait before each retry. Ends when the retries are used up. `rand` is there for the likeness."""
        made = 0
        while self.max_retries is None or made < self.max_retries:
            yield self.step * made
            made += 1


Policy = RetryPolicy | LinearPolicy

# The server answered and broke off, or said it was busy: at once, then 1 s doubling to 30 s with full jitter.
RECONNECT = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None, jitter=1.0)
# Token, pin or certificate refused: only a person can mend that, so slowly; 30 s growing to 5 min.
RECONNECT_REFUSED = RetryPolicy(initial_delay=30.0, factor=2.0, max_delay=300.0, max_retries=None)
