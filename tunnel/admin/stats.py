"""The body of /stats: every session and its proxies, made a slice at a time, others have their turn meanwhile."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import trio
from attrs import asdict, evolve

from tunnel.snapshot import SessionView

SLICE = 100  # proxies, about half a millisecond of them; then everything else has its turn


async def stats_body(head: Mapping[str, Any], views: Iterator[SessionView], rest: Mapping[str, Any]) -> bytes:
    """``{…head, "sessions": [views], …rest}`` as JSON. Each session is as it was when its turn came."""
    sessions = [await _session(view) for view in views]
    opening, closing = _json(head)[:-1], _json(rest)[1:]
    comma = "" if closing == "}" else ","
    return f'{opening},"sessions":[{",".join(sessions)}]{comma}{closing}\n'.encode()


async def _session(view: SessionView) -> str:
    pieces: list[str] = []
    for start in range(0, len(view.proxies), SLICE):
        pieces += [_json(asdict(proxy)) for proxy in view.proxies[start : start + SLICE]]
        await trio.lowlevel.checkpoint()
    head = _json(asdict(view, filter=lambda field, _: field.name != "proxies"))[:-1]
    return f'{head},"proxies":[{",".join(pieces)}]}}'


def only(views: Iterator[SessionView], name: str) -> Iterator[SessionView]:
    """Those of `name`: a CLIENT with all its proxies, or the proxies called PROXY or CLIENT/PROXY."""
    for view in views:
        if view.client == name:
            yield view
        elif wanted := tuple(one for one in view.proxies if name in (one.name, f"{view.client}/{one.name}")):
            yield evolve(view, proxies=wanted)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
