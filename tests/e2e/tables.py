"""How figures are shown: columns with the first to the left, and the distribution of times."""

import statistics
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [heads, *rows]
    first, *others = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in cells
    )


def at(times: Sequence[float], share: float) -> float:
    """A quantile of what is not empty."""
    ordered = sorted(times)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def distribution(times: Sequence[float]) -> tuple[str, ...]:
    """How many, and median, p90, p99 and slowest in seconds."""
    if not times:
        return "0", "", "", "", ""
    marks = statistics.median(times), at(times, 0.9), at(times, 0.99), max(times)
    return str(len(times)), *(f"{mark:.2f}" for mark in marks)
