"""SVG by hand: bars of one condition's figures, and a grid of several links'. Readable on light and on dark pages."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from .panels import OURS, PANELS, Medians, Panel, best_of, quality, values_of

PANEL_WIDTH, BAR_HEIGHT, BAR_STEP, HEAD_HEIGHT, MARGIN, TOP = 420, 14, 20, 46, 16, 40
NAME_WIDTH, VALUE_WIDTH = 84, 116
CELL_WIDTH, CELL_HEIGHT, LINK_WIDTH = 104, 20, 226
DEEPEST = 0.45  # the tint of the best
STYLE = """\
<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 } .soft { fill: #59636e } .strong { font-weight: 600 }
.page { fill: #ffffff } .ours { fill: #0969da } .theirs { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .soft { fill: #9198a1 } .page { fill: #0d1117 }
  .ours { fill: #4493f8 } .theirs { fill: #59636e }
}
</style>"""


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> str:
    shown = f" class='{kind}'" if kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{shown}>{escape(content)}</text>"


def rect(x: float, y: float, width: float, height: float, kind: str, opacity: float = 1.0) -> str:
    faint = f" opacity='{opacity:.2f}'" if opacity < 1 else ""
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' class='{kind}'{faint}/>"


def page(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>"
    lines = [head, f"<title>{escape(title)}</title>", STYLE, rect(0, 0, width, height, "page")]
    return "\n".join([*lines, text(MARGIN, 24, title, kind="strong"), *parts, "</svg>"]) + "\n"


def heading(panel: Panel, left: float, top: float, *, compares: bool) -> list[str]:
    order = "more is better" if panel.more_is_better else "less is better"
    if compares:
        order += f"; × is the ratio to {OURS}"
    return [text(left, top + 14, panel.title, kind="strong"), text(left, top + 30, order, kind="soft")]


def label_of(panel: Panel, name: str, values: Mapping[str, float]) -> str:
    label = f"{values[name]:,.{panel.digits if values[name] < 100 else 0}f}"
    if name != OURS and values.get(OURS):
        ratio = values[name] / values[OURS]
        label += f" ({ratio:,.{2 if ratio < 10 else 0}f}×)"
    return label


def bars(panel: Panel, values: Mapping[str, float], left: float, top: float) -> list[str]:
    parts = heading(panel, left, top, compares=OURS in values)
    longest = max(*values.values(), 1e-9) if len(values) > 1 else max(values.values())
    room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
    for index, name in enumerate(sorted(values, key=lambda name: values[name], reverse=panel.more_is_better)):
        y = top + HEAD_HEIGHT + index * BAR_STEP
        width = max(1.0, room * max(values[name], 0) / (longest or 1))
        is_ours = name == OURS
        parts.append(text(left + NAME_WIDTH - 6, y + 11, name, anchor="end", kind="strong" if is_ours else ""))
        parts.append(rect(left + NAME_WIDTH, y, width, BAR_HEIGHT, "ours" if is_ours else "theirs"))
        parts.append(text(left + NAME_WIDTH + width + 5, y + 11, label_of(panel, name, values)))
    return parts


def to_svg(title: str, medians: Medians) -> str:
    """A panel a figure, a bar a system; `direct` is left out, since no tunnel comes near it."""
    tunnels = {name: values for name, values in medians.items() if name != "direct"}
    shown = [(panel, values) for panel in PANELS if (values := values_of(panel, tunnels))]
    panel_height = HEAD_HEIGHT + BAR_STEP * max(len(tunnels), 1) + MARGIN
    parts: list[str] = []
    for index, (panel, values) in enumerate(shown):
        left = MARGIN + (index % 2) * (PANEL_WIDTH + MARGIN)
        parts += bars(panel, values, left, TOP + (index // 2) * panel_height)
    return page(title, 2 * PANEL_WIDTH + 3 * MARGIN, TOP + -(-len(shown) // 2) * panel_height, parts)


def grid_row(panel: Panel, values: Mapping[str, float], systems: Sequence[str], left: float, top: float) -> list[str]:
    """One link: a cell a system, the deeper tinted the nearer it comes to the best tunnel."""
    tunnels = {name: value for name, value in values.items() if name != "direct"}
    best = best_of(panel, tunnels)
    parts = []
    for index, name in enumerate(systems):
        x = left + index * CELL_WIDTH
        if name not in values:
            parts.append(text(x + CELL_WIDTH - 6, top + 14, "–", anchor="end", kind="soft"))
            continue
        if best is not None and name != "direct":
            depth = DEEPEST * quality(panel, values[name], values[best]) ** 2
            parts.append(rect(x + 1, top + 1, CELL_WIDTH - 2, CELL_HEIGHT - 2, "ours", depth))
        kind = "strong" if name == best else "soft" if name == "direct" else ""
        parts.append(text(x + CELL_WIDTH - 6, top + 14, label_of(panel, name, values), anchor="end", kind=kind))
    return parts


def to_grid_svg(title: str, links: Mapping[str, Medians]) -> str:
    """A panel a figure, a row a link (by its name), a column a system."""
    systems = list(dict.fromkeys(name for medians in links.values() for name in medians))
    left, top = MARGIN + LINK_WIDTH, float(TOP)
    parts: list[str] = []
    for panel in PANELS:
        rows = {link: values for link, medians in links.items() if (values := values_of(panel, medians))}
        if not rows:
            continue
        parts += heading(panel, MARGIN, top, compares=any(OURS in values for values in rows.values()))
        top += HEAD_HEIGHT
        for index, name in enumerate(systems):
            x = left + (index + 1) * CELL_WIDTH - 6
            parts.append(text(x, top, name, anchor="end", kind="strong" if name == OURS else "soft"))
        for link, values in rows.items():
            top += 6 if link == next(iter(rows)) else CELL_HEIGHT
            parts.append(text(left - 8, top + 14, link, anchor="end"))
            parts += grid_row(panel, values, systems, left, top)
        top += CELL_HEIGHT + MARGIN
    return page(title, left + len(systems) * CELL_WIDTH + MARGIN, top, parts)
