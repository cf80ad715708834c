"""Who may knock: caps, early drop, known sources and those who make room, with the dice in our hand."""

import pytest

from tunnel.server import admission as admission_module
from tunnel.server.admission import (
    EARLY_DROP_FROM,
    KNOWN_SECONDS,
    MAX_STRANGERS,
    PATIENCE_SECONDS,
    PER_KNOWN_SOURCE,
    PER_SOURCE,
    Admission,
    Place,
    source_of,
)


def crowd(size: int, rand: float = 0.5) -> Admission:
    """As many strangers, each from a source of its own; `rand` is the next roll of the dice."""
    admission = Admission(rand=lambda: 1.0)
    places = [enter(admission, f"10.0.{number // 250}.{number % 250}") for number in range(size)]
    assert all(places)
    admission.rand = lambda: rand
    return admission


def enter(admission: Admission, source: str, now: float = 0.0) -> Place | None:
    return None if admission.objection(source, now) else admission.enter(source, now)


def admitted(admission: Admission, source: str, times: int, now: float = 0.0) -> int:
    return sum(enter(admission, source, now) is not None for _ in range(times))


def is_empty(admission: Admission) -> bool:
    return admission.strangers == 0 and not admission._crowd and not admission._here


SOURCES = {
    "192.0.2.1": "192.0.2.1",
    "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
    "2001:db8:1:2::": "2001:db8:1:2::/64",
    "2001:db8:1:3::": "2001:db8:1:3::/64",
    "::ffff:192.0.2.1": "192.0.2.1",
    "fe80::1%eth0": "fe80::/64",
    "unix": "unix",
    "": "",
}


@pytest.mark.parametrize(("address", "source"), SOURCES.items())
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(address: str, source: str) -> None:
    assert source_of(address) == source


def test_one_source_may_have_eight_strangers_and_others_are_not_touched() -> None:
    """B37, B40"""
    admission = Admission(rand=lambda: 0.0)
    assert admitted(admission, "192.0.2.1", 20) == PER_SOURCE
    assert admission.objection("192.0.2.1", 0.0) == "source_full"
    assert admitted(admission, "192.0.2.2", 1) == 1


def test_a_stranger_that_leaves_makes_room() -> None:
    admission = Admission(rand=lambda: 0.0)
    first = admission.enter("192.0.2.1", 0.0)
    assert admitted(admission, "192.0.2.1", PER_SOURCE) == PER_SOURCE - 1
    admission.leave(first)
    assert admitted(admission, "192.0.2.1", 5) == 1


def test_a_source_that_logged_in_may_have_many_for_an_hour() -> None:
    """B19"""
    admission = Admission(rand=lambda: 0.0)
    admission.login("192.0.2.1", 0.0)
    assert admitted(admission, "192.0.2.1", 300, now=KNOWN_SECONDS - 1) == PER_KNOWN_SOURCE
    assert admitted(admission, "192.0.2.1", 1, now=KNOWN_SECONDS) == 0


def test_a_later_login_extends_the_hour() -> None:
    admission = Admission(rand=lambda: 0.0)
    admission.login("192.0.2.1", 0.0)
    admission.login("192.0.2.1", 1000.0)
    assert admitted(admission, "192.0.2.1", 10, now=KNOWN_SECONDS + 999) == 10


def test_a_source_is_known_while_one_of_its_sessions_lives_and_an_hour_longer() -> None:
    """B40"""
    admission = Admission(rand=lambda: 0.0)
    admission.begin("192.0.2.1")
    admission.begin("192.0.2.1")
    day = 24 * KNOWN_SECONDS
    admission.end("192.0.2.1", 0.0)
    assert admission.is_known("192.0.2.1", day)
    admission.end("192.0.2.1", day)
    assert admission.is_known("192.0.2.1", day + KNOWN_SECONDS - 1)
    assert not admission.is_known("192.0.2.1", day + KNOWN_SECONDS)
    assert not admission._living


@pytest.mark.parametrize(
    ("strangers", "rand", "admits"),
    [
        (EARLY_DROP_FROM, 0.0, True),
        (75, 0.49, False),
        (75, 0.5, True),
        (MAX_STRANGERS - 1, 0.97, False),
        (MAX_STRANGERS - 1, 0.99, True),
        (MAX_STRANGERS, 0.999, False),
    ],
)
def test_a_crowd_drops_newcomers_with_a_probability_that_grows_to_one(
    strangers: int, rand: float, admits: bool
) -> None:
    assert crowd(strangers, rand).objection("192.0.2.1", 0.0) == (None if admits else "crowd")


def test_a_known_source_gets_in_past_a_crowd_and_is_none_of_it() -> None:
    """B38: a good client still gets in."""
    admission = crowd(MAX_STRANGERS, 0.0)
    assert not enter(admission, "192.0.2.1")
    admission.login("192.0.2.1", 0.0)
    assert admitted(admission, "192.0.2.1", 300) == PER_KNOWN_SOURCE
    assert len(admission._crowd) == MAX_STRANGERS


def test_nothing_is_left_over_of_those_who_left() -> None:
    admission = Admission(rand=lambda: 1.0)
    admission.login("192.0.2.1", 0.0)
    places = [admission.enter(source, 0.0) for source in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "::/64"] * 5]
    assert not is_empty(admission)
    for place in reversed(places):
        admission.leave(place)
    assert is_empty(admission)


def test_there_is_a_bound_for_known_sources_too() -> None:
    admission = Admission(rand=lambda: 0.0, in_all=10)
    for source in ("192.0.2.1", "192.0.2.2"):
        admission.login(source, 0.0)
    assert admitted(admission, "192.0.2.1", 7) + admitted(admission, "192.0.2.2", 7) == 10
    assert admission.objection("192.0.2.2", 0.0) == "crowd"


def test_the_table_of_known_sources_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """B40"""
    monkeypatch.setattr(admission_module, "MAX_KNOWN", 3)
    admission = Admission(rand=lambda: 0.0)
    for now, source in enumerate(["one", "two", "three", "one", "four"]):
        admission.login(source, float(now))
    assert {source: admitted(admission, source, 9, now=5.0) for source in ("one", "two", "three", "four")} == {
        "one": 9, "two": 8, "three": 9, "four": 9,
    }  # fmt: skip
    assert len(admission._known) == 3


# Who makes room


def test_at_a_sources_bound_its_own_oldest_make_room_and_nobody_elses() -> None:
    """B38: a source full of silence is not shut out by it."""
    admission = Admission(rand=lambda: 0.0)
    admission.enter("192.0.2.2", 0.0)
    old = [admission.enter("192.0.2.1", float(second)) for second in range(PER_SOURCE)]
    assert admission.overdue("192.0.2.1", PATIENCE_SECONDS - 0.1) == []
    assert admission.overdue("192.0.2.1", PATIENCE_SECONDS + 1) == old[:2]
    assert admission.overdue("192.0.2.2", PATIENCE_SECONDS + 1) == []


def test_below_a_sources_bound_its_oldest_may_stay() -> None:
    admission = Admission(rand=lambda: 0.0)
    assert admitted(admission, "192.0.2.1", PER_SOURCE - 1) == PER_SOURCE - 1
    assert admission.overdue("192.0.2.1", 100.0) == []


def test_in_a_crowd_the_oldest_of_it_make_room_and_those_of_known_sources_do_not() -> None:
    admission = crowd(EARLY_DROP_FROM - 1)
    admission.login("192.0.2.1", 0.0)
    admission.enter("192.0.2.1", 0.0)
    assert admission.overdue("192.0.2.9", PATIENCE_SECONDS) == []
    admission.enter("192.0.2.8", PATIENCE_SECONDS)
    late = admission.overdue("192.0.2.9", PATIENCE_SECONDS)
    assert len(late) == EARLY_DROP_FROM - 1
    assert not any(place.is_known for place in late)
    assert admission.overdue("192.0.2.1", PATIENCE_SECONDS) == []  # who is known does not meet the crowd


def test_where_all_is_full_the_oldest_of_all_make_room() -> None:
    admission = Admission(rand=lambda: 0.0, in_all=3)
    admission.login("192.0.2.1", 0.0)
    old = [admission.enter("192.0.2.1", 0.0), admission.enter("192.0.2.2", 1.0), admission.enter("192.0.2.1", 2.0)]
    assert admission.overdue("192.0.2.9", PATIENCE_SECONDS + 1) == old[:2]
