"""The control channel: messages ⇄ WebSocket. The only importer of trio-websocket, and the wall around it.

What trio-websocket 0.12.2 does wrong, and what stands against it here:

- its reader task raises into the nursery it was given (a ping while closing, a failed answer): the nursery it gets is a
  stand-in that keeps the exception, and the channel ends as `PeerLost`;
- `wrap_server_stream` and `wrap_client_stream` wait for ever when the reader ends before the handshake: the stand-in
  ends that wait too, and a deadline stands above it;
- `aclose()` may hang, or leave the descriptor open: the stream under it is always closed by us, within a second;
- a message of empty fragments has no end and no bound: `_Followed` counts them before they get there.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio_websocket
import wsproto.utilities

from tunnel.addresses import HostPort
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.fragments import FragmentBound
from tunnel.messages import MAX_MESSAGE_BYTES, Message, decode, encode
from tunnel.tls import TlsStream
from tunnel.upgrade import http_date, refusal

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0  # for the upgrade (login, design §8)
CLOSE_SECONDS = 1.0  # for a polite end
RECEIVE_BYTES = 64 * 1024  # at a time; the default of 4 KiB is sixteen times the work for a large proxy set


class ControlChannel:
    """One task may receive while others send. Ends with the context manager that made it.

    When `ended` is set nothing more comes; what came before can still be received. `peer` is the other end's address.
    """

    def __init__(self, websocket: trio_websocket.WebSocketConnection, ended: trio.Event, peer: str) -> None:
        self.ended = ended
        self.peer = peer
        self._websocket = websocket

    async def send(self, message: Message) -> None:
        """Raises `PeerLost`. If cancelled midway the channel is broken; close it."""
        try:
            await self._websocket.send_message(encode(message))
        except (trio_websocket.ConnectionClosed, wsproto.utilities.LocalProtocolError) as exc:  # the second: is closing
            raise PeerLost("the control channel was closed", answered=True) from exc

    async def receive(self) -> Message:
        """The next message. Raises `PeerLost` at the end, `RemoteProtocolError` for nonsense."""
        try:
            text = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise PeerLost("the control channel was closed", answered=True) from exc
        if isinstance(text, bytes):
            raise RemoteProtocolError("a binary message on the control channel")
        return decode(text)


class _Followed(trio.abc.Stream):
    """The stream as the library sees it: one message of too many fragments ends it."""

    def __init__(self, stream: TlsStream) -> None:
        self._stream = stream
        self._bound = FragmentBound()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self._bound.feed(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _ReaderHome:
    """Stands in for the nursery that trio-websocket starts its reader in."""

    def __init__(self, nursery: trio.Nursery, opening: trio.CancelScope) -> None:
        self._nursery = nursery
        self._opening = opening
        self.failure: Exception | None = None
        self.ended = trio.Event()

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader, name="control channel reader")

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:  # theirs to raise, ours to contain
            self.failure = exc
            log.debug("the WebSocket reader failed: %r", exc)
        finally:
            self._opening.cancel()
            self.ended.set()


Wrap = Callable[[Any], Awaitable[trio_websocket.WebSocketConnection]]


@asynccontextmanager
async def _open(stream: TlsStream, wrap: Wrap) -> AsyncIterator[ControlChannel]:
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            opening = trio.CancelScope(deadline=trio.current_time() + OPEN_SECONDS)
            home = _ReaderHome(nursery, opening)
            try:
                yield ControlChannel(await _upgrade(wrap, home, opening), home.ended, _peer_of(stream))
            except Exception as exc:  # raised below: out of a nursery it would come as a group
                failure = exc
            nursery.cancel_scope.cancel(reason="the control channel is closing")
        if not isinstance(failure, PeerLost):
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.end_politely()
    finally:
        stream.close()
    if failure is not None:
        raise failure


def _peer_of(stream: TlsStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except (OSError, ValueError):  # gone already, or not over IP
        return "unknown"
    return str(HostPort(host, port))


async def _upgrade(wrap: Wrap, home: _ReaderHome, opening: trio.CancelScope) -> trio_websocket.WebSocketConnection:
    """`PeerLost` for whatever goes wrong (h11, wsproto and codecs all raise here), a server's refusal aside."""
    failure: Exception | None = None
    with opening:
        try:
            return await wrap(home)
        except Exception as exc:
            failure = exc
    failure = failure or home.failure
    if failure is None:
        raise PeerLost("no answer to the WebSocket upgrade", answered=True)
    if isinstance(failure, trio_websocket.HandshakeError):
        raise failure
    raise PeerLost(f"the WebSocket upgrade failed: {failure!r}", answered=True) from failure


@asynccontextmanager
async def open_server_control(stream: TlsStream) -> AsyncIterator[ControlChannel]:
    """The server's end, over a stream whose upgrade head was checked and pushed back. Closes the stream.

    Raises `PeerLost` when the upgrade fails, and whatever the body raises, unwrapped.
    """

    async def wrap(home: Any) -> trio_websocket.WebSocketConnection:
        request = await trio_websocket.wrap_server_stream(
            home, _Followed(stream), max_message_size=MAX_MESSAGE_BYTES, receive_buffer_size=RECEIVE_BYTES
        )
        return await request.accept(extra_headers=[(b"Date", http_date().encode())])

    async with _open(stream, wrap) as channel:
        yield channel


@asynccontextmanager
async def open_client_control(
    stream: TlsStream, *, host: str, path: str, headers: Mapping[str, str]
) -> AsyncIterator[ControlChannel]:
    """The client's end: upgrades, then yields. Closes the stream.

    Raises `Refused` when the server answers with an error, `PeerLost` when it does not answer.
    """
    any_stream: Any = _Followed(stream)  # annotated as TCP or Trio's TLS there; nothing but `trio.abc.Stream` is used
    wrap = partial(
        trio_websocket.wrap_client_stream,
        stream=any_stream,
        host=host,
        resource=path,
        extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        max_message_size=MAX_MESSAGE_BYTES,
        receive_buffer_size=RECEIVE_BYTES,
    )

    try:
        async with _open(stream, wrap) as channel:
            yield channel
    except trio_websocket.ConnectionRejected as exc:
        raise refusal(exc.status_code, exc.body or b"") from exc
    except trio_websocket.HandshakeError as exc:
        raise PeerLost(f"the WebSocket upgrade failed: {exc!r}", answered=True) from exc
    except PeerLost as exc:
        if stream.refused is not None:
            raise stream.refused from exc
        raise
