"""Nothing waits or expires by the wall clock, which people and NTP set as they like: it is only shown. B45."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tunnel

ROOT = Path(tunnel.__file__).parent
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
SHOWN = {
    "admin/counts.py": "when the configuration was read, in a metric",
    "doctor/trust.py": "the days in a certificate, and what the clocks say",
    "notices/outcome.py": "the date that a receiver names for the next try",
    "notices/webhook.py": "the time in a signature",
    "server/expiry.py": "the days in a certificate",
    "certificates.py": "the days in a certificate",
    "cli/history.py": "until when the figures are",
    "history/recorder.py": "the times that are kept, by two clocks, and their age",
    "logs.py": "the time in a log line",
    "profile.py": "the time in a dump, and its name",
    "slow_steps.py": "when a step ended, in a dump",
    "snapshot.py": "`since`",
    "state.py": "when a token was made",
    "cli/status_table.py": "how long ago `since` was, for people",
}


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_the_wall_clock_is_looked_at_only_where_time_is_shown() -> None:
    found = {str(path.relative_to(ROOT)): WALL_CLOCKS & set(calls(path)) for path in ROOT.rglob("*.py")}
    assert {name for name, clocks in found.items() if clocks} == set(SHOWN)


def test_no_clock_is_taken_by_another_name() -> None:
    """`from time import time` would hide from the look above."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {"time", "time_ns"} & {alias.name for alias in node.names}, path
