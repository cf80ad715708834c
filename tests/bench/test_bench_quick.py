"""The benchmark runs and its output is well formed. What it measured is nobody's business here."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISSING = [program for program in ("wrk", "nginx") if not shutil.which(program)]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"the benchmark needs {', '.join(MISSING)}")
def test_quick_benchmark_writes_well_formed_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "quick.json").read_text())
    ours = found["systems"]["trio-tunnel"]
    assert ours["notes"] == [], done.stderr
    assert {"requests_64", "p99_64_ms", "cpu_us_per_request", "rest_mib", "burst_served"} <= set(ours["medians"])
    assert ours["medians"]["idle_things_proxies"] == 50
    assert ("figure connections" in found["skipped"]) == (shutil.which("ab") is None)
    assert ("bulk_down" in ours["medians"]) == (shutil.which("iperf3") is not None)

    assert len(found["busy_percent"]) == found["rounds"] == 1

    markdown = (tmp_path / "quick.md").read_text()
    tables = [part.splitlines() for part in markdown.split("\n\n") if part.startswith("|")]
    for rows in tables:
        assert len({row.count("|") for row in rows}) == 1, markdown
    assert {"| direct", "| **trio-tunnel**"} <= {row[: row.index(" |", 1)] for row in tables[0][2:]}
    assert len(tables) == (1 if "haproxy" in found["skipped"] else 2)  # ratios to peers
    for part in (found["machine"]["cpu"], found["machine"]["kernel"], found["command"]):
        assert part in markdown

    plot = ElementTree.parse(tmp_path / "quick.svg").getroot()
    assert plot.tag.endswith("svg")
    assert list(plot.iter("{http://www.w3.org/2000/svg}rect"))


@pytest.mark.e2e
@pytest.mark.slow
def test_quick_pool_benchmark_serves_every_healthy_address_over_kept_connections(tmp_path: Path) -> None:
    """Counts only: they hold on any machine."""
    command = [sys.executable, "-m", "tests.bench", "pool", "--quick", "--addresses", "50", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "pool-quick.json").read_text())
    assert found["addresses"] == 50
    for name, faulty in (("no faults", 0), ("12 % faulty", 6)):
        run = found["runs"][name]
        (hot,) = run["hot"]
        assert run["warm_up"]["failed"]["healthy"] == hot["failed"]["healthy"] == hot["failed"]["dying"] == 0, hot
        assert hot["served"]["healthy"] == 50 - faulty
        assert hot["service"]["healthy_handshakes"] == 0
        assert run["pool"]["retired"].get("dead", 0) == hot["served"]["dying"] == faulty // 3

    markdown = (tmp_path / "pool-quick.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1, markdown
    assert found["command"] in markdown
