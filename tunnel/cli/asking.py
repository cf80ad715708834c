"""Asks the admin address of a running server or client: what it shows, and for changes.

The commands that look at a process call this; it blocks and needs no Trio. What it cannot have is a `TunnelError` that
says what to do instead.
"""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlencode

from tunnel.addresses import HostPort
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.wording import clean, human_bytes

CONNECT_SECONDS = 3.0  # the admin address is near; who waits here is a person
ANSWER_SECONDS = 10.0  # for the whole answer
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 10,000 proxies take 4 MiB


def fetch_stats(where: HostPort, name: str = "") -> dict[str, Any]:
    """What GET /stats says, of all, or of what has this `name` (PROXY, CLIENT or CLIENT/PROXY)."""
    status, body = ask(where, "GET", f"/stats?{urlencode({'name': name})}" if name else "/stats")
    if status != 200 or not isinstance(body.get("sessions"), list):
        raise stranger(where, f"it answered /stats with {error_of(body) or status}")
    return body


def request_retry(where: HostPort, name: str, token: str) -> list[str]:
    """Ask for fresh bind attempts of `name` (NAME or CLIENT/NAME); returns the names that were restarted."""
    return _request_change(where, "/retry", {"name": name}, token, "restarted")


def request_close(where: HostPort, client: str, token: str) -> list[str]:
    """Ask for the end of a client's session; returns whose were ended: none of a client that has none just now."""
    return _request_change(where, "/close", {"client": client}, token, "closed")


def _request_change(where: HostPort, path: str, body: dict[str, Any], token: str, done: str) -> list[str]:
    """POST `body`; returns the names the answer gives as `done`."""
    status, answer = ask(where, "POST", path, body=body, token=token)
    match status:
        case 200 if isinstance(answer.get(done), list):
            return [clean(str(name)) for name in answer[done]]
        case 401:
            raise Refused(
                "token_refused",
                f"{where} refused the admin token; it is in admin.token in the state directory of that process",
                trust=True,
            )
        case 404 if error_of(answer):
            raise TunnelError(f"{error_of(answer)}; `trio-tunnel status` lists the names")
        case 409 if error_of(answer):
            raise TunnelError(error_of(answer))
        case _:
            raise stranger(where, f"it answered {path} with {error_of(answer) or status}")


def ask(
    where: HostPort, method: str, path: str, *, body: dict[str, Any] | None = None, token: str = ""
) -> tuple[int, dict[str, Any]]:
    """One request: the status of the answer, and the JSON object in it."""
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
                raise stranger(where, f"its answer is larger than {human_bytes(MAX_ANSWER_BYTES)}")
            if time.monotonic() - started > ANSWER_SECONDS:
                raise TimeoutError
        found = json.loads(bytes(raw))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as exc:
        raise lost(where, exc) from exc
    finally:
        connection.close()
    if not isinstance(found, dict):
        raise stranger(where, "its answer is not a JSON object")
    return response.status, found


def lost(where: HostPort, exc: Exception) -> TunnelError:
    """`exc`, of talking to `where`, with what to do about it."""
    if isinstance(exc, TimeoutError):
        return PeerLost(f"{where} did not answer in time; is it trio-tunnel's admin address?")
    if isinstance(exc, ConnectionResetError):  # RemoteDisconnected too: it spoke TLS, or is full
        return PeerLost(f"{where} closed the connection without an answer; is it trio-tunnel's admin address?")
    if isinstance(exc, OSError):
        return PeerLost(
            f"nothing answers at {where} ({exc.strerror or exc}); is `trio-tunnel serve` running, "
            f"or was it, or `trio-tunnel connect`, started with another --admin?"
        )
    return stranger(where, "its answer is not HTTP with JSON")


def stranger(where: HostPort, what: str) -> TunnelError:
    return TunnelError(
        f"{where} does not seem to be trio-tunnel's admin address: {what}; name the right one with --admin"
    )


def error_of(body: dict[str, Any]) -> str:
    """The words of an answer that says no."""
    return clean(str(body.get("error", "")))
