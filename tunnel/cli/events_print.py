"""Shows events to a person or a program, those of before and those to come. Used by `trio-tunnel events`."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from tunnel.addresses import HostPort
from tunnel.cli.event_lines import event_line, is_wanted
from tunnel.cli.feed import Place, fetch_recent, follow_feed
from tunnel.cli.output import writable
from tunnel.wording import clean

COLOURS = {"healthy": "green", "unhealthy": "yellow", "bind_failed": "red"}
_TROUBLE = ("session.lost", "config.refused", "certificate.expiring")


class Printer:
    """Lines for a terminal have colours and a short time, those for a file or a pipe all of it; in UTC, as logs."""

    def __init__(self, out: TextIO, *, as_json: bool = False) -> None:
        self._out = out
        self._as_json = as_json
        self._is_terminal = out.isatty()
        is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._is_coloured = self._is_terminal and not is_plain

    def show(self, event: dict[str, Any]) -> None:
        if self._as_json:
            self._out.write(json.dumps(event) + "\n")
        else:
            line = event_line(event)
            if self._is_coloured and (colour := _colour(event)):
                line = click.style(line, fg=colour)
            self._out.write(writable(f"{self._time(str(event.get('at', '')))}  {line}\n", self._out))
        self._out.flush()

    def _time(self, at: str) -> str:
        if not self._is_terminal:
            return clean(at)
        try:
            return f"{datetime.fromisoformat(at).astimezone(UTC):%m-%d %H:%M:%S}Z"
        except ValueError:
            return clean(at)


def show_events(where: HostPort, printer: Printer, *, kinds: Sequence[str], name: str, last: int, follow: bool) -> None:
    """The `last` ones of those wanted; with `follow` then all to come, until Ctrl-C."""
    recent = fetch_recent(where)
    wanted = [event for event in recent.events if is_wanted(event, kinds=kinds, name=name)]
    for event in wanted[len(wanted) - last :] if last < len(wanted) else wanted:
        printer.show(event)
    if not recent.events:
        _tell(f"nothing has happened at {where} yet")
    elif not wanted:
        _tell(f"none of the last {len(recent.events)} events is one of these")
    if not follow:
        return
    try:
        for event in follow_feed(where, Place(recent.since, recent.last), tell=_tell):
            if is_wanted(event, kinds=kinds, name=name):
                printer.show(event)
    except KeyboardInterrupt:
        return


def _tell(words: str) -> None:
    click.echo(words, err=True)


def _colour(event: dict[str, Any]) -> str | None:
    fields = event.get("fields")
    if event.get("kind") == "proxy.status" and isinstance(fields, dict):
        return COLOURS.get(str(fields.get("status")))
    return "yellow" if event.get("kind") in _TROUBLE else None
