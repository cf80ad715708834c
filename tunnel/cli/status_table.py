"""The table of `trio-tunnel status`: what /stats says, for a terminal of any width, or in plain columns."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from attrs import fields

from tunnel.cli.output import is_unicode, writable
from tunnel.columns import GAP, STYLES, Column, append_line, lay_out
from tunnel.pool_words import pool_lines
from tunnel.snapshot import ProxyView
from tunnel.wording import age, clean, explain, human_bytes, human_seconds, public_address

if TYPE_CHECKING:  # at run time only what draws on a terminal imports it
    from rich.text import Text


def proxies_of(stats: dict[str, Any]) -> list[tuple[str, ProxyView]]:
    """(client, proxy) pairs of /stats, lenient towards what another version leaves out or adds."""
    found: list[tuple[str, ProxyView]] = []
    for session in stats.get("sessions", []):
        if not isinstance(session, dict) or not isinstance(session.get("proxies"), (list, tuple)):
            continue
        client = clean(str(session.get("client", "")))
        found.extend((client, proxy_of(body)) for body in session["proxies"] if isinstance(body, dict))
    return found


_KINDS: dict[str, type] = {"attempt": int, "publish_port": int, "visitors": int, "visitors_total": int}
_KINDS |= {"bytes_in": int, "bytes_out": int, "refused": dict}
_OPTIONAL: dict[str, type] = {"reason": str, "error_message": str, "retry_after_seconds": int, "max_retries": int}
_NAMES = tuple(field.name for field in fields(ProxyView))


def proxy_of(body: dict[str, Any]) -> ProxyView:
    """A proxy's state as JSON tells it, in /stats or an event; what is missing or of another type is left empty."""
    values: dict[str, Any] = {}
    for name in _NAMES:
        kind = _OPTIONAL.get(name) or _KINDS.get(name, str)
        value = body.get(name)
        values[name] = value if isinstance(value, kind) else None if name in _OPTIONAL else kind()
    return ProxyView(**values)


def _columns(pairs: Sequence[tuple[str, ProxyView]], *, dot: str = "") -> list[Column]:
    now = datetime.now(UTC)
    views = [view for _, view in pairs]
    clients = [client for client, _ in pairs]
    return [
        Column("CLIENT", clients, worth=5 if len(set(clients)) < 2 else 7, flexible=True),
        Column("PROXY", [clean(view.name) for view in views], flexible=True),
        Column("STATE", [dot + clean(view.status) for view in views]),
        Column("PUBLIC", [public_address(view) for view in views], worth=8, flexible=True),
        Column("TARGET", [clean(view.target) for view in views], worth=6, flexible=True),
        Column("VISITORS", [f"{view.visitors}/{view.visitors_total}" for view in views], worth=7, right=True),
        Column("IN", [human_bytes(view.bytes_in) for view in views], worth=3, right=True),
        Column("OUT", [human_bytes(view.bytes_out) for view in views], worth=3, right=True),
        Column("SINCE", [age(view.since, now) for view in views], worth=2, right=True),
    ]


NOTHING = "no proxies; a client adds one with `trio-tunnel connect SERVER -p NAME=PUBLISH:TARGET`"


def nothing(stats: dict[str, Any]) -> str:
    """Said where there are no proxies. A client that stops has taken them back, while its visitors may finish."""
    sessions = [session for session in stats.get("sessions", []) if isinstance(session, dict)]
    clients = ", ".join(clean(str(session.get("client", ""))) for session in sessions)
    if stats.get("role") != "server" or not clients:
        return NOTHING
    return f"no proxies; connected, and publishing nothing (any more): {clients}"


def render_plain(stats: dict[str, Any]) -> str:
    """Aligned columns without colour, a line per proxy with its explanation at the end; for pipes and files."""
    pairs = proxies_of(stats)
    lines = [nothing(stats)]
    if pairs:
        why = Column("EXPLANATION", [explain(view, refused=view.refused) for _, view in pairs])
        lines = [GAP.join(cell for _, cell in line).rstrip() for line in lay_out([*_columns(pairs), why], None)]
    below = _below(stats)
    return "\n".join([*lines, "", *below] if below else lines)


def render_table(stats: dict[str, Any], *, width: int, height: int | None = None, unicode: bool = True) -> "Text":
    """The same for a terminal of `width`: coloured, explanations on a line of their own, at most `height` lines.

    Where there is no room for all, those that are not healthy come first.
    """
    from rich.text import Text

    pairs = proxies_of(stats)
    text = Text(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    if not pairs:
        return text.append("\n\n".join([nothing(stats), *_below(stats)]))
    if height is not None and len(pairs) >= height - 1:
        pairs.sort(key=lambda pair: pair[1].status == "healthy")
    ellipsis = "…" if unicode else "..."
    visible = pairs[:height]  # a line each, or two
    header, *lines = lay_out(_columns(visible, dot="● " if unicode else ""), width, ellipsis=ellipsis)
    text.append(GAP.join(cell for _, cell in header), "bold")
    used = 1
    for shown, (line, (_, view)) in enumerate(zip(lines, visible, strict=True)):
        why = explain(view, refused=view.refused, width=width - 2, ellipsis=ellipsis)
        used += 2 if why else 1
        if height is not None and used > height - 1 and shown < len(pairs) - 1:
            return text.append(f"\n{ellipsis} and {_more(pairs[shown:])}", "dim")
        text.append("\n")
        append_line(text, line, view.status)
        if why:
            text.append(f"\n  {why}", STYLES.get(view.status, ""))
    below = _below(stats)
    if below and (height is None or used + 1 + len(below) < height):
        text.append("\n\n" + "\n".join(below), "dim")
    return text


def _below(stats: dict[str, Any]) -> list[str]:
    """What stands below the proxies."""
    connection = connection_words(stats)
    return [*([connection] if connection else []), *pool_lines(stats)]


def connection_words(stats: dict[str, Any]) -> str:
    """How a client stands to its server; nothing for a server."""
    found = stats.get("connection")
    if not isinstance(found, dict):
        return ""
    detail, seconds, servers = (found.get(key) for key in ("detail", "retry_after_seconds", "servers"))
    where = " to " + ", ".join(clean(str(server)) for server in servers) if isinstance(servers, list) else ""
    if found.get("state") == "connected":
        return f"connected{where} as {clean(str(detail))}"
    why = f": {clean(str(detail))}" if detail else ""
    then = f"; tries again in {human_seconds(seconds)}" if isinstance(seconds, (int, float)) and seconds else ""
    return f"not connected{where}{why}{then}"


def _more(pairs: Sequence[tuple[str, ProxyView]]) -> str:
    """``7 more: 5 healthy, 2 unhealthy``."""
    states = Counter(clean(view.status) for _, view in pairs)
    return f"{len(pairs):,} more: " + ", ".join(f"{count:,} {state}" for state, count in states.most_common())


def full_name(client: str, view: ProxyView) -> str:
    return f"{client}/{clean(view.name)}" if client else clean(view.name)


def print_status(stats: dict[str, Any], out: TextIO) -> None:
    """The table on a terminal, plain columns anywhere else."""
    if not out.isatty():
        out.write(writable(render_plain(stats), out) + "\n")
        return
    from rich.console import Console

    console = Console(file=out, markup=False, highlight=False)
    console.print(render_table(stats, width=console.width, unicode=is_unicode(out)))
