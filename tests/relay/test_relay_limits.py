"""Bounds and deadlines of an engine that change while it runs: nobody inside is sent away, who waits goes on."""

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from relay_rig import POLLERS, open_rig, read_exactly, until

from tunnel.config import Limits
from tunnel.frames import FIRST_WINDOW
from tunnel.relay.bounds import Budget
from tunnel.relay.deadlines import DeadlineQueue

ONE = Limits(max_visitors=1)


async def ping(visitor: trio.SocketStream) -> None:
    await visitor.send_all(b"ping")
    assert await read_exactly(visitor, 4) == b"ping"


@pytest.mark.parametrize("poller", POLLERS)
async def test_visitors_that_wait_at_a_bound_go_on_when_it_is_raised(poller) -> None:
    async with open_rig(poller, server_limits=ONE) as rig:
        first, second, third = [await rig.visit() for _ in range(3)]
        await ping(first)
        await until(lambda: rig.listener in rig.server_engine.bounds.waiting)
        rig.server_engine.apply(evolve(ONE, max_visitors=2))
        await ping(second)
        await until(lambda: rig.listener in rig.server_engine.bounds.waiting)
        rig.server_engine.apply(evolve(ONE, max_visitors=None))
        await ping(third)
        rig.server_engine.apply(ONE)  # lowered: those inside stay
        for visitor in (first, second, third):
            await ping(visitor)
            await visitor.aclose()


@pytest.mark.parametrize("poller", POLLERS)
async def test_a_budget_that_shrinks_below_what_is_promised_lets_nobody_in_until_it_is_given_back(poller) -> None:
    async with open_rig(poller) as rig:
        engine, usual = rig.server_engine, Limits()
        visitor = await rig.visit()
        await ping(visitor)
        engine.apply(evolve(usual, buffer_budget=FIRST_WINDOW))
        assert engine.bounds.are_reached
        await ping(visitor)
        await visitor.aclose()
        await until(lambda: not engine.bounds.open_streams)
        assert engine.bounds.budget.free == FIRST_WINDOW
        engine.apply(usual)
        async with await rig.visit() as another:
            await ping(another)


def test_what_was_promised_stays_promised() -> None:
    budget = Budget(1000)
    assert budget.take(300)
    budget.become(200)
    assert (budget.free, budget.reserve, budget.take(1)) == (-100, 100, False)
    budget.give(300)
    budget.become(1000)
    assert (budget.free, budget.reserve, budget.size) == (1000, 500, 1000)


def test_deadlines_under_way_are_as_much_later_or_sooner() -> None:
    expired: list[str] = []
    queue = DeadlineQueue(10.0, expired.append)
    queue.add("one", 0.0)
    queue.add("two", 4.0)
    queue.become(3.0)
    assert queue.next() == 3.0
    queue.add("three", 5.0)
    queue.expire(7.5)
    assert (expired, queue.next()) == (["one", "two"], 8.0)
    queue.become(60.0)
    assert (queue.next(), queue.seconds) == (65.0, 60.0)


@given(st.lists(st.tuples(st.sampled_from(["add", "become"]), st.floats(0.1, 100))))
def test_whatever_durations_there_were_all_expire_by_the_last_one_and_in_order(steps: list[tuple[str, float]]) -> None:
    expired: list[int] = []
    queue, now, began = DeadlineQueue(10.0, expired.append), 0.0, {}
    for number, (step, value) in enumerate(steps):
        if step == "become":
            queue.become(value)
        else:
            now += value
            queue.add(number, now)
            began[number] = now
    for number, at in began.items():
        queue.expire(at + queue.seconds - 0.01)
        assert number not in expired
        queue.expire(at + queue.seconds + 0.01)
        assert number in expired
    assert expired == sorted(expired)
