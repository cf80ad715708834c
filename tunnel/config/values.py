"""Readers: what single values in a config file, or in the options beside it, stand for.

A reader takes one parsed value and returns what it means, or raises ValueError("what is wrong; the remedy"), as the
parsers of `addresses` do.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tunnel.addresses import DEFAULT_PORT, HostPort, check_name, check_publish_addr, is_ip, parse_host_port
from tunnel.config import DEFAULT_ADMIN

DAY = 86_400.0  # seconds; no wait here is meant to be longer
MAX_COUNT = 10_000_000  # of visitors or retries: beyond any machine, and no surprise to arithmetic
OFF = "off"
_HOST_NAME = re.compile(r"(?:[\w-]+\.)*[\w-]*[^\W\d][\w-]*\.?")  # the last label has a letter: 300.1.1.1 is no name
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}

T = TypeVar("T")
Reader = Callable[[Any], T]


def text(value: Any) -> str:
    """Reads a text that is not blank and has no control characters."""
    if type(value) is not str:
        raise ValueError(f"is {_kind(value)}, not a text; write it in quotes")
    if not value.strip() or not value.isprintable():
        raise ValueError("is blank or has control characters; write a plain text")
    return value


def whole(low: int, high: int) -> Reader[int]:
    """Reads a whole number within bounds, both included."""

    def read(value: Any) -> int:
        if type(value) is not int:
            raise ValueError(f"is {_kind(value)}, not a whole number; {_unquoted(value, low, high)}")
        if not low <= value <= high:
            raise ValueError(f"is out of range; write a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float, *, above: bool = False) -> Reader[float]:
    """Reads a number within bounds, both included; with `above`, the lower one is not."""
    bounds = f"above {low:.10g} and up to {high:.10g}" if above else f"from {low:.10g} to {high:.10g}"

    def read(value: Any) -> float:
        if type(value) not in (int, float):
            raise ValueError(f"is {_kind(value)}, not a number; {_unquoted(value, low, high)}")
        if not (low < value <= high if above else low <= value <= high) or not math.isfinite(value):
            raise ValueError(f"is out of range; write a number {bounds}")
        return float(value)

    return read


def array(value: Any) -> list[Any]:
    """Reads a list, whatever is in it."""
    if not isinstance(value, list):
        raise ValueError(f"is {_kind(value)}, not a list; write it in [ ]")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Reads a table, whatever is in it."""
    if not isinstance(value, dict):
        raise ValueError(f"is {_kind(value)}, not a table; write its keys under a [header]")
    return value


def flag(value: Any) -> bool:
    """Reads true or false."""
    if type(value) is not bool:
        raise ValueError(f"is {_kind(value)}, not true or false; write one of the two, without quotes")
    return value


def one_of(words: tuple[str, ...], what: str) -> Reader[str]:
    """Reads one of these words; `what` they are is for the message."""

    def read(value: Any) -> str:
        if text(value) not in words:
            raise ValueError(f"{value!r} is no {what}; write one of {', '.join(words)}")
        return str(value)

    return read


def or_word(word: str, read: Reader[T]) -> Reader[T | None]:
    """Reads what `read` does, or `word`, which is None: never, forever."""

    def read_either(value: Any) -> T | None:
        if value == word:
            return None
        try:
            return read(value)
        except ValueError as exc:
            raise ValueError(f'{exc}, or "{word}"') from exc

    return read_either


def name(value: Any) -> str:
    """Reads the name of a proxy or a client."""
    return check_name(text(value))


def publish_addr(value: Any) -> str:
    """Reads a numeric address."""
    return check_publish_addr(text(value))


def network(value: Any) -> str:
    """Reads an address or a CIDR, as Python spells it; not all there are, for who is in it is believed."""
    found = text(value)
    try:
        read = ipaddress.ip_network(found)
    except ValueError:
        pass
    else:
        if not read.prefixlen:
            raise ValueError(f"{found!r} is everybody, who could then claim any address; write those that you trust")
        return str(read)
    try:
        meant = ipaddress.ip_network(found, strict=False)
    except ValueError:
        raise ValueError(f"{found!r} is not an address or a CIDR; write 10.0.0.0/8, or 10.0.0.7") from None
    raise ValueError(f"{found!r} is an address within {meant}; write {meant}, or {found.partition('/')[0]} alone")


def host(value: Any) -> str:
    """Reads an IP address (IPv6 without brackets) or a host name."""
    found = text(value)
    if not is_ip(found) and not _HOST_NAME.fullmatch(found):
        raise ValueError(f"{found!r} is not a host; write an IP address or a host name")
    return found


def host_port(default_port: int = DEFAULT_PORT, *, zero: bool = False) -> Reader[HostPort]:
    """Reads HOST or HOST:PORT; with `zero`, port 0 lets the system choose."""

    def read(value: Any) -> HostPort:
        found = parse_host_port(text(value), default_port=default_port, zero=zero)
        host(found.host)
        return found

    return read


def admin_listen(value: Any) -> HostPort | None:
    """Reads HOST:PORT, or "off" (None)."""
    return None if value == OFF else host_port(DEFAULT_ADMIN.port, zero=True)(value)


def path_from(base: Path) -> Reader[Path]:
    """Reads a path; a relative one starts at `base`, one with ``~/`` at the user's home."""

    def read(value: Any) -> Path:
        try:
            return base / Path(text(value)).expanduser()
        except RuntimeError as exc:
            raise ValueError(f"{value!r} has no meaning here: {exc}; write the whole path") from exc

    return read


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a date or time")


def _unquoted(value: Any, low: float, high: float) -> str:
    if type(value) is str and re.fullmatch(r"\d{1,15}(\.\d+)?", value):
        return f"write {value}, without quotes"
    return f"write a number from {low:.10g} to {high:.10g}"
