"""What the event stream tells, counted from the start of the process; for metrics."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tunnel.messages import Reason, Status
from tunnel.snapshot import Event, EventStream

MAX_CLIENTS = 10_000  # names remembered; tokens that come and go for years must not add up

log = logging.getLogger(__name__)


class EventCounts:
    """`follow` keeps it up to date. It counts within the publishing of an event, so none can be missed."""

    def __init__(self) -> None:
        self.sessions_started = 0
        self.sessions_ended: Counter[str] = Counter()  # by reason
        self.status_changes: Counter[tuple[str, str]] = Counter()  # by status and reason
        self.clients: dict[str, None] = {}  # whoever had a session
        self.reloads = dict.fromkeys(("applied", "refused"), 0)
        self._is_connected = False  # a client's session is up
        self.last_reload_worked = True
        self.last_load_at = time.time()  # seconds since 1970; what the process started with is a configuration, too

    @contextmanager
    def follow(self, events: EventStream) -> Iterator[None]:
        """Count all that happens while the body runs, and what happened lately."""
        with events.follow() as follower:

            def drain() -> None:
                try:
                    for event in follower.drain():
                        self.add(event)
                except Exception:  # whoever publishes is not to hear of it
                    log.exception("an event was not counted")

            for event in events.recent:  # no await in between: each is either here or comes to `drain`
                self.add(event)
            follower.wake = drain
            yield

    def add(self, event: Event) -> None:
        match event.kind:
            case "proxy.status":
                update = event.fields["update"]
                self._add_status(update.status, update.reason)
            case "session.started" | "session.connected":
                self._is_connected = True
                self.sessions_started += 1
                if len(self.clients) < MAX_CLIENTS:
                    self.clients[event.client] = None
            case "session.ended":
                self.sessions_ended[event.fields["reason"]] += 1
            case "session.lost":
                if self._is_connected:  # else it was none yet, only an attempt
                    self._is_connected = False
                    self.sessions_ended["lost"] += 1
            case "config.reloaded":
                self.reloads["applied"] += 1
                self.last_reload_worked, self.last_load_at = True, time.time()
            case "config.refused":
                self.reloads["refused"] += 1
                self.last_reload_worked = False
            case _:
                pass

    def _add_status(self, status: Status, reason: Reason | None) -> None:
        self.status_changes[status.value, reason.value if reason is not None else ""] += 1
