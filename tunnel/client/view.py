"""What `connect` shows: what all views have in common, and the two that write lines, plain and JSON.

The session feeds a view synchronously and never waits for it; `run`, in the caller's nursery, does the output. A reader
that stops reading (a paused terminal, a full pipe) stops only the view: bytes leave through a thread of their own, what
waits for it is bounded, and what is newest of each proxy survives.
"""

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import trio
from attrs import asdict

from tunnel.messages import ProxyStatusUpdate
from tunnel.wording import clean, human_seconds, plain_line

MAX_WAITING_LINES = 4096  # for a reader that is behind; then only the newest of each proxy is kept
FLUSH_SECONDS = 1.0  # at the end, for last words and the cursor

log = logging.getLogger(__name__)


class SessionState(StrEnum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"  # or not reached; being retried


class LogStream(Protocol):
    """As much of a text stream as `logging.StreamHandler` uses."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...


class View(Protocol):
    """Fed by the session from inside Trio; no call waits or fails."""

    def proxies(self, targets: Mapping[str, str]) -> None:
        """These proxies are configured: name to target, in the order to show them. Others are forgotten."""

    def status(self, update: ProxyStatusUpdate) -> None:
        """A proxy's state changed."""

    def session(self, state: SessionState, detail: str = "", *, retry_in: float | None = None) -> None:
        """The session's state changed; `detail` says why it is lost, or as whom we are connected."""

    @property
    def log_stream(self) -> LogStream:
        """Where log records go, so that they do not tear what is shown. Any thread may write."""

    async def run(self) -> None:
        """Show, until cancelled; then last words are written and the terminal is as it was."""


class Output:
    """A descriptor written to from a thread, in order, one write at a time; a stuck reader costs that thread only."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self._fd = fd
        self._encoding = encoding
        self._one = trio.CapacityLimiter(1)  # a write abandoned by cancellation still holds it: the next one queues
        self._is_gone = False

    def can_show(self, text: str) -> bool:
        try:
            text.encode(self._encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    @property
    def size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._fd)
        except OSError:
            return os.terminal_size((80, 24))
        return size if size.columns and size.lines else os.terminal_size((80, 24))

    async def write(self, text: str) -> None:
        """Write all of it. If cancelled, the thread finishes alone. Once the reader is gone, writes do nothing."""
        if self._is_gone or not text:
            return
        data = text.encode(self._encoding, "replace")
        try:
            await trio.to_thread.run_sync(_write_all, self._fd, data, abandon_on_cancel=True, limiter=self._one)
        except OSError as exc:  # a closed pipe or terminal; the tunnel goes on unseen
            self._is_gone = True
            log.info("nothing is shown any more (%s); the proxies are served as before", exc.strerror or exc)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # somebody who shares it made it non-blocking
            time.sleep(0.05)


class _Lines:
    """A bounded queue of lines; over its bound only the newest line of each key is kept."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._waiting: deque[tuple[str, str]] = deque(maxlen=MAX_WAITING_LINES)
        self._wake = trio.Event()

    def put(self, key: str, line: str) -> None:
        if len(self._waiting) == MAX_WAITING_LINES:
            newest = {key: (index, line) for index, (key, line) in enumerate(self._waiting)}
            kept = sorted((index, key, line) for key, (index, line) in newest.items())
            self._waiting = deque(((key, line) for _, key, line in kept), maxlen=MAX_WAITING_LINES)
        self._waiting.append((key, line))
        self._wake.set()

    async def run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await self._flush()
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        while self._waiting:
            text = "".join(f"{line}\n" for _, line in self._waiting)
            self._waiting.clear()
            await self._output.write(text)


class JsonView:
    """Each status as one flat JSON object on a line of its own. Sessions show as `session_lost` of each proxy."""

    def __init__(self, output: Output) -> None:
        self._lines = _Lines(output)

    def proxies(self, targets: Mapping[str, str]) -> None:
        pass

    def status(self, update: ProxyStatusUpdate) -> None:
        self._lines.put(update.proxy_name, json.dumps(asdict(update)))  # ASCII: control characters come out escaped

    def session(self, state: SessionState, detail: str = "", *, retry_in: float | None = None) -> None:
        pass

    @property
    def log_stream(self) -> LogStream:
        return sys.stderr

    async def run(self) -> None:
        await self._lines.run()


class PlainView:
    """A line for each status that says something new, and for each session won or lost."""

    def __init__(self, output: Output, *, server: str) -> None:
        self._lines = _Lines(output)
        self._server = clean(server)
        self._targets: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._said: tuple[SessionState, str] | None = None

    def proxies(self, targets: Mapping[str, str]) -> None:
        self._targets = dict(targets)
        self._told = {name: line for name, line in self._told.items() if name in targets}

    def status(self, update: ProxyStatusUpdate) -> None:
        target = self._targets.get(update.proxy_name, "")
        line = plain_line(update.proxy_name, update, target)
        if self._told.get(update.proxy_name) != line:  # a target that is down is told again after each check
            self._told[update.proxy_name] = line
            self._lines.put(update.proxy_name, line)

    def session(self, state: SessionState, detail: str = "", *, retry_in: float | None = None) -> None:
        is_next_try = state is SessionState.CONNECTING and self._said is not None
        if is_next_try or self._said == (state, detail):  # a dial every second must not print a line every second
            return
        self._said = (state, detail)
        self._lines.put("", session_line(self._server, state, clean(detail), retry_in))

    @property
    def log_stream(self) -> LogStream:
        return sys.stderr

    async def run(self) -> None:
        await self._lines.run()


def session_line(server: str, state: SessionState, detail: str, retry_in: float | None, *, passed: float = 0) -> str:
    match state:
        case SessionState.CONNECTING:
            return f"connecting to {server}" + (f": {detail}" if detail else "")
        case SessionState.CONNECTED:
            as_whom = f" as {detail}" if detail else ""
            return f"connected to {server}{as_whom}" + (f" for {human_seconds(passed)}" if passed >= 1 else "")
        case SessionState.LOST:
            when = "retrying" if not retry_in else f"retrying in {int(retry_in + 0.999)} s"
            return f"no session with {server}" + (f": {detail}; " if detail else "; ") + when
