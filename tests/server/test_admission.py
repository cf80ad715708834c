"""Who may knock: caps, early drop and known sources, with the dice in our hand."""

import pytest

from tunnel.server import admission as admission_module
from tunnel.server.admission import (
    EARLY_DROP_FROM,
    KNOWN_SECONDS,
    MAX_STRANGERS,
    PER_KNOWN_SOURCE,
    PER_SOURCE,
    Admission,
    source_of,
)


def crowd(size: int, rand: float = 0.5) -> Admission:
    """As many strangers, each from a source of its own; `rand` is the next roll of the dice."""
    admission = Admission(rand=lambda: 1.0)
    assert all(admission.admit(f"10.0.{number // 250}.{number % 250}", 0.0) for number in range(size))
    admission.rand = lambda: rand
    return admission


def admitted(admission: Admission, source: str, times: int, now: float = 0.0) -> int:
    return sum(admission.admit(source, now) for _ in range(times))


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
    assert admitted(admission, "192.0.2.2", 1) == 1
    assert admission.dropped == 12


def test_a_stranger_that_leaves_makes_room() -> None:
    admission = Admission(rand=lambda: 0.0)
    assert admitted(admission, "192.0.2.1", PER_SOURCE + 1) == PER_SOURCE
    admission.leave("192.0.2.1")
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
    assert crowd(strangers, rand).admit("192.0.2.1", 0.0) is admits


def test_a_known_source_gets_in_past_a_crowd() -> None:
    """B38: a good client still gets in."""
    admission = crowd(MAX_STRANGERS, 0.0)
    assert not admission.admit("192.0.2.1", 0.0)
    admission.login("192.0.2.1", 0.0)
    assert admission.admit("192.0.2.1", 1.0)


def test_nothing_is_left_over_of_those_who_left() -> None:
    admission = crowd(60, 1.0)
    for number in range(60):
        admission.leave(f"10.0.{number // 250}.{number % 250}")
    assert (admission._crowd, admission._strangers) == (0, {})


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


def test_a_known_source_with_many_strangers_does_not_shut_the_others_out() -> None:
    admission = Admission(rand=lambda: 0.0)
    admission.login("192.0.2.1", 0.0)
    assert admitted(admission, "192.0.2.1", 300) == PER_KNOWN_SOURCE
    assert admitted(admission, "192.0.2.2", 1) == 1
    for _ in range(PER_KNOWN_SOURCE):
        admission.leave("192.0.2.1")
    assert admitted(admission, "192.0.2.1", 300) == PER_KNOWN_SOURCE
