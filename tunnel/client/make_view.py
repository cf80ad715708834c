"""Which view suits where standard output goes."""

import os
import sys
from collections.abc import Callable
from typing import Literal, TextIO

from tunnel.client.table import TableView
from tunnel.client.view import JsonView, Output, PlainView, View
from tunnel.snapshot import Snapshot


def make_view(
    kind: Literal["auto", "plain", "json"],
    *,
    server: str,
    snapshot: Callable[[], Snapshot],
    stdout: TextIO | None = None,
) -> View:
    """The view for `stdout`; "auto" is a table on a terminal that can move its cursor, plain lines anywhere else."""
    out: TextIO | None = sys.stdout if stdout is None else stdout
    if out is None:  # the process began without standard output, and 1 may by now be somebody's socket
        return PlainView(Output(os.open(os.devnull, os.O_WRONLY)), server=server)
    out.flush()  # views write to the descriptor: what was printed before must stand before
    output = Output(out.fileno(), out.encoding or "utf-8")
    if kind == "json":
        return JsonView(output)
    if kind == "auto" and out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return TableView(output, server=server, snapshot=snapshot)
    return PlainView(output, server=server)
