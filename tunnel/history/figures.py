"""From intervals to figures: how long a proxy was healthy, its outages, retries and recoveries. Pure; times in seconds.

    recorded    a process kept account of it
    published   recorded, and its client wanted it to be reachable: connected or not
    healthy     published, and visitors were served

An outage is a stretch of published time that is not healthy, whatever follows what in it. The moments in which a proxy
starts or its process stops are none, though their time counts.
"""

import math
from collections.abc import Iterable, Sequence

from attrs import evolve, frozen

HEALTHY, FAILED, REMOVED = "healthy", "bind_failed", "removed"
_QUIET = ("pending", "connecting", "draining")  # reasons: nothing has failed yet, or all is meant
RECOVERED, ONGOING, WITHDRAWN, UNKNOWN = "recovered", "ongoing", "withdrawn", "unknown"


@frozen
class Interval:
    """A proxy in one status, Unix seconds. `failed` bind attempts failed in it; `binds` is 1 where it began to
    listen."""

    began: float
    ended: float
    status: str
    reason: str | None = None
    message: str | None = None
    failed: int = 0
    binds: int = 0


@frozen
class Outage:
    """`end` is how it ended: `recovered`, `ongoing`, `withdrawn` (not published any more), or `unknown` where the
    record ends. `status`, `reason` and `message` are those of its worst and latest part."""

    began: float
    seconds: float
    end: str
    status: str
    reason: str | None
    message: str | None
    failed: int


@frozen
class Recoveries:
    """How long outages took that ended well; None where there was none. The p95 is the nearest rank's."""

    count: int
    median: float | None
    p95: float | None
    max: float | None


@frozen
class Figures:
    """Of one proxy in a window. `uptime` is healthy ÷ published, None where it was never published. `retries` are
    failed bind attempts that were to be followed by another one, `gave_up` those that were the last; the
    `bind_success_rate` is of all attempts."""

    window: float
    recorded: float
    published: float
    healthy: float
    uptime: float | None
    outages: int
    down: float
    longest: float
    binds: int
    retries: int
    gave_up: int
    bind_success_rate: float | None
    recoveries: Recoveries
    last: tuple[Outage, ...]


def figures(intervals: Iterable[Interval], *, since: float, until: float, keep: int = 10) -> Figures:
    """Of one proxy's intervals, in any order, between two moments; `keep` outages at most are in `last`, newest first.

    Where intervals overlap (two processes on one record, a clock set back), the one that began later counts.
    """
    found = clipped(intervals, since, until)
    outages = find_outages(found, until)
    published = sum(_length(one) for one in found if one.status != REMOVED)
    healthy = sum(_length(one) for one in found if one.status == HEALTHY)
    binds = sum(one.binds for one in found)
    gave_up = sum(one.status == FAILED and one.failed > 0 for one in found)
    failed = sum(one.failed for one in found)
    return Figures(
        window=until - since,
        recorded=sum(map(_length, found)),
        published=published,
        healthy=healthy,
        uptime=healthy / published if published else None,
        outages=len(outages),
        down=sum(one.seconds for one in outages),
        longest=max((one.seconds for one in outages), default=0.0),
        binds=binds,
        retries=failed - gave_up,
        gave_up=gave_up,
        bind_success_rate=binds / (binds + failed) if binds + failed else None,
        recoveries=recoveries([one.seconds for one in outages if one.end == RECOVERED]),
        last=tuple(reversed(outages[-keep:])) if keep else (),
    )


def clipped(intervals: Iterable[Interval], since: float, until: float) -> list[Interval]:
    """In order, without overlaps, within the window. What began before it brings its bind with it no more, nor its
    giving up; the attempts of a bind retry, which are gathered by the hour, it does bring."""
    ordered = sorted(intervals, key=lambda one: (one.began, one.ended))
    found: list[Interval] = []
    for index, one in enumerate(ordered):
        following = ordered[index + 1].began if index + 1 < len(ordered) else until
        began, ended = max(one.began, since), min(one.ended, following, until)
        if ended < began or one.ended < since or one.began > until:
            continue
        if one.began < since:
            one = evolve(one, binds=0, failed=0 if one.status == FAILED else one.failed)
        found.append(evolve(one, began=began, ended=ended))
    return found


def find_outages(intervals: Sequence[Interval], until: float) -> list[Outage]:
    """Of intervals in order and without overlaps, oldest first."""
    outages: list[Outage] = []
    stretch: list[Interval] = []
    for one in intervals:
        joins = not stretch or stretch[-1].ended == one.began
        if one.status in (HEALTHY, REMOVED) or not joins:
            how = UNKNOWN if not joins else RECOVERED if one.status == HEALTHY else WITHDRAWN
            outages += _outage(stretch, how)
            stretch = []
        if one.status not in (HEALTHY, REMOVED):
            stretch.append(one)
    ends_now = bool(stretch) and stretch[-1].ended == until
    return [*outages, *_outage(stretch, ONGOING if ends_now else UNKNOWN)]


def recoveries(seconds: Sequence[float]) -> Recoveries:
    if not seconds:
        return Recoveries(0, None, None, None)
    ordered = sorted(seconds)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Recoveries(len(ordered), median, ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])


def _outage(stretch: Sequence[Interval], end: str) -> list[Outage]:
    loud = [one for one in stretch if one.reason not in _QUIET]
    if not loud:
        return []
    worst = next((one for one in reversed(loud) if one.status == FAILED), loud[-1])
    return [
        Outage(
            began=stretch[0].began,
            seconds=stretch[-1].ended - stretch[0].began,
            end=end,
            status=worst.status,
            reason=worst.reason,
            message=worst.message,
            failed=sum(one.failed for one in stretch),
        )
    ]


def _length(one: Interval) -> float:
    return one.ended - one.began
