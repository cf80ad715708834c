"""Addresses whose openings fail: each has one prober, that tries again after delays of the policy. Used by `rules`."""

from math import inf
from typing import Generic

from tunnel.faults import Fault
from tunnel.pool.members import A, Member, Site, State, V
from tunnel.pool.roster import Roster

STEADY_SECONDS = 5.0  # a connection lost sooner counts as one that could not be opened
GIVEN_UP_SECONDS = 3600.0  # a quarantine whose policy has no more retries is left so long; who asks may try before
POSTPONE_SECONDS = 1.0  # of a probe while there is no room for it, or while somebody's own try is under way


class Quarantine(Generic[A, V]):
    """Of all the addresses of one pool."""

    def __init__(self, roster: Roster[A, V]) -> None:
        self._roster = roster

    def admit(self, member: Member[A, V], fault: Fault, now: float) -> None:
        """A member that could not be opened, or did not last, leaves; its address has a prober from now on.

        When it is tried next is settled once: somebody's own try that fails meanwhile does not put it off, so those who
        ask for a dead address cannot make it wait longer for its recovery. One that lets us in and soon throws us out
        has not recovered: its delays go on growing.
        """
        roster, site, is_prober = self._roster, member.site, member is member.site.prober
        roster.leave(member)
        roster.close(member)
        roster.enter(member, State.UNHEALTHY, now)
        site.failures += 1
        site.fault = fault
        if site.prober is None:
            site.prober = Member(next(roster.numbers), site, State.QUARANTINED, now)
            site.quarantines += 1
            roster.figures.quarantines += 1
            has_relapsed = member.opened_at < inf and now - site.healed_at < STEADY_SECONDS
            if site.delays is None or not has_relapsed:
                site.delays = roster.config.quarantine.delays(roster.rand)
        elif not is_prober:
            roster.enter(member, State.RETIRED, now)
            return
        site.members[site.prober.number] = site.prober
        roster.enter(site.prober, State.QUARANTINED, now)
        if site.probe_at <= now or not is_prober:
            self._set_probe(site, now)

    def recover(self, site: Site[A, V], now: float) -> None:
        """Something was opened there."""
        if site.is_quarantined:
            site.healed_at = now
        self.heal(site)

    def heal(self, site: Site[A, V]) -> None:
        """No quarantine any more: it is well, or nobody relies on it."""
        prober, site.prober = site.prober, None
        site.failures, site.fault = 0, None
        if prober is not None and prober.state is State.QUARANTINED:
            del site.members[prober.number]
            prober.state = State.RETIRED
        self._roster.touch(site)

    def _set_probe(self, site: Site[A, V], now: float) -> None:
        assert site.delays is not None
        site.probe_at = now + min(next(site.delays, inf), GIVEN_UP_SECONDS)
        self._arm(site, site.probe_at)

    def _arm(self, site: Site[A, V], when: float) -> None:
        planned = site.prober, site.probe_at

        def probe(now: float) -> None:
            if (site.prober, site.probe_at) == planned:  # else it recovered meanwhile, or a newer timer runs
                self._probe(site, now)

        self._roster.timers.at(when, probe)

    def _probe(self, site: Site[A, V], now: float) -> None:
        """The delay is over: one try, unless nobody relies on that address."""
        assert site.prober is not None
        if site.prober.state is State.QUARANTINED and not site.is_usable:
            self.heal(site)  # who asks next finds out
        elif site.prober.state is State.QUARANTINED and not site.opening and self._roster.has_room:
            self._roster.begin(site, None, now)
        else:
            self._arm(site, now + POSTPONE_SECONDS)
