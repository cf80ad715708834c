"""What is opened, and when: for those who wait at once, ahead of need at a rate. Used by `rules`."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic

from tunnel.faults import Fault, Kind, Phase
from tunnel.pool import demand
from tunnel.pool.choice import Choice
from tunnel.pool.demand import Rate, Smoothed, Tokens
from tunnel.pool.line import Line
from tunnel.pool.members import A, Site, V, Waiter
from tunnel.pool.roster import Roster


class Filling(Generic[A, V]):
    """Measures the demand, and begins openings."""

    def __init__(self, roster: Roster[A, V], choice: Choice[A, V], line: Line[A, V], *, reusable: bool) -> None:
        self.arrivals = Rate()
        self.open_time = Smoothed()
        self.next_at = inf  # when filling goes on, where it has to wait for a token
        self._roster = roster
        self._choice = choice
        self._line = line
        self._reusable = reusable
        self._tokens = Tokens(roster.config.fill_rate)

    def set_rate(self) -> None:
        """The configured one has changed."""
        self._tokens = Tokens(self._roster.config.fill_rate)

    def wanted(self, now: float) -> int:
        """How many members there should be, ready or in use."""
        config = self._roster.config
        users = self._choice.users() if self._reusable and config.min else 0
        return demand.wanted(
            least=config.min, most=config.max, rate=self.arrivals.per_second(now),
            open_seconds=self.open_time.value or 0.0, users=users, capacity=self._choice.capacity,
        )  # fmt: skip

    # For those who wait

    def serve(self, now: float) -> None:
        """Open what they need. An address that is full is looked at again when it is touched."""
        for member in list(self._roster.unclaimed):
            waiter = self._line.heir(member)
            if waiter is not None:
                self._roster.claim(member, waiter)
                self._line.serve(waiter)
        if self._line.unserved and not any(self._roster.usable()):
            for waiter in self._line.unserved:
                self._line.fail(waiter, self._nowhere(), None)
        if self._line.unserved or self._roster.hungry:
            self._open_for_waiting(now)

    def _open_for_waiting(self, now: float) -> None:
        """Oldest first, until nobody can be helped or all there is room for is in use."""
        roster, choice = self._roster, self._choice
        hopeless: set[frozenset[A]] = set()
        others = self._others(hopeless)
        other = next(others, None)
        while roster.can_make_room:
            site = next(iter(roster.hungry), None)
            waiter = None if site is None else site.unserved.first()
            if other is not None and (waiter is None or other.number < waiter.number):
                waiter, site = other, choice.where_to_open(other)
                if site is None:
                    hopeless.add(frozenset(waiter.tried))
                other = next(others, None)
            elif site is not None:
                del roster.hungry[site]  # until it is touched
                site = site if choice.may_open(site) else None
            else:
                return
            if site is not None and waiter is not None:
                self._open_for(waiter, site, now)

    def _others(self, hopeless: set[frozenset[A]]) -> Iterator[Waiter[A, V]]:
        """Those who do not care for the address, but for those who can be helped no more than others could."""
        for waiter in self._line.unserved:
            if frozenset() in hopeless:
                return
            if frozenset(waiter.tried) not in hopeless:
                yield waiter

    def _open_for(self, waiter: Waiter[A, V], site: Site[A, V], now: float) -> None:
        while not self._roster.has_room:
            self._roster.evict()
        self._roster.begin(site, waiter, now)
        self._line.serve(waiter)
        self._roster.touch(site)

    def _nowhere(self) -> Fault:
        down = [f"{site.address}: {site.down}" for site in self._roster.sites.values() if site.is_listed]
        return Fault(Phase.DIAL, Kind.UNREACHABLE, False, "; ".join(down) or "there is no address to connect to")

    # Ahead of need

    def fill(self, now: float) -> None:
        """To each address its least number, then to those that have the least."""
        roster = self._roster
        self.next_at = inf
        least = min(roster.config.min_per_address, roster.config.max_per_address)
        for site in list(roster.dirty):
            while site.may_prepare and site.in_service < least and self._may_fill(site):
                if not self._may_prepare(now):
                    return
                roster.begin(site, None, now)
            del roster.dirty[site]
            roster.forget_if_empty(site)
        missing = self.wanted(now) - roster.in_service
        if missing > 0 and self._has_slot():
            self._fill_emptiest(missing, now)

    def _fill_emptiest(self, missing: int, now: float) -> None:
        numbers = count()  # two that are alike are taken in their order
        sites = [self._emptiness(site, next(numbers)) for site in self._roster.usable() if self._may_fill(site)]
        heapify(sites)
        while missing > 0 and sites and self._may_prepare(now):
            *_, site = heappop(sites)
            self._roster.begin(site, None, now)
            missing -= 1
            if self._may_fill(site):
                heappush(sites, self._emptiness(site, next(numbers)))

    def _may_fill(self, site: Site[A, V]) -> bool:
        if site.slow and site.opening >= self._roster.config.fill_concurrency:
            return False  # they have left their slots to other addresses, not to this one
        return not site.is_quarantined and not site.pause.is_on and self._roster.has_room_at(site)

    def _emptiness(self, site: Site[A, V], number: int) -> tuple[bool, float, float, int, Site[A, V]]:
        return site.backup, site.in_service / site.weight, site.turn, number, site

    def _has_slot(self) -> bool:
        """If not, the end of an opening, or of a member, brings us back."""
        return self._roster.opening_ahead < self._roster.config.fill_concurrency and self._roster.has_room

    def _may_prepare(self, now: float) -> bool:
        if not self._has_slot():
            return False
        if self._tokens.take(now):
            return True
        self.next_at = self._tokens.next_at(now)
        return False
