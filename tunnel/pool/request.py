"""One request for a connection that is not ready: it waits in line, and tries again while policy and budget allow."""

from collections.abc import Callable, Iterator
from typing import Any, Generic

import trio
from attrs import define

from tunnel.errors import TunnelError
from tunnel.faults import Fault, Kind, Phase
from tunnel.pool.members import A, Lease, V, Waiter
from tunnel.pool.rules import Rules


class Unavailable(TunnelError):
    """No lease could be had: `fault` is what stood in the way last, in whatever was tried."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@define(eq=False)
class Request(Generic[A, V]):
    """Made for one call of `Pool.take`, and used once. `changed` is called when there is something to decide."""

    rules: Rules[A, V]
    may_retry: Callable[[], bool]  # asks the retry budget; a yes is paid for
    delays: Iterator[float]  # before each retry; failing over to another address needs none
    changed: Callable[[], Any]
    fault: Fault | None = None  # the last

    async def lease(self, owner: str, to: A | None) -> Lease[A, V]:
        """The caller holds the deadline. Raises `Unavailable`. If cancelled, nothing is held."""
        rules, began = self.rules, trio.current_time()
        woken = trio.Event()
        waiter = rules.wait(owner, to, began, lambda: woken.set())
        while True:
            await self._wait_woken(waiter, woken)
            if waiter.lease is not None:
                for counts in rules.figures, waiter.lease.member.site.counts:
                    counts.waits.add(trio.current_time() - began)
                return waiter.lease
            fault = self.fault = waiter.fault
            assert fault is not None
            if not rules.may_go_elsewhere(waiter):
                await self._wait_retry(fault)
                waiter.tried.clear()
            self._count_retry(fault, waiter.failed_at)
            woken = trio.Event()
            rules.wait_again(waiter, trio.current_time())

    def _count_retry(self, fault: Fault, at: A | None) -> None:
        """`at` is where it went wrong, if that was an address."""
        site = None if at is None else self.rules.roster.sites.get(at)
        for counts in [self.rules.figures] if site is None else [self.rules.figures, site.counts]:
            counts.retries[f"{fault.phase}.{fault.kind}"] += 1

    def late(self, whom: str, seconds: float) -> Unavailable:
        """For the caller, whose deadline has come."""
        last = f": {self.fault.message}" if self.fault else ""
        return Unavailable(Fault(Phase.DIAL, Kind.TIMEOUT, True, f"no connection to {whom} in {seconds:g} s{last}"))

    async def _wait_woken(self, waiter: Waiter[A, V], woken: trio.Event) -> None:
        self.changed()
        try:
            await woken.wait()
        except BaseException:
            self.rules.abandon(waiter)
            self.changed()
            raise

    async def _wait_retry(self, fault: Fault) -> None:
        delay = next(self.delays, None) if fault.retryable else None
        if delay is None:
            raise Unavailable(fault)
        if not self.may_retry():
            raise Unavailable(fault)
        await trio.sleep(delay)
