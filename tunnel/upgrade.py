"""The HTTP head that opens every tunnel connection: read under a cap, answered, upgraded or refused.

h11 does the parsing; this module adds the cap, the WebSocket key arithmetic (RFC 6455 §4.2.2) and the polite refusal.
"""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping

import h11
import trio
from attrs import field, frozen

from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.tls import TlsStream

MAX_HEAD_BYTES = 16 * 1024  # design §8
MAX_REFUSAL_BYTES = 16 * 1024
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


@frozen
class Head:
    """A request head: `raw` is exactly what was read of it, `rest` what came after it."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)  # with the token
    raw: bytes = field(repr=False)
    rest: bytes = field(repr=False)

    @property
    def bearer(self) -> str:
        scheme, _, credential = self.headers.get("authorization", "").partition(" ")
        return credential.strip() if scheme.lower() == "bearer" else ""

    @property
    def is_upgrade(self) -> bool:
        return (
            self.method == "GET"
            and self.headers.get("upgrade", "").lower() == "websocket"
            and "upgrade" in self.headers.get("connection", "").lower()
            and self.headers.get("sec-websocket-version") == "13"
            and len(self.headers.get("sec-websocket-key", "")) == 24
        )


async def read_head(stream: TlsStream) -> Head:
    """Read one request head; `RemoteProtocolError` if it is none or passes the cap. The caller holds the deadline."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    raw = b""
    while True:
        event = _next_event(parser)
        if isinstance(event, h11.Request):
            rest = parser.trailing_data[0]
            if len(raw) - len(rest) > MAX_HEAD_BYTES:  # h11 bounds only a head that is not whole yet
                raise RemoteProtocolError("HTTP head too long")
            headers = _headers(event.headers)
            method, path = event.method.decode("ascii"), event.target.decode("ascii", "replace")
            return Head(method, path, headers, raw[: len(raw) - len(rest)], rest)
        if event is not h11.NEED_DATA:
            raise RemoteProtocolError("no HTTP request")
        data = await stream.receive_some(MAX_HEAD_BYTES)
        if not data:
            raise RemoteProtocolError("the peer hung up within its HTTP head")
        raw += data
        if len(raw) > 2 * MAX_HEAD_BYTES:
            raise RemoteProtocolError("HTTP head too long")
        parser.receive_data(data)


def _next_event(parser: h11.Connection) -> object:
    try:
        return parser.next_event()
    except h11.RemoteProtocolError as exc:
        raise RemoteProtocolError(f"malformed HTTP: {exc}") from exc


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        key = name.decode("ascii")
        if key in found and key in ("authorization", "sec-websocket-key", "upgrade"):
            raise RemoteProtocolError(f"two {key} headers")  # which one counts must not be a matter of taste
        found[key] = value.decode("latin-1")
    return found


def accept_key(key: str) -> str:
    return base64.b64encode(
        hashlib.sha1(key.encode("latin-1") + WEBSOCKET_GUID, usedforsecurity=False).digest()
    ).decode()


def http_date() -> str:
    """Now, as HTTP writes it (`email.utils` would be a megabyte, and `strftime` goes by the locale)."""
    now = time.gmtime()
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    return f"{day}, {now.tm_mday:02} {month} {now.tm_year} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"


def switching_protocols(head: Head) -> bytes:
    """The 101 answer to a WebSocket upgrade."""
    accept = accept_key(head.headers["sec-websocket-key"])
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nDate: {http_date()}\r\n\r\n"
    ).encode()


async def refuse(stream: TlsStream, status: int, reason: str, message: str, *, retry_after: int | None = None) -> None:
    """Answer with an error in JSON and end politely; `retry_after` is in seconds. The caller holds the deadline and
    closes the stream."""
    body = json.dumps({"reason": reason, "message": message}).encode()
    wait = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\nCache-Control: no-store\r\n"
        f"Date: {http_date()}\r\n{wait}\r\n"
    )
    try:
        await stream.send_all(head.encode() + body)
        await stream.end_politely()
    except trio.BrokenResourceError:
        pass  # they did not wait for the answer


_PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    426: "Upgrade Required",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


async def request_upgrade(stream: TlsStream, host: str, path: str, headers: Mapping[str, str]) -> bytes:
    """Ask for a WebSocket on `stream`; returns the bytes that followed the 101.

    Raises `Refused` for an HTTP error answer, `PeerLost` if the connection broke, `RemoteProtocolError` for nonsense.
    """
    key = base64.b64encode(os.urandom(16)).decode()
    ours = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    pairs = [*ours.items(), ("Sec-WebSocket-Key", key), *headers.items()]
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    try:
        request = h11.Request(method="GET", target=path, headers=pairs)
    except (h11.LocalProtocolError, UnicodeError):  # whose text names the secret
        raise RemoteProtocolError("the server gave a ticket that fits in no header") from None
    try:
        await stream.send_all(parser.send(request) or b"")
        parser.send(h11.EndOfMessage())
        return await _read_answer(stream, parser, accept_key(key))
    except trio.BrokenResourceError as exc:
        lost = PeerLost(f"the connection broke during the upgrade: {exc}", answered=True)
        raise stream.refused or lost from exc


async def _read_answer(stream: TlsStream, parser: h11.Connection, expected: str) -> bytes:
    status, body, received = 0, b"", 0
    while True:
        event = _next_event(parser)
        if event is h11.NEED_DATA:
            data = await stream.receive_some(MAX_HEAD_BYTES)
            received += len(data)
            if received > 2 * MAX_REFUSAL_BYTES:
                raise RemoteProtocolError("the server's answer to the upgrade is too long")
            parser.receive_data(data)
        elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            if _headers(event.headers).get("sec-websocket-accept") != expected:
                raise RemoteProtocolError("the answer to the upgrade is not for this request")
            return bytes(parser.trailing_data[0])
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            raise refusal(status, body)
        elif isinstance(event, h11.ConnectionClosed):
            raise PeerLost("the server hung up during the upgrade", answered=True)


def refusal(status: int, body: bytes) -> Refused:
    """The exception for an HTTP error answer, whether our server wrote it or something in between."""
    reason, message = "", ""
    try:
        told = json.loads(body)
        if isinstance(told, dict):
            reason, message = str(told.get("reason", ""))[:64], str(told.get("message", ""))[:1000]
    except ValueError:
        pass  # a proxy's HTML page
    if not reason:
        reason = {401: "token_refused", 403: "token_refused", 409: "identity_held"}.get(status, "http_error")
        message = f"HTTP {status} from the server or something before it"
    # A server that has had enough of wrong tokens says 429 to the next one; what helps is a good token all the same.
    return Refused(reason, message, trust=status in (401, 403, 409) or reason == "token_refused")
