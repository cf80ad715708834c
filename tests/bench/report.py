"""What a run has shown: Markdown tables, and JSON with every single value. Pure.

One condition (loopback, or a link) has systems as rows; several links have systems as columns, a row a figure and link.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from attrs import frozen

from .figures import Column, Figure
from .link import LinkSpec
from .panels import OURS, Medians, ratio_rows
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
class Cell:
    """What was measured under one condition."""

    link: LinkSpec | None  # None: loopback
    measured: Mapping[str, Measured]
    busy: Sequence[float]  # percent of the CPU that others used before each round

    def medians(self) -> Medians:
        return {name: measured.medians() for name, measured in self.measured.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "busy_percent": list(self.busy),
            "link": self.link.to_json() if self.link else None,
            "systems": {
                name: {"medians": one.medians(), "values": one.values, "notes": one.notes}
                for name, one in self.measured.items()
            },
        }


@frozen
class Report:
    title: str
    command: str
    taken: str  # when
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rounds: int
    seconds: float
    figures: Sequence[Figure]
    cells: Sequence[Cell]
    skipped: Mapping[str, str]  # system: why

    def to_json(self) -> dict[str, Any]:
        """Of one condition it is flat; several are in `cells`."""
        cells = [cell.to_json() for cell in self.cells]
        return {
            "title": self.title,
            "command": self.command,
            "taken": self.taken,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "rounds": self.rounds,
            "seconds": self.seconds,
            **(cells[0] if len(cells) == 1 else {"cells": cells}),
            "skipped": dict(self.skipped),
        }


def shown_number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def shown_cell(column: Column, medians: Mapping[str, float]) -> str:
    if not any(key in medians for key in column.keys):
        return MISSING
    parts = [shown_number(medians[key], column.digits) if key in medians else MISSING for key in column.keys]
    return " / ".join(parts) + (f" of {column.total}" if column.total else "")


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def strong(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def table(figures: Sequence[Figure], medians: Medians) -> list[str]:
    """A row a system."""
    columns = [column for figure in figures for column in figure.columns]
    lines = [row(["system", *(column.head for column in columns)]), "|---|" + "--:|" * len(columns)]
    for name, values in medians.items():
        lines.append(row([strong(name), *(shown_cell(column, values) for column in columns)]))
    return lines


def links_table(figures: Sequence[Figure], cells: Sequence[Cell]) -> list[str]:
    """A row a figure's column and link, so that what is compared stands side by side."""
    systems = list(dict.fromkeys(name for cell in cells for name in cell.measured))
    lines = [row(["figure", "link", *map(strong, systems)]), "|---|---|" + "--:|" * len(systems)]
    for column in (column for figure in figures for column in figure.columns):
        for cell in cells:
            medians = cell.medians()
            shown = (shown_cell(column, medians.get(name, {})) for name in systems)
            lines.append(row([column.head, str(cell.link) if cell.link else "loopback", *shown]))
    return lines


def ratios(medians: Medians) -> list[str]:
    """Empty without a peer."""
    rows = ratio_rows(medians)
    if not rows:
        return []
    head, *rest = rows
    intro = "Its figures beside the best peer's, and divided by each peer's:"
    return ["", intro, "", row(head), "|---|" + "--:|" * (len(head) - 1), *map(row, rest)]


def to_markdown(report: Report) -> str:
    machine, cells = report.machine, report.cells
    busy = ", ".join(f"{percent:.0f}" for cell in cells for percent in cell.busy)
    lines = [
        f"# {report.title}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {report.taken}.",
        f"Medians of interleaved rounds: {report.rounds}, {report.seconds:g} s a load. Before each, others used "
        f"{busy} % of the CPU. Command:",
        "",
        f"    {report.command}",
        "",
    ]
    if len(cells) == 1:
        lines += [*table(report.figures, cells[0].medians()), *ratios(cells[0].medians())]
    else:
        lines += links_table(report.figures, cells)
    lines += [
        "",
        *wrap(LINK_LEGEND if cells[0].link else LEGEND, 120),
        "",
        "Versions: " + "; ".join(f"{name} {version}" for name, version in report.versions.items()) + ".",
    ]
    if report.skipped:
        lines += ["", "Skipped: " + "; ".join(f"{name} ({why})" for name, why in report.skipped.items()) + "."]
    if notes := list(failures(cells)):
        lines += ["", "Failed, and missing from the medians:", "", *notes]
    return "\n".join(lines) + "\n"


def failures(cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        where = f" across {cell.link}" if len(cells) > 1 and cell.link else ""
        for name, measured in cell.measured.items():
            yield from (f"- {name}{where}, {note}" for note in measured.notes)


def to_json_text(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
