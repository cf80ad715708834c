"""The pool's law under whatever happens in whatever order: no clock, no task, no connection."""

from math import inf
from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pool_rig import REFUSED, RESET, Desk, FakeLease, FakeMember, FakeWaiter

from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.config import PoolConfig
from tunnel.faults import Fault
from tunnel.pool.members import Lease, Place, State
from tunnel.pool.roster import Open

ADDRESSES = ("one", "two", "three", "four")
LIMITS = st.sampled_from([None, 0.5, 3.0, 20.0])

configs = st.builds(
    lambda low, low_each, **rest: PoolConfig(
        min=min(low, rest["max"]), min_per_address=min(low_each, rest["max_per_address"]), **rest
    ),
    low=st.integers(0, 5),
    low_each=st.integers(0, 2),
    max=st.integers(1, 6),
    max_per_address=st.integers(1, 3),
    fill_rate=st.sampled_from([1.0, 50.0]),
    fill_concurrency=st.integers(1, 4),
    max_age=LIMITS,
    idle_limit=LIMITS,
    probe_interval=LIMITS,
    lease_seconds=LIMITS,
    choice=st.sampled_from(["least_load", "round_robin"]),
    quarantine=st.sampled_from(
        [RetryPolicy(1.0, 2.0, 8.0, None, 0.0), LinearPolicy(1.0, 2), RetryPolicy(max_retries=0)]
    ),
)
places = st.lists(
    st.builds(Place, st.sampled_from(ADDRESSES[:3]), weight=st.integers(1, 3), backup=st.booleans()),
    unique_by=lambda place: place.address,
)
targets = st.sampled_from([None, None, *ADDRESSES])
picks = st.integers(0, 1000)


class Law(RuleBasedStateMachine):
    """Four addresses, of which up to three are listed; `settled` once the law has been asked after the last change."""

    @initialize(
        config=configs,
        capacity=st.sampled_from([1, 2, 3]),
        reusable=st.booleans(),
        listed=places,
        rand=st.floats(0, 0.99),
    )
    def begin(self, config: PoolConfig, capacity: int, reusable: bool, listed: list[Place[str]], rand: float) -> None:
        self.desk = Desk(config, capacity=capacity, reusable=reusable, rand=lambda: rand)
        self.rules, self.roster = self.desk.rules, self.desk.roster
        self.leases: list[FakeLease] = []
        self.waiting: list[FakeWaiter] = []
        self.failed: list[FakeWaiter] = []
        self.for_good: set[int] = set()  # values that were lent for good, and not given back as bad
        self.settled = False
        self.rules.list_places(listed, self.desk.now)

    # Users

    @rule(to=targets)
    def take(self, to: str | None) -> None:
        lease = self.rules.take("taker", to, self.desk.now)
        if lease is not None:
            self.got(lease, to)
        self.change()

    @rule(to=targets)
    def wait(self, to: str | None) -> None:
        lease = self.rules.take("waiter", to, self.desk.now)
        if lease is not None:
            self.got(lease, to)
        else:
            waiter: FakeWaiter = self.rules.wait("waiter", to, self.desk.now, lambda: self.woken(waiter))
            self.waiting.append(waiter)
        self.change()

    def woken(self, waiter: FakeWaiter) -> None:
        assert waiter.is_over
        self.waiting.remove(waiter)
        if waiter.lease is None:
            self.failed.append(waiter)
            return
        site = waiter.lease.member.site
        for other in self.waiting:
            if other.to == site.address or (other.to is None and self.roster.is_for_all(site)):
                assert other.number > waiter.number, "somebody else's turn"
        self.got(waiter.lease, waiter.to)

    def got(self, lease: Lease[str, Any], to: str | None) -> None:
        site = lease.member.site
        assert lease.value.closes == 0
        assert lease.value.dead is None
        assert to in (None, lease.address)
        assert to is not None or self.roster.is_for_all(site), (
            "a down or left address was given to who did not ask for it"
        )
        self.leases.append(lease)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def abandon(self, pick: int) -> None:
        waiter = self.waiting.pop(pick % len(self.waiting))
        self.rules.abandon(waiter)
        self.change()

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def abandon_just_when_served(self, pick: int) -> None:
        lease = self.leases.pop(pick % len(self.leases))
        waiter = FakeWaiter(0, "late", None, 0.0, lambda: None, lease=lease)
        self.rules.abandon(waiter)
        self.rules.abandon(waiter)  # a lease goes back once
        self.change()

    @precondition(lambda self: self.failed)
    @rule(pick=picks)
    def try_again(self, pick: int) -> None:
        waiter = self.failed.pop(pick % len(self.failed))
        if not self.rules.may_go_elsewhere(waiter):
            waiter.tried.clear()
        self.waiting.append(waiter)
        self.rules.wait_again(waiter, self.desk.now)
        self.change()

    @precondition(lambda self: self.leases)
    @rule(pick=picks, good=st.booleans())
    def release(self, pick: int, good: bool) -> None:
        lease = self.leases.pop(pick % len(self.leases))
        if good and not self.rules.reusable:
            self.for_good.add(id(lease.value))
        lease.release(good=good)
        lease.release(good=not good)
        self.change()

    # Connections

    @precondition(lambda self: self.desk.opening)
    @rule(pick=picks)
    def connected(self, pick: int) -> None:
        self.desk.connect(self.desk.opening[pick % len(self.desk.opening)])
        self.change()

    @precondition(lambda self: self.under_way)
    @rule(pick=picks, is_dead=st.sampled_from([False, False, False, True]))
    def validated(self, pick: int, is_dead: bool) -> None:
        member = self.under_way[pick % len(self.under_way)]
        if is_dead and member.value is not None:
            member.value.dead = "closed at once"
        self.desk.validate(member)
        self.change()

    @property
    def under_way(self) -> list[FakeMember]:
        return self.desk.validating + self.desk.probing

    @precondition(lambda self: self.desk.opening or self.under_way)
    @rule(pick=picks, fault=st.sampled_from([REFUSED, RESET]))
    def failure(self, pick: int, fault: Fault) -> None:
        members = self.desk.opening + self.under_way
        member = members[pick % len(members)]
        for under_way in (self.desk.opening, self.desk.validating, self.desk.probing):
            if member in under_way:
                under_way.remove(member)
        self.rules.failed(member, fault, self.desk.now)
        self.change()

    @precondition(lambda self: self.desk.opening or self.desk.validating)
    @rule(pick=picks)
    def cancelled(self, pick: int) -> None:
        members = self.desk.opening + self.desk.validating
        member = members[pick % len(members)]
        (self.desk.opening if member in self.desk.opening else self.desk.validating).remove(member)
        self.rules.cancelled(member)
        self.change()

    @precondition(lambda self: self.desk.values)
    @rule(pick=picks, what=st.sampled_from(["lost", "dies", "user comes", "users go"]))
    def connection_changes(self, pick: int, what: str) -> None:
        value = self.desk.values[pick % len(self.desk.values)]
        member = self.roster.by_value.get(id(value))
        if what == "lost" and member is not None:
            self.rules.lost(member, RESET, self.desk.now)
        elif what == "dies":
            value.dead = "gone"
        elif what == "user comes" and self.rules.capacity > 1:
            value.users += 1
        elif what == "users go":
            value.users = 0
        self.change()

    # The world

    @rule(listed=places)
    def list_places(self, listed: list[Place[str]]) -> None:
        self.rules.list_places(listed, self.desk.now)
        self.change()

    @rule(address=st.sampled_from(ADDRESSES), down=st.sampled_from([None, "no answer"]))
    def mark(self, address: str, down: str | None) -> None:
        self.rules.mark(address, down, self.desk.now)
        self.change()

    @rule(config=configs)
    def apply(self, config: PoolConfig) -> None:
        self.rules.apply(config, self.desk.now)
        self.change()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.desk.now += seconds
        self.decide()

    @rule()
    def decide(self) -> None:
        self.desk.again_at = self.rules.decide(self.desk.now)
        self.check_openings()
        self.desk.act()
        for _ in range(10):
            if self.desk.again_at > self.desk.now:
                break
            self.desk.decide()
        assert self.desk.again_at > self.desk.now, "it would never sleep"
        self.settled = True

    def check_openings(self) -> None:
        for member in [action.member for action in self.roster.todo if isinstance(action, Open)]:
            site, config = member.site, self.rules.config
            aged = sum(other.is_ageing for each in self.roster.sites.values() for other in each.members.values())
            assert self.roster.total - aged <= config.max
            aged_here = sum(other.is_ageing for other in site.members.values())
            assert site.prober is member or len(site.members) - aged_here <= config.max_per_address
            if not site.is_usable:
                assert member.sponsor is not None
                assert member.sponsor.to == site.address

    def change(self) -> None:
        self.desk.act()
        self.settled = False

    # What holds at any time

    @invariant()
    def counts_agree_with_counting(self) -> None:
        sites = list(self.roster.sites.values())
        members = [member for site in sites for member in site.members.values()]
        connected = [member for member in members if member.state is not State.QUARANTINED]
        opening = [member for member in members if member.is_opening]
        assert self.roster.total == len(connected)
        assert self.roster.opening == len(opening) == len(self.desk.opening) + len(self.desk.validating)
        assert self.roster.opening_ahead == sum(member.is_ahead for member in opening)
        assert set(self.roster.unclaimed) == {member for member in opening if member.sponsor is None}
        assert self.roster.in_service == sum(member.is_counted for member in members)
        assert set(self.roster.idle) == {member for member in members if member.state is State.AVAILABLE}
        assert set(self.roster.ageing) == {member for member in members if member.is_ageing and member.doom is None}
        assert self.rules.lent == len(self.leases) == sum(site.lent for site in sites)
        assert self.rules.waiting == len(self.waiting)
        for site in sites:
            own = site.members.values()
            assert site.opening == sum(member.is_opening for member in own)
            assert site.in_service == sum(member.is_counted for member in own)
            assert site.ageing == sum(member in self.roster.ageing for member in own) <= 1
            assert set(site.idle) == {member for member in own if member.state is State.AVAILABLE}
            assert (site.prober in own) == site.is_quarantined
            assert site.lent == sum(lease.address == site.address for lease in self.leases)
            assert sum(member.state is State.QUARANTINED for member in own) <= 1

    @invariant()
    def nobody_has_more_than_there_is(self) -> None:
        for site in self.roster.sites.values():
            for member in site.members.values():
                assert member.leases <= self.rules.capacity
                assert member.leases == sum(lease.member is member for lease in self.leases)
                assert (member.value is not None) == (member.is_open or member in self.under_way)
        held = [id(lease.value) for lease in self.leases]
        assert self.rules.reusable or len(set(held)) == len(held)
        assert all(value.closes <= 1 for value in self.desk.values)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if not getattr(self, "settled", False):
            return
        in_the_way = self.roster.total - len(self.roster.ageing)
        in_the_way -= sum(member.load == 0 and not member.is_ageing for member in self.roster.idle)
        may_open = in_the_way < self.rules.config.max
        usable = list(self.roster.usable())
        for waiter in self.waiting:
            sites = filter(self.roster.is_for_all, usable) if waiter.to is None else [self.roster.sites[waiter.to]]
            for member in (member for site in sites for member in site.members.values() if member.is_open):
                assert member.doom is not None or member.load >= self.rules.capacity, "there is a member with room"
            if waiter.member is not None:
                assert waiter.member.sponsor is waiter
                assert waiter.member.is_opening
            elif waiter.to is None:
                assert usable, "it waits for nothing"
                untried = [site for site in usable if site.address not in waiter.tried] or usable
                best = [site for site in untried if not site.is_quarantined] or untried
                best = [site for site in best if not site.backup] or best
                assert not may_open or not any(map(self.has_room_at, best))
            else:
                assert not may_open or not self.has_room_at(self.roster.sites[waiter.to])

    def has_room_at(self, site: Any) -> bool:
        return not site.opening if site.is_quarantined else self.roster.has_room_at(site)

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        config = evolve(self.rules.config, min=0, min_per_address=0, idle_limit=1.0, max_age=None)
        self.rules.apply(config, self.desk.now)
        self.rules.list_places([], self.desk.now)
        while self.waiting:
            self.abandon(0)
        while self.leases:
            self.release(0, True)
        for value in self.desk.values:
            value.users = 0
        for _ in range(20):
            self.desk.decide()
            self.desk.open()
            while self.desk.validating or self.desk.probing:
                self.desk.validate(self.under_way[0])
            self.desk.now += 1000.0
        assert self.desk.again_at == inf
        self.counts_agree_with_counting()
        assert (self.roster.total, self.roster.in_service, self.rules.lent) == (0, 0, 0)
        assert not self.roster.sites
        for value in self.desk.values:
            assert value.closes == (id(value) not in self.for_good)


class Closing(Law):
    """The same, closed at the end in whatever state it is."""

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        for member in self.desk.opening + self.desk.validating:
            self.rules.cancelled(member)
        self.rules.close()
        self.desk.act()
        assert not self.waiting
        while self.leases:
            self.release(0, True)
        assert (self.roster.total, self.roster.in_service, self.rules.lent) == (0, 0, 0)
        for value in self.desk.values:
            assert value.closes == (id(value) not in self.for_good)


TestLaw = pytest.mark.slow(Law.TestCase)
TestClosing = pytest.mark.slow(Closing.TestCase)
TestLaw.settings = settings(max_examples=60, stateful_step_count=50)
TestClosing.settings = settings(max_examples=15, stateful_step_count=50)
