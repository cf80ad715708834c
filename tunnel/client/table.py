"""The view for a terminal: a live table of all proxies, log records above it, and rich to paint both."""

import io
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from tunnel.client.view import FLUSH_SECONDS, LogStream, Output, SessionState, session_line
from tunnel.columns import GAP, STYLES, Column, append_line, lay_out
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import ProxyView, Snapshot
from tunnel.wording import ProxyState, clean, explain, human_bytes, public_address

if TYPE_CHECKING:
    from rich.text import Text

MAX_WAITING_LOG_LINES = 500  # a screen is 50; they wait a quarter of a second
FRAME_SECONDS = 0.25
RATE_SECONDS = 1.0  # between two looks at the counters; shorter, and a rate is noise

log = logging.getLogger(__name__)


@frozen
class _Told:
    """The newest status of a proxy, and when (on Trio's clock) it came."""

    update: ProxyStatusUpdate
    at: float


@frozen
class _Traffic:
    """A proxy's counters at the last look, and how fast they grew since the look before."""

    view: ProxyView
    in_per_second: float = 0.0
    out_per_second: float = 0.0


@frozen
class _Row:
    name: str
    target: str
    state: ProxyState
    elapsed: float  # seconds since `state` was told
    traffic: _Traffic | None

    def explain(self, *, width: int | None = None, ellipsis: str = "…") -> str:
        refused = self.traffic.view.refused if self.traffic else None
        return explain(self.state, elapsed=self.elapsed, refused=refused, width=width, ellipsis=ellipsis)


class TableView:
    """A live table: the session in one line, then a line per proxy, and one more for each that is not healthy.

    A frame is computed four times a second and written only if it differs from the last one. rich paints it into
    memory; `Output` takes it to the terminal.
    """

    def __init__(self, output: Output, *, server: str, snapshot: Callable[[], Snapshot]) -> None:
        self._output = output
        self._server = clean(server)
        self._snapshot = snapshot
        self._targets: dict[str, str] = {}
        self._told: dict[str, _Told] = {}
        self._traffic: dict[str, _Traffic] = {}
        self._looked_at: float | None = None
        self._session: tuple[SessionState, str, float | None] = (SessionState.CONNECTING, "", None)
        self._session_since: float | None = None
        self._dot, self._arrow, self._ellipsis = ("●", "→", "…") if output.can_show("●→…") else ("*", "->", "...")
        self._log = LogPane()

    def proxies(self, targets: Mapping[str, str]) -> None:
        self._targets = dict(targets)
        self._told = {name: told for name, told in self._told.items() if name in targets}

    def status(self, update: ProxyStatusUpdate) -> None:
        self._targets.setdefault(update.proxy_name, "")
        self._told[update.proxy_name] = _Told(update, trio.current_time())

    def session(self, state: SessionState, detail: str = "", *, retry_in: float | None = None) -> None:
        if state is not self._session[0] or retry_in is not None:
            self._session_since = trio.current_time()
        self._session = (state, clean(detail), retry_in)

    @property
    def log_stream(self) -> LogStream:
        return self._log if sys.stderr.isatty() else sys.stderr

    async def run(self) -> None:
        try:
            await self._run()
        except Exception:  # the tunnel goes on unseen
            log.exception("view.crashed")

    async def _run(self) -> None:
        size = self._output.size
        painter, frame = _Painter(size), self.render(size)
        self._log.is_open = True
        try:
            while True:
                await self._output.write(painter.paint(frame, self._log.take(), size))
                await trio.sleep(FRAME_SECONDS)
                size = self._output.size
                frame = self.render(size)
        except trio.Cancelled:
            frame = self.render(size)  # what changed last is often why we end
            raise
        finally:
            self._log.is_open = False
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._output.write(painter.finish(frame, self._log.take()))

    def render(self, size: os.terminal_size) -> "Text":
        """The frame for a terminal of `size`; one line stays free for the cursor."""
        from rich.text import Text

        self._look()
        now = trio.current_time()
        rows = [self._row(name, now) for name in self._targets]
        text = Text(no_wrap=True, overflow="crop")
        self._append_session(text, rows, now, width=size.columns)
        if not rows:
            return text.append("\n\nno proxies yet; add one with -p NAME=PUBLISH:TARGET, such as -p web=8001:8080")
        shown = self._choose(rows, size.lines - 4)  # session, empty line, column titles, cursor
        if shown:
            header, *lines = lay_out(self._columns(shown), size.columns, ellipsis=self._ellipsis)
            text.append("\n\n")
            text.append(GAP.join(cell for _, cell in header), "dim")
            for line, row in zip(lines, shown, strict=True):
                text.append("\n")
                append_line(text, line, row.state.status)
                if why := row.explain(width=size.columns - 2, ellipsis=self._ellipsis):
                    text.append(f"\n  {why}", STYLES.get(row.state.status, ""))
        if len(shown) < len(rows):
            text.append(f"\n{self._ellipsis} and {len(rows) - len(shown)} more", "dim")
        return text

    def _look(self) -> None:
        """Read the counters, at most once a second."""
        now = trio.current_time()
        passed = RATE_SECONDS if self._looked_at is None else now - self._looked_at
        if passed < RATE_SECONDS:
            return
        self._looked_at = now
        before, self._traffic = self._traffic, {}
        for session in self._snapshot().sessions:
            for view in session.proxies:
                last = before[view.name].view if view.name in before else view
                self._traffic[view.name] = _Traffic(
                    view,
                    max(0, view.bytes_in - last.bytes_in) / passed,  # a new session counts from zero again
                    max(0, view.bytes_out - last.bytes_out) / passed,
                )

    def _row(self, name: str, now: float) -> _Row:
        told, traffic = self._told.get(name), self._traffic.get(name)
        target = self._targets[name] or (traffic.view.target if traffic else "")
        if told is not None:
            return _Row(name, target, told.update, now - told.at, traffic)
        return _Row(name, target, traffic.view if traffic else _NOT_YET, 0.0, traffic)

    def _append_session(self, text: "Text", rows: Sequence[_Row], now: float, *, width: int) -> None:
        state, detail, retry_in = self._session
        passed = 0.0 if self._session_since is None else now - self._session_since
        left = None if retry_in is None else max(0.0, retry_in - passed)
        line = session_line(self._server, state, detail, left, passed=passed)
        if (excess := len(line) + len("* ") - width) > 0 and detail:  # what comes next stands at the end: keep it
            detail = detail[: max(0, len(detail) - excess - len(self._ellipsis))] + self._ellipsis
            line = session_line(self._server, state, detail, left, passed=passed)
        text.append(f"{self._dot} ", _SESSION_STYLES[state])
        text.append(line, "bold")
        if rows:
            healthy = sum(row.state.status == Status.HEALTHY for row in rows)
            text.append(f"   {healthy} of {len(rows)} healthy", "dim")

    def _choose(self, rows: list[_Row], room: int) -> list[_Row]:
        """The rows that fit in `room` lines; if not all do, those that need attention come first."""
        heights = {row.name: 2 if row.explain() else 1 for row in rows}
        if sum(heights.values()) <= room:
            return rows
        shown: list[_Row] = []
        room -= 1  # for "and N more"
        for row in sorted(rows, key=lambda row: row.state.status == Status.HEALTHY):
            room -= heights[row.name]
            if room < 0:
                break
            shown.append(row)
        return shown

    def _columns(self, rows: Sequence[_Row]) -> list[Column]:
        views = [row.traffic for row in rows]
        return [
            Column("PROXY", [clean(row.name) for row in rows], flexible=True),
            Column("STATE", [f"{self._dot} {clean(row.state.status)}" for row in rows]),
            Column("PUBLIC", [public_address(row.state) for row in rows], worth=8, flexible=True),
            Column("TARGET", [f"{self._arrow} {clean(row.target)}" for row in rows], worth=7, flexible=True),
            Column("VISITORS", [_of(seen, _visitors) for seen in views], worth=6, right=True),
            Column("IN/S", [_of(seen, lambda it: _rate(it.in_per_second)) for seen in views], worth=4, right=True),
            Column("OUT/S", [_of(seen, lambda it: _rate(it.out_per_second)) for seen in views], worth=5, right=True),
            Column("IN", [_of(seen, lambda it: _total(it.view.bytes_in)) for seen in views], worth=2, right=True),
            Column("OUT", [_of(seen, lambda it: _total(it.view.bytes_out)) for seen in views], worth=3, right=True),
        ]


_SESSION_STYLES = {SessionState.CONNECTING: "yellow", SessionState.CONNECTED: "green", SessionState.LOST: "red"}
_NOT_YET = ProxyStatusUpdate("", Status.UNHEALTHY, None, None, 0, Reason.CONNECTING, 0, None, "", 0, "")


def _of(traffic: _Traffic | None, show: Callable[[_Traffic], str]) -> str:
    return "" if traffic is None else show(traffic)


def _visitors(traffic: _Traffic) -> str:
    return f"{traffic.view.visitors}/{traffic.view.visitors_total}"


def _rate(per_second: float) -> str:
    return (f"{human_bytes(per_second)}/s" if per_second >= 1 else "").rjust(
        8
    )  # padded, or columns dance as they change


def _total(count: int) -> str:
    return human_bytes(count).rjust(6)


class LogPane:
    """Takes log records from any thread while a table is on the screen, to be shown above it; else it is stderr."""

    def __init__(self) -> None:
        self.is_open = False
        self._lines: deque[str] = deque(maxlen=MAX_WAITING_LOG_LINES)
        self._partial = ""

    def write(self, text: str, /) -> int:
        if not self.is_open:
            return sys.stderr.write(text)
        *lines, self._partial = (self._partial + text).split("\n")
        self._lines.extend(lines)
        return len(text)

    def flush(self) -> None:
        if not self.is_open:
            sys.stderr.flush()

    def take(self) -> list[str]:
        """The complete lines since the last call."""
        lines = []
        while self._lines:  # not list() and clear(): another thread may append between the two
            lines.append(self._lines.popleft())
        return lines


class _Painter:
    """rich's Live on a canvas in memory: a frame in, the bytes for the terminal out."""

    def __init__(self, size: os.terminal_size) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._canvas = io.StringIO()
        self._size = size
        self._console = Console(
            file=self._canvas,
            width=size.columns,
            height=size.lines,
            force_terminal=True,
            force_interactive=True,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._frame = Text()
        self._live = Live(
            console=self._console,
            get_renderable=lambda: self._frame,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def paint(self, frame: "Text", log_lines: Sequence[str], size: os.terminal_size) -> str:
        """What makes the terminal show `log_lines` and below them `frame`; empty if it does already."""
        is_resized = size != self._size
        if is_resized:  # the terminal has rewrapped the old frame, and its height is anybody's guess
            self._size = size
            self._console.size = (size.columns, size.lines)
            self._canvas.write("\x1b[2J\x1b[H")
        is_same = frame == self._frame and not is_resized
        self._frame = frame
        if log_lines:
            self._console.print("\n".join(_strip(line) for line in log_lines), soft_wrap=True)  # and the last frame
        if not is_same:
            self._live.refresh()
        return self._take()

    def finish(self, frame: "Text", log_lines: Sequence[str]) -> str:
        """The last frame, which stays on the screen, and the cursor back."""
        text = self.paint(frame, log_lines, self._size)
        self._live.stop()
        return text + self._take()

    def _take(self) -> str:
        text = self._canvas.getvalue()
        self._canvas.seek(0)
        self._canvas.truncate()
        return text


def _strip(line: str) -> str:
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in line)
