"""How fast the figures of /stats grow: between two answers, of each proxy, in any order. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import evolve, frozen

from tunnel.cli.status_table import proxies_of
from tunnel.snapshot import ProxyView


@frozen
class Row:
    """A proxy and its growth per second; None while there is only one answer."""

    client: str
    view: ProxyView
    new_per_second: float | None = None
    in_per_second: float | None = None
    out_per_second: float | None = None

    @property
    def bytes_per_second(self) -> float:
        return (self.in_per_second or 0.0) + (self.out_per_second or 0.0)

    @property
    def total(self) -> int:
        return self.view.bytes_in + self.view.bytes_out


def look(stats: dict[str, Any], before: Sequence[Row] | None = None, seconds: float = 0.0) -> list[Row]:
    """The rows of an answer; with the rows of `seconds` before, their growth since."""
    rows = [Row(client, view) for client, view in proxies_of(stats)]
    if before is None or seconds <= 0:
        return rows
    known = {(row.client, row.view.name): row.view for row in before}
    return [_grown(row, known.get((row.client, row.view.name)), seconds) for row in rows]


def _grown(row: Row, before: ProxyView | None, seconds: float) -> Row:
    now = row.view
    ended = (now.visitors_total, now.bytes_in, now.bytes_out)
    began = (before.visitors_total, before.bytes_in, before.bytes_out) if before else (0, 0, 0)
    if any(end < begin for end, begin in zip(ended, began, strict=True)):
        began = (0, 0, 0)  # a session of its own, which began in between
    grown = [(end - begin) / seconds for end, begin in zip(ended, began, strict=True)]
    return evolve(row, new_per_second=grown[0], in_per_second=grown[1], out_per_second=grown[2])


@frozen
class Totals:
    visitors: int
    new_per_second: float
    in_per_second: float
    out_per_second: float
    states: dict[str, int]


def total(rows: Iterable[Row]) -> Totals:
    """Of all proxies; nothing grows while there is only one answer."""
    visitors, new, into, out = 0, 0.0, 0.0, 0.0
    states = {"healthy": 0, "unhealthy": 0, "bind_failed": 0}
    for row in rows:
        visitors += row.view.visitors
        new += row.new_per_second or 0.0
        into += row.in_per_second or 0.0
        out += row.out_per_second or 0.0
        states[row.view.status] = states.get(row.view.status, 0) + 1
    return Totals(visitors, new, into, out, states)


# Order

_WORST_FIRST = {"bind_failed": 2, "unhealthy": 1, "healthy": 0}
_Key = Callable[[Row], float]
SORTS: dict[str, tuple[str, _Key]] = {  # by name: the key to press, and what is compared, the highest first
    "rate": ("r", lambda row: row.bytes_per_second),
    "visitors": ("v", lambda row: row.view.visitors),
    "new": ("w", lambda row: row.new_per_second or 0.0),
    "total": ("t", lambda row: row.total),
    "state": ("s", lambda row: _WORST_FIRST.get(row.view.status, 3)),
    "name": ("n", lambda row: 0),
}


@frozen
class Order:
    """Rows are sorted by `sort`, and by name where that is equal."""

    sort: str = "rate"
    is_reversed: bool = False

    def of(self, rows: Iterable[Row]) -> list[Row]:
        key = SORTS[self.sort][1]
        by_name = sorted(rows, key=lambda row: (row.client, row.view.name), reverse=self.is_reversed)
        return sorted(by_name, key=lambda row: key(row) if self.is_reversed else -key(row))

    def pressed(self, key: str) -> "Order":
        """The order that a key asks for; the same key again turns it round."""
        for name, (letter, _) in SORTS.items():
            if key == letter:
                return Order(name, is_reversed=name == self.sort and not self.is_reversed)
        return self
