"""Connections that end before anybody could use them: of no use ahead of need, so fewer are opened. Used by `rules`."""

from math import inf

from tunnel.pool.members import A, Member, Site, V
from tunnel.pool.roster import Roster

SOON_SECONDS = 5.0  # what was opened so soon after others had died is one of their successors
LONGEST_SECONDS = 3600.0  # a pause, where the policy has no more retries


def drop_dead(roster: Roster[A, V], member: Member[A, V], now: float) -> None:
    """A member that was found dead leaves, and is replaced at once.

    Not so where neither it nor those before it lasted until they were first looked at: nothing is opened ahead of need
    there for a while, by the delays of a quarantine. Whoever needs a connection has one opened.
    """
    was_ever_good = member.lent_total > 0 or member.proven_at > member.opened_at
    if not was_ever_good and not member.site.pause.is_on:
        _count_waste(roster, member.site, member.opened_at, now)
    roster.drop(member, "dead")


def _count_waste(roster: Roster[A, V], site: Site[A, V], opened_at: float, now: float) -> None:
    pause = site.pause
    if pause.delays is None or opened_at - pause.ended_at >= SOON_SECONDS:
        pause.delays, pause.ended_at = roster.config.quarantine.delays(roster.rand), now
    elif opened_at > pause.ended_at:  # else it is one of those that died together
        _pause(roster, site, now + min(next(pause.delays, inf), LONGEST_SECONDS))


def _pause(roster: Roster[A, V], site: Site[A, V], until: float) -> None:
    site.pause.is_on = True

    def end(now: float) -> None:
        site.pause.is_on, site.pause.ended_at = False, now
        roster.touch(site)

    roster.timers.at(until, end)
