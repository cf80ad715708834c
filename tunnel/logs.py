"""Logging of the commands: standard `logging` in, lines on standard error out, and the event loop never waits for them.

    caller (event loop)                              writer (one daemon thread)
      log.info(…) ─▶ _Handler.emit ─▶ bounded queue ─▶ redact, escape, format ─▶ write(2)
                     takes context fields, never blocks; a full queue counts the record as dropped

A pipe nobody reads or a full disk stops the writer alone; when it gets going again it says how many records are
missing. What a peer can put into a record reaches the terminal as printable text within one line. Tokens do not reach
it at all.
"""

import logging
import math
import os
import queue
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Literal, Protocol

from tunnel.log_lines import Line, TextLine, Value, json_line, take
from tunnel.rate_limited import Quota

MAX_QUEUED = 10_000  # records: minutes of trouble, 6 MiB of what we log; 40 MiB where peers fill every text they can
BATCH = 100  # lines joined for one write: each write gives up the interpreter lock, which the event loop wants
FLUSH_SECONDS = 1.0  # at exit; who reads at all has read by then
# Of one client, whatever it does: three times a thousand proxies at once, and then as much as anybody can read.
CLIENT_BURST, CLIENT_PER_SECOND = 3000, 5.0
DROP_REPORT_SECONDS = 1.0  # at most one line a second about dropped records, however long the trouble lasts

Format = Literal["text", "json"]

_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039  never changed in place


@contextmanager
def configure(
    verbosity: int = 0, format: Format = "text", *, descriptor: int | None = None, stream: "LogStream | None" = None
) -> Iterator[None]:
    """Sends all logging to standard error (or `descriptor`) while the body runs, then flushes for a second at most.

    A `stream` takes the lines instead: a table on the terminal shows them above itself.

    `verbosity` 0 shows `tunnel` from info and others from warning, 1 `tunnel` from debug, 2 everything.
    """
    sink = _Sink(_duplicate(descriptor)) if stream is None else _StreamSink(stream)
    handler = _Handler()
    stamped = isinstance(sink, _StreamSink) or not _is_journal(sink.descriptor)
    render = json_line if format == "json" else TextLine(stamped=stamped).render
    writer = threading.Thread(target=_write_all, args=(handler, sink, render), name="log writer", daemon=True)
    root, ours = logging.getLogger(), logging.getLogger("tunnel")
    levels = root.level, ours.level
    root.setLevel(logging.DEBUG if verbosity >= 2 else logging.WARNING)
    ours.setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
    root.addHandler(handler)
    writer.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        handler.close()
        handler.lines.put(None)
        writer.join(FLUSH_SECONDS)  # past it the thread is left behind; being a daemon, it holds up no exit


def set_level(level: str | None, verbosity: int = 0) -> None:
    """From now on; `verbosity` is that of `configure`, and goes over the level."""
    root, ours = logging.getLogger(), logging.getLogger("tunnel")
    wanted = logging.DEBUG if verbosity else logging.getLevelNamesMapping()[(level or "info").upper()]
    ours.setLevel(wanted)
    root.setLevel(logging.DEBUG if verbosity >= 2 else max(wanted, logging.WARNING))


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Adds fields to every record made in the body, and in the tasks started from it."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


# In the caller: a record is taken into the queue.


class _Handler(logging.Handler):
    """Puts records into the queue; `lines` is read by the writer, None ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()  # its put() takes no lock that can be held
        self.dropped = 0  # only grows; changed under logging's lock of this handler
        self._quota = Quota(CLIENT_BURST, CLIENT_PER_SECOND)

    def emit(self, record: logging.LogRecord) -> None:
        if self.lines.qsize() >= MAX_QUEUED:
            self.dropped += 1
            return
        if not self._within_quota(record):
            return
        try:
            line = take(record, _fields.get())
        except Exception as exc:  # a __str__ raised; logging's own report of that would write to standard error here
            message = f"log record of {record.pathname}:{record.lineno} cannot be formatted: {type(exc).__name__}"
            line = Line(record.created, record.levelname, record.name, message, (), {}, "")
        self.lines.put(line)

    def _within_quota(self, record: logging.LogRecord) -> bool:
        """A client's doings may fill no disk. What was left out is told before the next record of the same client."""
        client = _fields.get().get("client")
        if client is None or record.levelno <= logging.DEBUG:  # who asks for debug records wants them all
            return True
        left_out = self._quota.spend(str(client), time.monotonic())
        if left_out:
            message = "log records of this client were left out: it causes more than anybody reads"
            told: dict[str, Value] = {"client": str(client), "left_out": left_out}
            self.lines.put(Line(record.created, "WARNING", __name__, message, (), told, ""))
        return left_out is not None


# In the writer: lines reach the descriptor, or are counted.


def _write_all(handler: _Handler, sink: "_Sink | _StreamSink", render: Callable[[Line], str]) -> None:
    told, told_at = 0, -math.inf
    ended = False
    while not ended:
        batch = _take_batch(handler.lines)
        ended = batch[-1] is None
        sink.write([_rendered(line, render) for line in batch if line is not None])
        missing = handler.dropped + sink.lost - told
        idle = handler.lines.empty()
        if missing and sink.works and (idle or time.monotonic() - told_at >= DROP_REPORT_SECONDS):
            message = "log records were dropped, as standard error did not take them"
            report = Line(time.time(), "WARNING", __name__, message, (), {"dropped": missing}, "")
            lost = sink.lost
            sink.write([render(report)])
            if sink.lost == lost:
                told, told_at = told + missing, time.monotonic()
            sink.lost = lost  # the report itself is not a record
    sink.close()


def _take_batch(lines: "queue.SimpleQueue[Line | None]") -> list[Line | None]:
    batch = [lines.get()]
    with suppress(queue.Empty):
        while batch[-1] is not None and len(batch) < BATCH:
            batch.append(lines.get_nowait())
    return batch


def _rendered(line: Line, render: Callable[[Line], str]) -> str:
    try:
        return render(line)
    except Exception as exc:  # a record that cannot be shown must not end the writer
        message = f"log record cannot be formatted: {type(exc).__name__}"
        return render(Line(line.at, line.level, line.logger, message, (), {}, ""))


class _Sink:
    """Writes lines straight to a descriptor of its own; belongs to the writer.

    Not through `sys.stderr`: a thread stuck inside that holds its lock, and the interpreter wants the lock to exit.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lost = 0  # lines that could not be written
        self.works = True  # the last write did
        self._torn = False  # a write failed within a line

    def write(self, lines: list[str]) -> None:
        if not lines:
            return
        text = ("\n" if self._torn else "") + "\n".join(lines) + "\n"
        rest = whole = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError:  # a full disk, a reader gone: nobody can be told, until it works again
            self.lost += len(lines)
            self.works = False
            self._torn = self._torn or len(rest) < len(whole)
        else:
            self.works, self._torn = True, False

    def _write_some(self, rest: memoryview) -> int:
        while True:
            try:
                return os.write(self.descriptor, rest)
            except BlockingIOError:  # whoever shares the terminal made it non-blocking
                waiting = select.poll()
                waiting.register(self.descriptor, select.POLLOUT)
                waiting.poll()

    def close(self) -> None:
        os.close(self.descriptor)


class LogStream(Protocol):
    """Takes text from any thread, at once."""

    def write(self, text: str, /) -> object: ...


class _StreamSink:
    """Hands lines to a stream that never waits."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream
        self.lost = 0
        self.works = True

    def write(self, lines: list[str]) -> None:
        for line in lines:
            self._stream.write(line + "\n")

    def close(self) -> None:
        """Not ours to close."""


def _duplicate(descriptor: int | None) -> int:
    """A descriptor of our own. Where the process began without standard error, 2 may by now be somebody's socket."""
    if descriptor is None and sys.__stderr__ is None:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.dup(2 if descriptor is None else descriptor)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _is_journal(descriptor: int) -> bool:
    """Whether what reads us stamps the lines itself. Shells of a desktop inherit the variables: a terminal is none."""
    if not (os.environ.get("JOURNAL_STREAM") or os.environ.get("INVOCATION_ID")):
        return False
    return not os.isatty(descriptor) and not stat.S_ISREG(os.fstat(descriptor).st_mode)
