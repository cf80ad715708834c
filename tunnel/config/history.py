"""What ``[history]`` says, as a `HistoryConfig`. Used by `server_file` and `file`."""

from pathlib import Path

from tunnel.config import HistoryConfig
from tunnel.config.table import Table
from tunnel.config.values import flag, number, path_from, whole

MAX_DAYS = 36_500.0  # a century
LEAST_ROWS, MOST_ROWS = 1000, 100_000_000  # a tenth of a megabyte, and twelve gigabytes


def take_history(table: Table, base: Path) -> HistoryConfig:
    section = table.table("history")
    usual = HistoryConfig()
    if section is None:
        return usual
    found = HistoryConfig(
        enabled=section.take("enabled", flag, None),
        file=section.take("file", path_from(base), None),
        max_age_days=section.take("max_age_days", number(0, MAX_DAYS, above=True), usual.max_age_days),
        max_rows=section.take("max_rows", whole(LEAST_ROWS, MOST_ROWS), usual.max_rows),
    )
    if found.file is not None and found.file.is_dir():
        section.blame("file", "is a directory", "name a file in it, such as history.sqlite")
    elif found.file is not None and not found.file.parent.is_dir():
        section.doubt("file", "is in a directory that is not there", f"make {found.file.parent}, or name another file")
    return found
