"""The running pool: waiting, retrying, and what a cancellation leaves, wherever it strikes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rig import QUIET, FakeConnection, FakeLease
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.backoff import LinearPolicy, RetryBudget, RetryPolicy
from tunnel.config import PoolConfig
from tunnel.faults import Kind, Phase
from tunnel.pool import Place, Pool, Unavailable, Use, running


class Service:
    """Opens and validates as a test says; each takes so long, or fails."""

    def __init__(self) -> None:
        self.open_seconds = 0.0
        self.validate_seconds = 0.0
        self.broken: dict[str, Exception] = {}
        self.invalid: Exception | None = None
        self.tries: list[tuple[float, str]] = []
        self.values: list[FakeConnection] = []

    async def open(self, address: str, entered: Callable[[Phase], None]) -> FakeConnection:
        self.tries.append((trio.current_time(), address))
        entered(Phase.HANDSHAKE)
        await trio.sleep(self.open_seconds)
        if address in self.broken:
            raise self.broken[address]
        value = FakeConnection(address)
        self.values.append(value)
        return value

    async def validate(self, value: FakeConnection) -> None:
        await trio.sleep(self.validate_seconds)
        if self.invalid is not None:
            raise self.invalid

    @property
    def open_values(self) -> list[FakeConnection]:
        assert all(value.closes <= 1 for value in self.values)
        return [value for value in self.values if not value.closes]


@define
class Rig:
    pool: Pool[str, FakeConnection]
    service: Service

    def assert_clean(self) -> None:
        """Nothing is held, nothing is open, nothing is under way."""
        roster = self.pool.rules.roster
        assert (roster.total, roster.opening, roster.in_service) == (0, 0, 0)
        assert (self.pool.rules.lent, self.pool.rules.waiting) == (0, 0)
        assert not roster.by_value
        assert not self.service.open_values


@asynccontextmanager
async def open_rig(
    *addresses: str, capacity: int = 1, reusable: bool = True, budget: RetryBudget | None = None, **config: object
) -> AsyncIterator[Rig]:
    service = Service()
    use = Use(service.open, service.validate, capacity, reusable)
    pool = Pool(use, evolve(QUIET, **config), name="test", budget=budget, rand=lambda: 0.0)
    rig = Rig(pool, service)
    async with running(pool):
        pool.list_places(map(Place, addresses))
        await wait_all_tasks_blocked()
        yield rig
    if not pool.rules.lent:
        rig.assert_clean()


# Taking


async def test_a_hot_connection_is_lent_without_waiting(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        rig.service.open_seconds = 1.0
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.was_hot) == (0.0, True)


async def test_a_cold_one_is_opened_and_validated_first(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        rig.service.open_seconds, rig.service.validate_seconds = 1.0, 0.5
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.was_hot) == (1.5, False)
        assert rig.pool.stats()["waits"]["count"] == 1


async def test_what_a_body_leaves_by_an_exception_is_not_used_again(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        with pytest.raises(ValueError, match="body"):
            async with rig.pool.lease("a"):
                raise ValueError("body")
        assert not rig.service.open_values


async def test_an_address_that_fails_is_left_for_another_at_once(autojump_clock: MockClock) -> None:
    async with open_rig("one", "two", "three") as rig:
        rig.service.broken = {"one": ConnectionRefusedError("no"), "two": ConnectionRefusedError("no")}
        lease = await rig.pool.take("a")
        assert lease.address == "three"
        assert rig.service.tries == [(0.0, "one"), (0.0, "two"), (0.0, "three")]
        assert rig.pool.stats()["retries"] == {"handshake.refused": 2}
        lease.release()


async def test_a_failing_address_is_tried_after_the_delays_of_the_policy(autojump_clock: MockClock) -> None:
    async with open_rig("one", retry=LinearPolicy(step=1.0, max_retries=3), quarantine=RetryPolicy(60.0)) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("nobody there")
        with pytest.raises(Unavailable, match="nobody there") as caught:
            await rig.pool.take("a", "one")
        assert [when for when, _ in rig.service.tries] == [0.0, 0.0, 1.0, 3.0]
        assert (caught.value.fault.phase, caught.value.fault.kind) == (Phase.HANDSHAKE, Kind.REFUSED)


async def test_what_trying_again_cannot_help_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        rig.service.broken["one"] = ValueError("no such thing")
        with pytest.raises(Unavailable, match="no such thing"):
            await rig.pool.take("a")
        assert len(rig.service.tries) == 1


async def test_the_budget_bounds_the_retries_of_all_together(autojump_clock: MockClock) -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=1.0)
    async with open_rig("one", retry=LinearPolicy(0.0, 10), quarantine=RetryPolicy(60.0), budget=budget) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("no")
        for _ in range(3):
            with pytest.raises(Unavailable):
                await rig.pool.take("a")
        assert (len(rig.service.tries), rig.pool.stats()["denied_retries"]) == (4, 3)


async def test_a_request_ends_at_its_deadline_and_says_what_went_wrong_last(autojump_clock: MockClock) -> None:
    async with open_rig("one", wait_seconds=4.0, retry=LinearPolicy(3.0), quarantine=RetryPolicy(60.0)) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("nobody there")
        with pytest.raises(Unavailable, match="in 4 s: nobody there"):
            await rig.pool.take("a")
        assert (trio.current_time(), rig.pool.stats()["wait_timeouts"]) == (4.0, 1)


async def test_a_connection_and_its_validation_have_deadlines_of_their_own(autojump_clock: MockClock) -> None:
    async with open_rig("one", open_seconds=2.0, validate_seconds=1.0, retry=LinearPolicy(0.0, 0)) as rig:
        rig.service.open_seconds = 1000.0
        with pytest.raises(Unavailable, match="no answer within 2 s"):
            await rig.pool.take("a", "slow")
        assert trio.current_time() == 2.0
        rig.service.open_seconds, rig.service.validate_seconds = 1.5, 1000.0
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await rig.pool.take("a", "invalid")
        assert trio.current_time() == 4.5
        assert rig.pool.stats()["failures"] == {"handshake.timeout": 1, "validate.timeout": 1}
        assert not rig.service.open_values


async def test_a_member_that_died_while_idle_is_replaced_without_a_sleep(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        rig.service.values[0].dead = "closed by the peer"
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.value) == (0.0, rig.service.values[1])
        assert rig.service.values[0].closes == 1


async def test_an_idle_member_is_probed_in_its_time(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1, probe_interval=15.0) as rig:
        rig.service.invalid = ConnectionResetError("reset")
        await trio.sleep(15.5)
        assert rig.service.values[0].closes == 1
        assert rig.pool.stats()["validation_failures"] == {"reset": 2}  # its successor's, too


async def test_a_bad_connection_is_closed_when_it_is_released(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        lease = await rig.pool.take("a")
        lease.release(good=False)
        assert rig.service.values[0].closes == 1


async def test_a_leak_is_noticed_in_time(autojump_clock: MockClock) -> None:
    async with open_rig("one", lease_seconds=10.0) as rig:
        lease = await rig.pool.take("forgetful")
        await trio.sleep(9.9)
        assert rig.pool.stats()["leaks"] == {}
        await trio.sleep(0.2)
        assert rig.pool.stats()["leaks"] == {"forgetful": 1}
        lease.release()


async def test_a_lost_connection_is_replaced(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        await trio.sleep(10.0)
        rig.pool.lost(rig.service.values[0], "the peer is gone")
        await wait_all_tasks_blocked()
        assert [value.closes for value in rig.service.values] == [1, 0]
        rig.pool.lost(rig.service.values[0], "again")  # no news
        assert rig.pool.stats()["retired"] == {"lost": 1}


async def test_what_is_lent_for_good_outlives_the_pool(autojump_clock: MockClock) -> None:
    async with open_rig("one", reusable=False, min=1) as rig:
        lease = await rig.pool.take("a")
        await wait_all_tasks_blocked()
    assert rig.service.open_values == [lease.value]
    lease.release()
    assert rig.service.open_values == [lease.value]


# Cancelled


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


# Whatever happens

Task = tuple[
    float, str | None, float, float, bool
]  # when it begins, where to, its patience, its use, and how that ends


class Chaos:
    """A pool whose openings and validations take and end as two lists say, and tasks that use it."""

    def __init__(
        self, capacity: int, reusable: bool, config: PoolConfig, delays: list[float], failures: list[bool]
    ) -> None:
        self.use = Use(self.open, self.validate, capacity, reusable)
        self.config = config
        self.delays = delays
        self.failures = failures
        self.steps = 0
        self.opened: list[FakeConnection] = []
        self.for_good: set[int] = set()

    async def step(self) -> None:
        self.steps += 1
        number = self.steps
        await trio.sleep(self.delays[number % len(self.delays)])
        if self.failures[number % len(self.failures)]:
            raise ConnectionResetError("reset")

    async def open(self, address: str, _entered: Callable[[Phase], None]) -> FakeConnection:
        await self.step()
        self.opened.append(FakeConnection(address))
        return self.opened[-1]

    async def validate(self, _value: FakeConnection) -> None:
        await self.step()

    async def user(self, pool: Pool[str, FakeConnection], task: Task) -> None:
        begin, to, patience, length, good = task
        await trio.sleep(begin)
        lease: FakeLease | None = None
        with trio.move_on_after(patience):
            try:
                lease = await pool.take("user", to)
            except Unavailable:
                return
        if lease is None:
            return
        assert lease.value.closes == 0
        await trio.sleep(length)
        if good and not self.use.reusable:
            self.for_good.add(id(lease.value))
        lease.release(good=good)
        lease.release(good=not good)

    async def run(self, tasks: list[Task]) -> None:
        pool = Pool(self.use, self.config, name="test", rand=lambda: 0.5)
        roster = pool.rules.roster
        async with running(pool):
            pool.list_places([Place("one"), Place("two")])
            async with trio.open_nursery() as users:
                for task in tasks:
                    users.start_soon(self.user, pool, task)
            await trio.sleep(60.0)
            assert (pool.rules.lent, pool.rules.waiting) == (0, 0)
            assert roster.total <= self.config.max + 2  # one of each address may be in replacement
            held = {id(value) for value in self.opened if not value.closes and id(value) not in self.for_good}
            assert held == set(roster.by_value)
        assert all(value.closes == (id(value) not in self.for_good) for value in self.opened)
        assert (roster.total, roster.opening, roster.in_service) == (0, 0, 0)


@settings(max_examples=40)
@given(
    capacity=st.sampled_from([1, 3]),
    reusable=st.booleans(),
    low=st.integers(0, 3),
    most=st.integers(1, 5),
    delays=st.lists(st.sampled_from([0.0, 0.1, 1.0, 20.0]), min_size=1, max_size=10),
    failures=st.lists(st.booleans(), min_size=1, max_size=7),
    tasks=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0]),  # begins
            st.sampled_from([None, "one", "two", "three"]),
            st.sampled_from([0.1, 0.5, 1.0, 5.0, 100.0]),  # patience
            st.sampled_from([0.0, 0.3, 2.0]),  # use
            st.booleans(),  # good
        ),
        max_size=25,
    ),
)
@pytest.mark.slow
def test_everything_is_released_once_whoever_fails_waits_and_gives_up(
    capacity: int,
    reusable: bool,
    low: int,
    most: int,
    delays: list[float],
    failures: list[bool],
    tasks: list[Task],
) -> None:
    config = PoolConfig(
        min=min(low, most), max=most, max_per_address=2, max_age=7.0, idle_limit=3.0, probe_interval=1.0,
        open_seconds=5.0,
    )  # fmt: skip
    chaos = Chaos(capacity, reusable, config, delays, failures)
    trio.run(chaos.run, tasks, clock=MockClock(autojump_threshold=0))
