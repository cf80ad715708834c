"""`trio-tunnel status --watch`: the same question again and again, and what is shown of the answers.

A live table on a terminal, a line for each change of state elsewhere, a line of JSON for each change for programs.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from attrs import frozen

from tunnel.cli.output import is_drawable, is_unicode, writable
from tunnel.cli.status_table import full_name, proxies_of, render_table
from tunnel.cli.terminal import ended_gently
from tunnel.errors import TunnelError
from tunnel.wording import clean, plain_line, public_address

REFRESH_SECONDS = 1.0


@frozen
class Frame:
    """One answer; with `trouble` there is none, and `stats` are those of before."""

    stats: dict[str, Any]
    trouble: str = ""


def watch(
    fetch: Callable[[], dict[str, Any]],
    out: TextIO,
    *,
    as_json: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `fetch` returns again and again, until Ctrl-C. The first failure is raised, a later one shown."""
    stats = fetch()
    show = _watch_json if as_json else _watch_terminal if is_drawable(out) else _watch_plain
    try:
        with ended_gently():
            show(_keep_fetching(stats, fetch, sleep), out)
    except KeyboardInterrupt:
        return


def _keep_fetching(
    stats: dict[str, Any], fetch: Callable[[], dict[str, Any]], sleep: Callable[[float], None]
) -> Iterator[Frame]:
    yield Frame(stats)
    while True:
        sleep(REFRESH_SECONDS)
        try:
            stats = fetch()
        except TunnelError as exc:
            yield Frame(stats, str(exc))
        else:
            yield Frame(stats)


def _watch_terminal(frames: Iterator[Frame], out: TextIO) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out, markup=False, highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for frame in frames:
            unicode = is_unicode(out)
            table = render_table(frame.stats, width=console.width, height=console.height - 4, unicode=unicode)
            live.update(Group(table, Text(frame.trouble, "red")), refresh=True)


def _watch_plain(frames: Iterator[Frame], out: TextIO) -> None:
    told: dict[str, tuple[Any, ...]] = {}
    trouble = ""
    for frame in frames:
        lines: list[str] = []
        if frame.trouble != trouble:
            lines.append(frame.trouble or "it answers again")
        trouble = frame.trouble
        if not trouble:
            views = {full_name(client, view): view for client, view in proxies_of(frame.stats)}
            states = _states(frame.stats)
            lines += [f"{name}: gone" for name in told if name not in states]
            lines += [
                plain_line(name, views[name], views[name].target) for name in states if told.get(name) != states[name]
            ]
            told = states
        for line in lines:
            out.write(writable(line, out) + "\n")
        out.flush()


def _watch_json(frames: Iterator[Frame], out: TextIO) -> None:
    told: object = None
    for frame in frames:
        word = frame.trouble or (_states(frame.stats), _sessions(frame.stats))
        if word != told:
            told = word
            out.write(json.dumps({"error": frame.trouble} if frame.trouble else frame.stats) + "\n")
            out.flush()


def _states(stats: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Of each proxy what makes a change; figures and a countdown that runs do not."""
    return {
        full_name(client, view): (view.status, view.reason, view.error_message, view.attempt, public_address(view))
        for client, view in proxies_of(stats)
    }


def _sessions(stats: dict[str, Any]) -> list[tuple[str, str]]:
    sessions = [session for session in stats.get("sessions", []) if isinstance(session, dict)]
    return [(clean(str(session.get("client", ""))), str(session.get("since", ""))) for session in sessions]
