"""What a run has shown: a Markdown table with systems as rows, and JSON with every single value."""

import json
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from attrs import frozen

from .figures import Column, Figure
from .rounds import Measured

MISSING = "–"
DIRECTIONS = "Up is from the visitor to the service, down the other way, and bulk beside small requests flows down."
LEGEND = (
    f"{DIRECTIONS} CPU and memory count all processes of a system, at both ends. A cold burst is that many visitors at "
    "once, right after the start. An idle visitor has connected and is silent; later it has been served one request."
)
LINK_LEGEND = (
    "Visitors and the public end are on one side of the link, the tunnel's client and the services on the other. "
    f"{DIRECTIONS}"
)


@frozen
class Report:
    title: str
    command: str
    taken: str  # when
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rounds: int
    seconds: float
    link: Mapping[str, float] | None
    figures: Sequence[Figure]
    measured: Mapping[str, Measured]
    busy: Sequence[float]  # percent of the CPU that others used before each round
    skipped: Mapping[str, str]  # system: why

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "command": self.command,
            "taken": self.taken,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "busy_percent": list(self.busy),
            "link": dict(self.link) if self.link else None,
            "systems": {
                name: {"medians": one.medians(), "values": one.values, "notes": one.notes}
                for name, one in self.measured.items()
            },
            "skipped": dict(self.skipped),
        }


def shown_number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def shown_cell(column: Column, medians: Mapping[str, float]) -> str:
    if not any(key in medians for key in column.keys):
        return MISSING
    parts = [shown_number(medians[key], column.digits) if key in medians else MISSING for key in column.keys]
    return " / ".join(parts) + (f" of {column.total}" if column.total else "")


def table(report: Report) -> list[str]:
    columns = [column for figure in report.figures for column in figure.columns]
    lines = ["| system | " + " | ".join(column.head for column in columns) + " |", "|---|" + "--:|" * len(columns)]
    for name, measured in report.measured.items():
        medians = measured.medians()
        shown = f"**{name}**" if name == "trio-tunnel" else name
        lines.append(f"| {shown} | " + " | ".join(shown_cell(column, medians) for column in columns) + " |")
    return lines


def to_markdown(report: Report) -> str:
    machine = report.machine
    lines = [
        f"# {report.title}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {report.taken}.",
        f"Medians of interleaved rounds: {report.rounds}, {report.seconds:g} s a load. Before each, others used "
        f"{', '.join(f'{busy:.0f}' for busy in report.busy)} % of the CPU. Command:",
        "",
        f"    {report.command}",
        "",
        *table(report),
        "",
        *wrap(LINK_LEGEND if report.link else LEGEND, 120),
        "",
        "Versions: " + "; ".join(f"{name} {version}" for name, version in report.versions.items()) + ".",
    ]
    if report.skipped:
        lines += ["", "Skipped: " + "; ".join(f"{name} ({why})" for name, why in report.skipped.items()) + "."]
    notes = [f"- {name}, {note}" for name, measured in report.measured.items() for note in measured.notes]
    if notes:
        lines += ["", "Failed, and missing from the medians:", "", *notes]
    return "\n".join(lines) + "\n"


def to_json_text(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
