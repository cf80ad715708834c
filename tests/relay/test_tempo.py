"""How an engine waits and how much it takes: the rules, without clocks or sockets."""

import pytest

from tunnel.relay.tempo import (
    ALONE,
    BESIDE,
    HORIZON,
    LONG_SECONDS,
    MAX_REST,
    SHORT_SECONDS,
    SHORT_SLEEPS,
    Courtesy,
    Mixture,
    Rota,
    Watch,
)


def waits_slept_through(watch):
    """How many waits are slept through, each for long, before watching is tried again."""
    slept = 0
    while not watch.pays:
        watch.slept(1.0)
        slept += 1
    return slept


def test_watching_is_tried_first():
    assert Watch().pays


def test_each_watch_in_vain_is_followed_by_twice_as_many_sleeps_up_to_a_bound():
    watch = Watch()
    rests = []
    for _ in range(11):
        watch.was_in_vain()
        rests.append(waits_slept_through(watch))
    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_REST, MAX_REST]


def test_a_watch_that_paid_makes_the_next_rest_short_again():
    watch = Watch()
    for _ in range(5):
        watch.was_in_vain()
        waits_slept_through(watch)
    watch.paid()
    assert watch.pays
    watch.was_in_vain()
    assert waits_slept_through(watch) == 1


def test_short_sleeps_in_a_row_let_it_watch_again_at_once():
    watch = Watch()
    for _ in range(8):
        watch.was_in_vain()
        waits_slept_through(watch)
    watch.was_in_vain()
    for _ in range(SHORT_SLEEPS):
        assert not watch.pays
        watch.slept(SHORT_SECONDS / 2)
    assert watch.pays
    watch.was_in_vain()
    assert waits_slept_through(watch) == 1


def test_short_sleeps_between_long_ones_do_not():
    """A service that takes its time: the visitor's next request comes soon, its answer does not."""
    watch = Watch()
    for _ in range(7):
        watch.was_in_vain()
        waits_slept_through(watch)
    watch.was_in_vain()
    for at in range(128):
        assert not watch.pays
        watch.slept(SHORT_SECONDS / 2 if at % 2 else 1.0)
    assert watch.pays


@pytest.mark.parametrize(
    ("small_at", "big_at", "share"),
    [
        (None, None, ALONE),
        (100, None, ALONE),
        (None, 100, ALONE),
        (100, 100, BESIDE),
        (100 - HORIZON + 1, 100, BESIDE),
        (100 - HORIZON, 100, ALONE),
        (100, 100 - HORIZON + 1, BESIDE),
        (100, 100 - HORIZON, ALONE),
    ],
)
def test_pieces_are_small_while_both_kinds_of_streams_were_seen_lately(small_at, big_at, share):
    mixture = Mixture()
    if small_at is not None:
        mixture.small_at = small_at
    if big_at is not None:
        mixture.big_at = big_at
    assert mixture.share(100) is share


def test_nothing_has_been_seen_before_the_first_turn():
    assert Mixture().share(0) is ALONE


class Channel:
    def __init__(self, session, name):
        self.session, self.name = session, name


def test_a_session_with_many_channels_waits_for_one_with_one():
    rota = Rota()
    for name in ("a1", "a2", "a3", "b1", "a4"):
        rota.add(Channel(name[0], name))
    assert len(rota) == 2
    assert [rota.next().name for _ in range(5)] == ["a1", "b1", "a2", "a3", "a4"]
    assert not rota


def test_who_comes_back_is_behind_the_others():
    rota = Rota()
    first = Channel("a", "a1")
    rota.add(first)
    rota.add(Channel("b", "b1"))
    assert rota.next() is first
    rota.add(first)
    assert [rota.next().name for _ in range(2)] == ["b1", "a1"]


def offers_left_out(courtesy):
    count = 0
    while not courtesy.may_offer():
        count += 1
    return count


def test_a_core_that_comes_back_soon_is_always_offered():
    courtesy = Courtesy()
    for _ in range(5):
        assert courtesy.may_offer()
        courtesy.took(LONG_SECONDS * 0.99)


def test_a_core_that_others_keep_is_offered_ever_more_rarely():
    courtesy = Courtesy()
    left_out = []
    for _ in range(10):
        assert courtesy.may_offer()
        courtesy.took(LONG_SECONDS)
        left_out.append(offers_left_out(courtesy))
    assert left_out == [1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_REST]
    courtesy.took(0.0)
    courtesy.took(LONG_SECONDS)
    assert offers_left_out(courtesy) == 1
