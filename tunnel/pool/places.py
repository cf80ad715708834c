"""Which addresses there are, and which of them are well: told from outside. Used by `rules`."""

from collections.abc import Iterable
from math import inf
from typing import Generic

from tunnel.pool.lending import Lending
from tunnel.pool.line import Line
from tunnel.pool.members import A, Place, Site, V
from tunnel.pool.quarantine import Quarantine
from tunnel.pool.roster import Roster


class Places(Generic[A, V]):
    """Of one pool."""

    def __init__(
        self, roster: Roster[A, V], line: Line[A, V], lending: Lending[A, V], quarantine: Quarantine[A, V]
    ) -> None:
        self._roster = roster
        self._line = line
        self._lending = lending
        self._quarantine = quarantine

    def list_places(self, places: Iterable[Place[A]], now: float) -> None:
        roster = self._roster
        named = {place.address: place for place in places}
        for site in list(roster.sites.values()):
            if site.is_listed and site.address not in named:
                site.is_listed, site.is_left = False, True
                self._vacate(site)
        turn = min((site.turn for site in roster.usable()), default=0.0)  # who is new is not owed the past
        for place in named.values():
            site = roster.site(place.address)
            if not site.is_listed:
                site.turn = turn
            site.is_listed, site.is_left, site.weight, site.backup = True, False, place.weight, place.backup
            roster.touch(site)
        self.offer_room(now)

    def mark(self, address: A, down: str | None, now: float) -> None:
        site = self._roster.sites.get(address)
        if site is None or site.down == down:
            return
        site.down = down
        if down is not None:
            self._vacate(site)
        elif site.is_quarantined and not site.opening:
            self._quarantine.heal(site)
        self._roster.touch(site)
        self.offer_room(now)

    def _vacate(self, site: Site[A, V]) -> None:
        """Nothing there is for new users, save those who ask for this very address."""
        for member in list(site.members.values()):
            if member.is_opening:
                if member.sponsor is not None and member.sponsor.to is None:
                    self._line.unserve(member.sponsor)
            elif member.opened_at < inf and member.doom is None:
                self._roster.doom(member, "removed")
        self._roster.touch(site)

    def offer_room(self, now: float) -> None:
        """What was not for those who do not care for the address may be so now."""
        if self._line.anyone:
            self._lending.offer_room(list(self._roster.usable()), now)
