"""What a shell offers where a name belongs: those that a running server or client has now. Used by the commands that
take one.

A person waits with a finger on a key: no answer within half a second is no offer.
"""

import re
import time
from collections import Counter
from typing import Any

import click

SECONDS = 0.5
MAX_BYTES = 8 * 1024 * 1024  # twice what 10,000 proxies take
_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")  # nothing else reaches a shell


def offer_proxies(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Each proxy by its name; with its client before it, where that is begun, or two have one name."""
    sessions = _sessions(context)
    pairs = [(client, name) for client, names in sessions for name in names]
    counts = Counter(name for _, name in pairs)
    plain = [name for _, name in pairs if counts[name] == 1 and "/" not in incomplete]
    whole = [f"{client}/{name}" for client, name in pairs if counts[name] > 1 or "/" in incomplete]
    return [name for name in sorted({*plain, *whole}) if name.startswith(incomplete)]


def offer_clients(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return sorted({client for client, _ in _sessions(context) if client.startswith(incomplete)})


def _sessions(context: click.Context) -> list[tuple[str, list[str]]]:
    """Each client with its proxies, of the admin address on the line so far; none where nobody answers in time."""
    from http.client import HTTPException

    where = context.params.get("admin")
    try:
        sessions = _ask(getattr(where, "host", "127.0.0.1"), getattr(where, "port", 8480))
        found = [(session["client"], [proxy["name"] for proxy in session["proxies"]]) for session in sessions]
        return [(client, list(filter(_NAME.fullmatch, names))) for client, names in found if _NAME.fullmatch(client)]
    except (OSError, HTTPException, ValueError, TypeError, KeyError):  # nobody there, or who answers something else
        return []


def _ask(host: str, port: int) -> Any:
    import json
    from http.client import HTTPConnection

    deadline = time.monotonic() + SECONDS
    connection = HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/stats", headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        raw = bytearray()
        while piece := response.read1(65536):
            raw += piece
            if len(raw) > MAX_BYTES or time.monotonic() > deadline:
                raise TimeoutError
        return json.loads(bytes(raw))["sessions"]
    finally:
        connection.close()
