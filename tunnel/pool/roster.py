"""Who is in a pool, in which state, and how many: the bookkeeping under `rules`, which alone decides."""

import heapq
import random
from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from typing import Generic

from attrs import frozen

from tunnel.config import PoolConfig
from tunnel.faults import Fault
from tunnel.pool.figures import Figures
from tunnel.pool.members import A, Lease, Member, Site, State, V, Waiter


@frozen
class Open(Generic[A, V]):
    """Open and validate a member; end in `opened` and `passed`, in `failed`, or in `cancelled`."""

    member: Member[A, V]


@frozen
class Probe(Generic[A, V]):
    """Validate an idle member; end in `passed` or `failed`."""

    member: Member[A, V]


@frozen
class Close(Generic[V]):
    value: V


@frozen
class Leaked(Generic[A, V]):
    """A lease is out for longer than it may be: say so."""

    lease: Lease[A, V]


class Roster(Generic[A, V]):
    """Sites and members, counted. What is to be done for them gathers in `todo`; what is due, in timers."""

    def __init__(self, config: PoolConfig, rand: Callable[[], float] = random.random) -> None:
        self.config = config
        self.figures = Figures()
        self.sites: dict[A, Site[A, V]] = {}
        self.todo: list[Open[A, V] | Probe[A, V] | Close[V] | Leaked[A, V]] = []
        self.total = 0  # members that have a connection, or are opening one
        self.opening = 0
        self.opening_ahead = 0  # of these, for nobody in particular
        self.in_service = 0  # members that count towards what is wanted
        self.ageing: dict[Member[A, V], None] = {}
        self.dirty: dict[Site[A, V], None] = {}  # may lack members
        self.numbers = count(1)
        self.rand = rand
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []

    # Sites

    def site(self, address: A) -> Site[A, V]:
        site = self.sites.get(address)
        if site is None:
            site = self.sites[address] = Site(address, turn=min((s.turn for s in self.usable()), default=0.0))
        return site

    def usable(self) -> Iterator[Site[A, V]]:
        """Where somebody who does not care may be sent."""
        return (site for site in self.sites.values() if site.is_listed and site.down is None)

    def touch(self, site: Site[A, V]) -> None:
        """It may lack members now, or not be needed any more."""
        self.dirty[site] = None

    def forget_if_empty(self, site: Site[A, V]) -> None:
        if not site.is_listed and site.is_empty:
            self.sites.pop(site.address, None)

    # Members

    def begin(self, site: Site[A, V], sponsor: Waiter[A, V] | None, now: float) -> None:
        """Open a member for `sponsor`, or ahead of need; in quarantine it is the prober that is opened."""
        member = site.prober
        if member is None:
            member = Member(next(self.numbers), site, State.CONNECTING, now)
            site.members[member.number] = member
        self.enter(member, State.VALIDATING if site.is_quarantined else State.CONNECTING, now)
        member.began_at = now
        member.is_ahead = sponsor is None
        site.opening += 1
        self.opening += 1
        self.opening_ahead += member.is_ahead
        self.total += 1
        self._count(member, True)
        if sponsor is not None:
            member.sponsor, sponsor.member = sponsor, member
            self.figures.cold_dials += 1
        self.todo.append(Open(member))

    def opening_ended(self, member: Member[A, V]) -> None:
        """Well or not: nobody waits for this opening any more."""
        member.site.opening -= 1
        self.opening -= 1
        self.opening_ahead -= member.is_ahead
        if member.sponsor is not None:
            member.sponsor.member = None
            member.sponsor = None
        self.touch(member.site)

    def claim(self, member: Member[A, V], sponsor: Waiter[A, V]) -> None:
        """What is being opened for nobody in particular is `sponsor`'s."""
        self.opening_ahead -= member.is_ahead
        member.is_ahead = False
        member.sponsor, sponsor.member = sponsor, member

    def enter(self, member: Member[A, V], state: State, now: float) -> None:
        member.state, member.since = state, now

    def age(self, member: Member[A, V]) -> None:
        """It stays until nothing is missing without it."""
        member.is_ageing = True
        self.ageing[member] = None
        self._count(member, False)
        self.touch(member.site)

    def hand_over(self, member: Member[A, V]) -> None:
        """It is its user's for good, and the pool's no more."""
        self._leave(member)

    def drop(self, member: Member[A, V], cause: str) -> None:
        """It leaves, and is closed."""
        self._leave(member)
        member.state = State.RETIRED
        self.figures.retired[cause] += 1
        self.close(member)

    def close(self, member: Member[A, V]) -> None:
        if member.value is not None:
            self.todo.append(Close(member.value))
            member.value = None

    def _leave(self, member: Member[A, V]) -> None:
        del member.site.members[member.number]
        self.total -= 1
        self.ageing.pop(member, None)
        self._count(member, False)
        self.touch(member.site)

    def _count(self, member: Member[A, V], is_counted: bool) -> None:
        if member.is_counted is not is_counted:
            member.is_counted = is_counted
            step = 1 if is_counted else -1
            self.in_service += step
            member.site.in_service += step

    # Quarantine

    def quarantine(self, member: Member[A, V], fault: Fault, now: float) -> float | None:
        """A member that could not be opened, or did not last, leaves; the first of its address comes back as prober.

        Returns when to try again there; None if that is settled already, as it is when somebody's own try failed: those
        who ask for a dead address must not make it wait longer for its recovery.
        """
        site, is_first = member.site, member.site.prober is None
        self._leave(member)
        self.close(member)
        self.enter(member, State.UNHEALTHY, now)
        site.failures += 1
        site.fault = fault
        if not is_first and site.prober is not member:
            self.enter(member, State.RETIRED, now)
            return None
        if is_first:
            site.prober = member
            site.quarantines += 1
            self.figures.quarantines += 1
            site.delays = self.config.quarantine.delays(self.rand)
        member.opened_at = inf
        site.members[member.number] = member
        self.enter(member, State.QUARANTINED, now)
        if not is_first and site.probe_at > now:
            return None
        assert site.delays is not None
        site.probe_at = now + next(site.delays, inf)
        return site.probe_at

    def heal(self, site: Site[A, V]) -> None:
        """Its quarantine is over."""
        prober, site.prober = site.prober, None
        site.failures, site.delays, site.fault = 0, None, None
        if prober is not None and prober.state is State.QUARANTINED:
            del site.members[prober.number]
            prober.state = State.RETIRED
        self.touch(site)

    # Timers

    def at(self, when: float, act: Callable[[float], None]) -> None:
        """Call `act(now)` once it is `when`."""
        if when < inf:
            heapq.heappush(self._timers, (when, next(self.numbers), act))

    def run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)

    @property
    def next_timer(self) -> float:
        return self._timers[0][0] if self._timers else inf
