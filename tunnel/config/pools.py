"""What `client.toml` says of pools: ``data_channels``, and of each proxy ``pool`` with its short forms ``hot`` and
``balance``. Used by `config_file` and `client_file`.

What is not written follows what is: a `min` above the usual `max` raises that. What is written must agree.
"""

from typing import Any

from attrs import evolve, frozen

from tunnel.config import DATA_CHANNELS, HOT_TARGETS, PoolConfig
from tunnel.config.sections import take_policy
from tunnel.config.table import Spot, Table
from tunnel.config.values import DAY, Reader, number, one_of, or_word, whole

MAX_DATA_CHANNELS = 64
MAX_HOT = 256  # unused connections to one proxy's targets: more than most services let one peer have
MAX_FILL = 10_000.0  # a second; no process here opens more
CHOICES = ("least_load", "round_robin")
NEVER = "never"
SHORT_FORMS = {"hot": "min", "balance": "choice"}  # keys of a proxy, and what they are in its pool
_ABSENT = object()  # None is a value here: never


@frozen
class _Said:
    """A value that was written and could be read."""

    value: Any
    spot: Spot


def take_data_channels(table: Table) -> PoolConfig:
    """``data_channels``: a number, which is `min`, or a table."""
    readers = _readers(1, MAX_DATA_CHANNELS)
    if isinstance(table.data.get("data_channels"), dict):
        section = table.table("data_channels")
        assert section is not None
        return _pool(_take_said(section, readers), DATA_CHANNELS, section)
    said = {}
    if (count := table.take("data_channels", readers["min"], None)) is not None:
        said["min"] = _Said(count, table.spot("data_channels"))
    return _pool(said, DATA_CHANNELS, None)


def take_target_pool(entry: Table) -> PoolConfig:
    """``pool`` of a proxy, with the short forms beside it."""
    readers = _readers(0, MAX_HOT)
    section = entry.table("pool")
    said = {} if section is None else _take_said(section, readers)
    for short, key in SHORT_FORMS.items():
        value = entry.take(short, readers[key], None)
        if section is not None and short in entry and key in section:
            entry.blame(short, f"stands beside pool.{key}", "keep one of the two")
        elif value is not None:
            said[key] = _Said(value, entry.spot(short))
    return _pool(said, HOT_TARGETS, section)


def _readers(least: int, most: int) -> dict[str, Reader[Any]]:
    """Of each key; `least` is for `min`, `most` for every count."""
    seconds = number(0, DAY, above=True)
    return {
        "min": whole(least, most),
        "min_per_address": whole(0, most),
        "max": whole(1, most),
        "max_per_address": whole(1, most),
        "fill_rate": number(0, MAX_FILL, above=True),
        "fill_concurrency": whole(1, most),
        "max_age": or_word(NEVER, seconds),
        "age_jitter": number(0, 1),
        "idle_limit": or_word(NEVER, seconds),
        "probe_interval": or_word(NEVER, seconds),
        "open_seconds": seconds,
        "validate_seconds": seconds,
        "wait_seconds": seconds,
        "lease_seconds": or_word(NEVER, seconds),
        "choice": one_of(CHOICES, "choice"),
    }


def _take_said(section: Table, readers: dict[str, Reader[Any]]) -> dict[str, _Said]:
    found = {key: section.take(key, read, _ABSENT) for key, read in readers.items()}
    return {key: _Said(value, section.spot(key)) for key, value in found.items() if value is not _ABSENT}


def _pool(said: dict[str, _Said], default: PoolConfig, section: Table | None) -> PoolConfig:
    values = {key: one.value for key, one in said.items()}
    if section is not None:
        _check_counts(said, section)
        values["quarantine"] = take_policy(section, "quarantine", default.quarantine) or default.quarantine
        values["retry"] = take_policy(section, "retry", default.retry) or default.retry
    return evolve(default, **{**values, **_counts(values, default)})


def _check_counts(said: dict[str, _Said], section: Table) -> None:
    """Blame counts that contradict each other; each at most once."""
    blamed = set()
    for low, high in (
        ("min", "max"),
        ("min_per_address", "max_per_address"),
        ("min_per_address", "max"),
        ("max_per_address", "max"),
    ):
        if low in said and high in said and said[low].value > said[high].value and low not in blamed:
            blamed.add(low)
            problem = f"is more than {high} ({said[high].value})"
            section.findings.blame(said[low].spot, problem, f"lower it, or raise {high}")


def _counts(said: dict[str, Any], default: PoolConfig) -> dict[str, Any]:
    """The four counts, those that were not said made to agree with those that were."""
    floor = max(said.get("min", 0), said.get("min_per_address", 0))
    most = said.get("max") or max(default.max, floor, said.get("max_per_address", 0))
    each = said.get("max_per_address") or min(most, max(default.max_per_address, floor))
    return {
        "min": said.get("min", min(default.min, most)),
        "min_per_address": said.get("min_per_address", min(default.min_per_address, each, said.get("min", each))),
        "max": most,
        "max_per_address": each,
    }
