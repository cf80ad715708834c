"""How long things took: counts in fixed logarithmic buckets, cheap to add to and small to keep.

Twenty buckets a decade, from 10 µs to 1,000 s: a percentile is off by at most `RELATIVE_ERROR` (6 %) of what a sorted
list of all the values would give. Below that range it is off by at most 10 µs; above it, the longest ever seen is told.
Fixed buckets can be added up, and exported, over time and over processes; percentiles cannot.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from math import ceil, sqrt

PER_DECADE = 20
LOWEST_DECADE, HIGHEST_DECADE = -5, 3  # powers of ten, in seconds
BOUNDS = [10 ** (LOWEST_DECADE + i / PER_DECADE) for i in range((HIGHEST_DECADE - LOWEST_DECADE) * PER_DECADE + 1)]
RELATIVE_ERROR = 10 ** (1 / (2 * PER_DECADE)) - 1  # of a bucket's geometric middle, against its bounds


class Histogram:
    """Durations in seconds. Grows no further than its 162 counts."""

    __slots__ = ("_counts", "count", "longest", "shortest", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.shortest = float("inf")
        self.longest = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)  # one bucket for each upper bound (included), one for what is above

    def add(self, seconds: float) -> None:
        """Count one duration, in well under a microsecond. A negative one (a clock that was set back) counts as 0."""
        if not seconds > 0.0:
            seconds = 0.0
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.count += 1
        self.sum += seconds
        if seconds > self.longest:
            self.longest = seconds
        if seconds < self.shortest:
            self.shortest = seconds

    def percentile(self, share: float) -> float | None:
        """The duration that `share` (0 to 1) of them did not exceed (nearest rank); None while there are none."""
        if not self.count:
            return None
        rank = max(1, ceil(share * self.count - 1e-9))  # 0.07 * 100 is a little more than 7
        bucket = next((i for i, below in enumerate(accumulate(self._counts)) if below >= rank), len(BOUNDS))
        if bucket == len(BOUNDS):
            return self.longest
        middle = sqrt(BOUNDS[bucket - 1] * BOUNDS[bucket]) if bucket else BOUNDS[0] / 2
        return min(max(middle, self.shortest), self.longest)

    def summary(self) -> dict[str, float | None]:
        """For `/stats`: the count, and p50, p95, p99 and the longest in seconds, to three digits; None for unknown."""
        figures: dict[str, float | None] = {"count": self.count}
        for key, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            figures[key] = _rounded(self.percentile(share))
        return {**figures, "max": _rounded(self.longest if self.count else None)}

    def buckets(self, *, per_decade: int = 4) -> Iterator[tuple[float, int]]:
        """Each upper bound (included) with the count of all that is not above it, the last bound infinite.

        That is what a Prometheus histogram consists of. `per_decade` divides 20; the fewer, the fewer series.
        """
        if per_decade < 1 or PER_DECADE % per_decade:
            raise ValueError(f"per_decade must divide {PER_DECADE}, which {per_decade} does not")
        below = list(accumulate(self._counts))
        step = PER_DECADE // per_decade
        yield from zip(BOUNDS[::step], below[:-1:step], strict=True)
        yield float("inf"), below[-1]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.3g}")
