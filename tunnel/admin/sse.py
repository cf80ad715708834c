"""How server-sent events look on the wire. Pure."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

ROWS_A_PIECE = 200  # of a state: about 80 KB and two milliseconds of work, then others get their turn
HEARTBEAT = b": still here\n\n"


def message(event: str, data: Any, *, number: int | None = None) -> bytes:
    head = f"event: {event}\n" if number is None else f"event: {event}\nid: {number}\n"
    return f"{head}data: {_json(data)}\n\n".encode()


def state_message(
    head: dict[str, Any], sessions: Iterable[tuple[str, str, Iterator[tuple[str, dict[str, Any]]]]]
) -> Iterator[bytes]:
    """``state`` in pieces: {…head, "sessions": {CLIENT: {"since": …, "proxies": {NAME: {…}}}}}.

    One message may have many lines of data; a line's end is a blank to JSON. `sessions` is read as pieces are.
    """
    yield f'event: state\ndata: {_json(head)[:-1]}{"," if head else ""}"sessions":{{\n'.encode()
    comma = ""
    for client, since, rows in sessions:
        yield f'data: {comma}{_json(client)}:{{"since":{_json(since)},"proxies":{{\n'.encode()
        inner = ""
        while piece := ",".join(f"{_json(name)}:{_json(row)}" for name, row in islice(rows, ROWS_A_PIECE)):
            yield f"data: {inner}{piece}\n".encode()
            inner = ","
        yield b"data: }}\n"
        comma = ","
    yield b"data: }}\n\n"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))  # ASCII, and no line ends
