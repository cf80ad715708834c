"""`/events`: server-sent events for the dashboard and for programs, of one running server or client.

    event: state      the whole state, once at the start: what `Picture` holds, and the fields of a change
    event: change     a JSON Merge Patch (RFC 7396) of it, about once a second, also when nothing changed:
                      {"at": ISO 8601, "uptime": seconds, "seconds": since the look before, …}
    event: event      `Event.to_json()`, with its number as `id`
    event: missed     {"count": N}: so many events are not told, for there were too many of them
    : comment         after a while without any of these

With Last-Event-ID or `?after=N` the events after that number come first, as far as they are still known; `?after=0`
gives all that are. A number that was never reached is one of a process before this one, and counts as 0. With
`?only=events` nothing else is sent. One look serves all readers, and nobody looks when there are none.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol
from urllib.parse import parse_qs

import trio

from tunnel.admin.http import Request, Response, Send
from tunnel.admin.picture import Picture, summary
from tunnel.admin.reader import Reader
from tunnel.admin.site import Route
from tunnel.admin.sse import HEARTBEAT, message, state_message
from tunnel.snapshot import Event, EventStream, Follower, SessionView, utc_now
from tunnel.version import __version__

LOOK_SECONDS = 1.0  # between two looks; a person reads no faster
LOOK_SHARE = 0.02  # of the time may go into looking: with many thousand proxies it is done less often
SLICE_SECONDS = 0.005  # of looking, then others get their turn; one session is never cut in two
HEARTBEAT_SECONDS = 15.0  # what stands between cuts connections that are silent for 30 s, or longer
GATHER_SECONDS = 0.2  # events that come closer together than this are sent together
MAX_ENCODED = 1000  # events kept as they were sent, so that each is encoded once however many read

log = logging.getLogger(__name__)


class Watched(Protocol):
    """What is looked at. All is synchronous and quick; `views` gives a session at a time, so that others get a turn."""

    events: EventStream

    def views(self) -> Iterator[SessionView]: ...

    def stats(self) -> dict[str, Any]: ...

    def is_ready(self) -> bool: ...

    def why_not_ready(self) -> str: ...


class Live:
    """One for an admin address: `run` looks while somebody reads, `route` is `/events`."""

    def __init__(self, source: Watched, *, role: str, can_write: bool) -> None:
        self._source = source
        about = {"role": role, "version": __version__, "pid": os.getpid(), "can_write": can_write}
        self._about = {**about, "started": utc_now()}
        self._began = self._looked = trio.current_time()
        self._picture = Picture()
        self._is_known = False  # the picture is no older than a look
        self._readers: list[Reader] = []
        self._wanted = trio.Event()
        self._encoded: dict[int, bytes] = {}

    @property
    def route(self) -> Route:
        return Route("GET", "/events", self._answer)

    # Looking

    async def run(self) -> None:
        """Look while there are readers, until cancelled. A look that fails ends their streams; they may come again."""
        while True:
            await self._wanted.wait()
            cost = 0.0
            try:
                cost = await self._look()
            except Exception:
                log.exception("dashboard.look_failed")
                self._forget()
                for reader in self._readers:
                    reader.scope.cancel(reason="the look failed")
            await trio.sleep(max(LOOK_SECONDS, cost / LOOK_SHARE))
            if not self._readers:
                self._wanted = trio.Event()
                self._forget()

    async def _look(self) -> float:
        """See all once and tell the readers; returns the seconds of work that took."""
        views, cost, sliced = self._source.views(), 0.0, 0.0
        while True:
            began = perf_counter()
            view = next(views, None)
            if view is None:
                break
            self._picture.see(view, trio.current_time())
            cost += perf_counter() - began
            if cost - sliced > SLICE_SECONDS:
                sliced = cost
                await trio.lowlevel.checkpoint()
        ready = {"ready": self._source.is_ready(), "why_not_ready": self._source.why_not_ready()}
        self._picture.see_rest({**self._about, **ready, **summary(self._source.stats())})
        now = trio.current_time()
        passed = {**self._clock(now), "seconds": round(now - self._looked, 3)}
        change = message("change", {**passed, **self._picture.finish()})
        self._looked, self._is_known = now, True
        for reader in self._readers:  # no await: who comes later has the state with this look, and the next change
            if reader.has_begun:
                reader.post(change)
            else:
                reader.begin(self._state())
        return cost + perf_counter() - began

    def _state(self) -> Iterator[bytes]:
        now = trio.current_time()
        return state_message({**self._clock(now), **self._picture.rest}, self._picture.sessions(now))

    def _clock(self, now: float) -> dict[str, Any]:
        return {"at": utc_now(), "uptime": round(now - self._began, 3)}

    def _forget(self) -> None:
        self._picture, self._is_known = Picture(), False

    # Reading

    async def _answer(self, request: Request) -> Response:
        query = parse_qs(request.query)
        after = _number(request.headers.get("last-event-id")) or _number(query.get("after", [""])[0])
        only_events = query.get("only") == ["events"]

        async def produce(send: Send) -> None:
            with self._source.events.follow() as follower:
                opening = [] if after is None else self._replay(after)
                if only_events:
                    await self._feed(send, Reader(), follower, opening)
                    return
                with self._reading() as reader:
                    await self._feed(send, reader, follower, opening)

        return Response(200, content_type="text/event-stream", headers={"x-accel-buffering": "no"}, stream=produce)

    @contextmanager
    def _reading(self) -> Iterator[Reader]:
        reader = Reader()
        if self._is_known:
            reader.begin(self._state())
        self._readers.append(reader)
        self._wanted.set()
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    async def _feed(self, send: Send, reader: Reader, follower: Follower, opening: list[bytes]) -> None:
        """Send what there is until cancelled; `TooSlowError` for a reader that was cut off."""
        follower.wake = reader.wake
        with reader.scope:
            await send(b"retry: 2000\n\n" + b"".join(opening))
            while True:
                with trio.move_on_after(HEARTBEAT_SECONDS):
                    await reader.woken.wait()
                reader.woken = trio.Event()  # before the look at what there is: what comes after it wakes again
                for piece in reader.opening():
                    await send(piece)
                await send(b"".join(self._events(follower)) + reader.take() or HEARTBEAT)
                await trio.sleep(GATHER_SECONDS)
        raise trio.TooSlowError("a reader of /events was cut off; it may come again")

    def _replay(self, after: int) -> list[bytes]:
        known = self._source.events.recent
        if not known or after >= known[-1].id + 1:
            after = 0
        lost = known[0].id - after - 1 if known and after else 0
        told = [self._encode(event) for event in known if event.id > after]
        return [message("missed", {"count": lost}), *told] if lost > 0 else told

    def _events(self, follower: Follower) -> Iterator[bytes]:
        if follower.missed:
            yield message("missed", {"count": follower.missed})
            follower.missed = 0
        for event in follower.drain():
            yield self._encode(event)

    def _encode(self, event: Event) -> bytes:
        encoded = self._encoded.get(event.id)
        if encoded is None:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            encoded = self._encoded[event.id] = message("event", event.to_json(), number=event.id)
        return encoded


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None
