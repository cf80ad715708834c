"""A run's tables, and the list of what it must not show."""

from collections.abc import Iterable
from typing import Any

from tables import at, table

from .healthy import Figures
from .run import Found

MAX_GROWTH_MIB = 48.0  # of the server, over its first run: what the allocator keeps of the largest moment
MAX_WARM_GROWTH_MIB = 8.0  # over a later one
MAX_PEAK_MIB = 160.0  # above where it began; a hundred strangers and six sessions at their bounds
LINES_PER_MINUTE = 300  # of log, and as many for the first moment: a fraction of what comes
MAX_KNOCKS = 10  # an honest newcomer's, before it is in


def violations(found: Found, *, is_warm: bool = False) -> list[str]:
    """In words; empty for a good run. `is_warm`: the server has been through one before."""
    wrong = [f"{name} ended" for name in found.ended]
    for figures in (*found.alone, *found.beside):
        if figures.lost:
            wrong.append(f"{figures.name}: {len(figures.lost)} lost, the first: {figures.lost[0]}")
        if not figures.times:
            wrong.append(f"{figures.name}: none at all")
    before, after = found.before, found.after
    if after.descriptors > before.descriptors:
        wrong.append(f"descriptors: {before.descriptors} before, {after.descriptors} after")
    if (after.tasks or 0) > (before.tasks or 0):
        wrong.append(f"tasks: {before.tasks} before, {after.tasks} after")
    if after.resident_mib - before.resident_mib > (MAX_WARM_GROWTH_MIB if is_warm else MAX_GROWTH_MIB):
        wrong.append(f"memory: {before.resident_mib:.0f} MiB before, {after.resident_mib:.0f} after")
    if found.peak_mib - before.resident_mib > MAX_PEAK_MIB:
        wrong.append(f"memory: {before.resident_mib:.0f} MiB before, {found.peak_mib:.0f} at its peak")
    allowed = LINES_PER_MINUTE * (1 + found.seconds / 60)
    if found.strangers_lines > allowed:
        wrong.append(f"log: {found.strangers_lines} lines of strangers in {found.seconds:.0f} s, over {allowed:.0f}")
    if max(found.knocks, default=0) > MAX_KNOCKS:
        wrong.append(f"a newcomer had to knock {max(found.knocks)} times")
    return wrong


def render(found: Found) -> str:
    seconds = found.seconds
    rate = found.connections / seconds
    lines = [
        f"{found.connections} hostile connections of {len(found.made)} kinds in {seconds:.1f} s ({rate:.0f}/s)",
        "",
        table(("ms", "served", "lost", "p50", "p99", "worst"), _latencies(found)),
        "",
        table(("server", "before", "peak", "after"), _weights(found)),
        "",
        f"client: {found.client_mib[0]:.1f} MiB before, {found.client_mib[1]:.1f} after",
        f"log lines the server wrote: {found.strangers_lines} of strangers, {found.clients_lines} of token holders;",
        *(f"  {many} × {words}" for words, many in found.wordiest),
        f"the gate's own words: {_words(found.gate)}",
        f"newcomers' knocks until they were in: {_knocks(found.knocks)}",
        f"ends: {', '.join(f'{count} {end}' for end, count in sorted(found.ends.items(), key=lambda item: -item[1]))}",
        "",
        table(("kind", "connections", "held at most, s"), _kinds(found)),
    ]
    return "\n".join(lines)


def _latencies(found: Found) -> Iterable[tuple[str, ...]]:
    for figures, when in zip(
        (one for pair in zip(found.alone, found.beside, strict=True) for one in pair),
        ("alone", "beside") * len(found.alone),
        strict=True,
    ):
        yield (f"{figures.name}, {when}", *_quantiles(figures))


def _quantiles(figures: Figures) -> tuple[str, ...]:
    times = figures.median, at(figures.times or [float("nan")], 0.99), max(figures.times, default=float("nan"))
    return str(len(figures.times)), str(len(figures.lost)), *(f"{time:.1f}" for time in times)


def _weights(found: Found) -> Iterable[tuple[str, ...]]:
    before, after = found.before, found.after
    yield "resident MiB", f"{before.resident_mib:.1f}", f"{found.peak_mib:.1f}", f"{after.resident_mib:.1f}"
    yield "descriptors", str(before.descriptors), str(found.peak_descriptors), str(after.descriptors)
    yield "tasks", str(before.tasks), "", str(after.tasks)


def _words(gate: dict[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in gate.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in flat.items() if value) or "none"


def _knocks(knocks: list[int]) -> str:
    if not knocks:
        return "nobody came"
    return f"{sum(one == 1 for one in knocks)} of {len(knocks)} at the first, at most {max(knocks)}"


def _kinds(found: Found) -> Iterable[tuple[str, ...]]:
    for kind, count in sorted(found.made.items(), key=lambda item: -item[1]):
        yield kind.replace("_", " "), str(count), f"{found.held[kind]:.1f}"
