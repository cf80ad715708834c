"""The main ratios as an SVG bar plot, written by hand. Each panel is a figure; its bars compare with trio-tunnel's."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from attrs import frozen

OURS = "trio-tunnel"
PANEL_WIDTH, BAR_HEIGHT, BAR_STEP, HEAD_HEIGHT, MARGIN = 420, 14, 20, 46, 16
NAME_WIDTH, VALUE_WIDTH = 84, 116
FONT = "font-family='system-ui, sans-serif' font-size='12'"


@frozen
class Panel:
    key: str
    title: str
    digits: int = 0
    more_is_better: bool = True


PANELS = (
    Panel("requests_64", "requests/s, 64 connections"),
    Panel("p99_64_ms", "p99 ms, 64 connections", 2, more_is_better=False),
    Panel("new_connections", "new connections/s"),
    Panel("requests_1", "requests/s, 1 connection"),
    Panel("bulk_up", "Gbit/s up, 1 stream", 2),
    Panel("bulk_down", "Gbit/s down, 1 stream", 2),
    Panel("cpu_us_per_request", "CPU µs per request", 1, more_is_better=False),
    Panel("cpu_ms_per_mb", "CPU ms per MB", 2, more_is_better=False),
    Panel("small_beside_ms", "p99 ms of small requests beside bulk", 2, more_is_better=False),
    Panel("idle_kib", "KiB per idle, silent visitor", 1, more_is_better=False),
    Panel("first_byte_ms", "ms to a new visitor's first byte", 0, more_is_better=False),
    Panel("crowd_rate", "new visitors/s, 64 at a time"),
    Panel("link_up_mbit", "Mbit/s up, one stream"),
    Panel("link_down_mbit", "Mbit/s down, one stream"),
    Panel("link_small_p99_ms", "p99 ms of small requests alone", 0, more_is_better=False),
    Panel("link_beside_p99_ms", "p99 ms of small requests beside bulk", 0, more_is_better=False),
)


def text(x: float, y: float, content: str, *, anchor: str = "start", extra: str = "") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {FONT} fill='#24292f' {extra}>{escape(content)}</text>"
    )


def bars(panel: Panel, values: Mapping[str, float], left: float, top: float) -> list[str]:
    order = "more is better" if panel.more_is_better else "less is better"
    parts = [
        text(left, top + 14, panel.title, extra="font-weight='bold'"),
        text(left, top + 30, f"{order}; × is the ratio to {OURS}" if OURS in values else order, extra="opacity='0.6'"),
    ]
    longest = max(*values.values(), 1e-9) if len(values) > 1 else max(values.values())
    room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
    for index, name in enumerate(sorted(values, key=lambda name: values[name], reverse=panel.more_is_better)):
        value = values[name]
        y = top + HEAD_HEIGHT + index * BAR_STEP
        width = max(1.0, room * max(value, 0) / (longest or 1))
        colour = "#0969da" if name == OURS else "#afb8c1"
        label = f"{value:,.{panel.digits}f}"
        if values.get(OURS) and name != OURS:
            label += f" ({value / values[OURS]:.2f}×)"
        parts.append(text(left + NAME_WIDTH - 6, y + 11, name, anchor="end"))
        parts.append(
            f"<rect x='{left + NAME_WIDTH}' y='{y}' width='{width:.1f}' height='{BAR_HEIGHT}' fill='{colour}'/>"
        )
        parts.append(text(left + NAME_WIDTH + width + 5, y + 11, label))
    return parts


def to_svg(title: str, medians: Mapping[str, Mapping[str, float]]) -> str:
    """`medians` by system; `direct` is left out, since no tunnel comes near it."""
    systems = [name for name in medians if name != "direct"]
    shown: Sequence[tuple[Panel, dict[str, float]]] = [
        (panel, values)
        for panel in PANELS
        if (values := {name: medians[name][panel.key] for name in systems if panel.key in medians[name]})
    ]
    panel_height = HEAD_HEIGHT + BAR_STEP * max(len(systems), 1) + MARGIN
    rows = -(-len(shown) // 2)
    width, height = 2 * PANEL_WIDTH + 3 * MARGIN, 40 + rows * panel_height
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        text(MARGIN, 24, title, extra="font-weight='bold'"),
    ]
    for index, (panel, values) in enumerate(shown):
        left = MARGIN + (index % 2) * (PANEL_WIDTH + MARGIN)
        parts += bars(panel, values, left, 40 + (index // 2) * panel_height)
    return "\n".join([*parts, "</svg>"]) + "\n"
