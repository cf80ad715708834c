"""Retry policies are pure values: their delays are told exactly, and for any policy within its bounds."""

from itertools import accumulate, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunnel
from tunnel.backoff import (
    RECONNECT,
    RECONNECT_REFUSED,
    LinearPolicy,
    Policy,
    RetryBudget,
    RetryPolicy,
    exponential,
    linear,
)

POLICIES: dict[str, tuple[Policy, list[float]]] = {
    "default": (RetryPolicy(), [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]),
    "constant": (RetryPolicy(initial_delay=3, factor=1, max_retries=3), [3, 3, 3]),
    "none": (RetryPolicy(max_retries=0), []),
    "first above the ceiling": (RetryPolicy(initial_delay=90, max_retries=2), [60, 60]),
    "broken factor": (RetryPolicy(initial_delay=1, factor=1.5, max_delay=3, max_retries=4), [1, 1.5, 2.25, 3]),
    "linear": (LinearPolicy(), [0, 1, 2, 3]),
    "linear, none": (LinearPolicy(max_retries=0), []),
    "linear, no wait": (LinearPolicy(step=0, max_retries=2), [0, 0]),
    "linear, made": (linear(0.5, 3), [0, 0.5, 1]),
    "exponential, made": (exponential(1, 3, 10, 4, 0), [1, 3, 9, 10]),
}


@pytest.mark.parametrize(("policy", "delays"), POLICIES.values(), ids=POLICIES)
def test_delays_grow_to_the_ceiling_and_end(policy: Policy, delays: list[float]) -> None:
    assert list(policy.delays()) == delays


def test_the_default_makes_eleven_attempts_in_362_seconds() -> None:
    """B7"""
    assert list(accumulate(RetryPolicy().delays(), initial=0)) == [0, 2, 6, 14, 30, 62, 122, 182, 242, 302, 362]


def test_linear_makes_five_attempts_in_six_seconds() -> None:
    assert list(accumulate(linear().delays(), initial=0)) == [0, 0, 1, 3, 6]


def test_exponential_is_for_ever_and_under_full_jitter_unless_told_otherwise() -> None:
    assert exponential() == RetryPolicy(1.0, 2.0, 30.0, None, 1.0) == RECONNECT


@pytest.mark.parametrize(
    ("policy", "thousandth"), [(RetryPolicy(max_retries=None), 60), (LinearPolicy(max_retries=None), 999)]
)
def test_no_number_of_retries_means_for_ever(policy: Policy, thousandth: float) -> None:
    assert list(islice(policy.delays(), 1000))[-1] == thousandth


def test_policies_and_the_budget_are_public() -> None:
    names = {"LinearPolicy", "Policy", "RetryBudget", "RetryPolicy", "exponential", "linear"}
    assert names <= set(tunnel.__all__)
    assert {getattr(tunnel, name) for name in names} == {
        LinearPolicy, Policy, RetryBudget, RetryPolicy, exponential, linear,
    }  # fmt: skip


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


@pytest.mark.parametrize("wrong", [{"step": -0.1}, {"step": float("nan")}, {"max_retries": -1}], ids=str)
def test_a_linear_policy_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        LinearPolicy(**wrong)


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


# The budget


def granted(budget: RetryBudget, now: float, *, asked: int = 1000) -> int:
    return sum(budget.allow_retry(now) for _ in range(asked))


def test_five_first_attempts_earn_one_retry() -> None:
    budget = RetryBudget(floor_per_second=0)
    told = []
    for _ in range(10):
        budget.note_attempt(0)
        told.append(budget.allow_retry(0))
    assert told == [False, False, False, False, True] * 2


def test_a_tenth_ten_times_is_a_whole_retry() -> None:
    budget = RetryBudget(ratio=0.1, floor_per_second=0)
    for _ in range(10):
        budget.note_attempt(0)
    assert granted(budget, 0) == 1


def test_earnings_are_kept_up_to_the_most() -> None:
    budget = RetryBudget(most=7, floor_per_second=0)
    for _ in range(1000):
        budget.note_attempt(0)
    assert (granted(budget, 0), granted(budget, 1e6)) == (7, 0)


def test_who_asks_seldom_has_two_retries_a_second_and_no_more_are_kept() -> None:
    budget = RetryBudget()
    assert [granted(budget, now) for now in (0, 0, 0.25, 0.5, 1.5, 100, 100)] == [2, 0, 0, 1, 2, 2, 0]


def test_a_slow_floor_keeps_one_retry() -> None:
    budget = RetryBudget(floor_per_second=0.1)
    assert [granted(budget, now) for now in (0, 9, 10, 1000)] == [1, 0, 1, 1]


def test_the_floor_is_spent_before_what_was_earned() -> None:
    budget = RetryBudget()
    for _ in range(10):
        budget.note_attempt(0)
    assert [budget.allow_retry(0) for _ in range(2)] == [True, True]
    assert budget.earned == pytest.approx(2)
    assert granted(budget, 0) == 2


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    budget = RetryBudget()
    assert [granted(budget, now) for now in (10, 10, 5)] == [2, 0, 0]


def test_a_mass_failure_is_no_storm() -> None:
    """1,631 that fail at once, each ready to retry four times: 6,524 retries without a budget, 102 with it."""
    budget = RetryBudget()
    for _ in range(1631):
        budget.note_attempt(0)
    assert granted(budget, 0, asked=1631 * 4) == 102


@pytest.mark.parametrize("wrong", [{"ratio": -0.1}, {"ratio": 1.1}, {"most": -1}, {"floor_per_second": -1}], ids=str)
def test_a_budget_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryBudget(**wrong)


@given(
    ratio=st.floats(0, 1),
    most=st.floats(0, 50),
    floor=st.floats(0, 20),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 20), st.integers(0, 20)), max_size=30),
)
def test_no_more_is_ever_granted_than_was_earned_and_dripped(
    ratio: float, most: float, floor: float, steps: list[tuple[float, int, int]]
) -> None:
    budget = RetryBudget(ratio=ratio, most=most, floor_per_second=floor)
    now, attempts, retries = 0.0, 0, 0
    for seconds, made, asked in steps:
        now += seconds
        for _ in range(made):
            budget.note_attempt(now)
        attempts += made
        burst = granted(budget, now, asked=asked)
        retries += burst
        kept = max(floor, 1) if floor else 0
        assert burst <= most + kept + 1e-6
        assert retries <= ratio * attempts + floor * now + kept + 1e-6
        assert 0 <= budget.earned <= most
