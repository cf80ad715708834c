"""Retry policies are pure values: their delays are told exactly, and for any policy within its bounds."""

from itertools import accumulate, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.backoff import RECONNECT, RECONNECT_REFUSED, RetryPolicy

POLICIES = {
    "default": (RetryPolicy(), [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]),
    "constant": (RetryPolicy(initial_delay=3, factor=1, max_retries=3), [3, 3, 3]),
    "none": (RetryPolicy(max_retries=0), []),
    "first above the ceiling": (RetryPolicy(initial_delay=90, max_retries=2), [60, 60]),
    "broken factor": (RetryPolicy(initial_delay=1, factor=1.5, max_delay=3, max_retries=4), [1, 1.5, 2.25, 3]),
}


@pytest.mark.parametrize(("policy", "delays"), POLICIES.values(), ids=POLICIES)
def test_delays_grow_to_the_ceiling_and_end(policy: RetryPolicy, delays: list[float]) -> None:
    assert list(policy.delays()) == delays


def test_the_default_makes_eleven_attempts_in_362_seconds() -> None:
    """B7"""
    assert list(accumulate(RetryPolicy().delays(), initial=0)) == [0, 2, 6, 14, 30, 62, 122, 182, 242, 302, 362]


def test_no_jitter_asks_for_no_randomness() -> None:
    def rand() -> float:
        raise AssertionError

    assert next(RetryPolicy().delays(rand)) == 2


def test_jitter_shortens_by_its_share_and_does_not_add_up() -> None:
    policy = RetryPolicy(initial_delay=10, max_retries=3, jitter=0.5)
    assert list(policy.delays(lambda: 0.5)) == [7.5, 15, 30]


def test_reconnecting_doubles_from_one_second_to_thirty_under_full_jitter() -> None:
    assert list(islice(RECONNECT.delays(lambda: 0.0), 7)) == [1, 2, 4, 8, 16, 30, 30]
    assert list(islice(RECONNECT.delays(lambda: 0.5), 3)) == [0.5, 1, 2]


def test_reconnecting_after_a_refusal_grows_from_thirty_seconds_to_five_minutes() -> None:
    assert list(islice(RECONNECT_REFUSED.delays(), 6)) == [30, 60, 120, 240, 300, 300]


def test_each_iterator_starts_afresh() -> None:
    policy = RetryPolicy()
    assert list(islice(policy.delays(), 3)) == list(islice(policy.delays(), 3)) == [2, 4, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_delay": 0}, {"initial_delay": -1}, {"factor": 0.9}, {"max_delay": 0}, {"max_retries": -1},
        {"jitter": -0.1}, {"jitter": 1.1},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**wrong)


@given(
    initial=st.floats(0.01, 1e4),
    factor=st.floats(1, 100),
    ceiling=st.floats(0.01, 1e5),
    retries=st.integers(0, 60),
    jitter=st.floats(0, 1),
    rand=st.floats(0, 1, exclude_max=True),
)
def test_every_delay_is_within_its_bounds(
    initial: float, factor: float, ceiling: float, retries: int, jitter: float, rand: float
) -> None:
    policy = RetryPolicy(initial, factor, ceiling, retries, jitter)
    delays = list(policy.delays(lambda: rand))
    assert len(delays) == retries
    assert all(0 <= delay <= ceiling for delay in delays)
    assert delays == sorted(delays)
    assert all(delay >= min(initial, ceiling) * (1 - jitter) * (1 - 1e-9) for delay in delays)
