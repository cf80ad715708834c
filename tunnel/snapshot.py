"""Seeing, one way: a frozen `Snapshot` of everything and a bounded stream of `Event`s.

Status, the dashboard, metrics, history and notices read these and import neither session nor relay. Publishing never
blocks and never fails: a follower that does not keep up loses its oldest events and is told how many.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from attrs import Factory, asdict, define, field, frozen, has

FOLLOWER_EVENTS = 1000  # kept for one follower that is not reading; an event is about 1 KiB
RECENT_EVENTS = 500  # kept for who comes to look afterwards
KINDS = (
    "proxy.status",
    "proxy.removed",
    "session.started",
    "session.ended",
    "session.connecting",
    "session.connected",
    "session.lost",
    "config.reloaded",
    "config.refused",
    "certificate.loaded",
    "certificate.expiring",
)  # of an `Event`, whose table says what each has


def utc_now() -> str:
    """The wall clock for people: ISO 8601, UTC, milliseconds. Never used for waiting."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@frozen
class ProxyView:
    """One proxy as `status --json` shows it. `visitors` is a gauge, the other figures only grow within a session."""

    name: str
    status: str
    reason: str | None
    error_message: str | None
    retry_after_seconds: int | None
    attempt: int
    max_retries: int | None
    publish_addr: str
    publish_port: int
    target: str
    visitors: int
    visitors_total: int
    bytes_in: int  # came from visitors
    bytes_out: int  # went to visitors
    since: str
    refused: dict[str, int] = Factory(dict)  # visitors that could not be served, by reason


@frozen
class SessionView:
    client: str
    since: str
    proxies: tuple[ProxyView, ...]


@frozen
class Snapshot:
    role: str  # "server" or "client"
    version: str
    sessions: tuple[SessionView, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@frozen
class Event:
    """Something that happened; `id` counts from 1 in each process. The kinds are a closed list:

    ============================ ======= ===================================================================
    kind                         side    fields
    ============================ ======= ===================================================================
    ``proxy.status``             both    ``update``: the `ProxyStatusUpdate`; in JSON its fields stand flat
    ``proxy.removed``            both    none; its client publishes it no longer
    ``session.started``          server  ``peer``
    ``session.ended``            server  ``reason`` (a `Farewell`, ``goodbye``, ``lost``, ``closed``), ``message``,
                                         ``seconds``
    ``session.connecting``       client  ``detail``, ``retry_in``
    ``session.connected``        client  the same; ``detail`` is our name
    ``session.lost``             client  the same; ``detail`` says why
    ``config.reloaded``          both    ``changes``: in words
    ``config.refused``           both    ``mistakes``: in words
    ``certificate.loaded``       server  ``not_after``
    ``certificate.expiring``     server  ``not_after``, ``days``
    ============================ ======= ===================================================================
    """

    kind: str
    at: str
    client: str = ""
    proxy: str = ""
    fields: dict[str, Any] = Factory(dict)
    id: int = 0

    def to_json(self) -> dict[str, Any]:
        """Flat `fields` that JSON can hold; None of them is a secret."""
        flat: dict[str, Any] = {}
        for name, value in self.fields.items():
            flat.update(asdict(value) if has(type(value)) else {name: value})
        body = {"id": self.id, "kind": self.kind, "at": self.at, "client": self.client, "proxy": self.proxy}
        return {**body, "fields": flat}


@define(eq=False)
class Follower:
    """One reader's queue. `wake` is called (synchronously) after each event; set it before waiting."""

    events: deque[Event] = Factory(lambda: deque(maxlen=FOLLOWER_EVENTS))
    missed: int = 0
    wake: Callable[[], None] = lambda: None

    def drain(self) -> Iterator[Event]:
        while self.events:
            yield self.events.popleft()


@define(eq=False)
class EventStream:
    """Where the parts publish what happened; each follower has a bounded queue of its own.

    `since` tells the ids of one process from those of the next.
    """

    since: str = Factory(utc_now)
    recent: deque[Event] = Factory(lambda: deque(maxlen=RECENT_EVENTS))
    _followers: list[Follower] = Factory(list)
    _count: int = field(default=0, init=False)

    @property
    def last_id(self) -> int:
        """Of the newest event; 0 before the first."""
        return self._count

    def after(self, number: int) -> list[Event]:
        """The events kept whose ids are higher."""
        return [event for event in self.recent if event.id > number]

    def publish(self, kind: str, *, client: str = "", proxy: str = "", **fields: Any) -> None:
        self._count += 1
        event = Event(kind, utc_now(), client, proxy, fields, self._count)
        self.recent.append(event)
        for follower in self._followers:
            if len(follower.events) == follower.events.maxlen:
                follower.missed += 1
            follower.events.append(event)
            follower.wake()

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        follower = Follower()
        self._followers.append(follower)
        try:
            yield follower
        finally:
            self._followers.remove(follower)
