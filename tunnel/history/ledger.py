"""Turns events into intervals: each status of each proxy, each session, with when it began and ended. Pure.

Times are seconds of the monotonic clock since the process began to record, so that a wall clock that jumps shortens
and lengthens nothing; `at` is the wall clock's word for the beginning, Unix seconds, to be shown.

Failed bind attempts of one reason in a row are one interval with their number: a port that is taken for a month is no
million rows.
"""

from datetime import datetime
from typing import Any

from attrs import Factory, define

from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import Event, ProxyView, Snapshot

AWAY = "away"  # its client is not connected: our own word, beside those of `Status`
REMOVED = "removed"  # not published any more, on purpose
MAX_MESSAGE = 300  # characters kept of an explanation
MAX_PROXIES = 20_000  # kept in mind, those of clients that are away among them
SETTLE_SECONDS = 60.0  # after a client came back: what it has not published by then it does not want any more
SPLIT_SECONDS = 3600.0  # failed attempts are gathered for so long, so that a window's count is right to the hour
_ON_PURPOSE = ("goodbye", "draining", "revoked")  # why a session ended that nobody needs to miss
# What a failed bind attempt never has for its reason.
_NOT_OF_BINDING = {
    None, Reason.PENDING, Reason.LISTENER_LOST, Reason.TARGET_DOWN, Reason.INTERNAL_ERROR, Reason.DRAINING,
    Reason.CONNECTING, Reason.SESSION_LOST,
}  # fmt: skip


@define(eq=False)
class Span:
    """A proxy in one status. `failed` counts bind attempts that failed in it, `binds` is 1 where a listener came with
    it; `ended` is None while it lasts."""

    n: int
    client: str
    proxy: str
    began: float
    at: float
    status: str
    reason: str | None = None
    message: str | None = None
    addr: str = ""
    port: int = 0
    failed: int = 0
    binds: int = 0
    ended: float | None = None


@define(eq=False)
class SessionSpan:
    """A session. `tries` are those of a client that failed before it; `reason` and `message` tell how it ended."""

    n: int
    client: str
    peer: str
    began: float
    at: float
    tries: int = 0
    reason: str = ""
    message: str = ""
    ended: float | None = None


@define(eq=False)
class Ledger:
    """What is known of one process's `role`. What the store has not seen yet is in `spans` and `sessions`, by number;
    `lost` counts what it never will. One owner: the recorder's thread."""

    role: str
    spans: dict[int, Span] = Factory(dict)
    sessions: dict[int, SessionSpan] = Factory(dict)
    renamed: str = ""  # our own name, once the server has told it: that of rows without one
    lost: int = 0
    _proxies: dict[str, dict[str, Span]] = Factory(dict)  # client → proxy → the interval it is in
    _open: dict[str, list[SessionSpan]] = Factory(dict)
    _count: int = 0
    _tries: int = 0

    @property
    def has_news(self) -> bool:
        return bool(self.spans or self.sessions or self.renamed)

    def hear(self, event: Event, now: float) -> None:
        """`now` is when it was published."""
        at, client, fields = _unix(event.at), event.client, event.fields
        match event.kind:
            case "proxy.status":
                self._status(client, fields["update"], now, at)
            case "proxy.removed":
                self._leave(client, event.proxy, REMOVED, None, now, at)
            case "session.started" | "session.connected":
                self._start(client, fields, now, at)
            case "session.ended" | "session.lost":
                self._end(client, fields, now, at)
            case "session.connecting":
                self._tries += 1
            case _:
                pass  # of certificates and configurations

    def look(self, snapshot: Snapshot, now: float, at: float, *, missed: bool = False) -> None:
        """Take over how all stands: at the start, and after events were dropped (`missed`)."""
        there = set()
        for session in snapshot.sessions:
            for view in session.proxies:
                there.add((session.client, view.name))
                self._enter(session.client, view.name, view, now, at)
        gone = REMOVED if self.role == "client" else AWAY
        for span in self._current():
            if (span.client, span.proxy) not in there:
                self._leave(span.client, span.proxy, gone, None, now, at)
        if missed and self.role != "client":
            self._look_at_sessions({session.client for session in snapshot.sessions}, now, at)

    def _look_at_sessions(self, there: set[str], now: float, at: float) -> None:
        """Each client that is there has one; of what else was open the end was not heard, nor of one the beginning."""
        for client, several in list(self._open.items()):
            gone, self._open[client] = (several[:-1], several[-1:]) if client in there else (several, [])
            for session in gone:
                session.ended, session.reason = now, "lost"
                self.sessions[session.n] = session
            if not self._open[client]:
                del self._open[client]
        for client in there - self._open.keys():
            session = SessionSpan(self._next(), client, "", now, at)
            self._open[client], self.sessions[session.n] = [session], session

    def tidy(self, now: float) -> None:
        """Settle what waits for nobody: to be called now and then."""
        for client, several in self._open.items():
            session = several[-1]
            if now - session.began >= SETTLE_SECONDS:
                for span in list(self._proxies.get(client, {}).values()):
                    if span.status == AWAY:
                        self._leave(client, span.proxy, REMOVED, None, session.began, session.at)
        excess = sum(map(len, self._proxies.values())) - MAX_PROXIES
        away = [span for span in self._current() if span.status == AWAY] if excess > 0 else []
        for span in away[: max(0, excess)]:
            self._leave(span.client, span.proxy, REMOVED, "too many clients are away", now, span.at + now - span.began)

    def saved(self, spans: dict[int, Span], sessions: dict[int, SessionSpan]) -> None:
        """These are in the file, as they are now."""
        for number in spans:
            self.spans.pop(number, None)
        for number in sessions:
            self.sessions.pop(number, None)
        self.renamed = ""

    def shed(self, most: int) -> None:
        """Forget the oldest intervals that have ended, where more than `most` wait for the file; they are lost."""
        for rows in (self.spans, self.sessions):
            excess = len(rows) - most
            ended = [number for number, row in rows.items() if row.ended is not None]
            for number in ended[: max(0, excess)]:
                del rows[number]
                self.lost += 1

    def begin_file(self) -> None:
        """The file is a new one: what lasts must be written again."""
        self.spans |= {span.n: span for span in self._current()}
        self.sessions |= {one.n: one for several in self._open.values() for one in several}

    # Proxies

    def _current(self) -> list[Span]:
        return [span for proxies in self._proxies.values() for span in proxies.values()]

    def _status(self, client: str, update: ProxyStatusUpdate, now: float, at: float) -> None:
        span = self._enter(client, update.proxy_name, update, now, at)
        if _is_failed_attempt(update):
            span.failed += 1
            self.spans[span.n] = span

    def _enter(self, client: str, proxy: str, state: ProxyStatusUpdate | ProxyView, now: float, at: float) -> Span:
        """The interval that this status belongs to: the one it is in, or a new one."""
        before = self._proxies.get(client, {}).get(proxy)
        status, reason = str(state.status), None if state.reason is None else str(state.reason)
        message = None if state.error_message is None else state.error_message[:MAX_MESSAGE]
        if before is not None and _goes_on(before, status, reason, state) and not _is_full(before, now):
            if before.message != message:
                before.message = message
                self.spans[before.n] = before
            return before
        binds = status == Status.HEALTHY and (before is None or _came_by_binding(before))
        span = Span(
            self._next(), client, proxy, now, at, status, reason, message, state.publish_addr, state.publish_port,
            binds=int(binds),
        )  # fmt: skip
        self._replace(span, before)
        return span

    def _leave(self, client: str, proxy: str, status: str, message: str | None, now: float, at: float) -> None:
        before = self._proxies.get(client, {}).get(proxy)
        if before is None or before.status == status:
            return
        span = Span(self._next(), client, proxy, now, at, status, None, message, before.addr, before.port)
        self._replace(span, before)
        if status == REMOVED:  # nothing follows
            span.ended = now
            del self._proxies[client][proxy]
            if not self._proxies[client]:
                del self._proxies[client]

    def _replace(self, span: Span, before: Span | None) -> None:
        if before is not None:
            before.ended = span.began
            self.spans[before.n] = before
        self.spans[span.n] = span
        self._proxies.setdefault(span.client, {})[span.proxy] = span

    # Sessions

    def _start(self, client: str, fields: dict[str, Any], now: float, at: float) -> None:
        if self.role == "client":
            self._take_name(client)
            tries, self._tries = max(0, self._tries - 1), 0  # the last one was not in vain
        else:
            tries = 0
            self._leave_all(client, "a newer session took over", now, at)
        session = SessionSpan(self._next(), client, str(fields.get("peer", "")), now, at, tries)
        self._open.setdefault(client, []).append(session)
        self.sessions[session.n] = session

    def _end(self, client: str, fields: dict[str, Any], now: float, at: float) -> None:
        several = self._open.get(client)
        if not several:
            return
        session = several.pop(0)
        session.ended, session.reason = now, str(fields.get("reason", "lost"))
        session.message = str(fields.get("message") or fields.get("detail") or "")[:MAX_MESSAGE]
        self.sessions[session.n] = session
        if several:
            return  # a newer one has begun already, and its proxies stand for themselves
        del self._open[client]
        if self.role != "client":  # which tells its proxies' statuses itself
            why = session.message or session.reason
            self._leave_all(client, why, now, at, REMOVED if session.reason in _ON_PURPOSE else AWAY)

    def _leave_all(self, client: str, why: str, now: float, at: float, status: str = AWAY) -> None:
        for proxy in list(self._proxies.get(client, ())):
            self._leave(client, proxy, status, why, now, at)

    def _take_name(self, client: str) -> None:
        """What a client tells before its first session is told without its name."""
        if not client or "" not in self._proxies:
            return
        nameless = self._proxies.pop("")
        self._proxies.setdefault(client, {}).update(nameless)
        self.renamed = client
        for span in nameless.values():
            span.client = client
            self.spans[span.n] = span
        for span in self.spans.values():
            span.client = span.client or client

    def _next(self) -> int:
        self._count += 1
        return self._count


def _goes_on(span: Span, status: str, reason: str | None, state: ProxyStatusUpdate | ProxyView) -> bool:
    mine = (span.status, span.reason, span.addr, span.port)
    return mine == (status, reason, state.publish_addr, state.publish_port)


def _is_full(span: Span, now: float) -> bool:
    return bool(span.failed) and now - span.began >= SPLIT_SECONDS


def _came_by_binding(before: Span) -> bool:
    """Whether a proxy that is healthy after this must have been bound anew. A target that is back binds nothing."""
    return before.status != Status.HEALTHY and before.reason != Reason.TARGET_DOWN


def _is_failed_attempt(update: ProxyStatusUpdate) -> bool:
    return update.attempt > 0 and update.status is not Status.HEALTHY and update.reason not in _NOT_OF_BINDING


def _unix(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
