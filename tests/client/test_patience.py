"""How long a client waits before each try, as a table and as a law: B2, B3, B17, B44."""

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.backoff import RECONNECT
from tunnel.client.patience import ANNOUNCED_SECONDS, HELD_SECONDS, STEADY_SECONDS, Patience
from tunnel.errors import PeerLost, Refused

BROKE = PeerLost("the connection broke", answered=True)
BUSY = Refused("server_busy", "too many at once", trust=False)
NO_TRUST = Refused("token_refused", "the token is not known", trust=True)
HELD = Refused("identity_held", "another process has it", trust=True)
GOODBYE = None


def patience() -> Patience:
    return Patience(lambda: 0.0)  # no jitter: the bounds themselves


def waits(*ends, one: Patience | None = None) -> list[float]:
    one = one or patience()
    return [one.after(why, lasted=lasted, was_away=was_away) for why, lasted, was_away in ends]


@pytest.mark.parametrize("why", [BROKE, BUSY], ids=str)
def test_who_answers_and_breaks_off_is_tried_at_once_then_after_1_s_doubling_to_30(why: PeerLost | Refused) -> None:
    assert waits(*[(why, 1.0, False)] * 8) == [0, 1, 2, 4, 8, 16, 30, 30]


def test_the_delays_are_upper_bounds_and_the_dice_are_full() -> None:
    dice = random.Random(7)
    one = Patience(dice.random)
    delays = [one.after(BROKE, lasted=0, was_away=False) for _ in range(10)]
    assert delays == [0, *islice(RECONNECT.delays(random.Random(7).random), 9)]


def test_a_server_that_is_killed_again_and_again_is_dialled_at_once_each_time() -> None:
    """Between two sessions nobody was there: a new process owes nothing for the old one's end."""
    assert waits((BROKE, 20.0, False), *[(BROKE, 5.0, True)] * 50) == [0.0] * 51


def test_one_that_broke_off_twice_before_it_was_away_begins_anew_too() -> None:
    assert waits(*[(BROKE, 0, False)] * 4, (BROKE, 0, True), *[(BROKE, 0, False)] * 2) == [0, 1, 2, 4, 0, 1, 2]


@pytest.mark.parametrize(("lasted", "expected"), [(STEADY_SECONDS, 2), (STEADY_SECONDS + 0.1, 0)])
def test_a_session_of_more_than_a_minute_begins_anew(lasted: float, expected: float) -> None:
    assert waits(*[(BROKE, 0, False)] * 2, (BROKE, lasted, False)) == [0, 1, expected]


def test_a_stop_that_is_announced_is_no_failure_however_often() -> None:
    assert waits(*[(GOODBYE, 5.0, False)] * 4) == [0, *[ANNOUNCED_SECONDS] * 3]


def test_an_announced_stop_does_not_raise_the_bounds() -> None:
    assert waits((BROKE, 0, False), (BROKE, 0, False), (GOODBYE, 5, False), (BROKE, 0, False)) == [
        0, 1, ANNOUNCED_SECONDS, 2,
    ]  # fmt: skip


def test_what_only_a_person_can_mend_is_tried_after_30_s_growing_to_5_min_also_over_a_restart() -> None:
    assert waits((NO_TRUST, 0, False), *[(NO_TRUST, 0, True)] * 5) == [30, 60, 120, 240, 300, 300]


def test_a_long_session_makes_even_that_begin_anew() -> None:
    assert waits(*[(NO_TRUST, 0, False)] * 3, (NO_TRUST, 100, False)) == [30, 60, 120, 30]


def test_a_held_identity_is_asked_for_every_30_s() -> None:
    assert waits(*[(HELD, 0, False)] * 3, (NO_TRUST, 0, False)) == [HELD_SECONDS] * 3 + [30]


ENDS = st.tuples(st.sampled_from([BROKE, BUSY, GOODBYE, NO_TRUST, HELD]), st.floats(0, 120), st.booleans())


@given(st.lists(ENDS, min_size=1, max_size=60), st.integers())
def test_without_an_absence_or_a_long_session_no_two_tries_in_a_row_are_at_once(ends, seed) -> None:
    """No retry storm, whatever the server does while it is there."""
    one, streak, bound = Patience(random.Random(seed).random), 0, 0.5
    for why, lasted, was_away in ends:
        delay = one.after(why, lasted=lasted, was_away=was_away)
        if was_away or lasted > STEADY_SECONDS:
            streak, bound = 0, 0.5
        if why in (NO_TRUST, HELD):
            assert 30 <= delay <= 300
        elif streak == 0:
            assert delay == 0
            streak, bound = 1, 1.0
        elif why is GOODBYE:
            assert delay == ANNOUNCED_SECONDS
        else:
            assert 0 <= delay <= bound
            bound = min(2 * bound, 30)
