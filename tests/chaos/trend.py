"""Whether samples grow: a slope that spikes cannot bend, and a test whether it is more than chance.

The slope is Theil's and Sen's, the median of the slopes of all pairs of samples: half of them may be spikes (a burst of
visitors, a collection of garbage) and it does not move. Whether there is a trend at all is asked of Kendall's tau (the
Mann-Kendall test): how many more pairs rise than fall, in standard deviations of what shuffled samples would show.
A process warms up, so the first fifth is left out. It leaks if both say so: the trend is no chance, and what it adds
up to over the time sampled is more than the kind of figure may vary by.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from attrs import frozen

WARM_UP = 0.2  # of the samples
CHANCE = 3.0  # standard deviations: one in seven hundred steady runs is blamed by this alone
MAX_PAIRED = 600  # samples; more are thinned evenly, for pairs are many


@frozen
class Trend:
    """Growth per hour, what it adds up to over the time sampled, and how sure it is (standard deviations)."""

    per_hour: float
    growth: float
    sureness: float
    first: float  # level at the beginning of what counts, robustly
    last: float

    def grows(self, allowed: float) -> bool:
        return self.sureness > CHANCE and self.growth > allowed


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Of (seconds, value) in order of time; at least a handful."""
    kept = samples[int(WARM_UP * len(samples)) :]
    step = max(1, len(kept) // MAX_PAIRED)
    kept = kept[::step]
    if len(kept) < 3:
        raise ValueError(f"{len(samples)} samples tell no trend; take a few more")
    slopes, score = [], 0
    for index, (at, value) in enumerate(kept):
        for later, other in kept[index + 1 :]:
            slopes.append((other - value) / (later - at))
            score += (other > value) - (other < value)
    slope = statistics.median(slopes)
    edge = max(1, len(kept) // 10)
    return Trend(
        per_hour=slope * 3600,
        growth=slope * (kept[-1][0] - kept[0][0]),
        sureness=_deviations(score, [value for _, value in kept]),
        first=statistics.median(value for _, value in kept[:edge]),
        last=statistics.median(value for _, value in kept[-edge:]),
    )


def _deviations(score: int, values: Sequence[float]) -> float:
    """Kendall's score in standard deviations, equal values taken into account."""
    count = len(values)
    spread = count * (count - 1) * (2 * count + 5)
    spread -= sum(same * (same - 1) * (2 * same + 5) for same in Counter(values).values())
    if spread <= 0:
        return 0.0  # all are equal
    return (score - math.copysign(1, score) if score else 0) / math.sqrt(spread / 18)
