"""What the plots and the ratios show: which values, under which title, and which way is better. Pure."""

from collections.abc import Mapping

from attrs import frozen

OURS = "trio-tunnel"
PORTABLE = "portable"  # ours, too, on plain Trio waits
NO_PEERS = (OURS, PORTABLE, "naive", "direct")


@frozen
class Panel:
    key: str
    title: str
    digits: int = 0
    more_is_better: bool = True


PANELS = (
    Panel("requests_64", "requests/s, 64 connections"),
    Panel("p99_64_ms", "p99 ms, 64 connections", 2, more_is_better=False),
    Panel("requests_1", "requests/s, 1 connection"),
    Panel("p99_1_ms", "p99 ms, 1 connection", 3, more_is_better=False),
    Panel("cpu_us_per_request", "CPU µs per request", 1, more_is_better=False),
    Panel("new_connections", "new connections/s"),
    Panel("bulk_up", "Gbit/s up, 1 stream", 2),
    Panel("bulk_down", "Gbit/s down, 1 stream", 2),
    Panel("bulk_up_8", "Gbit/s up, 8 streams", 2),
    Panel("bulk_down_8", "Gbit/s down, 8 streams", 2),
    Panel("cpu_ms_per_mb", "CPU ms per MB", 2, more_is_better=False),
    Panel("small_alone_ms", "p99 ms of 8 small-request connections, alone", 2, more_is_better=False),
    Panel("small_beside_ms", "p99 ms of the 8 beside a bulk stream", 2, more_is_better=False),
    Panel("idle_kib", "KiB per idle, silent visitor", 1, more_is_better=False),
    Panel("rest_mib", "MiB at rest, all processes", 0, more_is_better=False),
    Panel("burst_slowest_ms", "ms, slowest of 200 visitors on a cold start", 0, more_is_better=False),
    Panel("first_byte_ms", "ms to a new visitor's first byte", 1, more_is_better=False),
    Panel("paced_rate", "visitors/s served, of 600 that come, 64 at a time"),
    Panel("paced_ms", "ms to their first byte, median", 1, more_is_better=False),
    Panel("paced_p99_ms", "ms to their first byte, p99", 1, more_is_better=False),
    Panel("crowd_rate", "new visitors/s, 64 at a time without a pause"),
    Panel("link_up_mbit", "Mbit/s up, one stream from its third second"),
    Panel("link_down_mbit", "Mbit/s down, one stream from its third second"),
    Panel("link_small_p99_ms", "p99 ms of 8 small-request connections, alone", 0, more_is_better=False),
    Panel("link_beside_p99_ms", "p99 ms of the 8 beside a bulk stream", 0, more_is_better=False),
)

Medians = Mapping[str, Mapping[str, float]]  # by system, then by key


def values_of(panel: Panel, medians: Medians) -> dict[str, float]:
    """Each system's that has one."""
    return {name: values[panel.key] for name, values in medians.items() if panel.key in values}


def best_of(panel: Panel, values: Mapping[str, float]) -> str | None:
    """The name of the best; None of nothing."""
    pick = max if panel.more_is_better else min
    return pick(values, key=lambda name: values[name], default=None)


def peers_of(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in NO_PEERS}


def quality(panel: Panel, value: float, best: float) -> float:
    """How near it comes to the best, from 0 to 1."""
    if value <= 0 or best <= 0:
        return 1.0 if value == best else 0.0
    return min(1.0, value / best if panel.more_is_better else best / value)


def ratio_rows(medians: Medians) -> list[list[str]]:
    """A head, then a row a panel: our value, the best peer and its value, ours divided by it and by each peer's."""
    peers = [name for name in medians if name not in NO_PEERS]
    rows = [["figure", OURS, "best peer", "÷ best", *(f"÷ {peer}" for peer in peers)]]
    for panel in PANELS:
        values = values_of(panel, medians)
        best = best_of(panel, peers_of(values))
        if best is None or OURS not in values:
            continue
        ours = values[OURS]
        row = [panel.title, f"{ours:,.{panel.digits}f}", f"{best} {values[best]:,.{panel.digits}f}"]
        row.append(f"**{_ratio(ours, values[best])}**")
        row += [_ratio(ours, values.get(peer)) for peer in peers]
        rows.append(row)
    return rows if len(rows) > 1 else []


def _ratio(ours: float, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if theirs else "–"
