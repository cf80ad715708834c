"""What a pool is made of: members at sites, leases on members, and those who wait for one. Pure values, no rules."""

from collections.abc import Awaitable, Callable, Hashable, Iterator
from enum import StrEnum
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from attrs import Factory, define, field, frozen

from tunnel.faults import Fault, Phase
from tunnel.pool.demand import Pause
from tunnel.pool.figures import Counts

A = TypeVar("A", bound=Hashable)  # an address: whatever `Use.open` understands


class State(StrEnum):
    """Of one member::

    connecting ──▶ validating ──▶ available ◀──▶ in_use ──▶ retired
        │              │  ▲           │ probe        │
        ▼              ▼  └───────────┘              ▼
    unhealthy ◀────────┴───────── lost ◀─────────────┘
        └──▶ quarantined ──▶ validating      one of an address, the others are retired
    """

    CONNECTING = "connecting"
    VALIDATING = "validating"
    AVAILABLE = "available"
    IN_USE = "in_use"
    UNHEALTHY = "unhealthy"
    QUARANTINED = "quarantined"
    RETIRED = "retired"


class Poolable(Protocol):
    """A connection as a pool sees it."""

    def peek(self) -> str | None:
        """Why it cannot be lent (any more), None if it can; at once, and nothing is taken from it."""

    @property
    def users(self) -> int:
        """Who uses it without a lease: the streams that the other side put on a data channel."""

    def close(self) -> None:
        """Let go of it, now or as soon as its users have been moved elsewhere. Harmless when done before."""


V = TypeVar("V", bound=Poolable)


@frozen
class Use(Generic[A, V]):
    """What differs between the users of a pool.

    `open` makes a connection and reports each phase it enters (resolve, dial, handshake); `validate` raises if a
    connection is not good. Both are cancelled at their deadlines and must leave nothing open then. `capacity` is how
    many users one member has room for; what is not `reusable` is lent once, and belongs to whoever took it.
    """

    open: Callable[[A, Callable[[Phase], None]], Awaitable[V]]
    validate: Callable[[V], Awaitable[None]]
    capacity: int = 1
    reusable: bool = True


@frozen
class Place(Generic[A]):
    """An address that a pool is told to use, and how much. A `backup` is used when no other can be had."""

    address: A
    weight: int = 1
    backup: bool = False


@define(eq=False)
class Member(Generic[A, V]):
    """One connection, or the place for one. `value` is None until it is open and after it is closed."""

    number: int
    site: "Site[A, V]"
    state: State
    since: float  # when it entered this state
    value: V | None = None
    sponsor: "Waiter[A, V] | None" = None  # who it is opened for; None: ahead of need
    phase: Phase = Phase.DIAL  # of opening
    began_at: float = 0.0  # opening
    opened_at: float = inf
    retire_at: float = inf
    used_at: float = 0.0  # when it was opened, or its last lease ended
    proven_at: float = 0.0  # last used or validated
    leases: int = 0
    lent_total: int = 0
    watch: int = 0  # the number of its newest timer; older ones mean nothing
    is_ahead: bool = False  # being opened ahead of need, and so in one of the slots for that
    is_slow: bool = False  # it was, for longer than a slot is kept
    is_counted: bool = False  # towards what is wanted
    is_ageing: bool = False  # in service until its successor is
    peers: int = 0  # in service at its address when it began to age, itself included
    doom: str | None = None  # why it is retired as soon as it is free

    @property
    def address(self) -> A:
        return self.site.address

    @property
    def load(self) -> int:
        return self.leases + (self.value.users if self.value is not None else 0)

    @property
    def is_open(self) -> bool:
        return self.state is State.AVAILABLE or self.state is State.IN_USE

    @property
    def is_opening(self) -> bool:
        return self.opened_at == inf and self.state in (State.CONNECTING, State.VALIDATING)

    def __repr__(self) -> str:
        return f"<member {self.number} of {self.address}: {self.state}, {self.leases} leases>"


@define(eq=False)
class Site(Generic[A, V]):
    """One address and all that is known of it."""

    address: A
    weight: int = 1
    backup: bool = False
    members: dict[int, Member[A, V]] = Factory(dict)
    idle: dict[Member[A, V], None] = Factory(dict)  # those of them that are available
    waiters: "Queue[A, V]" = Factory(lambda: Queue())  # that want this address and no other
    unserved: "Queue[A, V]" = Factory(lambda: Queue())  # those of them for whom nothing is being opened
    opening: int = 0  # members being opened
    slow: int = 0  # of these, those that have left their slots to other addresses
    ageing: int = 0  # members in service only until their successors are
    in_service: int = 0  # members that are there for new users, or soon will be
    lent: int = 0  # leases not released, also of members that left
    turn: float = 0.0  # grows by 1/weight with each choice: who has the least is next
    is_listed: bool = False  # configured; others are known while somebody asks for them by name, and their members last
    is_left: bool = False  # was taken from the list
    down: str | None = None  # why a health check says no
    failures: int = 0  # openings in a row
    fault: Fault | None = None  # the last one
    prober: Member[A, V] | None = None  # while in quarantine
    probe_at: float = 0.0  # when it is opened
    delays: Iterator[float] | None = None  # of the quarantine, and of the next one if it follows soon
    healed_at: float = -inf  # when a prober got through last
    quarantines: int = 0
    counts: Counts = Factory(Counts)
    pause: Pause = Factory(Pause)

    @property
    def is_quarantined(self) -> bool:
        return self.prober is not None

    @property
    def is_usable(self) -> bool:
        """Whether somebody who does not care may be sent here."""
        return self.is_listed and self.down is None

    @property
    def is_barred(self) -> bool:
        """Whether a connection here is of no use but to who asks for this very address."""
        return self.is_left or self.down is not None

    @property
    def may_prepare(self) -> bool:
        """Whether connections may be opened here ahead of need."""
        return self.is_usable and not self.is_quarantined

    @property
    def is_empty(self) -> bool:
        return not (self.members or self.waiters or self.lent)


@define(eq=False)
class Lease(Generic[A, V]):
    """The right to use a member until `release`. Made by a pool only."""

    owner: str
    member: Member[A, V]
    value: V
    since: float
    was_hot: bool
    give_back: "Callable[[Lease[A, V], bool], None]" = field(repr=False)
    is_released: bool = False

    @property
    def address(self) -> A:
        return self.member.address

    def release(self, *, good: bool = True) -> None:
        """Give it back; `good` False if it must not be used again. Only the first call counts."""
        if not self.is_released:
            self.is_released = True
            self.give_back(self, good)


@define(eq=False)
class Waiter(Generic[A, V]):
    """One who waits; `wake` is called, synchronously, once there is a `lease` or a `fault`."""

    number: int
    owner: str
    to: A | None
    since: float
    wake: Callable[[], Any] = field(repr=False)
    tried: set[A] = Factory(set)
    lease: Lease[A, V] | None = None
    fault: Fault | None = None
    failed_at: A | None = None
    member: Member[A, V] | None = None  # opened for it

    @property
    def is_over(self) -> bool:
        return self.lease is not None or self.fault is not None


class Queue(Generic[A, V]):
    """Waiters in the order of their numbers, also when one comes back to its old place."""

    def __init__(self) -> None:
        self._waiters: dict[int, Waiter[A, V]] = {}
        self._last = 0  # number that was added
        self._is_sorted = True

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> "Iterator[Waiter[A, V]]":
        """Over a copy: who is looked at may leave."""
        self._sort()
        return iter(list(self._waiters.values()))

    def add(self, waiter: Waiter[A, V]) -> None:
        self._is_sorted &= waiter.number > self._last
        self._last = waiter.number
        self._waiters[waiter.number] = waiter

    def discard(self, waiter: Waiter[A, V]) -> None:
        self._waiters.pop(waiter.number, None)
        if not self._waiters:
            self._last, self._is_sorted = 0, True

    def first(self) -> Waiter[A, V] | None:
        self._sort()
        return next(iter(self._waiters.values()), None)

    def _sort(self) -> None:
        """Only when somebody asks: after a mass failure many come back at once."""
        if not self._is_sorted:
            self._waiters = dict(sorted(self._waiters.items()))
            self._last = next(reversed(self._waiters))
            self._is_sorted = True
