"""Leases: who is lent what, given back and overdue. Used by `rules`."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Generic

from tunnel.pool.choice import Choice
from tunnel.pool.line import Line
from tunnel.pool.members import A, Lease, Member, Site, State, V, Waiter
from tunnel.pool.roster import Leaked, Roster
from tunnel.pool.waste import drop_dead


class Lending(Generic[A, V]):
    """`now` gives the time to a lease that is released, and `released` is called after that."""

    def __init__(
        self,
        roster: Roster[A, V],
        choice: Choice[A, V],
        line: Line[A, V],
        *,
        reusable: bool,
        now: Callable[[], float],
        released: Callable[[], Any],
    ) -> None:
        self.lent = 0  # leases not released
        self.reusable = reusable
        self._roster = roster
        self._choice = choice
        self._line = line
        self._now = now
        self._released = released
        self._young: dict[Lease[A, V], None] = {}  # not overdue, the oldest first; kept only if there is a limit

    def take(self, owner: str, to: A | None, now: float) -> Lease[A, V] | None:
        """A lease on a member that is ready, the least used one; what turns out to be dead leaves."""
        figures = self._roster.figures
        for site in self._sites(to):
            while (member := self._choice.best(site)) is not None:
                if self._is_alive(member, now):
                    figures.hits += 1
                    site.counts.hits += 1
                    return self._lend(member, owner, now, was_hot=True, is_chosen=to is None)
        figures.misses += 1
        return None

    def offer(self, member: Member[A, V], now: float) -> None:
        """Give a member's room to those who wait, in their order."""
        while member.is_open and member.doom is None and member.load < self._choice.capacity:
            waiter = self._line.first(member.site)
            if waiter is None or not self._is_alive(member, now):
                return
            self._line.leave(waiter)
            waiter.lease = self._lend(member, waiter.owner, now, was_hot=False, is_chosen=waiter.to is None)
            waiter.wake()

    def offer_room(self, sites: Iterable[Site[A, V]], now: float) -> None:
        """Where there may be both, room and somebody who waits."""
        for site in sites:
            while self._line.first(site) is not None and (member := self._choice.best(site)) is not None:
                self.offer(member, now)

    def offer_to(self, waiter: Waiter[A, V], now: float) -> None:
        """It came back: something may have become free meanwhile."""
        self.offer_room(self._sites(waiter.to), now)
        if waiter.tried and not waiter.is_over:  # it may be left with the backups
            self.offer_room(list(self._roster.usable()), now)

    def freed(self, member: Member[A, V], now: float) -> None:
        """It has passed, or has one user less than before."""
        site = member.site
        if site.is_barred and not site.waiters and member.doom is None:
            self._roster.doom(member, "removed")
        if member.leases == 0:
            if member.doom is not None:
                if member.number in site.members:
                    self._roster.drop(member, member.doom)
                return
            self._roster.enter(member, State.AVAILABLE, now)
        self.offer(member, now)

    def count_overdue(self, now: float) -> None:
        """Each lease that is out for longer than it may be is counted once, by its owner."""
        while self.next_overdue <= now:
            lease = next(iter(self._young))
            del self._young[lease]
            self._roster.figures.leaked(lease.owner)
            self._roster.todo.append(Leaked(lease))

    @property
    def next_overdue(self) -> float:
        limit = self._roster.config.lease_seconds
        lease = next(iter(self._young), None)
        return inf if limit is None or lease is None else lease.since + limit

    def _sites(self, to: A | None) -> Iterable[Site[A, V]]:
        if to is None:
            return self._choice.order()
        site = self._roster.sites.get(to)
        return () if site is None else (site,)

    def _is_alive(self, member: Member[A, V], now: float) -> bool:
        """One that is not leaves."""
        assert member.value is not None
        if member.value.peek() is None:
            return True
        drop_dead(self._roster, member, now)
        return False

    def _lend(self, member: Member[A, V], owner: str, now: float, *, was_hot: bool, is_chosen: bool) -> Lease[A, V]:
        assert member.value is not None
        roster, site = self._roster, member.site
        for counts in roster.figures, site.counts:
            counts.leases += 1
            counts.reused += member.lent_total > 0
        member.lent_total += 1
        member.leases += 1
        site.lent += 1
        self.lent += 1
        if is_chosen:
            self._choice.took(site)
        lease = Lease(owner, member, member.value, now, was_hot, self._give_back)
        if roster.config.lease_seconds is not None:
            self._young[lease] = None
        roster.enter(member, State.IN_USE, now)
        if not self.reusable:
            roster.hand_over(member)
        roster.touch(site)
        return lease

    def _give_back(self, lease: Lease[A, V], good: bool) -> None:
        now, member, roster = self._now(), lease.member, self._roster
        self._young.pop(lease, None)
        member.leases -= 1
        member.site.lent -= 1
        self.lent -= 1
        if not self.reusable:
            member.state = State.RETIRED
            roster.figures.retired["used"] += 1
            if not good:
                roster.close(member)
        elif member.value is not None:
            member.used_at = now
            if good:
                member.proven_at = now
                self.freed(member, now)
            else:
                roster.doom(member, "bad")
        roster.touch(member.site)
        self._released()
