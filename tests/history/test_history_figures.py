"""From intervals to figures: exact numbers, no clock and no file."""

from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from tunnel.history.figures import Figures, Interval, Outage, Recoveries, clipped, figures, recoveries


def timeline(*parts: tuple[float, str] | tuple[float, str, str], start: float = 0.0, **more: int) -> list[Interval]:
    """Intervals that follow each other: (seconds, status) or (seconds, status, reason)."""
    found = []
    for seconds, status, *reason in parts:
        found.append(Interval(start, start + seconds, status, reason[0] if reason else None, **more))
        start += seconds
    return found


def of(*parts: tuple[float, str] | tuple[float, str, str], until: float | None = None) -> Figures:
    found = timeline(*parts)
    return figures(found, since=0.0, until=found[-1].ended if until is None else until)


def test_a_day_with_one_outage_of_six_minutes() -> None:
    found = of((6 * 3600, "healthy"), (360, "unhealthy", "target_down"), (86_400 - 6 * 3600 - 360, "healthy"))
    assert (found.window, found.recorded, found.published, found.healthy) == (86_400, 86_400, 86_400, 86_040)
    assert found.uptime == 86_040 / 86_400
    assert (found.outages, found.down, found.longest) == (1, 360, 360)
    assert found.recoveries == Recoveries(1, 360, 360, 360)
    assert found.last == (Outage(6 * 3600, 360, "recovered", "unhealthy", "target_down", None, 0),)


def test_of_nothing_there_is_no_share() -> None:
    found = figures([], since=0, until=100)
    assert (found.uptime, found.bind_success_rate, found.recorded) == (None, None, 0)
    assert found.recoveries == Recoveries(0, None, None, None)


def test_time_in_which_it_was_not_published_counts_neither_way() -> None:
    found = of((10, "healthy"), (80, "removed"), (10, "healthy"))
    assert (found.published, found.uptime, found.outages) == (20, 1.0, 0)


def test_statuses_that_follow_each_other_are_one_outage_and_the_worst_of_them_names_it() -> None:
    found = of(
        (10, "healthy"), (5, "unhealthy", "addr_in_use"), (20, "bind_failed", "addr_in_use"),
        (3, "unhealthy", "pending"), (10, "healthy"),
    )  # fmt: skip
    assert found.last == (Outage(10, 28, "recovered", "bind_failed", "addr_in_use", None, 0),)


@pytest.mark.parametrize("reason", ["pending", "connecting", "draining"])
def test_to_start_and_to_stop_is_no_outage_though_its_time_counts(reason: str) -> None:
    found = of((2, "unhealthy", reason), (98, "healthy"))
    assert (found.outages, found.uptime) == (0, 0.98)


def test_a_start_that_becomes_trouble_is_one_from_its_beginning() -> None:
    found = of((2, "unhealthy", "connecting"), (8, "unhealthy", "session_lost"), (90, "healthy"))
    assert [(outage.began, outage.seconds) for outage in found.last] == [(0, 10)]


def test_an_outage_that_lasts_is_counted_and_told_as_such() -> None:
    found = of((10, "healthy"), (5, "away"), until=15)
    assert [outage.end for outage in found.last] == ["ongoing"]
    assert found.recoveries.count == 0


def test_where_the_record_ends_nobody_knows_how_an_outage_did() -> None:
    found = of((10, "healthy"), (5, "away"), until=20)
    assert ([outage.end for outage in found.last], found.recorded, found.window) == (["unknown"], 15, 20)
    gap = [*timeline((5, "unhealthy", "target_down")), *timeline((5, "healthy"), start=60)]
    assert [outage.end for outage in figures(gap, since=0, until=65).last] == ["unknown"]


def test_one_that_is_taken_back_in_trouble_has_not_recovered() -> None:
    found = of((10, "healthy"), (5, "away"), (1, "removed"))
    assert ([outage.end for outage in found.last], found.recoveries.count) == (["withdrawn"], 0)


def test_the_newest_outages_come_first_and_only_so_many() -> None:
    parts = [part for n in range(1, 6) for part in ((10, "healthy"), (n, "unhealthy", "target_down"))]
    intervals = timeline(*parts, (10, "healthy"))
    found = figures(intervals, since=0, until=intervals[-1].ended, keep=2)
    assert (found.outages, [outage.seconds for outage in found.last]) == (5, [5, 4])
    assert figures(intervals, since=0, until=intervals[-1].ended, keep=0).last == ()


def test_recoveries_have_a_median_a_p95_by_nearest_rank_and_a_most() -> None:
    assert recoveries([7.0]) == Recoveries(1, 7.0, 7.0, 7.0)
    assert recoveries([4.0, 1.0]) == Recoveries(2, 2.5, 4.0, 4.0)
    assert recoveries([float(n) for n in range(1, 101)]) == Recoveries(100, 50.5, 95.0, 100.0)
    assert recoveries([float(n) for n in range(1, 21)]) == Recoveries(20, 10.5, 19.0, 20.0)


def test_retries_and_success_are_counted_by_attempt() -> None:
    """Ten retries that end well, then eleven attempts that do not: 10 and 10 retries, 1 success of 22 attempts."""
    taken = Interval(0, 362, "unhealthy", "addr_in_use", failed=10)
    found = figures(
        [
            taken, Interval(362, 400, "healthy", binds=1),
            Interval(400, 762, "unhealthy", "addr_in_use", failed=10), Interval(762, 800, "bind_failed", failed=1),
        ],
        since=0, until=800,
    )  # fmt: skip
    assert (found.binds, found.retries, found.gave_up) == (1, 20, 1)
    assert found.bind_success_rate == 1 / 22
    assert [outage.failed for outage in found.last] == [11, 10]


def test_a_window_cuts_what_began_before_it_and_what_goes_on_after() -> None:
    intervals = [
        Interval(0, 50, "bind_failed", failed=1), Interval(50, 100, "healthy", binds=1), Interval(100, 200, "away"),
    ]  # fmt: skip
    found = figures(intervals, since=60, until=150)
    assert (found.window, found.healthy, found.down, found.binds, found.gave_up) == (90, 40, 50, 0, 0)
    assert figures(intervals, since=10, until=150).gave_up == 0  # it gave up before the window


def test_where_two_records_overlap_the_later_beginning_counts() -> None:
    found = figures([Interval(0, 100, "healthy"), Interval(40, 60, "away")], since=0, until=100)
    assert (found.recorded, found.healthy, found.down) == (60, 40, 20)


MOMENTS = st.floats(0, 1000).map(lambda at: round(at, 3))
INTERVALS = st.builds(
    lambda began, seconds, status, failed: Interval(began, began + seconds, status, failed=failed),
    MOMENTS, MOMENTS, st.sampled_from(["healthy", "unhealthy", "bind_failed", "away", "removed"]), st.integers(0, 9),
)  # fmt: skip


@given(st.lists(INTERVALS, max_size=12), MOMENTS, MOMENTS)
def test_whatever_was_recorded_the_parts_fit_into_the_whole(
    intervals: list[Interval], since: float, length: float
) -> None:
    until = since + length
    cut = clipped(intervals, since, until)
    assert all(since <= one.began <= one.ended <= until for one in cut)
    assert all(one.ended <= following.began for one, following in pairwise(cut))
    found = figures(intervals, since=since, until=until)
    assert 0 <= found.healthy <= found.published <= found.recorded <= found.window + 1e-6
    assert found.healthy + found.down == pytest.approx(found.published)
    assert found.uptime is None or 0 <= found.uptime <= 1
    assert found == figures(reversed([evolve(one) for one in intervals]), since=since, until=until) or len(
        {(one.began, one.ended) for one in intervals}
    ) < len(intervals)
