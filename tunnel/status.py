"""The reading side of the admin address, and the words and columns in which a proxy's state is shown.

`trio-tunnel status` and `retry` call the first half, which blocks and needs no Trio; the client's view shares the
second. Whatever is shown may come from a peer: every text passes `clean`. rich is imported only to draw on a terminal.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from attrs import fields, frozen

from tunnel.addresses import HostPort
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.snapshot import ProxyView

if TYPE_CHECKING:
    from rich.text import Text

CONNECT_SECONDS = 3.0  # the admin address is near; who waits here is a person
ANSWER_SECONDS = 10.0  # for the whole answer
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 10,000 proxies take 4 MiB
REFRESH_SECONDS = 1.0
MAX_SHOWN = 300  # characters of one text; a message names an error, it is not a document

STYLES = {"healthy": "green", "unhealthy": "yellow", "bind_failed": "red"}


def fetch_stats(where: HostPort) -> dict[str, Any]:
    """What GET /stats says; TunnelError says what to do instead."""
    status, body = _exchange(where, "GET", "/stats")
    if status != 200 or not isinstance(body.get("sessions"), list):
        raise _stranger(where, f"it answered /stats with {_error_of(body) or status}")
    return body


def request_retry(where: HostPort, name: str, token: str) -> list[str]:
    """Ask for fresh bind attempts of `name` (NAME or CLIENT/NAME); returns the names that were restarted."""
    status, body = _exchange(where, "POST", "/retry", body={"name": name}, token=token)
    match status:
        case 200 if isinstance(body.get("restarted"), list):
            return [clean(str(restarted)) for restarted in body["restarted"]]
        case 401:
            raise Refused(
                "token_refused",
                f"{where} refused the admin token; it is in admin.token in the state directory of that process",
                trust=True,
            )
        case 404 | 409 if _error_of(body):
            raise TunnelError(f"{_error_of(body)}; `trio-tunnel status` lists the names")
        case _:
            raise _stranger(where, f"it answered /retry with {_error_of(body) or status}")


def _exchange(
    where: HostPort, method: str, path: str, *, body: dict[str, Any] | None = None, token: str = ""
) -> tuple[int, dict[str, Any]]:
    import http.client  # here: `connect` uses this module's words and should not pay for an HTTP client

    started = time.monotonic()
    connection = http.client.HTTPConnection(where.host, where.port, timeout=CONNECT_SECONDS)
    try:
        headers = {"Accept": "application/json", "Connection": "close"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        raw = bytearray()
        while piece := response.read1(65536):
            raw += piece
            if len(raw) > MAX_ANSWER_BYTES:
                raise _stranger(where, f"its answer is larger than {human_bytes(MAX_ANSWER_BYTES)}")
            if time.monotonic() - started > ANSWER_SECONDS:
                raise TimeoutError
        found = json.loads(bytes(raw))
    except TimeoutError as exc:
        raise PeerLost(f"{where} did not answer in time; is it trio-tunnel's admin address?") from exc
    except ConnectionResetError as exc:  # RemoteDisconnected too: it spoke TLS, or is full
        raise PeerLost(f"{where} closed the connection without an answer; is it trio-tunnel's admin address?") from exc
    except OSError as exc:
        raise PeerLost(
            f"nothing answers at {where} ({exc.strerror or exc}); is `trio-tunnel serve` running, "
            f"or was it, or `trio-tunnel connect`, started with another --admin?"
        ) from exc
    except (http.client.HTTPException, ValueError, RecursionError) as exc:
        raise _stranger(where, "its answer is not HTTP with JSON") from exc
    finally:
        connection.close()
    if not isinstance(found, dict):
        raise _stranger(where, "its answer is not a JSON object")
    return response.status, found


def _stranger(where: HostPort, what: str) -> TunnelError:
    return TunnelError(
        f"{where} does not seem to be trio-tunnel's admin address: {what}; name the right one with --admin"
    )


def _error_of(body: dict[str, Any]) -> str:
    return clean(str(body.get("error", "")))


# Words


class ProxyState(Protocol):
    """What `ProxyView` and `ProxyStatusUpdate` have in common."""

    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def error_message(self) -> str | None: ...
    @property
    def retry_after_seconds(self) -> int | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def max_retries(self) -> int | None: ...
    @property
    def publish_addr(self) -> str: ...
    @property
    def publish_port(self) -> int: ...


def clean(text: str) -> str:
    """One line without control, format or bidirectional characters, of bounded length: safe on any terminal."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text[: MAX_SHOWN + 1])
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."


def public_address(state: ProxyState) -> str:
    return str(HostPort(clean(state.publish_addr), state.publish_port)) if state.publish_addr else ""


def countdown(state: ProxyState, *, elapsed: float = 0.0) -> str:
    """``retry 3/10 in 12 s``, ``gave up after 10 retries``, or nothing; `elapsed` since the state was told."""
    if state.status == "bind_failed":
        return f"gave up after {state.attempt - 1} retries" if state.attempt > 1 else "given up"
    if state.status != "unhealthy" or state.retry_after_seconds is None:
        return ""
    which = f" {state.attempt}" if state.attempt else ""
    if which and state.max_retries is not None:
        which += f"/{state.max_retries}"
    left = int(state.retry_after_seconds - elapsed + 0.999)
    return f"retry{which} in {human_seconds(left)}" if left > 0 else f"retry{which} now"


def explain(
    state: ProxyState,
    *,
    elapsed: float = 0.0,
    refused: Mapping[str, int] | None = None,
    width: int | None = None,
    ellipsis: str = "…",
) -> str:
    """Why a proxy is not healthy and what happens next: ``addr_in_use: Port 8022 …; retry 1/10 in 2 s``; then how many
    visitors could not be served (`refused`), by reason.

    With a `width`, the why is cut short so that the next step can be seen.
    """
    why = ": ".join(clean(part) for part in (state.reason, state.error_message) if part)
    lost = ", ".join(f"{count} {clean(reason)}" for reason, count in (refused or {}).items())
    following = "; ".join(filter(None, (countdown(state, elapsed=elapsed), lost and f"visitors refused: {lost}")))
    if width is not None and why:
        room = max(MIN_FLEXIBLE, width - len(following) - 2)
        why = why if len(why) <= room else why[: room - len(ellipsis)] + ellipsis
    return "; ".join(part for part in (why, following) if part)


def plain_line(name: str, state: ProxyState, target: str = "") -> str:
    """A proxy's state on one line of plain text."""
    where = f" at {public_address(state)}" + (f" -> {clean(target)}" if target else "")
    line = f"{clean(name)}: {clean(state.status)}"
    if state.status == "healthy":
        return line + where
    line += f" ({clean(state.reason)})" if state.reason else ""
    return ": ".join(part for part in (line, "; ".join(_message_and_next(state))) if part)


def _message_and_next(state: ProxyState) -> Iterator[str]:
    if state.error_message:
        yield clean(state.error_message)
    if following := countdown(state):
        yield following


def human_bytes(count: float) -> str:
    """Decimal units, as network people count: ``999 B``, ``1.5 MB``, ``23 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.0f} PB"


def human_seconds(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _age(since: str, now: datetime) -> str:
    try:
        return human_seconds((now - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: without a time zone
        return ""


# Columns


@frozen
class Column:
    """`cells` of one column. Where there is little room, columns of the least `worth` go and flexible ones shrink."""

    title: str
    cells: Sequence[str]
    worth: int = 9
    right: bool = False
    flexible: bool = False


GAP = "  "
MIN_FLEXIBLE = 16  # a name or an address is still told apart


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


def proxies_of(stats: dict[str, Any]) -> list[tuple[str, ProxyView]]:
    """(client, proxy) pairs of /stats, lenient towards what another version leaves out or adds."""
    found: list[tuple[str, ProxyView]] = []
    for session in stats.get("sessions", []):
        if not isinstance(session, dict) or not isinstance(session.get("proxies"), (list, tuple)):
            continue
        client = clean(str(session.get("client", "")))
        found.extend((client, _proxy_of(body)) for body in session["proxies"] if isinstance(body, dict))
    return found


_KINDS: dict[str, type] = {"attempt": int, "publish_port": int, "visitors": int, "visitors_total": int}
_KINDS |= {"bytes_in": int, "bytes_out": int, "refused": dict}
_OPTIONAL: dict[str, type] = {"reason": str, "error_message": str, "retry_after_seconds": int, "max_retries": int}


def _proxy_of(body: dict[str, Any]) -> ProxyView:
    values: dict[str, Any] = {}
    for attribute in fields(ProxyView):
        name = attribute.name
        kind = _OPTIONAL.get(name) or _KINDS.get(name, str)
        value = body.get(name)
        values[name] = value if isinstance(value, kind) else None if name in _OPTIONAL else kind()
    return ProxyView(**values)


def _columns(pairs: Sequence[tuple[str, ProxyView]], *, dot: str = "") -> list[Column]:
    now = datetime.now(UTC)
    views = [view for _, view in pairs]
    return [
        Column("CLIENT", [client for client, _ in pairs], worth=5, flexible=True),
        Column("PROXY", [clean(view.name) for view in views], flexible=True),
        Column("STATE", [dot + clean(view.status) for view in views]),
        Column("PUBLIC", [public_address(view) for view in views], worth=8, flexible=True),
        Column("TARGET", [clean(view.target) for view in views], worth=6, flexible=True),
        Column("VISITORS", [f"{view.visitors}/{view.visitors_total}" for view in views], worth=7, right=True),
        Column("IN", [human_bytes(view.bytes_in) for view in views], worth=3, right=True),
        Column("OUT", [human_bytes(view.bytes_out) for view in views], worth=3, right=True),
        Column("SINCE", [_age(view.since, now) for view in views], worth=2, right=True),
    ]


NOTHING = "no proxies; a client adds one with `trio-tunnel connect SERVER -p NAME=PUBLISH:TARGET`"


def render_plain(stats: dict[str, Any]) -> str:
    """Aligned columns without colour, a line per proxy with its explanation at the end; for pipes and files."""
    pairs = proxies_of(stats)
    if not pairs:
        return NOTHING
    why = Column("EXPLANATION", [explain(view, refused=view.refused) for _, view in pairs])
    return "\n".join(GAP.join(cell for _, cell in line).rstrip() for line in lay_out([*_columns(pairs), why], None))


def render_table(stats: dict[str, Any], *, width: int, height: int | None = None, unicode: bool = True) -> "Text":
    """The same for a terminal of `width`: coloured, explanations on a line of their own, at most `height` lines."""
    from rich.text import Text

    pairs = proxies_of(stats)
    text = Text(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    if not pairs:
        return text.append(NOTHING)
    ellipsis = "…" if unicode else "..."
    header, *lines = lay_out(_columns(pairs, dot="● " if unicode else ""), width, ellipsis=ellipsis)
    text.append(GAP.join(cell for _, cell in header), "bold")
    used = 1
    for shown, (line, (_, view)) in enumerate(zip(lines, pairs, strict=True)):
        why = explain(view, refused=view.refused, width=width - 2, ellipsis=ellipsis)
        used += 2 if why else 1
        if height is not None and used > height - 1 and shown < len(pairs) - 1:
            return text.append(f"\n{ellipsis} and {len(pairs) - shown} more", "dim")
        text.append("\n")
        append_line(text, line, view.status)
        if why:
            text.append(f"\n  {why}", STYLES.get(view.status, ""))
    return text


def append_line(text: "Text", line: list[tuple[str, str]], status: str) -> None:
    """Add a laid-out line, its state in colour."""
    for index, (title, cell) in enumerate(line):
        style = STYLES.get(status, "") if title == "STATE" else "bold" if title == "PROXY" else ""
        text.append((GAP if index else "") + cell, style)


# Output


def print_status(stats: dict[str, Any], out: TextIO) -> None:
    """The table on a terminal, plain columns anywhere else."""
    if not out.isatty():
        out.write(_writable(render_plain(stats), out) + "\n")
        return
    from rich.console import Console

    console = Console(file=out, markup=False, highlight=False)
    console.print(render_table(stats, width=console.width, unicode=_is_unicode(out)))


def watch(fetch: Callable[[], dict[str, Any]], out: TextIO, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show what `fetch` returns again and again, until Ctrl-C. The first failure is raised, a later one shown.

    On a terminal a live table; anywhere else a line for each change of state.
    """
    stats = fetch()
    show = _watch_terminal if out.isatty() else _watch_plain
    try:
        show(_keep_fetching(stats, fetch, sleep), out)
    except KeyboardInterrupt:
        return


def _keep_fetching(
    stats: dict[str, Any], fetch: Callable[[], dict[str, Any]], sleep: Callable[[float], None]
) -> Iterator[tuple[dict[str, Any], str]]:
    yield stats, ""
    while True:
        sleep(REFRESH_SECONDS)
        trouble = ""
        try:
            stats = fetch()
        except TunnelError as exc:
            trouble = str(exc)
        yield stats, trouble


def _watch_terminal(frames: Iterator[tuple[dict[str, Any], str]], out: TextIO) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out, markup=False, highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for stats, trouble in frames:
            unicode = _is_unicode(out)
            table = render_table(stats, width=console.width, height=console.height - 4, unicode=unicode)
            live.update(Group(table, Text(trouble, "red")), refresh=True)


def _watch_plain(frames: Iterator[tuple[dict[str, Any], str]], out: TextIO) -> None:
    told: dict[str, tuple[Any, ...]] = {}
    last_trouble = ""
    for stats, trouble in frames:
        lines: list[str] = []
        if trouble != last_trouble:
            lines.append(trouble or "it answers again")
        last_trouble = trouble
        if not trouble:
            views = {_full_name(client, view): view for client, view in proxies_of(stats)}
            states = {
                name: (view.status, view.reason, view.error_message, view.attempt, public_address(view))
                for name, view in views.items()
            }
            lines += [f"{name}: gone" for name in told if name not in states]
            lines += [
                plain_line(name, views[name], views[name].target) for name in states if told.get(name) != states[name]
            ]
            told = states
        for line in lines:
            out.write(_writable(line, out) + "\n")
        out.flush()


def _full_name(client: str, view: ProxyView) -> str:
    return f"{client}/{clean(view.name)}" if client else clean(view.name)


def _is_unicode(out: TextIO) -> bool:
    return (out.encoding or "").lower().replace("-", "").startswith("utf")


def _writable(text: str, out: TextIO) -> str:
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
