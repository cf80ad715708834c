"""What a cancellation of a pool, or of one of its users, leaves, wherever it strikes."""

import pytest
import trio
from attrs import evolve
from pool_rig import QUIET
from running_rig import Rig, Service, open_rig
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.pool import Place, Pool, Unavailable, Use


async def test_cancelled_while_its_connection_is_opened_a_taker_holds_nothing_and_the_next_one_has_it(
    autojump_clock: MockClock,
) -> None:
    async with open_rig("one") as rig:
        rig.service.open_seconds = 2.0
        with trio.move_on_after(1.0):
            await rig.pool.take("a")
        assert (rig.pool.rules.waiting, rig.pool.rules.lent) == (0, 0)
        lease = await rig.pool.take("b")
        assert (trio.current_time(), len(rig.service.tries)) == (2.0, 1)
        lease.release()


async def test_cancelled_in_the_moment_it_is_served_a_taker_holds_nothing(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig, trio.open_nursery() as nursery:
        rig.service.open_seconds = 2.0
        scope = trio.CancelScope()

        async def take() -> None:
            with scope:
                await rig.pool.take("a")
                raise AssertionError("it was cancelled")

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        waiter = next(iter(rig.pool.rules._line.anyone))
        wake = waiter.wake

        def cancel_and_wake() -> None:
            scope.cancel(reason="test")
            wake()

        waiter.wake = cancel_and_wake
        await trio.sleep(3.0)
        assert rig.pool.rules.lent == 0
        assert len(rig.service.open_values) == 1  # ready for the next


async def test_cancelled_between_two_tries_a_taker_holds_nothing(autojump_clock: MockClock) -> None:
    async with open_rig("one", retry=LinearPolicy(5.0), quarantine=RetryPolicy(60.0)) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("no")
        with trio.move_on_after(1.0):
            await rig.pool.take("a")
        assert (rig.pool.rules.waiting, rig.pool.rules.lent, len(rig.service.tries)) == (0, 0, 2)


async def test_cancelled_before_it_began_a_taker_takes_nothing(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        with trio.CancelScope() as scope:
            scope.cancel(reason="test")
            await rig.pool.take("a")
        assert scope.cancelled_caught
        assert rig.pool.stats()["leases"] == 0


async def test_cancelled_inside_a_lease_its_connection_is_closed(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        with trio.move_on_after(1.0):
            async with rig.pool.lease("a"):
                await trio.sleep_forever()
        await wait_all_tasks_blocked()
        assert [value.closes for value in rig.service.values] == [1, 0]


@pytest.mark.parametrize(
    "stage", ["idle", "opening", "validating", "probing", "waiting", "retrying", "in quarantine", "lent"]
)
async def test_a_pool_cancelled_at_any_stage_leaves_nothing(stage: str, autojump_clock: MockClock) -> None:
    service = Service()
    config = evolve(QUIET, min=2, max=2, probe_interval=1.0, retry=LinearPolicy(50.0), wait_seconds=1000.0)
    pool = Pool(Use(service.open, service.validate), config, name="test", rand=lambda: 0.0)
    rig = Rig(pool, service)
    told: list[Exception] = []

    async def use() -> None:
        try:
            async with pool.lease("a", "one"):
                await trio.sleep(20.0)
        except Unavailable as exc:
            told.append(exc)

    match stage:
        case "opening" | "waiting":
            service.open_seconds = 9.0
        case "validating":
            service.validate_seconds = 4.0
        case "in quarantine" | "retrying":
            service.broken["one"] = ConnectionRefusedError("no")
    async with trio.open_nursery() as users:
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            pool.list_places([Place("one")])
            if stage in ("waiting", "retrying", "lent"):
                for _ in range(3):
                    users.start_soon(use)
            await wait_all_tasks_blocked()
            if stage == "probing":
                service.validate_seconds = 4.0
                await trio.sleep(2.0)
                assert pool.stats()["states"]["validating"] == 2
            nursery.cancel_scope.cancel(reason="test")
        if stage != "lent":
            assert not service.open_values
        assert pool.rules.waiting == 0
        if stage == "retrying":
            assert pool.rules.lent == 0
    rig.assert_clean()
    assert len(told) == {"waiting": 3, "retrying": 3, "lent": 1}.get(stage, 0)
