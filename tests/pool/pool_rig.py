"""A connection that only counts, and what the tests of the pool's law share."""

import random
from collections.abc import Callable

from attrs import evolve

from tunnel.config import PoolConfig
from tunnel.faults import Fault, Kind, Phase
from tunnel.pool.members import Lease, Member, Place, Waiter
from tunnel.pool.roster import Close, Leaked, Open, Probe
from tunnel.pool.rules import Rules

QUIET = PoolConfig(max_age=None, idle_limit=None, probe_interval=None)  # nothing happens by itself
REFUSED = Fault(Phase.DIAL, Kind.REFUSED, True, "connection refused")
RESET = Fault(Phase.VALIDATE, Kind.RESET, True, "reset by peer")

FakeLease = Lease[str, "FakeConnection"]
FakeMember = Member[str, "FakeConnection"]
FakeWaiter = Waiter[str, "FakeConnection"]


class FakeConnection:
    """What a test says of it is true; `closes` counts."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.dead: str | None = None
        self.users = 0
        self.closes = 0

    def peek(self) -> str | None:
        return self.dead

    def close(self) -> None:
        self.closes += 1


class Desk:
    """Carries out what the law decides, in no time, when the test says so: `now` stands still otherwise."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        capacity: int = 1,
        reusable: bool = True,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.now = 0.0
        self.rules: Rules[str, FakeConnection] = Rules(
            config, capacity=capacity, reusable=reusable, now=lambda: self.now, rand=rand
        )
        self.roster = self.rules.roster
        self.again_at = 0.0
        self.begun: list[tuple[float, str]] = []  # when an opening began, and where
        self.opening: list[FakeMember] = []
        self.validating: list[FakeMember] = []  # being opened
        self.probing: list[FakeMember] = []
        self.values: list[FakeConnection] = []
        self.leaked: list[FakeLease] = []

    def act(self) -> None:
        todo, self.roster.todo = self.roster.todo, []
        for action in todo:
            match action:
                case Open(member):
                    self.begun.append((self.now, member.address))
                    self.opening.append(member)
                case Probe(member):
                    self.probing.append(member)
                case Close(value):
                    value.close()
                case Leaked(lease):
                    self.leaked.append(lease)

    def decide(self) -> None:
        self.again_at = self.rules.decide(self.now)
        self.act()

    def run_until(self, when: float) -> None:
        """Let time pass; nothing that is under way ends meanwhile."""
        self.decide()
        while self.again_at <= when:
            self.now = max(self.now, self.again_at)
            self.decide()
        self.now = when
        self.decide()

    def connect(self, member: FakeMember) -> FakeConnection:
        self.opening.remove(member)
        self.validating.append(member)
        value = FakeConnection(member.address)
        self.values.append(value)
        self.rules.opened(member, value, self.now)
        return value

    def validate(self, member: FakeMember) -> None:
        (self.validating if member in self.validating else self.probing).remove(member)
        self.rules.passed(member, self.now)
        self.act()

    def open(self, *members: FakeMember) -> None:
        """All that is being opened, or these, becomes ready; again, until nothing more is begun."""
        for member in members or list(self.opening):
            self.connect(member)
            self.validate(member)
        self.decide()
        if not members and self.opening:
            self.open()

    def fail(self, *members: FakeMember, fault: Fault = REFUSED) -> None:
        """All that is being opened, or these, fails."""
        for member in members or list(self.opening):
            for under_way in (self.opening, self.validating, self.probing):
                if member in under_way:
                    under_way.remove(member)
            self.rules.failed(member, fault, self.now)
        self.act()
        self.decide()

    def take(self, owner: str = "somebody", to: str | None = None) -> FakeLease | None:
        lease = self.rules.take(owner, to, self.now)
        self.decide()
        return lease

    def wait(self, owner: str = "somebody", to: str | None = None) -> FakeWaiter:
        """As `Pool.take` does: who finds nothing ready waits."""
        assert self.rules.take(owner, to, self.now) is None
        waiter = self.rules.wait(owner, to, self.now, lambda: None)
        self.decide()
        return waiter

    def release(self, lease: FakeLease | None, *, good: bool = True) -> None:
        assert lease is not None
        lease.release(good=good)
        self.act()
        self.decide()


def desk_with(
    *places: Place[str] | str, capacity: int = 1, reusable: bool = True, rand: float = 0.0, **config: object
) -> Desk:
    """All that is opened at the start is ready."""
    desk = Desk(evolve(QUIET, **config), capacity=capacity, reusable=reusable, rand=lambda: rand)
    desk.rules.list_places([p if isinstance(p, Place) else Place(p) for p in places], desk.now)
    desk.decide()
    desk.open()
    return desk


def in_service(desk: Desk) -> dict[str, int]:
    return {site.address: site.in_service for site in desk.roster.sites.values()}
