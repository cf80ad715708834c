"""New visitors a second: never more than the rate and its one second's burst, nobody lost, nobody shut out."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_rig import POLLERS, SilentRoute, open_rig, until

from tunnel.relay import Pace, Tally
from tunnel.relay.pace import WAITING_SECONDS
from tunnel.sockets import listen


def take(pace: Pace, listener: str, now: float, *, there: int = 64) -> int:
    """One turn of a listener before which `there` visitors stand; how many it took in."""
    most = pace.quota(listener, now, 64)
    for _ in range(min(most, there)):
        pace.count()
    if most <= there and most < 64:
        pace.rests(listener)
    return min(most, there)


def test_a_second_s_worth_comes_at_once_and_then_as_many_as_time_gives() -> None:
    pace = Pace(10, 0.0)
    assert [take(pace, "web", at) for at in (0.0, 0.05, 0.1, 0.3, 0.35, 5.0, 5.0)] == [10, 0, 1, 2, 0, 10, 0]


def test_a_slow_rate_still_lets_one_in_and_the_next_when_it_is_due() -> None:
    pace = Pace(0.5, 100.0)
    assert [take(pace, "web", 100.0 + at) for at in (0.0, 1.9, 2.0, 2.1, 4.0)] == [1, 0, 1, 0, 1]


def test_who_has_to_wait_is_told_of_each_time() -> None:
    told: list[str] = []
    pace = Pace(2, 0.0, held_up=lambda: told.append("held up"))
    assert take(pace, "web", 0.0, there=1) == 1
    assert told == []
    assert take(pace, "web", 0.0) == 1
    assert take(pace, "web", 0.1) == 0
    assert told == ["held up"] * 2


def test_a_crowd_at_one_listener_does_not_shut_out_another() -> None:
    pace = Pace(10, 0.0)
    take(pace, "crowded", 0.0)
    took = {"crowded": 0, "quiet": 0}
    for tenth in range(1, 1001):
        for listener in took:  # always in the same order, as a poller may have it
            took[listener] += take(pace, listener, tenth / 10)
    assert sum(took.values()) == pytest.approx(1000, abs=11)
    assert took["quiet"] > 100


def test_one_that_has_no_visitors_any_more_keeps_no_share() -> None:
    pace = Pace(10, 0.0)
    take(pace, "crowded", 0.0)
    take(pace, "gone", 0.0)
    assert take(pace, "crowded", WAITING_SECONDS + 0.1) == 6


@given(st.floats(0.01, 5000), st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 2), st.integers(0, 64))))
def test_in_no_stretch_of_time_do_more_come_than_the_rate_and_one_burst(
    rate: float, turns: list[tuple[str, float, int]]
) -> None:
    pace, now, took = Pace(rate, 0.0), 0.0, 0
    for listener, pause, there in turns:
        now += pause
        took += take(pace, listener, now, there=there)
        assert took <= rate * now + max(rate, 1.0) + 1e-3


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.slow
async def test_visitors_over_the_rate_wait_in_the_kernel_and_all_come_in(poller: object) -> None:
    async with open_rig(poller, SilentRoute()) as rig:
        rig.server.pace = Pace(20, rig.server_engine.now())
        sibling = Tally()
        second = listen("127.0.0.1", 0)
        rig.server.listen(second, index=0, version=1, tally=sibling, on_lost=lambda exc: None)
        began = rig.server_engine.now()
        visitors = [socket.create_connection(rig.address) for _ in range(30)]
        await until(lambda: rig.tally.visitors == 20)
        assert rig.server_engine.now() - began < 0.4
        visitors.append(socket.create_connection(second.getsockname()))
        await until(lambda: sibling.visitors == 1)
        assert rig.tally.visitors < 30
        await until(lambda: rig.tally.visitors == 30)
        assert 0.45 < rig.server_engine.now() - began < 2.0
        for visitor in visitors:
            visitor.close()
