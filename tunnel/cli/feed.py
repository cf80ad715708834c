"""The stream of events of a running process, read for as long as somebody wants it: blocks, and needs no Trio.

`follow_feed` outlives the process it listens to: it comes back to the address, says so, and goes on behind the last
event it has, or with the first one of another process.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from attrs import define, frozen

from tunnel.addresses import HostPort
from tunnel.cli.asking import CONNECT_SECONDS, ask, error_of, lost, stranger
from tunnel.errors import PeerLost, RemoteProtocolError, TunnelError

SILENCE_SECONDS = 40.0  # a process says every 15 s that it is there
AGAIN_SECONDS = 1.0  # between two tries to come back
MAX_LINE_BYTES = 1024 * 1024  # an event is about 1 KiB

Event = dict[str, Any]


@frozen
class Recent:
    """What /events.json says: `since` belongs to one process, `last` is the id of its newest event."""

    since: str
    last: int
    events: list[Event]


@define
class Place:
    """How far a reader has come: up to the event `last` of the process that began to count at `since`."""

    since: str
    last: int


def fetch_recent(where: HostPort, *, after: int = 0) -> Recent:
    """The events that are kept, oldest first."""
    status, body = ask(where, "GET", f"/events.json?after={after}")
    since, last, events = body.get("since"), body.get("last"), body.get("events")
    if status != 200 or not isinstance(since, str) or type(last) is not int or not isinstance(events, list):
        raise stranger(where, f"it answered /events.json with {error_of(body) or status}")
    return Recent(since, last, [event for event in events if isinstance(event, dict)])


def follow_feed(
    where: HostPort, place: Place, *, tell: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Event]:
    """Every event behind `place`, without end. `tell` gets what a person should know besides.

    The first failure is raised; a later one is told, and the address is asked again until it answers. What cannot be
    events is `RemoteProtocolError` at any time.
    """
    was_there, trouble = False, ""
    while True:
        try:
            for event in _listen(where, place, tell=tell, trouble=trouble):
                was_there, trouble = True, ""
                if event is not None:
                    yield event
        except TunnelError as exc:
            if not was_there or isinstance(exc, RemoteProtocolError):
                raise
            words = f"{where} is gone" if isinstance(exc, PeerLost) else str(exc)
            if words != trouble:
                trouble = words
                tell(f"{words}; waiting for it to come back")
        sleep(AGAIN_SECONDS)


def _listen(where: HostPort, place: Place, *, tell: Callable[[str], None], trouble: str) -> Iterator[Event | None]:
    """Listen once, until the connection ends; a None when it has begun. Moves `place` on."""
    with closing(_open(where, place.last)) as stream:
        # Asked while the stream is open, so that both answers are those of one process.
        now = fetch_recent(where, after=place.last)
        if now.since != place.since:
            tell(f"{where} is another process now; its events from the first one on")
            place.since, place.last = now.since, 0
            return
        if trouble:
            tell(f"{where} answers again")
        yield None
        for kind, data in stream.messages():
            if kind == "missed":
                count = data.get("count", "some")
                tell(f"{count} {'event is' if count == 1 else 'events are'} missing here: too many came at once")
            number = data.get("id")
            if kind == "event" and isinstance(number, int):
                place.last = number
                yield data


def _open(where: HostPort, after: int) -> "_Stream":
    connection = http.client.HTTPConnection(where.host, where.port, timeout=CONNECT_SECONDS)
    try:
        connection.request("GET", f"/events?only=events&after={after}", headers={"Accept": "text/event-stream"})
        sock = connection.sock  # which `getresponse` gives away to the response
        response = connection.getresponse()
        kind = response.headers.get_content_type()
        if response.status != 200 or kind != "text/event-stream":
            raise stranger(where, f"it answered /events with {response.status}, {kind}")
        sock.settimeout(SILENCE_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        connection.close()
        raise lost(where, exc) from exc
    except BaseException:
        connection.close()
        raise
    return _Stream(where, connection, response)


class _Stream:
    """Server-sent events as they come."""

    def __init__(
        self, where: HostPort, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._where, self._connection, self._response = where, connection, response

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event, data) of each, until the other side ends the stream; `TunnelError` when it breaks, or is silent."""
        kind, data = "message", ""
        while line := self._line():
            field, _, value = line.rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                kind = value
            elif field == "data":
                data += value
            elif not field and not value:  # the end of a message; a comment has a value
                if data:
                    yield kind, self._object(data)
                kind, data = "message", ""

    def _line(self) -> str:
        try:
            raw = self._response.readline(MAX_LINE_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise lost(self._where, exc if isinstance(exc, OSError) else ConnectionResetError()) from exc
        if len(raw) >= MAX_LINE_BYTES:
            raise RemoteProtocolError(f"a line of the events of {self._where} has no end")
        return raw.decode("utf-8", "replace")

    def _object(self, data: str) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RemoteProtocolError(f"the events of {self._where} are not JSON objects")
        return found
