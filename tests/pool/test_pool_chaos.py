"""The running pool while anything may take long or fail, and users come and give up as they like."""

from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rig import FakeConnection, FakeLease
from trio.testing import MockClock

from tunnel.config import PoolConfig
from tunnel.faults import Phase
from tunnel.pool import Place, Pool, Unavailable, Use, running

# When it begins, where to, its patience, its use, and how that ends.
Task = tuple[float, str | None, float, float, bool]


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
