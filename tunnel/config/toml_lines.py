"""Finds where each key of a TOML text stands, which `tomllib` does not tell. Used by `config_table` to place mistakes.

A scanner, not a parser: it takes what `tomllib` has already accepted and follows tables, arrays of tables, dotted
keys, inline tables, arrays and multi-line strings. Text it does not understand ends the search; keys not found by then
have no place, and a mistake in them is reported without a line.
"""

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress

from attrs import frozen

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Numbers, booleans, dates; a date may hold a space.
_BARE_VALUE = re.compile(r"[^\s,\]}#\[{\"'=](?:[^\n,\]}#]*[^\s,\]}#])?")
_STRINGS = {
    '"""': re.compile(r'"""(?:[^\\]|\\.)*?""""{0,2}', re.DOTALL),  # up to two quotes may stand before the closing three
    "'''": re.compile(r"'''.*?''''{0,2}", re.DOTALL),
    '"': re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'),
    "'": re.compile(r"'[^'\n]*'"),
}


@frozen
class Place:
    """Where a key stands: its 1-based line, and its value's source text (empty for a table with a header)."""

    line: int
    written: str = ""


def find_places(text: str) -> dict[KeyPath, Place]:
    """The place of every table, key and array element, by key path; array elements and ``[[tables]]`` by index.

    Never raises: after something that is not TOML the rest is left out.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    with suppress(_LostError, RecursionError):  # no places from here on; what was found stays right
        scanner.scan()
    return scanner.places


class _LostError(Exception):
    """The text is not TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.places: dict[KeyPath, Place] = {}
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._table: KeyPath = ()  # of the last header
        self._counts: dict[KeyPath, int] = {}  # members so far of each array of tables

    def scan(self) -> None:
        self._match(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                self._header()
            else:
                self._pair(self._table)
            self._match(_BLANK)

    def _header(self) -> None:
        line = self._line()
        double = self._text.startswith("[[", self._at)
        self._at += 2 if double else 1
        keys = self._keys()
        self._expect("]]" if double else "]")
        path = self._descend(keys[:-1], line) + keys[-1:]
        if double:
            self.places.setdefault(path, Place(line))
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path += (index,)
        self._table = path
        self.places[path] = Place(line)

    def _descend(self, keys: KeyPath, line: int) -> KeyPath:
        """The path of a header's parents: a name of an array of tables stands for its last member."""
        path: KeyPath = ()
        for key in keys:
            path += (key,)
            self.places.setdefault(path, Place(line))
            if path in self._counts:
                path += (self._counts[path] - 1,)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        keys = self._keys()
        self._expect("=")
        for end in range(1, len(keys)):
            self.places.setdefault(table + keys[:end], Place(line))
        self._value(table + keys, line)

    def _keys(self) -> KeyPath:
        """A dotted key, to the end of the white space behind it."""
        keys: KeyPath = ()
        while True:
            self._match(_SPACE)
            keys += (self._key(),)
            self._match(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _key(self) -> str:
        quote = self._text[self._at : self._at + 1]
        if quote not in ('"', "'"):
            return self._must(_BARE_KEY)
        raw = self._must(_STRINGS[quote])
        try:
            return str(tomllib.loads(f"key = {raw}")["key"])
        except tomllib.TOMLDecodeError as exc:
            raise _LostError from exc

    def _value(self, path: KeyPath, line: int) -> None:
        self._match(_SPACE)
        start = self._at
        match self._text[start : start + 1]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'" as quote:
                self._must(_STRINGS.get(self._text[start : start + 3], _STRINGS[quote]))
            case _:
                self._must(_BARE_VALUE)
        self.places[path] = Place(line, self._text[start : self._at])

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while not self._closes("]"):
            self._value((*path, index), self._line())
            index += 1
            self._separator("]")

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while not self._closes("}"):
            self._pair(path)
            self._separator("}")

    def _closes(self, bracket: str) -> bool:
        self._match(_BLANK)
        if not self._text.startswith(bracket, self._at):
            return False
        self._at += 1
        return True

    def _separator(self, bracket: str) -> None:
        self._match(_BLANK)
        if not self._text.startswith(bracket, self._at):
            self._expect(",")

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)

    def _match(self, pattern: re.Pattern[str]) -> None:
        """Step over what may also be empty."""
        if match := pattern.match(self._text, self._at):
            self._at = match.end()

    def _must(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _LostError
        self._at = match.end()
        return match.group()

    def _expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self._at):
            raise _LostError
        self._at += len(mark)
