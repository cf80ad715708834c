"""Who is in a pool, in which state, and how many: the bookkeeping under `rules`, which alone decides."""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Generic

from attrs import frozen

from tunnel.config import PoolConfig
from tunnel.pool.figures import Figures
from tunnel.pool.members import A, Lease, Member, Site, State, V, Waiter
from tunnel.pool.timers import Timers

SLOW_SECONDS = (
    1.0  # an opening ahead of need that takes longer leaves its slot to other addresses: its own may be silent
)


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

    def __init__(
        self, config: PoolConfig, rand: Callable[[], float] = random.random, figures: Figures | None = None
    ) -> None:
        self.config = config
        self.figures = figures or Figures()
        self.sites: dict[A, Site[A, V]] = {}
        self.todo: list[Open[A, V] | Probe[A, V] | Close[V] | Leaked[A, V]] = []
        self.total = 0  # members that have a connection, or are opening one
        self.opening = 0
        self.opening_ahead = 0  # of these, for nobody in particular
        self.in_service = 0  # members that count towards what is wanted
        self.idle: dict[Member[A, V], None] = {}  # those that are available
        self.ageing: dict[Member[A, V], None] = {}
        self.unclaimed: dict[Member[A, V], None] = {}  # being opened, and nobody waits for that
        self.by_value: dict[int, Member[A, V]] = {}  # by the identity of their values
        self.dirty: dict[Site[A, V], None] = {}  # may lack members
        self.hungry: dict[Site[A, V], None] = {}  # somebody waits there for an opening that may be possible now
        self.numbers = count(1)
        self.rand = rand
        self.timers = Timers()

    # Sites

    def site(self, address: A) -> Site[A, V]:
        site = self.sites.get(address)
        if site is None:
            site = self.sites[address] = Site(address)
        return site

    def usable(self) -> Iterator[Site[A, V]]:
        """Where somebody who does not care may be sent."""
        return (site for site in self.sites.values() if site.is_usable)

    def is_for_all(self, site: Site[A, V]) -> bool:
        """Whether somebody who does not care may be sent there now: to a backup only while no other is well."""
        if not site.is_usable or not site.backup:
            return site.is_usable
        return not any(other.may_prepare and not other.backup for other in self.sites.values())

    def touch(self, site: Site[A, V]) -> None:
        """It may lack members now, have room for one more, or not be needed any more."""
        self.dirty[site] = None
        if site.unserved:
            self.hungry[site] = None

    def forget_if_empty(self, site: Site[A, V]) -> None:
        if not site.is_listed and site.is_empty:
            self.sites.pop(site.address, None)
            self.hungry.pop(site, None)

    # Room

    @property
    def has_room(self) -> bool:
        """A member that is being replaced gives its place to its successor."""
        return self.total - len(self.ageing) < self.config.max

    def has_room_at(self, site: Site[A, V]) -> bool:
        return len(site.members) - site.ageing < self.config.max_per_address

    @property
    def can_make_room(self) -> bool:
        """Whether there is room, or would be if what is idle were closed."""
        return self.has_room or self.total - len(self.ageing) - sum(1 for _ in _evictable(self.idle)) < self.config.max

    def evict(self, site: Site[A, V] | None = None) -> bool:
        """Close what was idle longest, there or anywhere. False if there is nothing."""
        idle = _evictable(self.idle if site is None else site.idle)
        longest = min(idle, key=lambda member: member.used_at, default=None)
        if longest is None:
            return False
        self.drop(longest, "evicted")
        return True

    def shed(self) -> None:
        """Limits were lowered: close what is idle beyond them."""
        for site in list(self.sites.values()):
            while len(site.members) - site.ageing > self.config.max_per_address and self.evict(site):
                pass
        while self.total - len(self.ageing) > self.config.max and self.evict():
            pass

    # Opening

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
        if sponsor is None:
            self.unclaimed[member] = None
            self.timers.at(now + SLOW_SECONDS, lambda _: self._free_slot(member, began_at=now))
        else:
            member.sponsor, sponsor.member = sponsor, member
            for counts in self.figures, site.counts:
                counts.cold_dials += 1
        self.todo.append(Open(member))

    def _free_slot(self, member: Member[A, V], *, began_at: float) -> None:
        """For other addresses: see `Filling`."""
        if member.is_ahead and member.began_at == began_at:  # else it is the next try of a prober
            self.opening_ahead -= 1
            member.is_ahead = False
            member.is_slow = True
            member.site.slow += 1

    def claim(self, member: Member[A, V], sponsor: Waiter[A, V]) -> None:
        """What is being opened for nobody in particular is `sponsor`'s."""
        self.opening_ahead -= member.is_ahead
        member.is_ahead = False
        del self.unclaimed[member]
        member.sponsor, sponsor.member = sponsor, member

    def disclaim(self, sponsor: Waiter[A, V]) -> None:
        """What is being opened for `sponsor` goes on, and somebody else may have it."""
        if sponsor.member is not None:
            self.unclaimed[sponsor.member] = None
            sponsor.member.sponsor = None
            sponsor.member = None

    def opened(self, member: Member[A, V], value: V, now: float) -> None:
        member.value = value
        self.by_value[id(value)] = member
        self.enter(member, State.VALIDATING, now)

    def opening_ended(self, member: Member[A, V]) -> None:
        """Well or not: nobody waits for this opening any more."""
        if member.sponsor is not None:
            self.disclaim(member.sponsor)
        del self.unclaimed[member]
        member.site.opening -= 1
        self.opening -= 1
        self.opening_ahead -= member.is_ahead
        member.site.slow -= member.is_slow
        member.is_ahead = member.is_slow = False
        self.touch(member.site)

    # In service, and out of it

    def enter(self, member: Member[A, V], state: State, now: float) -> None:
        member.state, member.since = state, now
        if state is State.AVAILABLE:
            self.idle[member] = member.site.idle[member] = None
        else:
            self._not_idle(member)

    def age(self, member: Member[A, V]) -> None:
        """It stays until its successor is in service."""
        member.is_ageing = True
        self.ageing[member] = None
        member.site.ageing += 1
        self._count(member, False)
        self.touch(member.site)

    def doom(self, member: Member[A, V], cause: str) -> None:
        """It gets no new users, and leaves as soon as it has none."""
        member.doom = cause
        self._not_ageing(member)
        self._count(member, False)
        self.touch(member.site)
        if member.is_open and member.leases == 0:
            self.drop(member, cause)

    def hand_over(self, member: Member[A, V]) -> None:
        """It is its user's for good, and the pool's no more."""
        self.leave(member)

    def drop(self, member: Member[A, V], cause: str) -> None:
        """It leaves, and is closed."""
        self.leave(member)
        member.state = State.RETIRED
        self.figures.retired[cause] += 1
        self.close(member)

    def leave(self, member: Member[A, V]) -> None:
        del member.site.members[member.number]
        self.total -= 1
        if member.value is not None:
            self.by_value.pop(id(member.value), None)
        self._not_idle(member)
        self._not_ageing(member)
        self._count(member, False)
        self.touch(member.site)

    def close(self, member: Member[A, V]) -> None:
        if member.value is not None:
            self.todo.append(Close(member.value))
            member.value = None

    def _not_idle(self, member: Member[A, V]) -> None:
        self.idle.pop(member, None)
        member.site.idle.pop(member, None)

    def _not_ageing(self, member: Member[A, V]) -> None:
        if member in self.ageing:
            del self.ageing[member]
            member.site.ageing -= 1

    def _count(self, member: Member[A, V], is_counted: bool) -> None:
        if member.is_counted is not is_counted:
            member.is_counted = is_counted
            step = 1 if is_counted else -1
            self.in_service += step
            member.site.in_service += step


def _evictable(idle: Iterable[Member[A, V]]) -> Iterator[Member[A, V]]:
    """Not one that is being replaced: its place is its successor's."""
    return (member for member in idle if member.load == 0 and not member.is_ageing)
