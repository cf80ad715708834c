"""Logging of the commands: standard `logging` in, lines on standard error out, and the event loop never waits for them.

    caller (event loop)                              writer (one daemon thread)
      log.info(…) ─▶ _Handler.emit ─▶ bounded queue ─▶ redact, escape, format ─▶ write(2)
                     takes context fields, never blocks; a full queue counts the record as dropped

A pipe nobody reads or a full disk stops the writer alone; when it gets going again it says how many records are
missing. What a peer can put into a record reaches the terminal as printable text within one line. Tokens do not reach
it at all.
"""

import json
import logging
import math
import os
import queue
import re
import select
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from attrs import define, field, frozen

MAX_QUEUED = 10_000  # records: minutes of trouble, 6 MiB of what we log; 40 MiB where peers fill every text they can
MAX_VALUE_CHARS = 1024  # of any one text in a record; control messages have the same bound for what a peer may send
MAX_TRACEBACK_CHARS = 16 * 1024
BATCH = 100  # lines joined for one write: each write gives up the interpreter lock, which the event loop wants
FLUSH_SECONDS = 1.0  # at exit; who reads at all has read by then
DROP_REPORT_SECONDS = 1.0  # at most one line a second about dropped records, however long the trouble lasts

Format = Literal["text", "json"]
Value = str | int | float | bool | None

_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039  never changed in place
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])tt_[A-Za-z0-9_+/=-]{4,}"  # a token of ours, or the part of one that survived a cut
    r"|tt_[A-Za-z0-9_+/=-]{20,}"  # the same glued to something; taking fewer it would hit names such as mqtt_bridge
    # What an operator chose for a token, by where it stands; 16 is longer than the words that may follow in a sentence.
    r"|(?P<header>(?i:authorization['\"]?\s*[:=,]\s*(?:b?['\"])?(?:bearer\s+|basic\s+)?))[^\s'\",;]+"
    r"|(?P<scheme>(?i:bearer\s+))[^\s'\",;]{16,}"
)


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
    render = _json_line if format == "json" else _TextLine(stamped=stamped).render
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


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Adds fields to every record made in the body, and in the tasks started from it."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


@define(eq=False)
class RateLimited:
    """Lets at most `count` records of a key through in an interval, and says later how many more there were.

    The summary of a key comes with the first call, of any key, after its interval has ended, or from `flush()`. Past
    `max_keys` new keys share one, so that a flood of keys is limited too.
    """

    logger: logging.Logger
    clock: Callable[[], float]
    count: int = 5
    interval_seconds: float = 60.0
    max_keys: int = 1000
    _windows: "OrderedDict[str, _Window]" = field(factory=OrderedDict, init=False)  # oldest first

    def log(self, level: int, message: str, *args: object, key: str, extra: Mapping[str, object] | None = None) -> None:
        if not self.logger.isEnabledFor(level):
            return
        now = self.clock()
        self._close_windows(before=now - self.interval_seconds)
        if key not in self._windows and len(self._windows) >= self.max_keys:
            key = "(others)"
        window = self._windows.setdefault(key, _Window(now))
        if window.passed < self.count:
            window.passed += 1
            self.logger.log(level, message, *args, extra=extra)
        else:
            window.suppressed += 1
            window.level = max(window.level, level)

    def flush(self) -> None:
        """Says what was suppressed so far; for the end, or from time to time."""
        self._close_windows(before=math.inf)

    def _close_windows(self, *, before: float) -> None:
        while self._windows and next(iter(self._windows.values())).start <= before:
            key, window = self._windows.popitem(last=False)
            if window.suppressed:
                extra = {"key": key, "suppressed": window.suppressed}
                self.logger.log(window.level, "similar messages were not logged", extra=extra)


@define
class _Window:
    start: float
    passed: int = 0
    suppressed: int = 0
    level: int = 0


# In the caller: take what is needed, and nothing that changes later or keeps other things alive.


@frozen
class _Line:
    """One record on its way to the writer."""

    at: float  # wall clock, to show
    level: str
    logger: str
    message: str
    args: tuple[object, ...]
    fields: dict[str, Value]
    traceback: str


class _Handler(logging.Handler):
    """Puts records into the queue; `lines` is read by the writer, None ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()  # its put() takes no lock that can be held
        self.dropped = 0  # only grows; changed under logging's lock of this handler

    def emit(self, record: logging.LogRecord) -> None:
        if self.lines.qsize() >= MAX_QUEUED:
            self.dropped += 1
            return
        try:
            line = _line(record)
        except Exception as exc:  # a __str__ raised; logging's own report of that would write to standard error here
            message = f"log record of {record.pathname}:{record.lineno} cannot be formatted: {type(exc).__name__}"
            line = _Line(record.created, record.levelname, record.name, message, (), {}, "")
        self.lines.put(line)


def _line(record: logging.LogRecord) -> _Line:
    message, args = str(record.msg), record.args or ()
    if isinstance(args, tuple) and all(_is_plain(arg) for arg in args):
        args = tuple(_plain(arg) for arg in args)
    else:  # what may change before the writer comes to it is formatted now
        message, args = _formatted(message, args), ()
    extras = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    fields = {key: _plain(value) for key, value in {**_fields.get(), **extras}.items()}
    traceback = record.exc_text or ""
    if record.exc_info and not traceback:  # as text now: a traceback keeps all its frames' variables alive
        traceback = logging.Formatter().formatException(record.exc_info)
    traceback = redact(traceback)[-MAX_TRACEBACK_CHARS:]  # its end says most; a token cut at its head would not be told
    return _Line(record.created, record.levelname, record.name, _cut(message), args, fields, traceback)


def _formatted(message: str, args: Any) -> str:
    try:
        return message % args if args else message
    except (TypeError, ValueError, KeyError):  # they do not fit each other; the record is still worth having
        return f"{message} {args!r}"


def _is_plain(value: object) -> bool:
    return value is None or type(value) in (str, int, float, bool)


def _plain(value: Any) -> Value:
    if type(value) is str or not _is_plain(value):
        return _cut(str(value))
    plain: Value = value
    return plain


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


# In the writer: records become lines.


def redact(text: str) -> str:
    """The text without anything that looks like a token."""
    return _SECRETS.sub(lambda found: f"{found['header'] or found['scheme'] or 'tt_'}…", text)


def escape(text: str) -> str:
    """The text with all that is not printable, line ends and terminal escapes above all, written as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@frozen
class _TextLine:
    stamped: bool

    def render(self, line: _Line) -> str:
        parts = [_stamp(line.at)] if self.stamped else []
        origin = "" if line.logger.partition(".")[0] == "tunnel" else f"{line.logger}: "
        parts += [line.level, escape(f"{origin}{redact(_formatted(line.message, line.args))}")]
        parts += [f"{escape(key)}={_quoted(redact(str(value)))}" for key, value in line.fields.items()]
        # Lines of a traceback are indented, so that none can pass for a record.
        parts_of_traceback = [f"\n  | {escape(row)}" for row in line.traceback.split("\n") if row]
        return " ".join(parts) + "".join(parts_of_traceback)


def _quoted(text: str) -> str:
    if text and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return '"' + escape(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _json_line(line: _Line) -> str:
    body: dict[str, Value] = {"ts": _stamp(line.at), "level": line.level.lower(), "logger": line.logger}
    body["msg"] = redact(_formatted(line.message, line.args))
    if line.traceback:
        body["traceback"] = line.traceback
    for key, value in line.fields.items():
        if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
            value = redact(str(value))  # JSON has no NaN and no infinity
        body[f"{key}_" if key in body else key] = value
    return json.dumps(body).replace("\x7f", "\\u007f")  # DEL is the one control character that JSON leaves alone


# In the writer: lines reach the descriptor, or are counted.


def _write_all(handler: _Handler, sink: "_Sink | _StreamSink", render: Callable[[_Line], str]) -> None:
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
            report = _Line(time.time(), "WARNING", __name__, message, (), {"dropped": missing}, "")
            lost = sink.lost
            sink.write([render(report)])
            if sink.lost == lost:
                told, told_at = told + missing, time.monotonic()
            sink.lost = lost  # the report itself is not a record
    sink.close()


def _take_batch(lines: "queue.SimpleQueue[_Line | None]") -> list[_Line | None]:
    batch = [lines.get()]
    with suppress(queue.Empty):
        while batch[-1] is not None and len(batch) < BATCH:
            batch.append(lines.get_nowait())
    return batch


def _rendered(line: _Line, render: Callable[[_Line], str]) -> str:
    try:
        return render(line)
    except Exception as exc:  # a record that cannot be shown must not end the writer
        message = f"log record cannot be formatted: {type(exc).__name__}"
        return render(_Line(line.at, line.level, line.logger, message, (), {}, ""))


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
