"""Percentiles from buckets are those of a sorted list, within the error the module states."""

from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.histogram import BOUNDS, RELATIVE_ERROR, Histogram

IN_RANGE = st.floats(BOUNDS[0], BOUNDS[-1])
SHARES = st.sampled_from([0.0, 0.01, 0.07, 0.5, 0.95, 0.99, 0.999, 1.0]) | st.floats(0, 1)


def histogram(*durations: float) -> Histogram:
    made = Histogram()
    for seconds in durations:
        made.add(seconds)
    return made


def nearest_rank(durations: list[float], share: float) -> float:
    return sorted(durations)[max(1, ceil(share * len(durations) - 1e-9)) - 1]


@given(st.lists(IN_RANGE, min_size=1, max_size=200), SHARES)
def test_a_percentile_is_that_of_the_sorted_list_within_the_stated_error(durations: list[float], share: float) -> None:
    told, exact = histogram(*durations).percentile(share), nearest_rank(durations, share)
    assert told is not None
    assert abs(told - exact) <= exact * (RELATIVE_ERROR + 1e-9)


@given(st.lists(st.floats(0, BOUNDS[0]), min_size=1, max_size=50), SHARES)
def test_below_the_range_the_error_is_ten_microseconds(durations: list[float], share: float) -> None:
    told = histogram(*durations).percentile(share)
    assert told is not None
    assert abs(told - nearest_rank(durations, share)) <= 10e-6


def test_above_the_range_the_longest_is_told() -> None:
    assert histogram(1, 2000, 5000).percentile(0.5) == 5000


def test_the_stated_error_is_six_percent() -> None:
    assert abs(RELATIVE_ERROR - 0.0593) < 0.0001


def test_one_duration_is_told_exactly() -> None:
    assert histogram(0.0123456).percentile(0.5) == 0.0123456


def test_without_durations_there_is_nothing_to_tell() -> None:
    empty = Histogram()
    assert empty.percentile(0.5) is None
    assert empty.summary() == {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}
    assert list(empty.buckets())[-1] == (inf, 0)


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    made = histogram(-5.0)
    assert (made.count, made.sum, made.percentile(0.5)) == (1, 0.0, 0.0)


@pytest.mark.parametrize(("share", "exact"), [(0.07, 7), (0.29, 29), (0.57, 57), (0.99, 99)])
def test_a_share_of_a_hundred_is_that_many_of_them(share: float, exact: int) -> None:
    """0.07 * 100 is a little more than 7: the rank must not be rounded to 8."""
    durations = [0.001] * exact + [1.0] * (100 - exact)
    assert histogram(*durations).percentile(share) == pytest.approx(0.001, rel=RELATIVE_ERROR)


def test_the_summary_has_three_digits() -> None:
    summary = histogram(*[0.0123456] * 98, 0.5, 1.23456).summary()
    assert summary == {
        "count": 100, "p50": pytest.approx(0.0123, rel=0.06), "p95": pytest.approx(0.0123, rel=0.06),
        "p99": pytest.approx(0.5, rel=0.06), "max": 1.23,
    }  # fmt: skip
    assert all(value == float(f"{value:.3g}") for value in summary.values() if value is not None)


@given(st.lists(st.floats(0, 2000), max_size=100), st.sampled_from([1, 2, 4, 5, 10, 20]))
def test_buckets_count_all_that_is_not_above_their_bound(durations: list[float], per_decade: int) -> None:
    made = histogram(*durations)
    told = list(made.buckets(per_decade=per_decade))
    assert [count for _, count in told] == [sum(value <= bound for value in durations) for bound, _ in told]
    assert (len(told), told[-1]) == (8 * per_decade + 2, (inf, len(durations)))
    assert made.sum == pytest.approx(sum(durations))


def test_a_bound_belongs_to_its_bucket() -> None:
    assert dict(histogram(0.01).buckets())[BOUNDS[60]] == 1
    assert BOUNDS[60] == pytest.approx(0.01)


@pytest.mark.parametrize("per_decade", [0, 3, 21, -1])
def test_buckets_are_joined_only_whole(per_decade: int) -> None:
    with pytest.raises(ValueError):
        list(Histogram().buckets(per_decade=per_decade))
