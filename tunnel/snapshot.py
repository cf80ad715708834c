"""Seeing, one way: a frozen `Snapshot` of everything and a bounded stream of `Event`s.

Status, the dashboard, metrics, history and notices read these and import neither session nor relay. Publishing never
blocks and never fails: a follower that does not keep up loses its oldest events and is told how many.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from attrs import Factory, asdict, define, frozen

FOLLOWER_EVENTS = 1000  # kept for one follower that is not reading; an event is about 1 KiB


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
    """Something that happened: `kind` is dotted and stable (``session.started``, ``proxy.status``, …)."""

    kind: str
    at: str
    client: str = ""
    proxy: str = ""
    fields: dict[str, Any] = Factory(dict)


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
    """Where the parts publish what happened; each follower has a bounded queue of its own."""

    _followers: list[Follower] = Factory(list)

    def publish(self, kind: str, *, client: str = "", proxy: str = "", **fields: Any) -> None:
        event = Event(kind, utc_now(), client, proxy, fields)
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
