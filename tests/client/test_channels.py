"""The data channels of a session over a relay that is a script, in virtual time."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from channels_rig import CONFIG, HANGS, REFUSED, A, B, C, Channel, Outcome, Relay, Stream, World
from dial_rig import cancelled_everywhere
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.client import channels as channels_module
from tunnel.client.channels import LONG_PATH_SECONDS, RETIRE_SECONDS, STREAMS_PER_CHANNEL, TICKET_SECONDS, Tickets
from tunnel.client.resolver import ServerAddress
from tunnel.errors import PeerLost, Refused


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(channels_module, "request_upgrade", world.request_upgrade)
    return world


# Tickets


async def test_a_flood_of_tickets_is_not_kept() -> None:
    tickets = Tickets((), lambda count: None)
    for number in range(1000):
        tickets.add((str(number),))
    assert [await tickets.take() for _ in range(2)] == ["936", "937"]


async def test_a_ticket_that_has_grown_old_is_not_used(autojump_clock: MockClock) -> None:
    asked: list[int] = []
    tickets = Tickets(("old",), asked.append)
    await trio.sleep(TICKET_SECONDS)
    tickets.add(("new",))
    assert (await tickets.take(), asked) == ("new", [])


async def test_each_of_those_who_wait_asks_for_one_ticket_and_gets_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    asked: list[int] = []
    got: list[str] = []
    tickets = Tickets((), asked.append)

    async def take() -> None:
        got.append(await tickets.take())

    for _ in range(3):
        nursery.start_soon(take)
    await wait_all_tasks_blocked()
    assert asked == [1, 1, 1]
    for number in range(3):
        tickets.add((str(number),))
        await wait_all_tasks_blocked()
    assert (sorted(got), asked) == (["0", "1", "2"], [1, 1, 1])


# Opening


@pytest.mark.parametrize(("addresses", "serving"), [
    ([A], [A.ip, A.ip]), ([A, B], [A.ip, B.ip]), ([A, B, C], [A.ip, B.ip, C.ip]),
], ids=["one", "two", "three"])  # fmt: skip
async def test_there_are_two_channels_and_one_to_each_address(
    addresses: list[ServerAddress], serving: list[str], world: World, autojump_clock: MockClock
) -> None:
    async with world.running(*addresses) as relay:
        assert (relay.serving, trio.current_time()) == (serving, 0)
        await trio.sleep(200)
        assert relay.serving == serving


async def test_each_channel_asks_the_server_by_its_name_with_a_ticket_of_its_own(
    world: World, autojump_clock: MockClock
) -> None:
    world.tickets.add(("the first",))
    async with world.running(A, B) as relay:
        assert sorted(world.asked) == [
            ("home.example:8443", "/data", "Bearer the first"),
            ("home.example:8443", "/data", "Bearer ticket 1"),
        ]
        assert world.asked_tickets == [(0, 1)]
        assert [one.parts.pushed for one in relay.channels] == [b"already there"] * 2


async def test_a_channel_is_ready_once_a_nonce_came_back(world: World, autojump_clock: MockClock) -> None:
    world.echoes[A.ip] = 0.3
    async with world.running(A):
        assert (world.stats["states"]["validating"], world.channels.pool.take_nowait("me")) == (2, None)
        await trio.sleep(0.31)
        assert world.stats["states"]["available"] == 2


FAILURES: dict[str, tuple[str, Outcome, float]] = {
    "nobody listens": ("dials", REFUSED, 0.0),
    "the dial hangs": ("dials", HANGS, 10.0),
    "the ticket is refused": ("upgrades", Refused("ticket_refused", "no", trust=False), 0.0),
    "the upgrade hangs": ("upgrades", HANGS, 10.0),
    "the nonce does not come back": ("echoes", HANGS, 5.0),
    "the channel ends before that": ("echoes", PeerLost("cut", answered=True), 0.0),
}


@pytest.mark.parametrize(("step", "outcome", "seconds"), FAILURES.values(), ids=FAILURES)
async def test_an_address_that_fails_leaves_no_connection_and_does_not_trouble_the_others(
    step: str, outcome: Outcome, seconds: float, world: World, autojump_clock: MockClock
) -> None:
    getattr(world, step)[A.ip] = outcome
    async with world.running(A, B) as relay:
        await trio.sleep(seconds + 0.1)
        assert B.ip in relay.serving
        assert A.ip not in relay.serving
        assert [one.address.ip for one in world.streams if one.is_open] == relay.serving
        assert (world.stats["addresses"][str(A)]["quarantines"], relay.retired) == (1, [])
        del getattr(world, step)[A.ip]
        await trio.sleep(1.1)  # the first try after the quarantine's second
        assert A.ip in relay.serving


async def test_cancelled_at_each_await_an_opening_leaves_no_socket(world: World) -> None:
    async def open_one() -> None:
        world.tickets.add(("one",))
        (await world.channels._open(A, world.phases.append)).channel.close()

    assert await cancelled_everywhere(open_one) >= 2
    assert [one for one in world.streams if one.is_open] == []


async def test_cancelled_at_each_await_the_channels_leave_no_socket_but_the_relays(world: World) -> None:
    """Leaving the relay's session closes its own."""
    world.echoes[A.ip] = 0.001
    for passes in range(40):
        world.make(CONFIG)
        world.channels.use([A, B])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.give_tickets)
            nursery.start_soon(world.channels.run)
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert all(
            any(one.parts is stream for one in world.relay.channels) for stream in world.streams if stream.is_open
        )
        for one in list(world.relay.channels):
            one.close()
    assert [one for one in world.streams if one.is_open] == []


async def test_a_connection_that_ends_as_the_relay_takes_it_is_a_failed_opening(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_channel(self: Relay, parts: Stream, *, on_lost: Callable[[str], None], **_: Any) -> Channel:
        channel = Channel(self, parts, on_lost)
        self.channels.append(channel)
        channel.lost("the peer closed it")
        return channel

    with monkeypatch.context() as patch:
        patch.setattr(Relay, "add_channel", add_channel)
        async with world.running(A):
            assert (world.stats["states"]["available"], world.stats["quarantines"]) == (0, 1)


# While they serve


async def test_a_channel_that_ends_by_itself_is_replaced_at_once(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(100)
        world.dialled.clear()
        relay.channels[0].lost("the connection was reset")
        await wait_all_tasks_blocked()
        assert (relay.serving, len(world.dialled), relay.retired) == ([A.ip, B.ip], 1, [])
        assert world.stats["retired"] == {"lost": 1}


async def test_one_that_ends_as_soon_as_it_is_open_waits_in_quarantine(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        next(one for one in relay.channels if one.parts.address == A).lost("the peer closed it")
        await wait_all_tasks_blocked()
        assert (world.stats["quarantines"], A.ip in relay.serving) == (1, False)
        await trio.sleep(1.1)
        assert A.ip in relay.serving


async def test_an_idle_channel_is_asked_for_its_nonce_from_time_to_time(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A) as relay:
        await trio.sleep(46)
        assert [one.echoes for one in relay.channels] == [4, 4]


async def test_one_that_does_not_answer_is_left_and_another_opened(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        silent = next(one for one in relay.channels if one.parts.address == B)
        world.echoes[B.ip] = HANGS
        await trio.sleep(14)  # a second before it is asked
        assert relay.retired == []
        await trio.sleep(6.01)
        assert relay.retired == [(20.0, silent)]
        await trio.sleep(6)  # another one there does not answer either
        assert [one.parts.address.ip for one in relay.channels if one.is_proven and not one.is_retiring] == [A.ip, A.ip]


async def test_they_are_replaced_in_time_one_by_one_the_new_one_first(world: World, autojump_clock: MockClock) -> None:
    world.dials = {A.ip: 0.5, B.ip: 0.5}
    world.make(evolve(CONFIG, max_age=100.0))
    async with world.running(A, B) as relay:
        await trio.sleep(100.9)
        assert (relay.serving, relay.retired) == ([A.ip, B.ip], [])
        await trio.sleep(4)
        assert relay.serving == [A.ip, B.ip]
        assert sorted(one.parts.address.ip for _, one in relay.retired) == [A.ip, B.ip]
        assert all(at == 101.0 for at, _ in relay.retired)  # opened at 0.5, aged at 100.5, replaced half a second later


async def test_a_retired_channel_is_cut_when_its_streams_do_not_leave_it(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(10)
        leaving = next(one for one in relay.channels if one.parts.address == A)
        leaving.users = 3
        world.channels.use([B])
        await trio.sleep(RETIRE_SECONDS - 0.1)
        assert ([one for _, one in relay.retired], leaving.alive) == ([leaving], True)
        await trio.sleep(0.2)
        assert leaving.closed_at == 10 + RETIRE_SECONDS


async def test_addresses_that_are_left_serve_until_a_new_one_answers(world: World, autojump_clock: MockClock) -> None:
    """A wrong answer about the server's name, or a slip in `servers`, must not cut what works."""
    async with world.running(A) as relay:
        await trio.sleep(10)
        old = list(relay.channels)
        world.dials[B.ip] = REFUSED
        world.channels.use([B])
        await trio.sleep(1000)
        assert ([one.alive for one in old], relay.serving) == ([True, True], [])
        world.dials[B.ip] = 0.0
        await trio.sleep(31)
        assert relay.serving == [B.ip, B.ip]
        await trio.sleep(2 * RETIRE_SECONDS)  # they had their time to leave
        assert [one.alive for one in old] == [False, False]


async def test_a_retired_channel_that_was_left_is_not_cut(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(10)
        leaving = next(one for one in relay.channels if one.parts.address == A)
        world.channels.use([B])
        await trio.sleep(1)
        leaving.lost("retired")
        await trio.sleep(200)
        assert (leaving.closed_at, relay.serving) == (None, [B.ip, B.ip])
        assert world.stats["quarantines"] == 0


async def test_a_change_of_addresses_opens_channels_to_new_ones_and_leaves_the_others(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(100)
        world.channels.use([B, C])
        assert [one.parts.address for _, one in relay.retired] == [A]
        await wait_all_tasks_blocked()
        assert (relay.serving, trio.current_time()) == ([B.ip, C.ip], 100)
        await trio.sleep(200)
        assert ([at for at, _ in relay.retired], relay.serving) == ([100], [B.ip, C.ip])


async def test_the_same_addresses_again_change_nothing(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        before = list(relay.channels)
        world.channels.use([B, A])
        await trio.sleep(10)
        assert (relay.channels, relay.retired) == (before, [])


async def test_visitors_that_come_are_counted_whoever_put_them_on_a_channel(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A) as relay:
        await trio.sleep(0.5)  # between its looks
        for _ in range(60):
            relay.opened_total += 20
            await trio.sleep(1)
        assert world.stats["arrivals_per_second"] == pytest.approx(20, rel=0.01)
        await trio.sleep(60)
        assert world.stats["arrivals_per_second"] < 0.01


async def test_with_more_streams_than_two_channels_have_room_for_there_are_more(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A) as relay:
        relay.come(2 * STREAMS_PER_CHANNEL + 1)
        await trio.sleep(2)
        assert len(relay.serving) == 3
        relay.channels[0].users = 0
        await trio.sleep(2 * 300)  # the limit of what is idle
        assert len(relay.serving) == 2


async def test_other_figures_are_followed_without_touching_a_channel_that_serves(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A) as relay:
        before = list(relay.channels)
        world.channels.apply(evolve(CONFIG, min=4))
        await wait_all_tasks_blocked()
        assert (len(relay.serving), relay.channels[:2], relay.retired) == (4, before, [])


@pytest.mark.parametrize(
    ("round_trip", "most", "there_are"),
    [(LONG_PATH_SECONDS * 0.99, 32, 2), (LONG_PATH_SECONDS, 32, 4), (0.3, 3, 3), (0.3, 2, 2)],
)
async def test_on_a_long_path_there_are_four_channels_where_so_many_may_be(
    round_trip: float, most: int, there_are: int, world: World, autojump_clock: MockClock
) -> None:
    world.round_trip = round_trip
    world.make(evolve(CONFIG, max=most))
    async with world.running(A) as relay:
        await trio.sleep(2 * 300)  # no limit of what is idle takes them away
        assert len(relay.serving) == there_are


async def test_on_a_long_path_other_figures_leave_the_four_channels(world: World, autojump_clock: MockClock) -> None:
    world.round_trip = LONG_PATH_SECONDS
    async with world.running(A) as relay:
        world.channels.apply(evolve(CONFIG, min=1, idle_limit=10.0))
        await trio.sleep(60)
        assert (len(relay.serving), relay.retired) == (4, [])
        world.channels.apply(evolve(CONFIG, min=6))
        await wait_all_tasks_blocked()
        assert len(relay.serving) == 6


async def test_when_the_session_ends_nothing_more_is_opened(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(10)
    dials = len(world.dialled)
    for one in list(relay.channels):
        one.lost("the session ended")
    await trio.sleep(100)
    assert len(world.dialled) == dials


# What is well is not held up by what is not


async def test_the_control_channels_address_is_the_first_to_have_a_channel(
    world: World, autojump_clock: MockClock
) -> None:
    world.control_at = C
    world.make(evolve(CONFIG, fill_concurrency=1))
    async with world.running(A, B, C):
        assert [ip for _, ip in world.dialled] == [C.ip, A.ip, B.ip]


async def test_addresses_that_are_silent_hold_up_no_other_for_more_than_a_second(
    world: World, autojump_clock: MockClock
) -> None:
    world.dials = {A.ip: HANGS, B.ip: HANGS}
    world.control_at = A
    world.make(evolve(CONFIG, fill_concurrency=2, min=3))
    async with world.running(A, B, C) as relay:
        assert sorted(world.dialled) == [(0, A.ip), (0, B.ip)]
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert (world.dialled[2:], relay.serving) == ([(1, C.ip)], [C.ip])


async def test_when_the_last_channel_goes_another_is_opened_at_once_where_the_control_channel_is(
    world: World, autojump_clock: MockClock
) -> None:
    """However young it was; but not again and again."""
    world.control_at = B
    world.make(evolve(CONFIG, min=1))
    async with world.running(A, B) as relay:
        for ended in range(2):
            for channel in list(relay.channels):
                channel.lost("cut")
            await wait_all_tasks_blocked()
            assert relay.serving == ([] if ended else [B.ip])
        await trio.sleep(2)
        assert relay.serving == [A.ip, B.ip]


async def test_where_that_opening_fails_too_it_is_tried_every_five_seconds(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running(A) as relay:
        await trio.sleep(10)
        world.dials[A.ip] = REFUSED
        world.dialled.clear()
        for channel in list(relay.channels):
            channel.lost("cut")
        await trio.sleep(60)
    assert world.dialled[0][0] == 10
    assert 12 <= len(world.dialled) < 60


@pytest.mark.parametrize("age", [1.0, 10.0])
@pytest.mark.parametrize(("round_trip", "seconds"), [(0.1, 0.5), (0.4, 1.2)])
async def test_where_the_server_hears_nothing_what_does_not_answer_is_replaced_at_once(
    age: float, round_trip: float, seconds: float, world: World, autojump_clock: MockClock
) -> None:
    """B18. No stream is cut: the silent channels are retired, and end by their own deadlines."""
    async with world.running(A) as relay:
        await trio.sleep(age)
        silent = list(relay.channels)
        for channel in silent:
            channel.round_trip = round_trip
        world.echoes[A.ip] = HANGS
        world.channels.doubt()
        world.channels.doubt()
        await trio.sleep(seconds - 0.01)
        assert relay.retired == []
        world.echoes[A.ip] = 0.0
        await trio.sleep(0.02)
        assert [at for at, _ in relay.retired] == pytest.approx([age + seconds] * 2)
        assert all(channel.is_retiring for channel in silent)
        assert relay.serving == [A.ip] * 2
        assert not any(channel.closed_at for channel in silent)


async def test_channels_that_answer_a_doubting_server_stay(world: World, autojump_clock: MockClock) -> None:
    async with world.running(A, B) as relay:
        await trio.sleep(10)
        before = list(relay.channels)
        world.echoes[A.ip] = world.echoes[B.ip] = 0.4
        world.channels.doubt()
        await trio.sleep(60)
        assert (relay.channels, relay.retired) == (before, [])


async def test_a_server_that_doubts_all_the_time_is_answered_once_a_second(
    world: World, autojump_clock: MockClock
) -> None:
    """B41"""
    async with world.running(A) as relay:
        await trio.sleep(10)
        before = sum(channel.echoes for channel in relay.channels)
        for _ in range(1000):
            world.channels.doubt()
            await trio.sleep(0.01)
        assert sum(channel.echoes for channel in relay.channels) - before <= 2 * 12


async def test_a_bug_in_the_pool_costs_its_channels_and_not_the_client(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running(A):
        await trio.sleep(1)
        broken = world.channels.pool
        before = broken.stats()

        def decide(now: float) -> float:
            raise RuntimeError("a bug")

        broken.rules.decide = decide  # type: ignore[method-assign]
        broken.arrived(1)
        await trio.sleep(0.1)
        (await world.channels.pool.take("who asks in between")).release()
        await trio.sleep(5)
        after = world.channels.pool.stats()
        assert world.channels.pool is not broken
        assert "the pool of data channels failed" in caplog.messages
        assert after["states"]["available"] == before["states"]["available"] > 0
        assert after["handshakes"] == 2 * before["handshakes"], "it goes on counting"
