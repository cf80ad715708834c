"""What a log record is shown as: one line of text or of JSON, without tokens.

`take` is called where the record is made, the rest where it is written, see `logs`. What a peer can put into a record
comes out as printable text within one line.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

MAX_VALUE_CHARS = 1024  # of any one text in a record; control messages have the same bound for what a peer may send
MAX_TRACEBACK_CHARS = 16 * 1024

Value = str | int | float | bool | None

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])tt_[A-Za-z0-9_+/=-]{4,}"  # a token of ours, or the part of one that survived a cut
    r"|tt_[A-Za-z0-9_+/=-]{20,}"  # the same glued to something; taking fewer it would hit names such as mqtt_bridge
    # What an operator chose for a token, by where it stands; 16 is longer than the words that may follow in a sentence.
    r"|(?P<header>(?i:authorization['\"]?\s*[:=,]\s*(?:b?['\"])?(?:bearer\s+|basic\s+)?))[^\s'\",;]+"
    r"|(?P<scheme>(?i:bearer\s+))[^\s'\",;]{16,}"
)


# In the caller


@frozen
class Line:
    """One record on its way to the writer."""

    at: float  # wall clock, to show
    level: str
    logger: str
    message: str
    args: tuple[object, ...]
    fields: dict[str, Value]
    traceback: str


def take(record: logging.LogRecord, context: Mapping[str, object]) -> Line:
    """The record with `context` fields beside its own: what is needed, and nothing that changes later or keeps other
    things alive.
    """
    message, args = str(record.msg), record.args or ()
    if isinstance(args, tuple) and all(_is_plain(arg) for arg in args):
        args = tuple(_plain(arg) for arg in args)
    else:  # what may change before the writer comes to it is formatted now
        message, args = _formatted(message, args), ()
    extras = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    fields = {key: _plain(value) for key, value in {**context, **extras}.items()}
    traceback = record.exc_text or ""
    if record.exc_info and not traceback:  # as text now: a traceback keeps all its frames' variables alive
        traceback = logging.Formatter().formatException(record.exc_info)
    traceback = redact(traceback)[-MAX_TRACEBACK_CHARS:]  # its end says most; a token cut at its head would not be told
    return Line(record.created, record.levelname, record.name, _cut(message), args, fields, traceback)


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


# In the writer


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
class TextLine:
    stamped: bool

    def render(self, line: Line) -> str:
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


def json_line(line: Line) -> str:
    body: dict[str, Value] = {"ts": _stamp(line.at), "level": line.level.lower(), "logger": line.logger}
    body["msg"] = redact(_formatted(line.message, line.args))
    if line.traceback:
        body["traceback"] = line.traceback
    for key, value in line.fields.items():
        if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
            value = redact(str(value))  # JSON has no NaN and no infinity
        body[f"{key}_" if key in body else key] = value
    return json.dumps(body).replace("\x7f", "\\u007f")  # DEL is the one control character that JSON leaves alone
