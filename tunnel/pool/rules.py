"""The law of a pool, sans IO: who is lent what, what is opened, probed, replaced and closed, and when.

Every method decides synchronously, with the time handed in, and leaves what is to be done in `roster.todo`; the shell
(`core`) does it afterwards and reports back with `opened`, `passed`, `failed`, `cancelled` and `lost`. No decision ever
waits, so a cancelled task can only fall between a decision and its I/O.

    need      openings for those who wait come first: at once, bounded by `max` alone (`line`, `filling`)
    ahead     then each address has `min_per_address`, and the pool as many as `demand.wanted` says, at `fill_rate`
    failure   an address whose opening failed is quarantined: nothing is opened ahead there until its one prober gets
              through, after a delay of the policy; who asks for it meanwhile shares the outcome of one opening
    age       a member past its age stays in service until nothing is missing without it (`upkeep`)
"""

import random
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Generic

from tunnel.config import PoolConfig
from tunnel.faults import Fault, Kind, Phase
from tunnel.pool.choice import Choice
from tunnel.pool.figures import Figures
from tunnel.pool.filling import Filling
from tunnel.pool.lending import Lending
from tunnel.pool.line import Line
from tunnel.pool.members import A, Lease, Member, Place, Site, State, V, Waiter
from tunnel.pool.places import Places
from tunnel.pool.quarantine import STEADY_SECONDS, Quarantine
from tunnel.pool.roster import Roster
from tunnel.pool.upkeep import Upkeep

_CLOSED = Fault(Phase.DIAL, Kind.INVALID, False, "the pool is closed")


class Rules(Generic[A, V]):
    """One a pool. Times are seconds of one monotonic clock.

    `now` gives the time to a lease that is released; `released` is called after that: there may be something to do.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        capacity: int,
        reusable: bool,
        now: Callable[[], float],
        released: Callable[[], Any] = lambda: None,
        figures: Figures | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.reusable = reusable
        self.is_closed = False
        self.roster: Roster[A, V] = Roster(config, rand, figures)
        self.figures = self.roster.figures
        self._line: Line[A, V] = Line(self.roster)
        self._choice: Choice[A, V] = Choice(self.roster, capacity=capacity if reusable else 1)
        self._lending = Lending(self.roster, self._choice, self._line, reusable=reusable, now=now, released=released)
        self._filling = Filling(self.roster, self._choice, self._line, reusable=reusable)
        self._upkeep = Upkeep(self.roster, self._filling)
        self._quarantine = Quarantine(self.roster)
        self._places = Places(self.roster, self._line, self._lending, self._quarantine)

    @property
    def config(self) -> PoolConfig:
        return self.roster.config

    @property
    def capacity(self) -> int:
        return self._choice.capacity

    @property
    def lent(self) -> int:
        """Leases not released."""
        return self._lending.lent

    @property
    def waiting(self) -> int:
        return self._line.waiting

    def arrivals_per_second(self, now: float) -> float:
        return self._filling.arrivals.per_second(now)

    def wanted(self, now: float) -> int:
        """How many members there should be, ready or in use."""
        return self._filling.wanted(now)

    # Taking, waiting

    def arrived(self, count: int, now: float) -> None:
        """So many users came, with a lease or without."""
        self._filling.arrivals.add(count, now)

    def take(self, owner: str, to: A | None, now: float) -> Lease[A, V] | None:
        """A lease on a member that is ready, the least used one; None if there is none (then `wait`)."""
        self._filling.arrivals.add(1, now)
        return self._lending.take(owner, to, now)

    def wait(self, owner: str, to: A | None, now: float, wake: Callable[[], Any]) -> Waiter[A, V]:
        """Join those who wait, behind them all. Ends in `wake`, maybe before this returns, or in `abandon`."""
        waiter: Waiter[A, V] = Waiter(next(self.roster.numbers), owner, to, now, wake)
        self.wait_again(waiter, now)  # since `take` said no, something may have become free
        return waiter

    def wait_again(self, waiter: Waiter[A, V], now: float) -> None:
        """After a failure, in the old place. It may be woken before this returns."""
        self._join(waiter)
        self._lending.offer_to(waiter, now)

    def _join(self, waiter: Waiter[A, V]) -> None:
        self._line.join(waiter)
        if self.is_closed:
            self._line.fail(waiter, _CLOSED, None)

    def abandon(self, waiter: Waiter[A, V]) -> None:
        """It does not wait any more; a lease that it was given in this very moment goes back."""
        if not waiter.is_over:
            self._line.leave(waiter)
        elif waiter.lease is not None:
            waiter.lease.release(good=self.reusable)

    def may_go_elsewhere(self, waiter: Waiter[A, V]) -> bool:
        if waiter.to is not None or self.is_closed:
            return False
        return any(site.address not in waiter.tried for site in self.roster.usable())

    # What became of an action

    def opened(self, member: Member[A, V], value: V, now: float) -> None:
        """It is connected, and validating has begun."""
        self.roster.opened(member, value, now)

    def passed(self, member: Member[A, V], now: float) -> None:
        """Validated: the last step of opening it, or an idle one's probe."""
        if member.value is None:
            return  # an idle one that was lost meanwhile
        why = member.value.peek()
        if why is not None:
            self.failed(member, Fault(Phase.VALIDATE, Kind.RESET, True, why), now)
            return
        member.proven_at = now
        if member.is_opening:
            self._in_service(member, now)
        self._lending.freed(member, now)

    def _in_service(self, member: Member[A, V], now: float) -> None:
        sponsor, seconds = member.sponsor, now - member.began_at
        self.roster.opening_ended(member)
        if sponsor is not None:
            self._line.unserve(sponsor)  # it is first in line, or an older one's opening will be its
        for counts in self.figures, member.site.counts:
            counts.opened += 1
        self.figures.openings.add(seconds)
        self._filling.open_time.add(seconds)
        self._upkeep.begin(member, now)
        self._quarantine.recover(member.site, now)

    def failed(self, member: Member[A, V], fault: Fault, now: float) -> None:
        """Opening or validating it did not work."""
        if fault.phase is Phase.VALIDATE:
            for counts in self.figures, member.site.counts:
                counts.validation_failures[fault.kind] += 1
        if not member.is_opening:
            if member.value is not None:
                self.roster.drop(member, "dead")  # whether its address is well, the next opening tells
            return
        self.figures.failed(fault)
        sponsor = member.sponsor
        self.roster.opening_ended(member)
        self._quarantine.admit(member, fault, now)
        self._tell(sponsor, fault, member.site)
        self._places.offer_room(now)

    def _tell(self, sponsor: Waiter[A, V] | None, fault: Fault, site: Site[A, V]) -> None:
        """Who waits for that address, or has no better one, need not each try for itself."""
        if sponsor is not None:
            self._line.fail(sponsor, fault, site.address)
        for waiter in site.unserved:
            self._line.fail(waiter, fault, site.address)
        for waiter in self._line.unserved if site.is_usable else ():
            if site.address not in waiter.tried and not self._choice.healthy(waiter):
                self._line.fail(waiter, fault, site.address)

    def cancelled(self, member: Member[A, V]) -> None:
        """Opening it was cancelled, and has left nothing but what it has reported."""
        sponsor = member.sponsor
        self.roster.opening_ended(member)
        if sponsor is not None:
            self._line.unserve(sponsor)
        if member.site.prober is member:
            self._quarantine.heal(member.site)
        self.roster.drop(member, "removed")

    def lost(self, member: Member[A, V], fault: Fault, now: float) -> None:
        """Its connection has ended by itself. Of one that has left the pool, or is being opened, that is no news."""
        if member.value is None or member.opened_at == inf or member.number not in member.site.members:
            return
        if now - member.opened_at < STEADY_SECONDS:
            self.figures.retired["lost"] += 1
            self._quarantine.admit(member, fault, now)
            self._places.offer_room(now)
        else:
            self.roster.drop(member, "lost")

    # Deciding

    def decide(self, now: float) -> float:
        """Bring the pool nearer to what it should be; returns when to ask again, should nothing happen before."""
        if self.is_closed:
            return inf
        self.roster.timers.run(now)
        self._lending.count_overdue(now)
        if self.capacity > 1 and self.waiting:  # users without a lease come and go unseen
            self._lending.offer_room(list(self.roster.sites.values()), now)
        self._filling.serve(now)
        self._filling.fill(now)
        self._upkeep.replace(now)
        return min(self.roster.timers.next_at, self._filling.next_at, self._lending.next_overdue)

    # Told from outside

    def list_places(self, places: Iterable[Place[A]], now: float) -> None:
        """Use exactly these addresses from now on. Members of others go when their users have, or can move."""
        self._places.list_places(places, now)

    def mark(self, address: A, down: str | None, now: float) -> None:
        """A health check's word on an address: `down` says why it is not to be used, None that it is well."""
        self._places.mark(address, down, now)

    def apply(self, config: PoolConfig, now: float) -> None:
        """Other figures from now on; what is lent is not touched."""
        before, self.roster.config = self.config, config
        if config.fill_rate != before.fill_rate:
            self._filling.set_rate()
        for site in self.roster.sites.values():
            self.roster.touch(site)
        self._upkeep.renew(before, now)
        self.roster.shed()

    def close(self) -> None:
        """Nobody may use the pool any more: close all that is not lent for good."""
        self.is_closed = True
        for waiter in self._line.everybody():
            self._line.fail(waiter, _CLOSED, None)
        for site in list(self.roster.sites.values()):
            for member in list(site.members.values()):
                if member.is_opening:
                    self.cancelled(member)
                elif member.state is not State.QUARANTINED:
                    self.roster.drop(member, "removed")
            self._quarantine.heal(site)
            self.roster.forget_if_empty(site)
