"""What failed logins cost a source, to the second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.server import penalties as penalties_module
from tunnel.server.penalties import ENFORCED_FROM, MAX_SECONDS, MAX_SOURCES, WRONG_TOKEN_SECONDS, Penalties

HERE, THERE = "192.0.2.1", "2001:db8::/64"


def test_three_wrong_tokens_at_once_cost_fifteen_seconds_and_two_cost_nothing() -> None:
    """B40"""
    penalties = Penalties()
    told = [(penalties.add(HERE, WRONG_TOKEN_SECONDS, 100.0), penalties.wait(HERE, 100.0)) for _ in range(4)]
    assert told == [(False, 0.0), (False, 0.0), (True, 15.0), (False, 20.0)]


def test_a_penalty_that_is_enforced_is_so_until_it_has_passed() -> None:
    penalties = Penalties()
    for _ in range(3):
        penalties.add(HERE, 5.0, 0.0)
    assert [penalties.wait(HERE, now) for now in (0.0, 10.0, 14.5, 15.0, 16.0)] == [15.0, 5.0, 0.5, 0.0, 0.0]


def test_after_a_penalty_has_passed_the_next_failure_is_a_first_one() -> None:
    penalties = Penalties()
    for _ in range(3):
        penalties.add(HERE, 5.0, 0.0)
    assert not penalties.add(HERE, 5.0, 15.0)
    assert penalties.wait(HERE, 15.0) == 0.0


def test_failures_as_far_apart_as_they_cost_never_add_up() -> None:
    """A client with an old token tries every thirty seconds, and is never shut out."""
    penalties = Penalties()
    for number in range(1000):
        assert not penalties.add(HERE, 5.0, number * 5.0)
        assert penalties.wait(HERE, number * 5.0) == 0.0


def test_nobody_waits_longer_than_ten_minutes() -> None:
    penalties = Penalties()
    for _ in range(1000):
        penalties.add(HERE, 5.0, 7.0)
    assert penalties.wait(HERE, 7.0) == MAX_SECONDS


def test_a_source_waits_for_its_own_failures_only() -> None:
    penalties = Penalties()
    for _ in range(10):
        penalties.add(HERE, 5.0, 0.0)
    assert penalties.wait(THERE, 0.0) == 0.0


def test_seventy_thousand_sources_leave_the_newest_in_a_bounded_table() -> None:
    """B40"""
    penalties = Penalties()
    for number in range(70_000):
        penalties.add(f"source {number}", ENFORCED_FROM, 0.0)
    assert len(penalties) == MAX_SOURCES
    assert penalties.wait("source 4463", 0.0) == 0.0
    assert penalties.wait("source 4464", 0.0) == ENFORCED_FROM


def test_what_has_passed_is_forgotten_as_others_come() -> None:
    penalties = Penalties()
    for number in range(100):
        penalties.add(f"source {number}", 1.0, 0.0)
    for number in range(100):
        penalties.add(f"other {number}", 1.0, 2.0)
    assert len(penalties) == 100


@given(
    st.lists(st.tuples(st.sampled_from([HERE, THERE, "x"]), st.sampled_from([1.0, 5.0]), st.floats(0, 20)), max_size=60)
)
def test_a_wait_is_within_its_bounds_and_shrinks_as_time_passes(events: list[tuple[str, float, float]]) -> None:
    penalties, now = Penalties(), 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(penalties_module, "MAX_SOURCES", 2)
        for source, seconds, later in events:
            before = penalties.wait(source, now)
            now += later
            assert penalties.wait(source, now) == pytest.approx(max(before - later, 0.0))
            newly = penalties.add(source, seconds, now)
            after = penalties.wait(source, now)
            assert after == 0.0 or seconds <= after <= MAX_SECONDS
            assert newly == (after > 0.0 and before - later <= 0.0)
            assert len(penalties) <= 2
