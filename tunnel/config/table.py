"""Takes values out of parsed TOML and keeps account of all that is wrong with them. Used by `config_file`.

Not cattrs: every value is wanted with its own line, spelling and remedy, a wrong one must not hide the others, and the
keys of the file are not the fields of the values (`bind_addr` and `bind_port` are one `HostPort`).
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import frozen

from tunnel.config.credentials import as_passed
from tunnel.config.token_file import NOT_SHOWN, looks_like_token
from tunnel.config.toml_lines import KeyPath, Place, find_places
from tunnel.config.values import Reader, array, mapping
from tunnel.errors import ConfigError, Mistake

MAX_FILE_BYTES = 4 * 1024 * 1024  # 1,000 proxies with every key written out fill a quarter of it
MAX_SHOWN = 80  # characters of a value in a message
MAX_SYNTAX_MISTAKES = 20  # then it is no TOML at all
MAX_PROBLEM = 240  # characters; the parsers repeat the value they refuse, however long
_NOWHERE = Place(0)
_SECRET = re.compile(r"token|secret|passw|credential|\burl\b", re.IGNORECASE)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

T = TypeVar("T")
D = TypeVar("D")


@frozen
class Spot:
    """Where something was said: a key of a file, or an option (`line` 0, `path` empty)."""

    file: str
    line: int
    path: str
    written: str

    def mistake(self, problem: str, remedy: str = "") -> Mistake:
        return Mistake(self.file, self.line, self.path, self.written, problem, remedy)

    def wrong(self, error: ValueError) -> Mistake:
        """The mistake a reader told of, without saying the value twice."""
        problem, _, remedy = str(error).rpartition("; ")
        problem, remedy = (problem, remedy) if problem else (remedy, "")
        for shown in (self.written, self.written[1:-1]):  # an option is shown as it is, a TOML text with its quotes
            problem = problem.removeprefix(f"{shown!r} ")
        return self.mistake(problem if len(problem) <= MAX_PROBLEM else f"{problem[:MAX_PROBLEM]}…", remedy)

    def __str__(self) -> str:
        return f"{self.path} (line {self.line})" if self.line else self.path or f"{self.file} {self.written}"


class Findings:
    """All that was found wrong so far, in a file and in the options given with it."""

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient  # `check`: what the machine or the user it is meant for may have is only a warning
        self.partial = False  # a line had to be left out: what seems to be missing may have stood there
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []
        self._tables: list[Table] = []

    def root(self, path: Path) -> "Table":
        """The whole of a TOML file. If it cannot be parsed, not even without its bad lines, ConfigError is raised."""
        try:
            content, document, mistakes = _parse(path, _read_text(path))
        except ConfigError as exc:
            self.mistakes += exc.mistakes
            raise self.error() from exc
        self.mistakes += mistakes
        self.partial = bool(mistakes)
        return self.table(document, (), str(path), find_places(content))

    def table(self, data: dict[str, Any], at: KeyPath, file: str, places: Mapping[KeyPath, Place]) -> "Table":
        found = Table(data, at, file, places, self)
        self._tables.append(found)
        return found

    def blame(self, spot: Spot, problem: str, remedy: str) -> None:
        self.mistakes.append(spot.mistake(problem, remedy))

    def doubt(self, spot: Spot, problem: str, remedy: str) -> None:
        """A mistake, but only a warning where another user or machine may have what is missing here."""
        (self.warnings if self.lenient else self.mistakes).append(spot.mistake(problem, remedy))

    def finish(self) -> None:
        """Look for keys that nobody asked for, and raise ConfigError if there was any mistake.

        To be called when every table has been read.
        """
        for table in self._tables:
            table.check_unknown(self._tables[0].known)
        self._tables.clear()
        if self.mistakes:
            raise self.error()

    def error(self) -> ConfigError:
        return ConfigError(*sorted(self.mistakes, key=lambda mistake: (mistake.line > 0, mistake.line)))


class Table:
    """One TOML table. Asking for a key makes it known; what is still unknown at the end is a mistake."""

    def __init__(
        self, data: dict[str, Any], at: KeyPath, file: str, places: Mapping[KeyPath, Place], findings: Findings
    ) -> None:
        self.data = data
        self.findings = findings
        self._at = at
        self.file = file
        self._places = places
        self.known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def spot(self, *keys: str | int) -> Spot:
        """Where a key (or an element of its array) stands; without one, the table itself."""
        path = self._at + keys
        place = self._places.get(path, _NOWHERE)
        return Spot(self.file, place.line, show_path(path), show_value(place.written, path))

    def blame(self, key: str, problem: str, remedy: str) -> None:
        self.findings.blame(self.spot(key), problem, remedy)

    def doubt(self, key: str, problem: str, remedy: str) -> None:
        self.findings.doubt(self.spot(key), problem, remedy)

    def take(self, key: str, read: Reader[T], default: D) -> T | D:
        """The value of `key`; `default` when it is absent, and when it is wrong, which is a mistake then."""
        self.known.append(key)
        return self._read((key,), self.data[key], read, default) if key in self.data else default

    def need(self, key: str, read: Reader[T], example: str) -> T | None:
        """The value of a key that must be there; `example` is a line somebody could add."""
        if key not in self.data:
            self.missing(key, f"add {example}")
        return self.take(key, read, None)

    def missing(self, key: str, remedy: str, *, beside: str = "") -> None:
        """A mistake at the table's own line, or at that of the key it belongs `beside`."""
        if self.findings.partial:
            return
        line = self.spot(*filter(None, [beside])).line
        self.findings.mistakes.append(Mistake(self.file, line, self.spot(key).path, "", "is missing", remedy))

    def many(self, key: str, read: Reader[T], default: D) -> tuple[T, ...] | D:
        """The elements of an array. Each wrong one is a mistake at its own place, and left out."""
        found = self.placed(key, read)
        return default if found is None else tuple(value for _, value in found)

    def placed(self, key: str, read: Reader[T]) -> list[tuple[int, T]] | None:
        """As `many`, each with its index; None where there is no array."""
        values = self.take(key, array, None)
        if values is None:
            return None
        found = [(index, self._read((key, index), value, read, _WRONG)) for index, value in enumerate(values)]
        return [(index, value) for index, value in found if not isinstance(value, _Wrong)]

    def table(self, key: str) -> "Table | None":
        """The table of that name, if there is one."""
        data = self.take(key, mapping, None)
        return None if data is None else self.findings.table(data, (*self._at, key), self.file, self._places)

    def tables(self, key: str) -> "list[Table]":
        """The ``[[tables]]`` of that name; a single ``[table]`` is a mistake, but is read all the same."""
        if isinstance(self.data.get(key), dict):
            self.known.append(key)
            self.blame(key, "stands once, but is a list of tables", f"write [[{show_path((*self._at, key))}]]")
            return [self.findings.table(self.data[key], (*self._at, key), self.file, self._places)]
        values = self.take(key, array, [])
        found = [(index, self._read((key, index), value, mapping, None)) for index, value in enumerate(values)]
        return [
            self.findings.table(data, (*self._at, key, index), self.file, self._places)
            for index, data in found
            if data is not None
        ]

    def mixed(self, key: str, read: Reader[T]) -> "list[tuple[int, T | Table]]":
        """The elements of an array that may be tables too, each with its index; wrong ones are left out."""
        if isinstance(self.data.get(key), dict):
            return list(enumerate(self.tables(key)))

        def read_one(value: Any) -> "T | dict[str, Any]":
            return value if isinstance(value, dict) else read(value)

        return [
            (index, self.findings.table(one, (*self._at, key, index), self.file, self._places))
            if isinstance(one, dict)
            else (index, one)
            for index, one in self.placed(key, read_one) or []
        ]

    def check_unknown(self, top: list[str]) -> None:
        """Blame what nobody asked for; `top` are the keys known at the top of the file."""
        for key in self.data:
            if key in self.known:
                continue
            remedy = f"known are: {', '.join(self.known)}"
            if near := difflib.get_close_matches(key.lower(), self.known, n=1):
                remedy = f"did you mean {near[0]}?"
            elif key in top:  # TOML counts all below a header to its table, which surprises many
                remedy = "it belongs at the top of the file, before the first [header]"
            self.blame(key, "is not a key here", remedy)

    def _read(self, keys: KeyPath, value: Any, read: Reader[T], default: D) -> T | D:
        try:
            return read(value)
        except ValueError as exc:
            self.findings.mistakes.append(self.spot(*keys).wrong(exc))
            return default


class _Wrong:
    """Stands in an array for an element that could not be read."""


_WRONG = _Wrong()


def show_path(path: KeyPath) -> str:
    """``proxies[1].publish_port``; a key that is not bare is quoted, safe for a terminal."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE_KEY.fullmatch(key) else json.dumps(key))
    return text


def show_value(written: str, path: KeyPath = ()) -> str:
    """The value as written, on one line, and no secret: people put tokens under the wrong key, too."""
    name = next((key for key in reversed(path) if isinstance(key, str)), "")
    if _URL_WITH_PASSWORD.search(written):
        return NOT_SHOWN
    in_the_open = name.endswith("_file") and not looks_like_token(written.strip("\"'"))
    if written and not in_the_open and (_SECRET.search(name) or (written[0] in "[{" and _SECRET.search(written))):
        return NOT_SHOWN
    flat = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(written.split()))
    return flat if len(flat) <= MAX_SHOWN else flat[: MAX_SHOWN - 1] + "…"


def _read_text(path: Path) -> str:
    try:
        with as_passed(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise ConfigError(Mistake(str(path), 0, "", "", f"cannot be read: {why}", "give a TOML file")) from exc
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(Mistake(str(path), 0, "", "", f"is over {MAX_FILE_BYTES} bytes", "give a smaller file"))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError(Mistake(str(path), line, "", "", "is not UTF-8", "save the file as UTF-8")) from exc


def _parse(path: Path, content: str) -> tuple[str, dict[str, Any], list[Mistake]]:
    """The text as far as it is TOML, its document, and what is wrong in the lines left out.

    Only a line that is wrong by itself is left out; where an error may run on, ConfigError, rather than false alarms.
    """
    lines = content.split("\n")
    mistakes: list[Mistake] = []
    while True:
        mended = "\n".join(lines)
        try:
            return mended, tomllib.loads(mended), mistakes
        except (ValueError, RecursionError) as exc:  # ValueError: also an integer of thousands of digits
            mistake = _syntax_mistake(path, content, exc)
        if mistakes and mistake.line == mistakes[-1].line + 1:  # most likely the rest of what was left out
            raise ConfigError(*mistakes)
        mistakes.append(mistake)
        if len(mistakes) == MAX_SYNTAX_MISTAKES or not _stands_alone(lines, mistake.line):
            raise ConfigError(*mistakes)
        lines[mistake.line - 1] = ""


def _stands_alone(lines: list[str], line: int) -> bool:
    """True when a statement begins at that line, and it is no header, under which others belong."""
    if not line or lines[line - 1].lstrip().startswith("["):
        return False
    try:
        tomllib.loads("\n".join(lines[: line - 1]))
    except (ValueError, RecursionError):
        return False
    return True


def _syntax_mistake(path: Path, content: str, exc: Exception) -> Mistake:
    if isinstance(exc, RecursionError):
        return Mistake(str(path), 0, "", "", "is not TOML that anybody reads: too deeply nested", "flatten it")
    line = re.search(r"\(at line (\d+), column \d+\)", str(exc))
    at_end = "(at end of document)" in str(exc)
    number = int(line[1]) if line else len(content.rstrip().splitlines()) if at_end else 0
    return Mistake(str(path), number, "", "", f"is not TOML: {exc}", "mend the syntax")
