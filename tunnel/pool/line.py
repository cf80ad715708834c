"""Those who wait: whose turn it is, and for whom nothing is being opened yet. Used by `rules`."""

from typing import Generic

from tunnel.faults import Fault
from tunnel.pool.members import A, Member, Queue, Site, V, Waiter
from tunnel.pool.roster import Roster


class Line(Generic[A, V]):
    """One line for all who do not care for the address, and one at each site; numbers tell who was first."""

    def __init__(self, roster: Roster[A, V]) -> None:
        self._roster = roster
        self.anyone: Queue[A, V] = Queue()
        self.unserved: Queue[A, V] = Queue()  # of these, for whom nothing is being opened
        self.waiting = 0

    def join(self, waiter: Waiter[A, V]) -> None:
        """Behind all with lower numbers."""
        self.waiting += 1
        waiter.lease = waiter.fault = waiter.failed_at = None
        queue = self.anyone if waiter.to is None else self._roster.site(waiter.to).waiters
        queue.add(waiter)
        self.unserve(waiter)

    def unserve(self, waiter: Waiter[A, V]) -> None:
        """Nothing is being opened for it (any more)."""
        self._roster.disclaim(waiter)
        if waiter.to is None:
            self.unserved.add(waiter)
        else:
            site = self._roster.site(waiter.to)
            site.unserved.add(waiter)
            self._roster.touch(site)

    def serve(self, waiter: Waiter[A, V]) -> None:
        """Something is being opened for it."""
        (self.unserved if waiter.to is None else self._roster.site(waiter.to).unserved).discard(waiter)

    def leave(self, waiter: Waiter[A, V]) -> None:
        self.waiting -= 1
        self._roster.disclaim(waiter)
        self.serve(waiter)
        if waiter.to is None:
            self.anyone.discard(waiter)
        else:
            site = self._roster.site(waiter.to)
            site.waiters.discard(waiter)
            self._roster.touch(site)

    def fail(self, waiter: Waiter[A, V], fault: Fault, at: A | None) -> None:
        """It need not wait any longer; `at` is where it went wrong."""
        self.leave(waiter)
        waiter.fault, waiter.failed_at = fault, at
        if at is not None:
            waiter.tried.add(at)
        waiter.wake()

    def everybody(self) -> list[Waiter[A, V]]:
        return [*self.anyone, *(waiter for site in self._roster.sites.values() for waiter in site.waiters)]

    def first(self, site: Site[A, V]) -> Waiter[A, V] | None:
        """Whose turn it is for a member there."""
        return _older(site.waiters.first(), self._first_of_anyone(site))

    def _first_of_anyone(self, site: Site[A, V]) -> Waiter[A, V] | None:
        """Those who have tried all that is well may have a backup, too: it is opened for them (`Choice`)."""
        if self._roster.is_for_all(site):
            return self.anyone.first()
        if not site.is_usable or not self.anyone:
            return None
        better = {other.address for other in self._roster.usable() if not other.backup and not other.is_quarantined}
        return next((waiter for waiter in self.anyone if waiter.tried >= better), None)

    def heir(self, member: Member[A, V]) -> Waiter[A, V] | None:
        """Who may have what is being opened for nobody: a prober is only for those who want that address."""
        site, other = member.site, None
        if site.may_prepare and self._roster.is_for_all(site):
            other = next((waiter for waiter in self.unserved if site.address not in waiter.tried), None)
        return _older(site.unserved.first(), other)


def _older(one: Waiter[A, V] | None, other: Waiter[A, V] | None) -> Waiter[A, V] | None:
    if one is None or other is None:
        return one or other
    return min(one, other, key=lambda waiter: waiter.number)
