"""A running pool: the tasks that open, validate and close what `rules` decide on, and the waiting for a lease."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Generic

import trio

from tunnel.backoff import RetryBudget
from tunnel.config import PoolConfig
from tunnel.faults import Fault, Kind, Phase, classify
from tunnel.pool.figures import Figures
from tunnel.pool.members import A, Lease, Member, Place, Use, V
from tunnel.pool.request import Request, Unavailable
from tunnel.pool.roster import Close, Leaked, Open, Probe
from tunnel.pool.rules import Rules
from tunnel.pool.statistics import describe
from tunnel.rate_limited import RateLimited

__all__ = ["Pool", "Unavailable", "running"]

log = logging.getLogger(__name__)


class Pool(Generic[A, V]):
    """Made by anybody, used while `run` does, which is once. All its methods are for tasks of one Trio run.

    `name` says in logs what is pooled. `budget` bounds the retries of all its users together; `figures` are those of a
    former pool, where there was one.
    """

    def __init__(
        self,
        use: Use[A, V],
        config: PoolConfig,
        *,
        name: str,
        budget: RetryBudget | None = None,
        figures: Figures | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.rules: Rules[A, V] = Rules(
            config, capacity=use.capacity, reusable=use.reusable, now=trio.current_time, released=self._decide_soon,
            figures=figures, rand=rand,
        )  # fmt: skip
        self._use = use
        self._rand = rand
        self._budget = budget or RetryBudget()
        self._changed = trio.Event()
        self._openings: trio.Nursery | None = None
        self._told = RateLimited(log, trio.current_time, count=1, interval_seconds=60.0)

    # Lifetime

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the pool until cancelled; then what it has is closed, and what is lent for good is its user's."""
        try:
            async with trio.open_nursery() as self._openings:
                task_status.started()
                while True:
                    self._changed = trio.Event()
                    again_at = self.rules.decide(trio.current_time())
                    self._act()
                    with trio.move_on_at(again_at):
                        await self._changed.wait()
        finally:
            self._openings = None
            self.rules.close()
            self._act()

    def _act(self) -> None:
        """Do what was decided; what waits is a task of its own."""
        todo, self.rules.roster.todo = self.rules.roster.todo, []
        for action in todo:
            match action:
                case Open(member):
                    self._start(self._open, member)
                case Probe(member):
                    self._start(self._probe, member)
                case Close(value):
                    self._close(value)
                case Leaked(lease):
                    self._told.log(
                        logging.WARNING, "pool '%s': %s has kept a connection to %s for over %g s",
                        self.name, lease.owner, lease.address, self.rules.config.lease_seconds, key="leak",
                    )  # fmt: skip

    def _close(self, value: V) -> None:
        try:
            value.close()
        except Exception:  # a bug of its own, which must not keep the others open
            log.exception("pool '%s': closing a connection failed", self.name)

    def _start(self, act: Callable[[Member[A, V]], Any], member: Member[A, V]) -> None:
        if self._openings is not None:
            self._openings.start_soon(act, member, name=f"pool {self.name}: {member.address}")

    def _decide_soon(self) -> None:
        """Something has changed: let `run` look again."""
        if self.rules.roster.todo:
            self._act()
        self._changed.set()

    # Opening, validating: cancelled only with `run`, which then closes what was half open

    async def _open(self, member: Member[A, V]) -> None:
        rules, config = self.rules, self.rules.config

        def enter(phase: Phase) -> None:
            member.phase = phase

        enter(Phase.DIAL)
        try:
            with trio.fail_after(config.open_seconds):
                value = await self._use.open(member.address, enter)
            # No await until the member has it: a cancel here would orphan the connection.
            rules.opened(member, value, trio.current_time())
            enter(Phase.VALIDATE)
            with trio.fail_after(config.validate_seconds):
                await self._use.validate(value)
        except Exception as exc:
            self._failed(member, exc)
        else:
            rules.passed(member, trio.current_time())
        self._decide_soon()

    async def _probe(self, member: Member[A, V]) -> None:
        value = member.value
        if value is None:
            return
        member.phase = Phase.VALIDATE
        try:
            with trio.fail_after(self.rules.config.validate_seconds):
                await self._use.validate(value)
        except Exception as exc:
            self._failed(member, exc)
        else:
            self.rules.passed(member, trio.current_time())
        self._decide_soon()

    def _failed(self, member: Member[A, V], exc: Exception) -> None:
        fault = classify(exc, member.phase)
        if isinstance(exc, trio.TooSlowError):
            config = self.rules.config
            seconds = config.validate_seconds if fault.phase is Phase.VALIDATE else config.open_seconds
            fault = Fault(fault.phase, Kind.TIMEOUT, True, f"{member.address}: no answer within {seconds:g} s")
        elif fault.kind is Kind.OTHER:
            log.error("pool '%s': opening %s failed", self.name, member.address, exc_info=exc)
        self._told.log(
            logging.INFO, "pool '%s': %s failed (%s, %s): %s",
            self.name, member.address, fault.phase, fault.kind, fault.message, key=f"{member.address} {fault.kind}",
        )  # fmt: skip
        self.rules.failed(member, fault, trio.current_time())

    # Leases

    def take_nowait(self, owner: str, to: A | None = None) -> Lease[A, V] | None:
        """A lease on a connection that is ready, to the address `to` or to any; None if there is none."""
        lease = self.rules.take(owner, to, trio.current_time())
        if self.rules.roster.todo or self.rules.roster.dirty:
            self._decide_soon()
        return lease

    async def take(self, owner: str, to: A | None = None) -> Lease[A, V]:
        """A lease, if need be on a new connection; `release` it. Those who wait are served in their order.

        Ends within `wait_seconds`: a connection that cannot be had is tried again at another address, or after the
        policy's delay, while the retry budget allows. Raises `Unavailable`. If cancelled, nothing is held.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        lease = self.take_nowait(owner, to)
        if lease is None:
            return await self.wait(owner, to)
        self._budget.note_attempt(trio.current_time())
        await trio.lowlevel.cancel_shielded_checkpoint()
        return lease

    async def wait(self, owner: str, to: A | None = None) -> Lease[A, V]:
        """The rest of `take`, for who was told None by `take_nowait`, which has counted the request."""
        self._budget.note_attempt(trio.current_time())
        seconds = self.rules.config.wait_seconds
        delays = self.rules.config.retry.delays(self._rand)
        request = Request(self.rules, self.may_retry, delays, self._decide_soon)
        with trio.move_on_after(seconds):
            return await request.lease(owner, to)
        self.rules.figures.timeouts += 1
        raise request.late(str(to or self.name), seconds)

    def may_retry(self) -> bool:
        """Whether something that failed may be tried again on behalf of this pool's users; a yes is paid for."""
        if self._budget.allow_retry(trio.current_time()):
            return True
        self.rules.figures.denied_retries += 1
        return False

    @asynccontextmanager
    async def lease(self, owner: str, to: A | None = None) -> AsyncIterator[Lease[A, V]]:
        """`take` for the length of the body; what the body leaves by an exception is not used again."""
        lease = await self.take(owner, to)
        try:
            yield lease
        except BaseException:
            lease.release(good=False)
            raise
        else:
            lease.release()

    # Told from outside

    def list_places(self, places: Iterable[Place[A]]) -> None:
        """Use exactly these addresses from now on; members of others go once their users have."""
        self.rules.list_places(places, trio.current_time())
        self._decide_soon()

    def mark(self, address: A, down: str | None) -> None:
        """A health check's word: `down` says why an address is not to be used, None that it is well."""
        self.rules.mark(address, down, trio.current_time())
        self._decide_soon()

    def lost(self, value: V, why: str) -> None:
        """A connection has ended by itself."""
        member = self.rules.roster.by_value.get(id(value))
        if member is not None:
            self.rules.lost(member, Fault(Phase.VALIDATE, Kind.RESET, True, why), trio.current_time())
            self._decide_soon()

    def arrived(self, count: int) -> None:
        """So many users came without a lease: they count towards how many connections are wanted."""
        self.rules.arrived(count, trio.current_time())
        self._decide_soon()

    def apply(self, config: PoolConfig) -> None:
        """Other figures from now on; what is lent is not touched."""
        self.rules.apply(config, trio.current_time())
        self._decide_soon()

    def stats(self) -> dict[str, Any]:
        """For `/stats`; see `statistics`."""
        return describe(self.rules, trio.current_time())


@asynccontextmanager
async def running(pool: Pool[A, V]) -> AsyncIterator[Pool[A, V]]:
    """`run` it while the body does."""
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run, name=f"pool {pool.name}")
        yield pool
        nursery.cancel_scope.cancel(reason="the pool is closing")
