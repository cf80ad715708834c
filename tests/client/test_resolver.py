"""The server's addresses in virtual time: names that stand for several, that fail, that are slow, that change."""

import logging
import socket
from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.client.resolver import MAX_ADDRESSES, PATIENCE_SECONDS, Resolver, ServerAddress, look_up
from tunnel.errors import PeerLost

HOME, AWAY, LITERAL = HostPort("home.example", 8443), HostPort("away.example", 443), HostPort("10.0.0.9", 8443)


@define(eq=False)
class Names:
    """What each name stands for, or why it cannot be resolved, and how long that takes to tell."""

    known: dict[str, list[str] | PeerLost] = field(factory=dict)
    seconds: dict[str, float] = field(factory=dict)
    asked: list[tuple[float, str]] = field(factory=list)

    async def look_up(self, server: HostPort) -> list[str]:
        self.asked.append((trio.current_time(), server.host))
        await trio.sleep(self.seconds.get(server.host, 0.0))
        found = self.known[server.host]
        if isinstance(found, PeerLost):
            raise found
        return found


@pytest.fixture
def names() -> Names:
    return Names({"home.example": ["10.0.0.1", "fd00::1"], "away.example": ["10.0.0.2"]})


def told(addresses: tuple[ServerAddress, ...]) -> list[str]:
    return [f"{address.ip} {address.port}" for address in addresses]


FAILS = PeerLost("cannot reach home.example:8443: the name cannot be resolved")


# Names


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in ip else socket.AF_INET for ip in addresses]
        return [(family, 1, 6, "", (ip, port)) for family, ip in zip(families, addresses, strict=True)]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)


MIXED = {
    "by turns": (["::1", "::2", "1.1.1.1", "2.2.2.2"], ["::1", "1.1.1.1", "::2", "2.2.2.2"]),
    "the other first": (["1.1.1.1", "::1", "::2"], ["1.1.1.1", "::1", "::2"]),
    "one family": (["1.1.1.1", "2.2.2.2"], ["1.1.1.1", "2.2.2.2"]),
    "each once": (["1.1.1.1", "1.1.1.1", "::1", "::1"], ["1.1.1.1", "::1"]),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "order"), MIXED.values(), ids=MIXED)
async def test_a_name_stands_for_the_addresses_of_both_families_by_turns(
    answer: list[str], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, *answer)
    assert await look_up(HOME) == order


async def test_of_a_name_with_very_many_addresses_some_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, *[f"10.0.0.{number}" for number in range(200)])
    assert await look_up(HOME) == [f"10.0.0.{number}" for number in range(MAX_ADDRESSES)]


PROBLEMS = {
    "not known": (socket.gaierror(-2, "Name or service not known"), r"^cannot reach home\.example:8443: .* not known"),
    "no name": (UnicodeError("label empty"), "no name can be spelled like that"),
}


@pytest.mark.parametrize(("problem", "words"), PROBLEMS.values(), ids=PROBLEMS)
async def test_a_name_that_cannot_be_resolved_is_told(
    problem: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise problem

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(PeerLost, match=words):
        await look_up(HOME)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (ServerAddress("10.0.0.1", 8443, HOME), "10.0.0.1:8443 (home.example)"),
        (ServerAddress("fd00::1", 8443, HOME), "[fd00::1]:8443 (home.example)"),
        (ServerAddress("10.0.0.9", 8443, LITERAL), "10.0.0.9:8443"),
    ],
    ids=str,
)
def test_an_address_says_the_name_it_was_found_under(address: ServerAddress, text: str) -> None:
    assert str(address) == text


# Finding


def test_literal_addresses_are_known_without_asking(names: Names) -> None:
    resolver = Resolver((LITERAL, HOME, HostPort("::1", 1)), look_up=names.look_up)
    assert told(resolver.addresses) == ["10.0.0.9 8443", "::1 1"]


async def test_literal_addresses_alone_ask_nobody(names: Names) -> None:
    resolver = Resolver((LITERAL,), look_up=names.look_up)
    assert (told(await resolver.find()), names.asked) == (["10.0.0.9 8443"], [])


async def test_all_servers_are_asked_for_at_a_time_and_stand_in_their_order(
    names: Names, autojump_clock: MockClock
) -> None:
    names.seconds = {"home.example": 0.9, "away.example": 0.2}
    resolver = Resolver((HOME, LITERAL, AWAY), look_up=names.look_up)
    addresses = await resolver.find()
    assert told(addresses) == ["10.0.0.1 8443", "fd00::1 8443", "10.0.0.9 8443", "10.0.0.2 443"]
    assert [address.server for address in addresses] == [HOME, HOME, LITERAL, AWAY]
    assert (trio.current_time(), names.asked) == (0.9, [(0, "home.example"), (0, "away.example")]) or names.asked == [
        (0, "away.example"), (0, "home.example"),
    ]  # fmt: skip
    assert resolver.addresses == addresses


async def test_an_address_under_two_names_is_one_address(names: Names) -> None:
    names.known["home.example"] = ["10.0.0.9", "10.0.0.1"]
    resolver = Resolver((LITERAL, HOME), look_up=names.look_up)
    assert told(await resolver.find()) == ["10.0.0.9 8443", "10.0.0.1 8443"]
    assert resolver.addresses[0].server == LITERAL


async def test_a_name_that_fails_keeps_what_it_stood_for(names: Names) -> None:
    resolver = Resolver((HOME, AWAY), look_up=names.look_up)
    await resolver.find()
    names.known |= {"home.example": FAILS, "away.example": ["10.0.0.3"]}
    assert told(await resolver.find()) == ["10.0.0.1 8443", "fd00::1 8443", "10.0.0.2 443", "10.0.0.3 443"]


async def test_an_address_goes_after_ten_answers_in_a_row_without_it(names: Names) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    await resolver.find()
    both, one = names.known["home.example"], ["fd00::1"]
    for answer, found in [(one, 2)] * 9 + [(both, 2)] + [(one, 2)] * 8 + [(FAILS, 2)] * 5 + [(one, 2), (one, 1)]:
        names.known["home.example"] = answer
        assert len(await resolver.find()) == found
    assert told(resolver.addresses) == ["fd00::1 8443"]


async def test_answers_that_are_parts_of_a_greater_whole_make_no_address_come_and_go(names: Names) -> None:
    """Round robin of a big name: sixteen of forty each time."""
    resolver = Resolver((HOME,), look_up=names.look_up)
    everything = [f"10.0.0.{number}" for number in range(40)]
    changes = 0
    for turn in range(30):
        names.known["home.example"] = [everything[(turn * 8 + step) % 40] for step in range(16)]
        before = resolver.addresses
        changes += len(set(await resolver.find()) - set(before))
        assert len(resolver.addresses) <= MAX_ADDRESSES
    assert changes == 16


async def test_nothing_known_is_raised_with_its_reason(names: Names) -> None:
    names.known["home.example"] = FAILS
    with pytest.raises(PeerLost) as caught:
        await Resolver((HOME,), look_up=names.look_up).find()
    assert caught.value is FAILS


async def test_a_name_that_stands_for_nothing_and_no_server_at_all_are_told(names: Names) -> None:
    with pytest.raises(PeerLost, match="no server is configured"):
        await Resolver((), look_up=names.look_up).find()


async def test_a_slow_name_holds_nobody_up_for_more_than_a_second(names: Names, autojump_clock: MockClock) -> None:
    names.seconds = {"home.example": 100.0, "away.example": 3.0}
    resolver = Resolver((HOME, AWAY), look_up=names.look_up)
    assert told(await resolver.find()) == ["10.0.0.2 443"]
    assert trio.current_time() == 3 + PATIENCE_SECONDS
    assert told(await resolver.find()) == ["10.0.0.2 443"]
    assert trio.current_time() == 3 + 2 * PATIENCE_SECONDS  # what is known already counts


async def test_with_nothing_known_it_waits_for_the_slowest(names: Names, autojump_clock: MockClock) -> None:
    names.seconds = {"home.example": 8.0}
    names.known["away.example"] = FAILS
    assert len(await Resolver((HOME, AWAY), look_up=names.look_up).find()) == 2
    assert trio.current_time() == 8


async def test_cancelled_it_keeps_what_it_knew(names: Names, autojump_clock: MockClock) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    before = await resolver.find()
    names.seconds["home.example"] = 100.0
    with trio.move_on_after(0.5) as scope:
        await resolver.find()
    assert (scope.cancelled_caught, resolver.addresses) == (True, before)


# Keeping


async def test_a_change_is_told_by_an_event_and_anything_else_is_not(names: Names) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    first = resolver.changed
    await resolver.find()
    assert first.is_set()
    second = resolver.changed
    await resolver.find()
    assert (resolver.changed is second, second.is_set()) == (True, False)
    names.known["home.example"] = ["10.0.0.1", "10.0.0.9"]
    await resolver.find()
    assert second.is_set()


async def test_it_looks_again_every_so_many_seconds_as_they_are_now(
    names: Names, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    resolver = Resolver((HOME,), look_up=names.look_up)
    names.known["home.example"] = FAILS
    every = 60.0
    nursery.start_soon(resolver.keep, lambda: every)
    await trio.sleep(150)
    assert ([at for at, _ in names.asked], caplog.messages) == ([60, 120], [str(FAILS)] * 2)
    every, names.known["home.example"] = 10.0, ["10.0.0.7"]
    await trio.sleep(45)
    assert [at for at, _ in names.asked] == [60, 120, 180, 190]
    assert told(resolver.addresses) == ["10.0.0.7 8443"]
    nursery.cancel_scope.cancel()


async def test_other_servers_are_looked_up_at_once(
    names: Names, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    nursery.start_soon(resolver.keep, lambda: 60.0)
    await resolver.find()
    await trio.sleep(5)
    changed = resolver.changed
    resolver.replace((AWAY, LITERAL))
    assert (changed.is_set(), told(resolver.addresses)) == (True, ["10.0.0.9 8443"])
    await wait_all_tasks_blocked()
    assert told(resolver.addresses) == ["10.0.0.2 443", "10.0.0.9 8443"]
    assert names.asked[1:] == [(5, "away.example")]
    await trio.sleep(70)
    assert names.asked[2:] == [(65, "away.example")]
    nursery.cancel_scope.cancel()


async def test_servers_replaced_while_a_look_up_is_under_way_are_looked_up_after_it(
    names: Names, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    names.seconds["home.example"] = 5.0
    nursery.start_soon(resolver.keep, lambda: 60.0)
    await trio.sleep(62)
    resolver.replace((AWAY,))
    await trio.sleep(8)
    assert names.asked == [(60, "home.example"), (65, "away.example")]
    assert told(resolver.addresses) == ["10.0.0.2 443"]
    nursery.cancel_scope.cancel()


async def test_a_server_that_stays_keeps_what_its_name_stood_for(names: Names) -> None:
    resolver = Resolver((HOME, AWAY), look_up=names.look_up)
    await resolver.find()
    resolver.replace((AWAY, LITERAL))
    assert told(resolver.addresses) == ["10.0.0.2 443", "10.0.0.9 8443"]


async def test_a_name_with_no_addresses_keeps_what_it_stood_for(names: Names) -> None:
    resolver = Resolver((HOME,), look_up=names.look_up)
    await resolver.find()
    names.known["home.example"] = []
    assert told(await resolver.find()) == ["10.0.0.1 8443", "fd00::1 8443"]
