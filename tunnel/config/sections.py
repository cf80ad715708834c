"""The parts that several config sections have: files, retry policies, limits, admin. Used by `server_file` and
`client_file` and their helpers.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import evolve, fields

from tunnel.addresses import HostPort
from tunnel.backoff import LinearPolicy, Policy, RetryPolicy
from tunnel.certificates import ca_problem, pair_unfit
from tunnel.config import LOG_LEVELS, TLS_VERSIONS, Limits
from tunnel.config.credentials import as_passed
from tunnel.config.table import Spot, Table
from tunnel.config.token_file import exposed
from tunnel.config.values import (
    DAY,
    MAX_COUNT,
    Reader,
    admin_listen,
    flag,
    host,
    number,
    one_of,
    or_word,
    path_from,
    whole,
)

PAIR = "cert_file", "key_file"
MAX_BUDGET_BYTES = 2**50
MAX_PEM_BYTES = 8 * 1024 * 1024  # a system's CAs are a quarter of a megabyte
MIN_BUDGET_BYTES = 1024 * 1024  # sixteen streams with the first window of 64 KiB

FOREVER = "forever"
EXPONENTIAL, LINEAR = "exponential", "linear"
_MAX_RETRIES: Reader[Any] = or_word(FOREVER, whole(0, MAX_COUNT))
_POLICIES: dict[str, tuple[Policy, dict[str, Reader[Any]]]] = {
    EXPONENTIAL: (
        RetryPolicy(),
        {
            "initial_delay": number(0, DAY, above=True),
            "factor": number(1, 1000),
            "max_delay": number(0, DAY, above=True),
            "max_retries": _MAX_RETRIES,
            "jitter": number(0, 1),
        },
    ),
    LINEAR: (LinearPolicy(), {"step": number(0, DAY, above=True), "max_retries": _MAX_RETRIES}),
}
_ABSENT = object()  # None is a value of `max_retries`


def take_file(table: Table, key: str, base: Path) -> Path | None:
    """The path at `key`, of a file that must be there and be readable; where systemd passed it, of what it passed."""
    path = table.take(key, path_from(base), None)
    if path is None:
        return None
    path = as_passed(path)
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


def take_key_file(table: Table, key: str, base: Path, *, group: bool = False) -> Path | None:
    """As `take_file`, of a private key: refused when others can read it; with `group` its group may."""
    path = take_file(table, key, base)
    if path is not None and (problem := exposed(path, group=group)) is not None:
        table.blame(key, *problem)
        return None
    return path


def take_ca_file(table: Table, key: str, base: Path) -> Path | None:
    """As `take_file`, of certificates to trust."""
    path = take_file(table, key, base)
    if path is not None and os.access(path, os.R_OK) and (problem := ca_problem(path)) is not None:
        table.blame(key, *problem)
        return None
    return path


def take_pair(
    table: Table, base: Path, keys: tuple[str, str] = PAIR, *, group: bool = False, without: str
) -> tuple[Path | None, Path | None]:
    """A certificate's file and its key's, both or neither; `without` says what happens where there is neither."""
    for one, other in (keys, keys[::-1]):
        if one in table and other not in table:
            table.missing(other, f"add {other}, or take {one} away{without}", beside=one)
    cert_file, key_file = take_file(table, keys[0], base), take_key_file(table, keys[1], base, group=group)
    if cert_file is None or key_file is None:
        return cert_file, key_file
    is_readable = os.access(cert_file, os.R_OK) and os.access(key_file, os.R_OK)  # else that has been told
    if is_readable and (problem := pair_unfit(cert_file, key_file)) is not None:
        table.blame(keys[1], *problem)
    return cert_file, key_file


def content_stamp(paths: Iterable[Path | None]) -> str:
    """Changes with what these files hold; empty where none is named. One that cannot be read is as an empty one."""
    digest, is_any = hashlib.sha256(), False
    for path in paths:
        if path is not None:
            is_any = True
            with suppress(OSError), path.open("rb") as file:
                digest.update(file.read(MAX_PEM_BYTES))
        digest.update(b"\0")
    return digest.hexdigest() if is_any else ""


def take_process(table: Table) -> dict[str, Any]:
    """What concerns the process, whatever it is."""
    return {
        "watch": table.take("watch", flag, True),
        "log_level": table.take("log_level", one_of(LOG_LEVELS, "log level"), None),
    }


def take_min_version(section: Table | None) -> str:
    """``min_version`` of ``[tls]``."""
    default = TLS_VERSIONS[0]
    return default if section is None else section.take("min_version", one_of(TLS_VERSIONS, "TLS version"), default)


def take_state_dir(table: Table, base: Path) -> Path | None:
    path = table.take("state_dir", path_from(base), None)
    if path is not None and os.path.lexists(path) and not os.path.isdir(path):
        table.blame("state_dir", "is not a directory", "name a directory; it is made where there is none")
    return path


def take_bind_retry(table: Table) -> Policy | None:
    """``bind_retry`` of the server or of a proxy; None where there is none."""
    return take_policy(table, "bind_retry", RetryPolicy())


def take_policy(table: Table, key: str, default: Policy) -> Policy | None:
    """The retry policy in the table at `key`; None where there is none.

    `default` gives the type where none is written, and what is not written of a policy of its own type.
    """
    section = table.table(key)
    if section is None:
        return None
    usual = LINEAR if isinstance(default, LinearPolicy) else EXPONENTIAL
    written = section.take("type", one_of((EXPONENTIAL, LINEAR), "type of policy"), None)
    chosen = written or usual
    base, readers = _POLICIES[chosen]
    taken = {name: section.take(name, read, _ABSENT) for name, read in readers.items()}
    found: dict[str, Any] = {name: value for name, value in taken.items() if value is not _ABSENT}
    is_sure = written is not None or not ("type" in section or section.findings.partial)
    _know_foreign(section, chosen, blame=is_sure)
    start: Any = default if chosen == usual else base
    policy: Policy = evolve(start, **found)
    if isinstance(policy, RetryPolicy):
        _check_first_delay(section, policy, found)
    return policy


def _know_foreign(section: Table, chosen: str, *, blame: bool) -> None:
    """The keys of the policies that were not chosen are keys, too, and what they say is to be blamed all the same."""
    for other, (_, readers) in _POLICIES.items():
        for name in (name for name in readers if name not in _POLICIES[chosen][1]):
            section.known.append(name)
            if blame and name in section:
                remedy = f'take it away, or write type = "{other}"'
                section.blame(name, f"means nothing to a policy of type {chosen}", remedy)


def _check_first_delay(section: Table, policy: RetryPolicy, found: dict[str, Any]) -> None:
    max_is_known = "max_delay" in found or not ("max_delay" in section or section.findings.partial)
    if "initial_delay" in found and max_is_known and policy.initial_delay > policy.max_delay:
        by_default = "" if "max_delay" in found else " by default"
        section.blame(
            "initial_delay", f"is longer than max_delay ({policy.max_delay:g} s{by_default})", "lower it, or raise that"
        )


def take_limits(table: Table) -> Limits:
    section = table.table("limits")
    return Limits() if section is None else Limits(**_take_all(section, LIMITS))


def take_admin(table: Table, default: HostPort | None) -> tuple[HostPort | None, tuple[str, ...]]:
    """Where the admin page listens, `default` where the file does not say; and by which names it may be asked."""
    section = table.table("admin")
    if section is None:
        return default, ()
    return section.take("listen", admin_listen, default), section.many("hosts", host, ())


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
