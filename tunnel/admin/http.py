"""HTTP/1.1 for the admin address, over h11: accepts, reads requests, writes what an `Answer` gives for them.

What it serves is not its business, see `admin`. Every connection is a task of its own behind a wall: what goes wrong
there ends there.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import h11
import trio
from attrs import Factory, field, frozen

from tunnel.admin.room import MAX_STREAMS, Guest, Room

MAX_HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 5.0  # from the connection, or from the first byte on a kept-alive one, to the end of the head
MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 5.0
IDLE_SECONDS = 30.0  # between two requests; a Prometheus scrapes every 15 s and keeps its connection
WRITE_SECONDS = 30.0  # a whole answer, or one chunk of a stream
LINGER_SECONDS = 1.0  # to let a peer read why it is cut off, before what it still sends would reset the connection
ACCEPT_PAUSE = 0.1  # seconds; descriptors may be free again then, and until then accepting would spin
_READ_BYTES = 4096

_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

log = logging.getLogger(__name__)

Send = Callable[[bytes], Awaitable[None]]


@frozen
class Request:
    """A complete request. Header names are lower case; a header that came twice is joined with a comma."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)  # with the admin token
    body: bytes


@frozen
class Response:
    """An answer. With `stream` the body is whatever that sends until it returns; it is cancelled when the peer leaves,
    and the connection closes after it. `headers` (lower case) override the defaults, such as the CSP."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = Factory(dict)
    stream: Callable[[Send], Awaitable[None]] | None = None


Answer = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Response(status, body, "application/json", headers or {})


def error_response(status: int, text: str, *, headers: Mapping[str, str] | None = None) -> Response:
    return json_response({"error": text}, status=status, headers=headers)


async def serve_http(
    listeners: list[trio.SocketListener],
    answer: Answer,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve at `listeners` until cancelled, then close them; without listeners, return at once."""
    door = _Door(answer)
    async with trio.open_nursery() as connections:
        for listener in listeners:
            connections.start_soon(door.accept, listener, connections, name="admin listener")
        task_status.started()


class _Door:
    """Lets connections in at all listeners, and no more at a time than there is room for."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._room = Room()

    async def accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        is_failing = False
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:  # EMFILE and its like, or a firewall's verdict on one peer
                    if not is_failing:  # once per bout, not ten times a second
                        log.warning("admin.accept_failed", extra={"error": str(exc)})
                    is_failing = True
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                is_failing = False
                guest = self._room.enter()  # here and not in the task: a burst is accepted before the first task runs
                connections.start_soon(self._serve, stream, guest, name="admin connection")

    async def _serve(self, stream: trio.SocketStream, guest: Guest) -> None:
        try:
            with guest.scope:
                await serve_connection(stream, self._answer, guest)
        finally:
            self._room.leave(guest)


async def serve_connection(stream: trio.abc.HalfCloseableStream, answer: Answer, guest: Guest | None = None) -> None:
    """Answer one peer's requests, then close `stream`. Only cancellation comes out of here."""
    try:
        async with stream:
            await _Connection(stream, answer, guest or Room().enter()).run()
    except* (OSError, trio.BrokenResourceError, trio.TooSlowError) as group:
        log.debug("admin.connection_lost", extra={"error": repr(group.exceptions[0])})
    except* Exception:
        log.exception("admin.connection_crashed")


class _Unusable(Exception):
    """The peer's request ends its connection, after `response` if there is one."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Connection:
    """One peer: read a request, answer, again; h11 keeps the law of what may follow what."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, answer: Answer, guest: Guest) -> None:
        self._stream = stream
        self._answer = answer
        self._guest = guest
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._received = 0  # bytes of this request

    async def run(self) -> None:
        try:
            request = await self._read_request()
            while request is not None:
                await self._exchange(request)
                if self._http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    return
                self._http.start_next_cycle()
                request = await self._read_request() if await self._wait_next() else None
        except _Unusable as exc:
            await self._part(exc.response)
        except h11.RemoteProtocolError as exc:
            hint = exc.error_status_hint
            why = "the head is too large" if hint == 431 else "this is not an HTTP request"
            await self._part(error_response(hint, why))

    async def _exchange(self, request: Request) -> None:
        self._guest.asks()
        response = await self._respond(request)
        self._guest.reads(len(response.body))
        await self._send(request, response)
        self._guest.has_read()

    async def _respond(self, request: Request) -> Response:
        response = await self._answer(request)
        if response.stream is not None and request.method != "HEAD" and not self._guest.may_stay():
            return error_response(503, f"{MAX_STREAMS} streams are read already, such as dashboards; close one of them")
        return response

    async def _wait_next(self) -> bool:
        """True once the next request begins, False when the peer keeps silent or leaves."""
        leftover, _ = self._http.trailing_data
        self._received = len(leftover)
        if leftover:
            return True
        with trio.move_on_after(IDLE_SECONDS):
            return bool(await self._receive())
        return False

    async def _read_request(self) -> Request | None:
        event = None
        with trio.move_on_after(HEAD_SECONDS) as head:
            event = await self._next_event()
        if head.cancelled_caught and self._received:
            raise _Unusable(error_response(408, f"the head took longer than {HEAD_SECONDS:.0f} s"))
        if not isinstance(event, h11.Request):  # left, or never said a word
            return None
        if self._received > MAX_HEAD_BYTES and len(b"".join(map(b"".join, event.headers))) > MAX_HEAD_BYTES:
            # It came in one piece, so h11 never saw it incomplete.
            raise _Unusable(error_response(431, "the head is too large"))
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = await self._read_body(headers)
        target = event.target.decode("ascii")
        if not target.startswith("/"):
            raise _Unusable(error_response(400, "only targets that begin with / are served"))
        path, _, query = target.partition("?")
        return Request(event.method.decode("ascii"), path, query, headers, body)

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:  # h11 has checked that it is a number
            raise _Unusable(error_response(413, f"the body is larger than {MAX_BODY_BYTES} bytes"))
        body = bytearray()
        with trio.move_on_after(BODY_SECONDS):
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            while isinstance(event := await self._next_event(), h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise _Unusable(error_response(413, f"the body is larger than {MAX_BODY_BYTES} bytes"))
            return bytes(body)
        raise _Unusable(error_response(408, f"the body took longer than {BODY_SECONDS:.0f} s"))

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self._http.next_event()
            except ValueError as exc:  # h11 calls int() on a Content-Length of any number of digits
                raise h11.RemoteProtocolError("absurd Content-Length") from exc
            if event is not h11.NEED_DATA:
                return event
            await self._receive()

    async def _receive(self) -> int:
        data = await self._stream.receive_some(_READ_BYTES)
        self._http.receive_data(bytes(data))
        self._received += len(data)
        return len(data)

    async def _send(self, request: Request | None, response: Response) -> None:
        headers = {**_HEADERS, "content-type": response.content_type}
        if response.stream is None:
            headers["content-length"] = str(len(response.body))
        else:
            headers["connection"] = "close"
        headers.update(response.headers)
        head = self._http.send(h11.Response(status_code=response.status, headers=list(headers.items())))
        if request is None or request.method != "HEAD":
            if response.stream is not None:
                await self._write(head)
                return await self._run_stream(response.stream)
            body = self._http.send(h11.Data(data=response.body))
            if len(response.body) > MAX_BODY_BYTES:  # by itself: no copy is made of it
                await self._write(head)
                await self._write(body)
                return await self._write(self._http.send(h11.EndOfMessage()))
            head = (head or b"") + (body or b"")
        return await self._write(head, self._http.send(h11.EndOfMessage()))

    async def _run_stream(self, produce: Callable[[Send], Awaitable[None]]) -> None:
        async def send(chunk: bytes) -> None:
            await self._write(self._http.send(h11.Data(data=chunk)))

        async with trio.open_nursery() as streaming:
            streaming.start_soon(self._wait_hangup, streaming.cancel_scope)
            await produce(send)
            await self._write(self._http.send(h11.EndOfMessage()))
            streaming.cancel_scope.cancel(reason="stream ended")

    async def _wait_hangup(self, streaming: trio.CancelScope) -> None:
        await self._stream.receive_some(1)  # nothing may follow on this connection, so a byte means as much as an end
        streaming.cancel(reason="peer hung up")

    async def _write(self, *pieces: bytes | None) -> None:
        with trio.fail_after(WRITE_SECONDS):
            await self._stream.send_all(b"".join([piece for piece in pieces if piece]))

    async def _part(self, response: Response) -> None:
        """Say why, and let the peer read it: closing with unread bytes would reset the connection under the answer."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(None, Response(response.status, response.body, response.content_type, {"connection": "close"}))
        await self._stream.send_eof()
        with trio.move_on_after(LINGER_SECONDS):
            while await self._stream.receive_some(_READ_BYTES):
                pass
