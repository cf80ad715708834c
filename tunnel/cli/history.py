"""`trio-tunnel history`: parses, reads a file, prints."""

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.names import offer_proxies
from tunnel.cli.options import FILE, SETTINGS, json_option, state_option
from tunnel.errors import TunnelError

if TYPE_CHECKING:
    from tunnel.history.report import Moment, Report

_LENGTH = re.compile(r"(\d{1,6})\s*(s|m|min|h|d|w)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
KEPT = 10  # failures of each proxy in the JSON


@click.command(context_settings=SETTINGS, short_help="Uptime, outages and retries of the past.")
@click.argument("name", required=False, default="", shell_complete=offer_proxies)
@click.option("--client", default="", metavar="NAME", help="Only this client's proxies and sessions.")
@click.option(
    "--since", default="7d", show_default=True, metavar="WHEN", help="90s, 30m, 12h, 7d, 4w ago, or a UTC date or time."
)
@click.option("--events", is_flag=True, help="Everything that happened, a line each, instead of the figures.")
@click.option("--file", type=FILE, help="The history file, where it is not in the state directory.")
@state_option
@json_option
def history(
    name: str, client: str, since: str, events: bool, file: Path | None, state_dir: Path | None, as_json: bool
) -> None:
    """How reachable each proxy was: its uptime, outages, bind retries and recoveries, its last failures, and its
    client's sessions. With NAME (or CLIENT/NAME) of that proxy alone.

    Read from the file that `serve` keeps in its state directory (`connect` where it has one), running or not.

    \b
    Examples:
      trio-tunnel history
      trio-tunnel history home/web --since 30d
      trio-tunnel history --since 2026-11-01 --events --json
    """
    import json

    from tunnel.cli.history_table import moment_line, print_report, shown_time
    from tunnel.history.report import Wanted, read_moments, read_report

    until = datetime.now(UTC)
    began = parse_since(since, until)
    path = file or _default_file(state_dir)
    wanted = Wanted(began.timestamp(), until.timestamp(), client, name)
    if events:
        for moment in read_moments(path, wanted):
            click.echo(json.dumps(moment_json(moment)) if as_json else moment_line(moment))
        return
    report = read_report(path, wanted, keep=KEPT)
    if name and not report.proxies:
        began_at = shown_time(report.since)
        raise TunnelError(f"nothing is recorded of {name!r} since {began_at}; `trio-tunnel history` lists the names")
    if as_json:
        click.echo(json.dumps(report_json(report), indent=2))
    else:
        print_report(report, sys.stdout, name=name)


def parse_since(written: str, now: datetime) -> datetime:
    """A length of time before `now`, or a date or a time, which is UTC where it does not say."""
    if found := _LENGTH.fullmatch(written.strip()):
        try:
            return now - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        except OverflowError:
            raise click.UsageError(f"--since: {written} is before all calendars") from None
    try:
        at = datetime.fromisoformat(written.strip())
    except ValueError:
        raise click.UsageError(
            f"--since: {written!r} is no time; write a length such as 12h or 7d, or a date such as 2026-11-01"
        ) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    if at >= now:
        raise click.UsageError(f"--since: {written} is not in the past (it is {now:%Y-%m-%dT%H:%M}Z now)")
    return at


def _default_file(state_dir: Path | None) -> Path:
    from tunnel.history.place import FILE_NAME
    from tunnel.state import default_state_dir

    return (state_dir or default_state_dir()) / FILE_NAME


def report_json(report: "Report") -> dict[str, Any]:
    from attrs import asdict

    def proxy(one: Any) -> dict[str, Any]:
        body: dict[str, Any] = asdict(one)
        for outage in body["figures"]["last"]:
            outage["began"] = iso(outage["began"])
        figures = body.pop("figures")
        return {**body, **figures}

    return {
        "file": str(report.file), "since": iso(report.since), "until": iso(report.until),
        "lost_changes": report.lost,
        "processes": [{**asdict(run), "began": iso(run.began), "ended": iso(run.ended)} for run in report.runs],
        "proxies": [proxy(one) for one in report.proxies],
        "sessions": [{**asdict(one), "began": iso(one.began)} for one in report.sessions],
    }  # fmt: skip


def moment_json(moment: "Moment") -> dict[str, Any]:
    return {
        "at": iso(moment.at), "kind": moment.kind, "client": moment.client, "proxy": moment.proxy,
        "fields": moment.fields,
    }  # fmt: skip


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
