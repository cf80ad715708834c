"""What becomes of members with time: idle ones are closed or probed, old ones are replaced. Used by `rules`."""

from math import inf
from typing import Generic

from tunnel.config import PoolConfig
from tunnel.pool.filling import Filling
from tunnel.pool.members import A, Member, Site, State, V
from tunnel.pool.roster import Probe, Roster
from tunnel.pool.waste import drop_dead

POSTPONE_SECONDS = 1.0  # of an ageing while another of its address is being replaced
EPSILON = 1e-9  # seconds; a timer that was set for a moment must find it has come


class Upkeep(Generic[A, V]):
    """Of all the members in service of one pool."""

    def __init__(self, roster: Roster[A, V], filling: Filling[A, V]) -> None:
        self._roster = roster
        self._filling = filling

    def begin(self, member: Member[A, V], now: float) -> None:
        """It is in service from now on."""
        member.opened_at = member.used_at = now
        member.retire_at = now + self._lifetime()
        self._watch(member, now)

    def renew(self, before: PoolConfig, now: float) -> None:
        """The limits have changed: those of members in service begin anew."""
        config = self._roster.config
        aged = (config.max_age, config.age_jitter) != (before.max_age, before.age_jitter)
        if not aged and (config.idle_limit, config.probe_interval) == (before.idle_limit, before.probe_interval):
            return
        for site in self._roster.sites.values():
            for member in site.members.values():
                if member.opened_at < inf and member.is_counted:
                    if aged:
                        member.retire_at = member.opened_at + self._lifetime()
                    self._watch(member, now)

    def replace(self, now: float) -> None:
        """Let members go that are past their age, once their successors are in service."""
        for member in list(self._roster.ageing):
            if self._is_replaced(member, now):
                self._roster.doom(member, "age")

    def _is_replaced(self, member: Member[A, V], now: float) -> bool:
        """By one of its own address, or because nothing is missing without it."""
        roster, site = self._roster, member.site
        ready = site.in_service - site.opening
        if ready >= min(member.peers, roster.config.max_per_address):
            return True
        least = roster.config.min_per_address if site.may_prepare else 0
        return ready >= least and roster.in_service - roster.opening >= self._filling.wanted(now)

    def _lifetime(self) -> float:
        config = self._roster.config
        return inf if config.max_age is None else config.max_age * (1 - config.age_jitter * self._roster.rand())

    def _watch(self, member: Member[A, V], now: float) -> None:
        """Look at it again when something may be due."""
        config, is_idle, due = self._roster.config, _is_idle(member), [member.retire_at]
        for since, limit in (member.used_at, config.idle_limit), (member.proven_at, config.probe_interval):
            if limit is not None:
                when = since + limit
                due.append(when if is_idle and when > now + EPSILON else now + limit)
        number = member.watch = member.watch + 1
        self._roster.timers.at(min(due), lambda later: self._check(member, number, later))

    def _check(self, member: Member[A, V], number: int, now: float) -> None:
        if member.watch != number or member.value is None or not member.is_counted:
            return  # it has left, or is about to
        config = self._roster.config
        if now >= member.retire_at:
            self._age(member, now)
        elif _is_idle(member):
            if _is_due(member.used_at, config.idle_limit, now) and self._is_surplus(member.site, now):
                self._roster.drop(member, "idle")
            elif _is_due(member.proven_at, config.probe_interval, now):
                self._probe(member, now)
        if member.is_counted:
            self._watch(member, now)

    def _probe(self, member: Member[A, V], now: float) -> None:
        assert member.value is not None
        if member.value.peek() is not None:
            drop_dead(self._roster, member, now)
            return
        self._roster.enter(member, State.VALIDATING, now)
        self._roster.todo.append(Probe(member))

    def _age(self, member: Member[A, V], now: float) -> None:
        if member.site.ageing:
            member.retire_at = now + POSTPONE_SECONDS
            return
        member.peers = member.site.in_service - member.site.opening
        self._roster.age(member)

    def _is_surplus(self, site: Site[A, V], now: float) -> bool:
        least = self._roster.config.min_per_address if site.is_listed else 0
        return site.in_service > least and self._roster.in_service > self._filling.wanted(now)


def _is_idle(member: Member[A, V]) -> bool:
    return member.state is State.AVAILABLE and member.load == 0


def _is_due(since: float, limit: float | None, now: float) -> bool:
    return limit is not None and now - since >= limit - EPSILON
