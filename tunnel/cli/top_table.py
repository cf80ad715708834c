"""What `trio-tunnel top` shows of a look: a table for a terminal or a file, and a line of JSON for programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tunnel.cli.rates import SORTS, Order, Row, total
from tunnel.cli.status_table import connection_words, nothing
from tunnel.columns import GAP, Column, append_line, lay_out
from tunnel.snapshot import utc_now
from tunnel.wording import clean, human_bytes

if TYPE_CHECKING:  # at run time only what draws on a terminal imports it
    from rich.text import Text


@frozen
class Look:
    """One answer, and how much grew in the `seconds` since the one before. With `trouble` there is no newer one."""

    where: str
    stats: dict[str, Any]
    rows: Sequence[Row]
    seconds: float | None = None
    trouble: str = ""


def summary_lines(look: Look) -> list[str]:
    """What it is, and all of it together."""
    found = total(look.rows)
    states = ", ".join(f"{number:,} {clean(state)}" for state, number in found.states.items() if number)
    role, version = clean(str(look.stats.get("role", ""))), clean(str(look.stats.get("version", "")))
    clients = len([one for one in look.stats.get("sessions", []) if isinstance(one, dict)])
    parts = [f"{role} {version} at {look.where}"]
    if role == "server":
        parts.append(f"{clients:,} client{'' if clients == 1 else 's'}")
    parts.append(f"{len(look.rows):,} prox{'y' if len(look.rows) == 1 else 'ies'}{f': {states}' if states else ''}")
    figures = [f"visitors {found.visitors:,}"]
    if look.seconds is not None:
        figures += [
            f"new {found.new_per_second:,.0f}/s", f"in {human_bytes(found.in_per_second)}/s",
            f"out {human_bytes(found.out_per_second)}/s", f"over {look.seconds:.1f} s",
        ]  # fmt: skip
    if (connection := connection_words(look.stats)) and not connection.startswith("connected"):
        parts.insert(1, "not connected")
    return ["   ".join(parts), "   ".join(figures)]


def _columns(rows: Sequence[Row], *, dot: str = "") -> list[Column]:
    return [
        Column("CLIENT", [row.client for row in rows], worth=5, flexible=True),
        Column("PROXY", [clean(row.view.name) for row in rows], flexible=True),
        Column("STATE", [dot + clean(row.view.status) for row in rows]),
        Column("REASON", [clean(row.view.reason or "") for row in rows], worth=1),
        Column("VISITORS", [f"{row.view.visitors:,}" for row in rows], worth=7, right=True),
        Column("NEW/S", [_number(row.new_per_second) for row in rows], worth=4, right=True),
        Column("IN/S", [_bytes(row.in_per_second) for row in rows], worth=6, right=True),
        Column("OUT/S", [_bytes(row.out_per_second) for row in rows], worth=6, right=True),
        Column("TOTAL", [human_bytes(row.total) for row in rows], worth=3, right=True),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else "-" if value < 0.05 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    return "" if value is None else "-" if value < 0.5 else human_bytes(value)


def render_plain(look: Look, order: Order) -> str:
    """Aligned columns without colour."""
    rows = order.of(look.rows)
    lines = [GAP.join(cell for _, cell in line).rstrip() for line in lay_out(_columns(rows), None)]
    if not rows:
        lines = [nothing(look.stats)]
    return "\n".join([f"{utc_now()}  {summary_lines(look)[0]}", summary_lines(look)[1], *lines])


def render_screen(look: Look, order: Order, *, width: int, height: int, unicode: bool = True) -> "Text":
    """The same for a whole terminal: as many rows as there is room for, and below them what keys do."""
    from rich.text import Text

    ellipsis = "…" if unicode else "..."
    rows = order.of(look.rows)
    text = Text(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    first, second = summary_lines(look)
    text.append(f"{first}\n{second}\n")
    room = max(1, height - 5 - (1 if look.trouble else 0))  # beside two lines above, the header, one for more, the keys
    visible = rows[:room]
    header, *lines = lay_out(_columns(visible, dot="● " if unicode else ""), width, ellipsis=ellipsis)
    text.append(GAP.join(cell for _, cell in header) if rows else nothing(look.stats), "bold" if rows else "")
    for line, row in zip(lines, visible, strict=True):
        text.append("\n")
        append_line(text, line, row.view.status)
    if len(rows) > room:
        text.append(f"\n{ellipsis} and {len(rows) - room:,} more", "dim")
    if look.trouble:
        text.append(f"\n{clean(look.trouble)}", "red")
    text.append("\n")
    return text.append_text(_keys(order))


def _keys(order: Order) -> "Text":
    from rich.text import Text

    text = Text("sort by ", "dim")
    for name, (letter, _) in SORTS.items():
        is_chosen = name == order.sort
        text.append(f"{letter} ", "bold" if is_chosen else "").append(name, "bold reverse" if is_chosen else "dim")
        text.append(" reversed  " if is_chosen and order.is_reversed else "  ", "dim")
    return text.append(" q ").append("quit", "dim")


def to_json(look: Look, order: Order) -> dict[str, Any]:
    """For programs; rates are bytes or visitors a second."""
    if look.trouble:
        return {"at": utc_now(), "error": look.trouble}
    found = total(look.rows)
    return {
        "at": utc_now(),
        "seconds": round(look.seconds or 0.0, 3),
        "role": look.stats.get("role"),
        "visitors": found.visitors,
        "new_per_second": round(found.new_per_second, 3),
        "in_per_second": round(found.in_per_second, 1),
        "out_per_second": round(found.out_per_second, 1),
        "states": found.states,
        "proxies": [_row_json(row) for row in order.of(look.rows)],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "client": row.client,
        "name": row.view.name,
        "status": row.view.status,
        "reason": row.view.reason,
        "visitors": row.view.visitors,
        "visitors_total": row.view.visitors_total,
        "bytes_in": row.view.bytes_in,
        "bytes_out": row.view.bytes_out,
        "new_per_second": round(row.new_per_second or 0.0, 3),
        "in_per_second": round(row.in_per_second or 0.0, 1),
        "out_per_second": round(row.out_per_second or 0.0, 1),
    }
