"""Which address, and which of its members: by load or in turn, weighted, backups last. Used by `rules`."""

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Generic

from tunnel.pool.members import A, Member, Site, V, Waiter
from tunnel.pool.roster import Roster

_lent_total = attrgetter("lent_total")


class Choice(Generic[A, V]):
    """Looks at the roster and changes nothing but the turns."""

    def __init__(self, roster: Roster[A, V], *, capacity: int) -> None:
        self.capacity = capacity
        self._roster = roster

    # Of what is ready

    def order(self) -> Iterable[Site[A, V]]:
        """Where to look for a member that is ready: backups while no other is well, what is in quarantine last."""
        sites = list(self._roster.usable())
        if len(sites) < 2:
            return sites
        if any(site.may_prepare and not site.backup for site in sites):
            sites = [site for site in sites if not site.backup]
        return self._by_key(sites)

    def _by_key(self, sites: list[Site[A, V]]) -> Iterator[Site[A, V]]:
        """Sorted, but the first without sorting: most need no other."""
        first = min(sites, key=self._key)
        yield first
        yield from sorted((site for site in sites if site is not first), key=self._key)

    def _key(self, site: Site[A, V]) -> tuple[bool, bool, float, float]:
        load = 0.0 if self._by_turn else self.load(site) / site.weight
        return site.is_quarantined, site.backup, load, site.turn

    @property
    def _by_turn(self) -> bool:
        return self._roster.config.choice == "round_robin"

    def took(self, site: Site[A, V]) -> None:
        """It was chosen: others are, before it is again."""
        site.turn += 1 / site.weight

    def load(self, site: Site[A, V]) -> int:
        return site.lent if self.capacity == 1 else sum(member.load for member in site.members.values())

    def users(self) -> int:
        """Of all members together."""
        return sum(self.load(site) for site in self._roster.sites.values())

    def best(self, site: Site[A, V]) -> Member[A, V] | None:
        """The least used member that has room."""
        if self.capacity == 1:
            return min(site.idle, key=_lent_total, default=None)
        best, least = None, (self.capacity, 0)
        for member in site.members.values():
            if member.is_open and member.doom is None and (used := (member.load, member.lent_total)) < least:
                best, least = member, used
        return best

    # Of what is to be opened

    def may_open(self, site: Site[A, V]) -> bool:
        """For somebody who waits: an address in quarantine is tried by one at a time."""
        return not site.opening if site.is_quarantined else self._roster.has_room_at(site)

    def healthy(self, waiter: Waiter[A, V]) -> list[Site[A, V]]:
        """Where it has not failed, and nobody else did."""
        return [site for site in self._untried(waiter) if not site.is_quarantined]

    def where_to_open(self, waiter: Waiter[A, V]) -> Site[A, V] | None:
        """For one who does not care for the address; None if those that are best are full.

        Backups come after the others, and what is in quarantine after all.
        """
        sites = self.healthy(waiter) or self._untried(waiter)
        best = [site for site in sites if not site.backup] or sites
        return min(filter(self.may_open, best), key=self._opening_key, default=None)

    def _untried(self, waiter: Waiter[A, V]) -> list[Site[A, V]]:
        """All of them, should it have tried all."""
        sites = list(self._roster.usable())
        return [site for site in sites if site.address not in waiter.tried] or sites

    def _opening_key(self, site: Site[A, V]) -> tuple[float, float]:
        """What is being opened will be used, too: a burst must not go to one address alone."""
        load = 0.0 if self._by_turn else (self.load(site) + site.opening) / site.weight
        return load, site.turn + site.opening / site.weight
