"""The body of /stats: every session and its proxies, made a slice at a time: others get their turn meanwhile."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import trio
from attrs import asdict, evolve

from tunnel.snapshot import SessionView

SLICE_SECONDS = 0.005  # of work, then others get their turn; one session is never cut in two


async def stats_body(head: Mapping[str, Any], views: Iterator[SessionView], rest: Mapping[str, Any]) -> bytes:
    """``{…head, "sessions": […views], …rest}`` as JSON. Each session is as it was when its turn came."""
    pieces: list[str] = []
    began = time.perf_counter()
    for view in views:
        pieces.append(_json(asdict(view)))
        if time.perf_counter() - began > SLICE_SECONDS:
            await trio.lowlevel.checkpoint()
            began = time.perf_counter()
    opening, closing = _json(head)[:-1], _json(rest)[1:]
    comma = "" if closing == "}" else ","
    return f'{opening},"sessions":[{",".join(pieces)}]{comma}{closing}\n'.encode()


def only(views: Iterator[SessionView], client: str | None, proxy: str | None) -> Iterator[SessionView]:
    """The sessions of `client`, and of each the proxies named `proxy`; None stands for all."""
    for view in views:
        if client not in (None, view.client):
            continue
        if proxy is None:
            yield view
        elif wanted := tuple(one for one in view.proxies if one.name == proxy):
            yield evolve(view, proxies=wanted)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
