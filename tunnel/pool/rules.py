"""The law of a pool, sans IO: who is lent what, what is opened, probed, replaced and closed, and when.

Every method decides synchronously, with the time handed in, and leaves what is to be done in `roster.todo`; the shell
(`core`) does it afterwards and reports back with `opened`, `passed`, `failed`, `cancelled` and `lost`. No decision ever
waits, so a cancelled task can only fall between a decision and its I/O.

    need      openings for those who wait come first: at once, bounded by `max` alone
    ahead     then each address has `min_per_address`, and the pool as many as `demand.wanted` says, at `fill_rate`
    failure   an address whose opening failed is quarantined: nothing is opened ahead there until its one prober gets
              through, after a delay of the policy; who asks for it meanwhile shares the outcome of one opening
    age       a member past its age stays in service until nothing is missing without it
"""

import random
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Generic

from tunnel.config import PoolConfig
from tunnel.faults import Fault, Kind, Phase
from tunnel.pool import demand
from tunnel.pool.demand import Rate, Smoothed, Tokens
from tunnel.pool.members import A, Lease, Member, Place, Site, State, V, Waiter
from tunnel.pool.roster import Leaked, Probe, Roster

STEADY_SECONDS = 5.0  # a connection lost sooner counts as one that could not be opened
POSTPONE_SECONDS = 1.0  # of an ageing while another of its address is being replaced, of a probe while there is no room
GIVEN_UP_SECONDS = 3600.0  # a quarantine whose policy has no more retries is left so long; who asks may try before
EPSILON = 1e-9  # seconds; a timer that was set for a moment must find it has come


class Rules(Generic[A, V]):
    """One a pool. Times are seconds of one monotonic clock; `now` gives it to a lease that is released."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        capacity: int,
        reusable: bool,
        now: Callable[[], float],
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.capacity = capacity
        self.reusable = reusable
        self.roster: Roster[A, V] = Roster(config, rand)
        self.figures = self.roster.figures
        self.waiters: dict[int, Waiter[A, V]] = {}  # for any address, in their order
        self.lent = 0  # leases not released
        self.arrivals = Rate()
        self.open_time = Smoothed()
        self._now = now
        self._unserved: dict[int, Waiter[A, V]] = {}  # waiters for whom nothing is being opened
        self._tokens = Tokens(config.fill_rate)
        self._tokens_at = inf  # when filling goes on, where it has to wait for that

    # Lending

    def take(self, owner: str, to: A | None, now: float) -> Lease[A, V] | None:
        """A lease on a member that is ready, the least used one; None if there is none (then `wait`)."""
        self.arrivals.add(1, now)
        sites = self._order() if to is None else filter(None, [self.roster.sites.get(to)])
        for site in sites:
            while (member := self._best(site)) is not None:
                assert member.value is not None
                if member.value.peek() is None:
                    self.figures.hits += 1
                    return self._lend(member, owner, now, was_hot=True, is_chosen=to is None)
                self.roster.drop(member, "dead")
        self.figures.misses += 1
        return None

    def _lend(self, member: Member[A, V], owner: str, now: float, *, was_hot: bool, is_chosen: bool) -> Lease[A, V]:
        assert member.value is not None
        site = member.site
        self.figures.leases += 1
        self.figures.reused += member.lent_total > 0
        member.lent_total += 1
        member.leases += 1
        site.lent += 1
        self.lent += 1
        if is_chosen:
            site.turn += 1 / site.weight
        lease = Lease(owner, member, member.value, now, was_hot, self._give_back)
        self.roster.enter(member, State.IN_USE, now)
        if not self.reusable:
            self.roster.hand_over(member)
        if self.config.lease_seconds is not None:
            self.roster.at(now + self.config.lease_seconds, lambda _now: self._overdue(lease))
        self.roster.touch(site)
        return lease

    def _give_back(self, lease: Lease[A, V], good: bool) -> None:
        now, member = self._now(), lease.member
        member.leases -= 1
        member.site.lent -= 1
        self.lent -= 1
        member.used_at = member.proven_at = now
        if not self.reusable:
            member.state = State.RETIRED
            self.figures.retired["used"] += 1
            if not good:
                self.roster.close(member)
        elif member.value is not None:
            member.is_doomed |= not good
            self._is_free(member, now)
        self.roster.touch(member.site)

    def _is_free(self, member: Member[A, V], now: float) -> None:
        """It has room, or one user less than before."""
        if member.is_doomed:
            if member.leases == 0:
                self.roster.drop(member, "age" if member.is_ageing else "bad")
            return
        if member.leases == 0:
            self.roster.enter(member, State.AVAILABLE, now)
        self._offer(member, now)

    def _overdue(self, lease: Lease[A, V]) -> None:
        if not lease.is_released:
            self.figures.leaked(lease.owner)
            self.roster.todo.append(Leaked(lease))

    # Choosing

    def _order(self) -> list[Site[A, V]]:
        """Where to look first: not in quarantine, no backup, and then by the configured choice."""
        sites = list(self.roster.usable())
        by_turn = self.config.choice == "round_robin"
        if len(sites) > 1:
            sites.sort(key=lambda site: (
                site.is_quarantined, site.backup, 0 if by_turn else self._load(site) / site.weight, site.turn,
            ))  # fmt: skip
        return sites

    def _load(self, site: Site[A, V]) -> int:
        return site.lent if self.capacity == 1 else sum(member.load for member in site.members.values())

    def _best(self, site: Site[A, V]) -> Member[A, V] | None:
        """The least used member that has room."""
        best, least = None, (self.capacity, 0)
        for member in site.members.values():
            if member.is_open and not member.is_doomed and (used := (member.load, member.lent_total)) < least:
                best, least = member, used
        return best

    # Waiting

    def wait(self, owner: str, to: A | None, now: float, wake: Callable[[], Any]) -> Waiter[A, V]:
        """Join those who wait, behind them all. Ends in `wake`, or in `abandon`."""
        waiter: Waiter[A, V] = Waiter(next(self.roster.numbers), owner, to, now, wake)
        self._enlist(waiter)
        return waiter

    def wait_again(self, waiter: Waiter[A, V]) -> None:
        """After a failure, in the old place."""
        waiter.fault = waiter.failed_at = None
        self._enlist(waiter)
        queue = self._queue(waiter)
        if next(iter(reversed(queue))) != max(queue):
            ordered = sorted(queue.items())
            queue.clear()
            queue.update(ordered)

    def abandon(self, waiter: Waiter[A, V]) -> None:
        """It does not wait any more; a lease that it was given in this very moment goes back."""
        self._delist(waiter)
        if waiter.lease is not None:
            waiter.lease.release(good=self.reusable)

    def may_go_elsewhere(self, waiter: Waiter[A, V]) -> bool:
        return waiter.to is None and any(site.address not in waiter.tried for site in self.roster.usable())

    def _queue(self, waiter: Waiter[A, V]) -> dict[int, Waiter[A, V]]:
        return self.waiters if waiter.to is None else self.roster.site(waiter.to).waiters

    def _enlist(self, waiter: Waiter[A, V]) -> None:
        self._queue(waiter)[waiter.number] = self._unserved[waiter.number] = waiter

    def _delist(self, waiter: Waiter[A, V]) -> None:
        self._queue(waiter).pop(waiter.number, None)
        self._unserved.pop(waiter.number, None)
        if waiter.member is not None:  # goes on being opened; somebody else may have it
            waiter.member.sponsor = None
            waiter.member = None
        if waiter.to is not None:
            self.roster.touch(self.roster.site(waiter.to))

    def _offer(self, member: Member[A, V], now: float) -> None:
        """Give a member's room to those who wait, in their order."""
        while member.is_open and not member.is_doomed and member.load < self.capacity:
            waiter = self._first_waiter(member.site)
            if waiter is None:
                return
            assert member.value is not None
            if member.value.peek() is not None:
                self.roster.drop(member, "dead")
                return
            self._delist(waiter)
            waiter.lease = self._lend(member, waiter.owner, now, was_hot=False, is_chosen=waiter.to is None)
            waiter.wake()

    def _first_waiter(self, site: Site[A, V]) -> Waiter[A, V] | None:
        own = next(iter(site.waiters.values()), None)
        if site.down is not None or not site.is_listed:
            return own
        for waiter in self.waiters.values():
            if own is not None and own.number < waiter.number:
                return own
            if site.address not in waiter.tried:
                return waiter
        return own

    def _fail(self, waiter: Waiter[A, V], fault: Fault, at: A | None) -> None:
        self._delist(waiter)
        waiter.fault, waiter.failed_at = fault, at
        if at is not None:
            waiter.tried.add(at)
        waiter.wake()

    # What became of an action

    def opened(self, member: Member[A, V], value: V, now: float) -> None:
        """It is connected, and validating has begun."""
        member.value = value
        self.roster.enter(member, State.VALIDATING, now)

    def passed(self, member: Member[A, V], now: float) -> None:
        """Validated: the last step of opening it, or an idle one's probe."""
        if member.value is None:
            return  # an idle one that was lost meanwhile
        site = member.site
        member.proven_at = now
        if member.opened_at == inf:
            self._in_service(member, now)
        if not site.waiters and (site.down is not None or site.is_left):
            member.is_doomed = True
        self._is_free(member, now)

    def _in_service(self, member: Member[A, V], now: float) -> None:
        sponsor, seconds = member.sponsor, now - member.began_at
        self.roster.opening_ended(member)
        if sponsor is not None:
            self._unserved[sponsor.number] = sponsor  # it is first in line, or an older one's opening will be its
        self.figures.opened += 1
        self.figures.openings.add(seconds)
        self.open_time.add(seconds)
        member.opened_at = member.used_at = now
        member.retire_at = now + self._lifetime()
        self.roster.heal(member.site)
        self._watch(member, now)

    def failed(self, member: Member[A, V], fault: Fault, now: float) -> None:
        """Opening or validating it did not work."""
        if fault.phase is Phase.VALIDATE:
            self.figures.validation_failures[fault.kind] += 1
        if member.opened_at < inf:
            if member.value is not None:
                self.roster.drop(member, "dead")  # whether its address is well, the next opening tells
            return
        self.figures.failed(fault)
        site, sponsor = member.site, member.sponsor
        self.roster.opening_ended(member)
        self._set_quarantine(member, fault, now)
        if sponsor is not None:
            self._fail(sponsor, fault, site.address)
        for waiter in [w for w in self._unserved.values() if self._site_for(w) is site]:
            self._fail(waiter, fault, site.address)

    def cancelled(self, member: Member[A, V]) -> None:
        """Opening it was cancelled, and has left nothing."""
        self.roster.opening_ended(member)
        if member.site.prober is member:
            member.site.prober = None
        self.roster.drop(member, "removed")

    def lost(self, member: Member[A, V], fault: Fault, now: float) -> None:
        """Its connection has ended by itself. Of one that has left the pool that is no news."""
        if member.value is None or member.opened_at == inf or member.number not in member.site.members:
            return
        if now - member.opened_at < STEADY_SECONDS:
            self.figures.retired["lost"] += 1
            self._set_quarantine(member, fault, now)
        else:
            self.roster.drop(member, "lost")

    def _set_quarantine(self, member: Member[A, V], fault: Fault, now: float) -> None:
        probe_at = self.roster.quarantine(member, fault, now)
        if probe_at is not None:
            self.roster.at(min(probe_at, now + GIVEN_UP_SECONDS), lambda later: self._probe_site(member, later))

    def _probe_site(self, member: Member[A, V], now: float) -> None:
        """The delay of a quarantine is over: one try, unless nobody relies on that address."""
        site = member.site
        if site.prober is not member:
            return  # it recovered meanwhile
        if member.state is not State.QUARANTINED:  # somebody tries this very moment
            self.roster.at(now + POSTPONE_SECONDS, lambda later: self._probe_site(member, later))
            return
        if not site.is_listed or site.down is not None:
            self.roster.heal(site)  # who asks next finds out
        elif self.roster.total < self.config.max:
            self.roster.begin(site, None, now)
        else:
            self.roster.at(now + POSTPONE_SECONDS, lambda later: self._probe_site(member, later))

    # Age, idleness

    def _lifetime(self) -> float:
        age = self.config.max_age
        return inf if age is None else age * (1 - self.config.age_jitter * self.roster.rand())

    def _watch(self, member: Member[A, V], now: float) -> None:
        """Look at it again when something may be due."""
        is_idle = member.state is State.AVAILABLE and member.load == 0
        due = []
        for since, limit in (member.used_at, self.config.idle_limit), (member.proven_at, self.config.probe_interval):
            if limit is not None:
                when = since + limit
                due.append(when if is_idle and when > now + EPSILON else now + limit)
        number = member.watch = member.watch + 1
        self.roster.at(min([member.retire_at, *due]), lambda later: self._check(member, number, later))

    def _check(self, member: Member[A, V], number: int, now: float) -> None:
        if member.watch != number or member.value is None or not member.is_counted:
            return  # it has left, or is about to
        is_idle = member.state is State.AVAILABLE and member.load == 0
        idle_limit, probe_interval = self.config.idle_limit, self.config.probe_interval
        if now >= member.retire_at:
            self._age(member, now)
        elif is_idle and _is_due(member.used_at, idle_limit, now) and self._is_surplus(member.site, now):
            self.roster.drop(member, "idle")
            return
        elif is_idle and _is_due(member.proven_at, probe_interval, now):
            assert member.value is not None
            if member.value.peek() is not None:
                self.roster.drop(member, "dead")
                return
            self.roster.enter(member, State.VALIDATING, now)
            self.roster.todo.append(Probe(member))
        if member.is_counted:
            self._watch(member, now)

    def _age(self, member: Member[A, V], now: float) -> None:
        if any(other.is_ageing for other in member.site.members.values()):
            member.retire_at = now + POSTPONE_SECONDS
        else:
            self.roster.age(member)

    def _is_surplus(self, site: Site[A, V], now: float) -> bool:
        least = self.config.min_per_address if site.is_listed else 0
        return site.in_service > least and self.roster.in_service > self.wanted(now)

    # Deciding

    def decide(self, now: float) -> float:
        """Bring the pool nearer to what it should be; returns when to ask again, should nothing happen before."""
        self.roster.run_timers(now)
        self._serve(now)
        self._fill(now)
        self._replace(now)
        return min(self.roster.next_timer, self._tokens_at)

    def wanted(self, now: float) -> int:
        """How many members there should be, ready or in use."""
        users = 0
        if self.reusable:
            users = self.lent if self.capacity == 1 else sum(map(self._load, self.roster.sites.values()))
        return demand.wanted(
            least=self.config.min, most=self.config.max, rate=self.arrivals.per_second(now),
            open_seconds=self.open_time.value or 0.0, users=users, capacity=self.capacity,
        )  # fmt: skip

    def _serve(self, now: float) -> None:
        """Open what those who wait need."""
        for waiter in list(self._unserved.values()):
            site = self._site_for(waiter)
            if site is None:
                self._fail(waiter, self._nowhere(), None)
                continue
            coming = next((m for m in site.members.values() if m.is_opening and m.sponsor is None), None)
            if coming is not None:
                self.roster.claim(coming, waiter)
            elif self._may_open(site):
                self.roster.begin(site, waiter, now)
            else:
                continue  # the end of an opening, or of a lease, brings us back
            del self._unserved[waiter.number]

    def _may_open(self, site: Site[A, V]) -> bool:
        """For somebody who waits."""
        if site.is_quarantined:
            if site.opening:
                return False
        elif len(site.members) >= self.config.max_per_address:
            return False
        return self._has_room() or self._evict()

    def _site_for(self, waiter: Waiter[A, V]) -> Site[A, V] | None:
        if waiter.to is not None:
            return self.roster.site(waiter.to)
        sites = self._order()
        return next((site for site in sites if site.address not in waiter.tried), sites[0] if sites else None)

    def _nowhere(self) -> Fault:
        down = [f"{site.address}: {site.down}" for site in self.roster.sites.values() if site.is_listed]
        return Fault(Phase.DIAL, Kind.UNREACHABLE, False, "; ".join(down) or "there is no address to connect to")

    def _has_room(self) -> bool:
        """A member that is being replaced gives its place to its successor."""
        return self.roster.total - len(self.roster.ageing) < self.config.max

    def _evict(self) -> bool:
        """Close what was idle longest, for somebody who waits for another address."""
        idle = [
            member
            for site in self.roster.sites.values()
            for member in site.members.values()
            if member.state is State.AVAILABLE and member.load == 0
        ]
        if not idle:
            return False
        self.roster.drop(min(idle, key=lambda member: member.used_at), "evicted")
        return True

    def _fill(self, now: float) -> None:
        """Open ahead of need."""
        self._tokens_at = inf
        for site in list(self.roster.dirty):
            least = min(self.config.min_per_address, self.config.max_per_address)
            while site.may_prepare and site.in_service < least:
                if not self._may_prepare(now):
                    return
                self.roster.begin(site, None, now)
            del self.roster.dirty[site]
            self.roster.forget_if_empty(site)
        target = self.wanted(now)
        while self.roster.in_service < target:
            sites = [s for s in self.roster.usable() if s.may_prepare and s.in_service < self.config.max_per_address]
            if not sites or not self._may_prepare(now):
                return
            self.roster.begin(min(sites, key=lambda s: (s.backup, s.in_service / s.weight, s.turn)), None, now)

    def _may_prepare(self, now: float) -> bool:
        if self.roster.opening_ahead >= self.config.fill_concurrency or not self._has_room():
            return False  # the end of an opening, or of a member, brings us back
        if self._tokens.take(now):
            return True
        self._tokens_at = self._tokens.next_at(now)
        return False

    def _replace(self, now: float) -> None:
        """Let members go that are past their age, once their successors are in service."""
        for member in list(self.roster.ageing):
            site = member.site
            least = self.config.min_per_address if site.may_prepare else 0
            ready, all_ready = site.in_service - site.opening, self.roster.in_service - self.roster.opening
            if ready >= least and all_ready >= self.wanted(now):
                member.is_doomed = True
                if member.leases == 0 and member.is_open:
                    self.roster.drop(member, "age")

    # Told from outside

    def list_places(self, places: Iterable[Place[A]], now: float) -> None:
        """Use exactly these addresses from now on. Members of others go when their users have, or can move."""
        named = {place.address: place for place in places}
        for site in list(self.roster.sites.values()):
            if site.is_listed and site.address not in named:
                site.is_listed, site.is_left = False, True
                self._vacate(site)
        for place in named.values():
            site = self.roster.site(place.address)
            site.is_listed, site.is_left, site.weight, site.backup = True, False, place.weight, place.backup
            self.roster.touch(site)

    def mark(self, address: A, down: str | None, now: float) -> None:
        """A health check's word on an address: `down` says why it is not to be used, None that it is well."""
        site = self.roster.sites.get(address)
        if site is None or site.down == down:
            return
        site.down = down
        if down is not None:
            self._vacate(site)
        elif site.is_quarantined and not site.opening:
            self.roster.heal(site)
        self.roster.touch(site)

    def _vacate(self, site: Site[A, V]) -> None:
        for member in list(site.members.values()):
            if member.is_open:
                member.is_doomed = True
                if member.leases == 0:
                    self.roster.drop(member, "removed")
        self.roster.touch(site)

    def apply(self, config: PoolConfig, now: float) -> None:
        """Other figures from now on; what is lent is not touched."""
        aged = (config.max_age, config.age_jitter) != (self.config.max_age, self.config.age_jitter)
        watched = (config.idle_limit, config.probe_interval) != (self.config.idle_limit, self.config.probe_interval)
        if config.fill_rate != self.config.fill_rate:
            self._tokens = Tokens(config.fill_rate)
        self.config = self.roster.config = config
        for site in self.roster.sites.values():
            self.roster.touch(site)
            for member in list(site.members.values()):
                if member.opened_at < inf and member.is_counted and (aged or watched):
                    if aged:
                        member.retire_at = member.opened_at + self._lifetime()
                    self._watch(member, now)
        while self.roster.total - len(self.roster.ageing) > config.max and self._evict():
            pass

    def close(self) -> None:
        """Nobody may use the pool any more: close all that is not lent for good."""
        for site in self.roster.sites.values():
            for member in site.members.values():
                self.roster.close(member)


def _is_due(since: float, limit: float | None, now: float) -> bool:
    return limit is not None and now - since >= limit - EPSILON
