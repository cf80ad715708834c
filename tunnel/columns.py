"""Aligned columns for a terminal or a file: what goes and what shrinks where there is little room."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from tunnel.wording import MIN_FLEXIBLE

if TYPE_CHECKING:  # at run time only what draws on a terminal imports it
    from rich.text import Text

GAP = "  "
STYLES = {"healthy": "green", "unhealthy": "yellow", "bind_failed": "red"}  # of a state


@frozen
class Column:
    """`cells` of one column. Where there is little room, columns of the least `worth` go and flexible ones shrink."""

    title: str
    cells: Sequence[str]
    worth: int = 9
    right: bool = False
    flexible: bool = False


def lay_out(columns: Sequence[Column], width: int | None, *, ellipsis: str = "…") -> list[list[tuple[str, str]]]:
    """Lines of (column title, padded cell), the header first, no wider than `width` where that can be had."""
    kept = list(columns)
    widths = [max(len(text) for text in (column.title, *column.cells)) for column in kept]
    while width is not None and len(kept) > 2 and _least_total(kept, widths) > width:
        least = min(range(len(kept)), key=lambda index: kept[index].worth)
        del kept[least], widths[least]
    if width is not None:
        for index in [index for index, column in enumerate(kept) if column.flexible]:
            excess = sum(widths) + len(GAP) * (len(kept) - 1) - width
            widths[index] = max(min(widths[index], MIN_FLEXIBLE), widths[index] - max(0, excess))
    lines = zip(*((column.title, *column.cells) for column in kept), strict=True)
    return [
        [
            (column.title, _fit(cell, size, ellipsis, right=column.right))
            for column, cell, size in zip(kept, line, widths, strict=True)
        ]
        for line in lines
    ]


def _least_total(columns: Sequence[Column], widths: Sequence[int]) -> int:
    least = [min(size, MIN_FLEXIBLE) if column.flexible else size for column, size in zip(columns, widths, strict=True)]
    return sum(least) + len(GAP) * (len(least) - 1)


def _fit(text: str, width: int, ellipsis: str, *, right: bool) -> str:
    if len(text) > width:
        text = text[: max(0, width - len(ellipsis))] + ellipsis
    return text.rjust(width) if right else text.ljust(width)


def append_line(text: "Text", line: list[tuple[str, str]], status: str) -> None:
    """Add a laid-out line, its state in colour."""
    for index, (title, cell) in enumerate(line):
        style = STYLES.get(status, "") if title == "STATE" else "bold" if title == "PROXY" else ""
        text.append((GAP if index else "") + cell, style)
