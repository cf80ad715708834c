"""How a history is shown: tables and lines, on a terminal or anywhere else. Used by `history`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from tunnel.addresses import HostPort
from tunnel.cli.output import is_unicode, writable
from tunnel.columns import GAP, STYLES, Column, lay_out
from tunnel.history.figures import Figures, Outage
from tunnel.history.report import Moment, ProxyReport, Report, SessionReport, clients
from tunnel.wording import clean, human_seconds

SHOWN_FAILURES = 5  # of all proxies together; with a NAME twice as many


def shown_time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


def moment_line(moment: Moment) -> str:
    fields = moment.fields
    words = [shown_time(moment.at), clean("/".join(filter(None, (moment.client, moment.proxy)))), moment.kind]
    if fields.get("addr"):
        words.append(str(HostPort(clean(fields["addr"]), fields["port"])))
    if fields.get("seconds") is not None:
        words.append(f"for {human_seconds(fields['seconds'])}")
    if fields.get("failed_attempts"):
        words.append(_failed_attempts(fields["failed_attempts"]))
    why = ": ".join(clean(str(fields[key])) for key in ("version", "peer", "reason", "message") if fields.get(key))
    return "  ".join(filter(None, [*words, why]))


def print_report(report: Report, out: TextIO, *, name: str) -> None:
    """Tables on a terminal as wide as it is, in full anywhere else."""
    width: int | None = None
    console = None
    if out.isatty():
        from rich.console import Console

        console = Console(file=out, markup=False, highlight=False, soft_wrap=True)
        width = console.width
    ellipsis = "…" if is_unicode(out) else "..."
    for title, columns, lines in _parts(report, name):
        if title:
            _write(out, console, writable(title, out), "bold")
        for index, line in enumerate(lay_out(columns, width, ellipsis=ellipsis) if columns else []):
            text = GAP.join(cell for _, cell in line).rstrip()
            _write(out, console, writable(text, out), "bold" if not index else _style(columns, index - 1))
        for plain in lines:
            _write(out, console, writable(plain, out), "")


def _write(out: TextIO, console: Any, text: str, style: str) -> None:
    if console is None:
        out.write(f"{text}\n")
    else:
        console.print(text, style=style)


def _style(columns: Sequence[Column], row: int) -> str:
    for column in columns:
        if column.title == "NOW":
            return STYLES.get(column.cells[row].split(" ")[0], "")
    return ""


def _parts(report: Report, name: str) -> Iterator[tuple[str, list[Column], list[str]]]:
    """What is shown, in order: a title, a table, lines."""
    known = [f"{shown_time(report.since)} to {shown_time(report.until)}, {human_seconds(report.until - report.since)}"]
    first = min((run.began for run in report.runs), default=report.since)
    if first > report.since:
        known.append(f"the record begins at {shown_time(first)}")
    if report.lost:
        known.append(f"{report.lost} changes could not be kept: the figures are of the rest")
    if not report.proxies and not report.sessions:
        known.append("nothing is recorded of it")
    yield "", [], known
    if report.proxies:
        yield "", [], [""]
        yield "", _proxy_columns(report), []
    failures = sorted(
        ((one, outage) for one in report.proxies for outage in one.figures.last), key=lambda pair: -pair[1].began
    )[: SHOWN_FAILURES * (2 if name else 1)]
    if failures:
        lines = [_failure_line(f"{one.client}/{one.name}".lstrip("/"), outage) for one, outage in failures]
        yield "\nLast failures", [], lines
    if report.sessions:
        yield "\nSessions", _session_columns(report), _session_lines(report, SHOWN_FAILURES)


def _proxy_columns(report: Report) -> list[Column]:
    proxies = report.proxies
    found = [one.figures for one in proxies]
    roles, owners = {one.role for one in proxies}, {one.client for one in proxies}
    return [
        *([Column("SEEN BY", [one.role for one in proxies], worth=2)] if len(roles) > 1 else []),
        Column("CLIENT", [clean(one.client) for one in proxies], worth=8 if len(owners) > 1 else 1, flexible=True),
        Column("PROXY", [clean(one.name) for one in proxies], flexible=True),
        Column("NOW", [_now(one) for one in proxies], worth=6),
        Column("UPTIME", [_share(one.uptime) for one in found], right=True),
        Column("HEALTHY", [_length(one.healthy) for one in found], worth=4, right=True),
        Column("PUBLISHED", [_length(one.published) for one in found], worth=4, right=True),
        Column("OUTAGES", [str(one.outages) for one in found], worth=8, right=True),
        Column("LONGEST", [_length(one.longest) if one.outages else "-" for one in found], worth=6, right=True),
        Column("RETRIES", [str(one.retries) for one in found], worth=7, right=True),
        Column("GAVE UP", [str(one.gave_up) for one in found], worth=3, right=True),
        Column("BINDS", [_share(one.bind_success_rate) for one in found], worth=5, right=True),
        Column("RECOVERY p50/p95/max", [_recovery(one) for one in found], worth=5, right=True),
    ]


def _now(one: ProxyReport) -> str:
    return str(one.status) if one.is_now else f"({one.status})"


def _share(value: float | None) -> str:
    """``99.98 %``; never 100 % of what was not whole."""
    if value is None:
        return "-"
    if value in (0.0, 1.0):
        return f"{value:.0%}".replace("%", " %")
    return f"{min(max(value * 100, 0.01), 99.99):.2f} %"


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else human_seconds(seconds)


def _recovery(one: Figures) -> str:
    found = one.recoveries
    if found.median is None or found.p95 is None or found.max is None:
        return "-"
    return " / ".join(map(_length, (found.median, found.p95, found.max)))


def _failed_attempts(count: int) -> str:
    return f"{count} failed attempt{'s' if count != 1 else ''}"


def _failure_line(who: str, outage: Outage) -> str:
    attempts = f", {_failed_attempts(outage.failed)}" if outage.failed else ""
    why = ": ".join(clean(part) for part in (outage.reason, outage.message) if part)
    return f"{shown_time(outage.began)}  {clean(who)}: {outage.status} for {_length(outage.seconds)} ({outage.end}" + (
        f"{attempts}): {why}" if why else f"{attempts})"
    )


def _session_columns(report: Report) -> list[Column]:
    by_client = clients(report.sessions)
    return [
        Column("CLIENT", [clean(client) for _, client in by_client], flexible=True),
        Column("SEEN BY", [role for role, _ in by_client], worth=3),
        Column("SESSIONS", [str(len(several)) for several in by_client.values()], right=True),
        Column(
            "CONNECTED", [_length(sum(one.seconds for one in several)) for several in by_client.values()], right=True
        ),
        Column("FAILED TRIES", [str(sum(one.tries for one in several)) for several in by_client.values()], right=True),
        Column("ENDED BY", [_ends(several) for several in by_client.values()], flexible=True),
    ]


def _ends(several: Sequence[SessionReport]) -> str:
    counts: dict[str, int] = {}
    for one in several:
        counts[one.end or "still there"] = counts.get(one.end or "still there", 0) + 1
    return ", ".join(f"{count} {clean(end)}" for end, count in counts.items())


def _session_lines(report: Report, most: int) -> list[str]:
    ended = [one for one in report.sessions if one.end and one.end != "unknown"][-most:]
    return [
        f"{shown_time(one.began + one.seconds)}  {clean(one.client)}: {clean(one.end)} after {_length(one.seconds)}"
        + (f": {clean(one.message)}" if one.message else "")
        for one in reversed(ended)
    ]
