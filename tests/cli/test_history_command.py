"""`trio-tunnel history`: what it prints for people and for programs, and what it takes for a time."""

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tunnel.cli.history import parse_since
from tunnel.cli.main import cli
from tunnel.errors import TunnelError
from tunnel.history.ledger import SessionSpan, Span
from tunnel.history.store import Run, Store


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Ten hours of one process: 'web' was down for six minutes, 'ssh' gave its port up for good after two retries."""
    now = datetime.now(UTC).timestamp()
    store = Store(tmp_path / "history.sqlite")
    run = Run("server", "1", now - 36_000, last=36_000.0, last_at=now)
    spans = [
        Span(1, "home", "web", 0.0, now, "healthy", addr="0.0.0.0", port=8001, binds=1, ended=18_000.0),
        Span(2, "home", "web", 18_000.0, now, "unhealthy", "target_down", "it said \x1b[31mno\x1b[0m", ended=18_360.0),
        Span(3, "home", "web", 18_360.0, now, "healthy", addr="0.0.0.0", port=8001),
        Span(4, "home", "ssh", 0.0, now, "unhealthy", "addr_in_use", "port 22 is taken", failed=2, ended=6.0),
        Span(5, "home", "ssh", 6.0, now, "bind_failed", "addr_in_use", "port 22 is taken", failed=1),
        Span(6, "lab", "web", 0.0, now, "healthy", addr="::1", port=9000, binds=1),
    ]
    sessions = [
        SessionSpan(7, "home", "192.0.2.1", 0.0, now, reason="lost", message="silent", ended=18_000.0),
        SessionSpan(8, "home", "192.0.2.1", 18_360.0, now),
        SessionSpan(9, "lab", "192.0.2.2", 0.0, now),
    ]
    store.write(run, spans, sessions)
    store.close()
    return tmp_path


def run(state: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["history", "--state-dir", str(state), *words])
    assert result.exit_code == code, result.output
    return result.output


def test_a_table_and_the_last_failures_and_the_sessions_for_people(state: Path) -> None:
    lines = run(state).splitlines()
    assert lines[1].startswith("the record begins at ")
    assert lines[3].split() == [
        "CLIENT", "PROXY", "NOW", "UPTIME", "HEALTHY", "PUBLISHED", "OUTAGES", "LONGEST", "RETRIES", "GAVE", "UP",
        "BINDS", "RECOVERY", "p50/p95/max",
    ]  # fmt: skip
    assert lines[4].split() == [
        "home", "ssh", "bind_failed", "0", "%", "0.0", "s", "10", "h", "1", "10", "h", "2", "1", "0", "%", "-",
    ]  # fmt: skip
    assert lines[5].split()[:9] == ["home", "web", "healthy", "99.00", "%", "9", "h", "10", "h"]
    assert lines[5].endswith("6 min / 6 min / 6 min")
    (down,) = [line for line in lines if "home/web: unhealthy" in line]
    assert "for 6 min (recovered): target_down: it said ?[31mno?[0m" in down
    (failed,) = [line for line in lines if "home/ssh: bind_failed" in line]
    assert "(ongoing, 3 failed attempts): addr_in_use: port 22 is taken" in failed
    assert any(line.split()[:3] == ["home", "server", "2"] and "1 lost, 1 still there" in line for line in lines)


def test_of_one_proxy_or_one_client_alone(state: Path) -> None:
    def names(*words: str) -> list[tuple[str, str]]:
        found = json.loads(run(state, "--json", *words))
        return [(one["client"], one["name"]) for one in found["proxies"]]

    assert names() == [("home", "ssh"), ("home", "web"), ("lab", "web")]
    assert names("web") == [("home", "web"), ("lab", "web")]
    assert names("lab/web") == names("web", "--client", "lab") == [("lab", "web")]
    assert names("--client", "home") == [("home", "ssh"), ("home", "web")]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_name_that_is_not_in_it_is_a_mistake(state: Path, more: list[str]) -> None:
    with pytest.raises(TunnelError, match=r"nothing is recorded of 'nothing' since 20.+; `trio-tunnel history` lists"):
        CliRunner().invoke(cli, ["history", "--state-dir", str(state), "nothing", *more], catch_exceptions=False)


def test_all_figures_for_programs(state: Path) -> None:
    found = json.loads(run(state, "ssh", "--json", "--since", "24h"))
    (ssh,) = found["proxies"]
    assert found["lost_changes"] == 0
    assert {key: ssh[key] for key in ("status", "reason", "is_now", "outages", "retries", "gave_up", "binds")} == {
        "status": "bind_failed", "reason": "addr_in_use", "is_now": True, "outages": 1, "retries": 2, "gave_up": 1,
        "binds": 0,
    }  # fmt: skip
    assert ssh["window"] == pytest.approx(86_400)
    assert ssh["recorded"] == pytest.approx(36_000, abs=60)
    assert (ssh["uptime"], ssh["bind_success_rate"], ssh["recoveries"]["median"]) == (0.0, 0.0, None)
    assert ssh["last"][0]["began"].endswith("Z")
    assert [(one["client"], one["end"], one["message"]) for one in found["sessions"]] == [
        ("home", "lost", "silent"), ("home", "", "")
    ]  # fmt: skip


def test_events_are_a_line_each_in_order(state: Path) -> None:
    lines = run(state, "--events").splitlines()
    assert lines[0].endswith("server.started  1")
    assert [line.split("  ")[2].split(" ")[0] for line in lines[1:]].count("proxy.healthy") == 3
    bodies = [json.loads(line) for line in run(state, "--events", "--json", "home/ssh").splitlines()]
    assert [(one["kind"], one["fields"]["failed_attempts"]) for one in bodies] == [
        ("proxy.unhealthy", 2), ("proxy.bind_failed", 1)
    ]  # fmt: skip
    assert bodies[0]["fields"]["seconds"] == 6


def test_a_window_that_begins_later_has_less_in_it(state: Path) -> None:
    assert json.loads(run(state, "home/web", "--json", "--since", "1h"))["proxies"][0]["outages"] == 0


def test_a_terminal_gets_what_fits_and_no_control_character(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    from tunnel.cli.history_table import print_report
    from tunnel.history.report import Wanted, read_report

    now = datetime.now(UTC).timestamp()
    print_report(read_report(state / "history.sqlite", Wanted(now - 86_400, now + 1)), out, name="")
    plain = re.sub(r"\x1b\[\d+m", "", out.getvalue())
    table = [line for line in plain.splitlines() if "UPTIME" in line or "99.00 %" in line]
    assert len(table) == 2
    assert table[0].startswith("CLIENT  PROXY")  # whose it is, is not left out where there are several
    assert all(len(line) <= 60 for line in table)
    assert "it said ?[31mno?[0m" in plain


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("90s", "2026-11-20T11:58:30+00:00"), ("30m", "2026-11-20T11:30:00+00:00"),
        ("12h", "2026-11-20T00:00:00+00:00"),
        ("7d", "2026-11-13T12:00:00+00:00"), ("4w", "2026-10-23T12:00:00+00:00"),
        ("2026-11-01", "2026-11-01T00:00:00+00:00"), ("2026-11-01T08:00", "2026-11-01T08:00:00+00:00"),
        ("2026-11-01T08:00+02:00", "2026-11-01T06:00:00+00:00"),
    ],
)  # fmt: skip
def test_a_time_is_a_length_or_a_date_in_utc(written: str, expected: str) -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert parse_since(written, now) == datetime.fromisoformat(expected)


@pytest.mark.parametrize("written", ["yesterday", "7", "", "2026-13-01", "2027-01-01", "999999w"])
def test_what_is_no_time_in_the_past_is_a_mistake(written: str) -> None:
    with pytest.raises(click.UsageError, match="--since: "):
        parse_since(written, datetime(2026, 11, 20, 12, tzinfo=UTC))


def test_where_there_is_no_history_it_says_where_to_look(tmp_path: Path) -> None:
    result: Any = CliRunner().invoke(cli, ["history", "--file", str(tmp_path / "none")])
    assert f"there is no history in {tmp_path / 'none'}" in str(result.exception)
