"""The parts that both config files have: files, bind retry, limits, admin. Used by `server_file` and `client_file`."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import fields

from tunnel.addresses import HostPort
from tunnel.backoff import RetryPolicy
from tunnel.config import Limits
from tunnel.config_table import Spot, Table
from tunnel.config_values import DAY, MAX_COUNT, Reader, admin_listen, number, path_from, whole

MAX_BUDGET_BYTES = 2**50
MIN_BUDGET_BYTES = 1024 * 1024  # sixteen streams with the first window of 64 KiB

_RETRY: dict[str, Reader[Any]] = {
    "initial_delay": number(0, DAY, above=True),
    "factor": number(1, 1000),
    "max_delay": number(0, DAY, above=True),
    "max_retries": whole(0, MAX_COUNT),
    "jitter": number(0, 1),
}


def take_file(table: Table, key: str, base: Path) -> Path | None:
    """The path at `key`, of a file that must be there and be readable."""
    path = table.take(key, path_from(base), None)
    if path is None:
        return None
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        pass  # os.access below says the same
    except OSError as exc:
        table.blame(key, f"names no file: {exc.strerror}", f"put the file at {path}")
        return None
    else:
        if not is_file:
            table.blame(key, "does not name a file", "name a PEM file")
            return None
    if not os.access(path, os.R_OK):
        table.doubt(key, "cannot be read by this user", "change the file's owner or mode")
    return path


def take_state_dir(table: Table, base: Path) -> Path | None:
    path = table.take("state_dir", path_from(base), None)
    if path is not None and os.path.lexists(path) and not os.path.isdir(path):
        table.blame("state_dir", "is not a directory", "name a directory; it is made where there is none")
    return path


def take_bind_retry(table: Table) -> RetryPolicy | None:
    """``bind_retry`` of the server or of a proxy; None where there is none."""
    section = table.table("bind_retry")
    if section is None:
        return None
    found = _take_all(section, _RETRY)
    policy = RetryPolicy(**found)
    max_is_known = "max_delay" in found or not ("max_delay" in section or table.findings.partial)
    if "initial_delay" in found and max_is_known and policy.initial_delay > policy.max_delay:
        by_default = "" if "max_delay" in found else " by default"
        section.blame(
            "initial_delay", f"is longer than max_delay ({policy.max_delay:g} s{by_default})", "lower it, or raise that"
        )
    return policy


def take_limits(table: Table) -> Limits:
    section = table.table("limits")
    return Limits() if section is None else Limits(**_take_all(section, LIMITS))


def take_admin(table: Table, default: HostPort | None) -> HostPort | None:
    """Where the admin page listens; `default` where the file does not say."""
    section = table.table("admin")
    return default if section is None else section.take("listen", admin_listen, default)


def admin_is_asked_for(table: Table) -> bool:
    return isinstance(table.data.get("admin"), dict) and "listen" in table.data["admin"]


def blame_repeats(
    said: list[tuple[Spot, Any]], blame: Callable[[Spot, str, str], None], what: str, remedy: str
) -> None:
    """Blame each value that was said before; None is no value."""
    first: dict[Any, Spot] = {}
    for spot, value in said:
        if value is not None and first.setdefault(value, spot) is not spot:
            blame(spot, f"is {what} {first[value]} too", remedy)


def take_addresses(table: Table, key: str, read: Reader[HostPort], *, at_most: int) -> tuple[HostPort, ...] | None:
    """The addresses at `key`, each at most once; None where there are none. Port 0 is another one each time."""
    found = table.placed(key, read)
    if found is None:
        return None
    count = len(table.data[key])
    if not 1 <= count <= at_most:
        table.blame(key, f"has {count} members", f"write at least one, and at most {at_most}")
    said = [(table.spot(key, index), where if where.port else None) for index, where in found]
    blame_repeats(said, table.findings.blame, "the address at", "write each once")
    return tuple(where for _, where in found) or None


def _take_all(section: Table, readers: dict[str, Reader[Any]]) -> dict[str, Any]:
    found = {key: section.take(key, read, None) for key, read in readers.items()}
    return {key: value for key, value in found.items() if value is not None}


def _limit(key: str, kind: Any) -> Reader[Any]:
    if key == "buffer_budget":
        return whole(MIN_BUDGET_BYTES, MAX_BUDGET_BYTES)
    if kind is float:
        return number(0, DAY, above=key != "drain_seconds")  # not to wait at all is a way to stop
    return whole(1, MAX_COUNT)


LIMITS: dict[str, Reader[Any]] = {limit.name: _limit(limit.name, limit.type) for limit in fields(Limits)}
