"""A running pool over a service that does as a test says, in virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from attrs import define, evolve
from pool_rig import QUIET, FakeConnection
from trio.testing import wait_all_tasks_blocked

from tunnel.backoff import RetryBudget
from tunnel.faults import Phase
from tunnel.pool import Place, Pool, Use, running


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
