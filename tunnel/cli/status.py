"""The reading side of the admin address: asks it, and shows the answer once or again and again.

`trio-tunnel status` and `retry` call this; it blocks and needs no Trio. rich is imported only to draw on a terminal.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from attrs import fields

from tunnel.addresses import HostPort
from tunnel.columns import GAP, STYLES, Column, append_line, lay_out
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.pool_words import pool_lines
from tunnel.snapshot import ProxyView
from tunnel.wording import age, clean, explain, human_bytes, plain_line, public_address

if TYPE_CHECKING:
    from rich.text import Text

CONNECT_SECONDS = 3.0  # the admin address is near; who waits here is a person
ANSWER_SECONDS = 10.0  # for the whole answer
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 10,000 proxies take 4 MiB
REFRESH_SECONDS = 1.0


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


# The table


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
        Column("SINCE", [age(view.since, now) for view in views], worth=2, right=True),
    ]


NOTHING = "no proxies; a client adds one with `trio-tunnel connect SERVER -p NAME=PUBLISH:TARGET`"


def _nothing(stats: dict[str, Any]) -> str:
    """Of no proxies. A client that stops has taken them back, while its visitors may finish."""
    sessions = [session for session in stats.get("sessions", []) if isinstance(session, dict)]
    clients = ", ".join(clean(str(session.get("client", ""))) for session in sessions)
    if stats.get("role") != "server" or not clients:
        return NOTHING
    return f"no proxies; connected, and publishing nothing (any more): {clients}"


def render_plain(stats: dict[str, Any]) -> str:
    """Aligned columns without colour, a line per proxy with its explanation at the end; for pipes and files."""
    pairs = proxies_of(stats)
    lines = [_nothing(stats)]
    if pairs:
        why = Column("EXPLANATION", [explain(view, refused=view.refused) for _, view in pairs])
        lines = [GAP.join(cell for _, cell in line).rstrip() for line in lay_out([*_columns(pairs), why], None)]
    pools = pool_lines(stats)
    return "\n".join([*lines, "", *pools] if pools else lines)


def render_table(stats: dict[str, Any], *, width: int, height: int | None = None, unicode: bool = True) -> "Text":
    """The same for a terminal of `width`: coloured, explanations on a line of their own, at most `height` lines."""
    from rich.text import Text

    pairs = proxies_of(stats)
    text = Text(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    if not pairs:
        return text.append(_nothing(stats))
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
    pools = pool_lines(stats)
    if pools and (height is None or used + 1 + len(pools) < height):
        text.append("\n\n" + "\n".join(pools), "dim")
    return text


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
