"""The law of a data channel: frames inside the binary messages of a WebSocket, parsed without a socket.

    WebSocket payload:  frame frame frame …          one message holds a turn's frames; a frame may cross messages
    frame:              word (u32) stream (u32) payload          big endian; word = kind << 24 | number

    kind    number            payload                       who          means
    OPEN    payload length    index u32, version u32, …     server       a visitor came to proxy `index` of that set
    DATA    payload length    bytes                         both         costs the sender credit
    FIN     0                 -                             both         no more DATA this way; the other way goes on
    CREDIT  bytes             -                             both         the receiver delivered so much: send more
    RST     reason            -                             both         the stream is over, and not cleanly
    MOVE    0                 -                             both         my last frame here; I go on on another channel
    RETIRE  0 (stream 0)      -                             both         the client: open nothing here any more, move
                                                                         away; the server's answer: I have

OPEN does not wait for an answer: DATA may follow at once. More payload than eight bytes in OPEN is for later versions
and skipped. Stream ids and credit belong to the session, so a stream may use any of its channels. A sender starts
with FIRST_WINDOW of credit; DATA beyond credit is a protocol error. Frames for a stream that is gone are skipped:
they crossed its RST. What comes on the new channel before MOVE was seen on the old one waits for it (and counts against
the credit, so it is bounded). RST and CREDIT count from any channel, at once.

A moved stream greets on the new channel with an empty DATA. Its sender may move it again once both that and the former
MOVE (at first: OPEN) have been seen: DATA has no numbers, so nobody could tell in which order two new channels come. A
WebSocket ping stands behind every frame that was put before it, so its pong is the proof. After FIN there is nothing
to move: the sender only puts its CREDIT and RST elsewhere.

A channel is retired without cutting a stream: the client says RETIRE, both move what they send there, and the server
answers RETIRE as its last frame on it; when the client has left, too, and a pong proves that this is known, it closes.

WebSocket (RFC 6455) rules kept here: binary and continuation frames carry payload, text is an error, control frames
are at most 125 bytes and not fragmented, a client masks and a server does not. Our own client's mask is zero (masking
guards browsers, and this is inside TLS), but a middlebox may re-mask and re-fragment, so any mask is undone.

version 1: as drawn.
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from tunnel.errors import RemoteProtocolError

FRAME = struct.Struct("!II")
OPEN_PAYLOAD = struct.Struct("!II")
FRAME_HEAD = FRAME.size
OPEN, DATA, FIN, CREDIT, RST, MOVE, RETIRE = (kind << 24 for kind in range(1, 8))
KIND_MASK, NUMBER_MASK = 0xFF000000, 0x00FFFFFF
MAX_NUMBER = NUMBER_MASK
MAX_OPEN_PAYLOAD = 512

FIRST_WINDOW = 64 * 1024  # bytes of credit a stream starts with, each way (design §6)
MAX_GRANT = 512 * 1024  # bytes; at 10 Gbit/s two and a half thousand CREDIT frames a second
MAX_WINDOW = 8 * 1024 * 1024  # twice the product of 100 ms and 300 Mbit/s, and that of 2.5 ms and 25 Gbit/s

WS_ROOM = 14  # the longest WebSocket head: 2 bytes, 8 of length, 4 of mask
WS_MAX_CONTROL = 125  # payload of a ping, pong or close (RFC 6455 §5.5)
_BINARY, _CONTINUATION, _TEXT, _CLOSE, _PING, _PONG = 2, 0, 1, 8, 9, 10


class Abort(IntEnum):
    """Why a stream ended with RST."""

    RESET = 0  # the socket at the other end was reset
    DIAL_REFUSED = 1
    DIAL_TIMEOUT = 2
    DIAL_FAILED = 3  # unreachable, name not found, TLS to the target failed
    UNKNOWN_PROXY = 4  # the client's proxy set has moved on
    OVER_LIMIT = 5
    IDLE = 6  # half-closed and silent
    CHANNEL_LOST = 7
    SESSION_ENDED = 8
    INTERNAL = 9
    TARGET_DOWN = 10  # no target passes its health check

    @classmethod
    def of(cls, number: int) -> "Abort":
        return cls(number) if number <= cls.TARGET_DOWN else cls.INTERNAL  # a later version's reason


class Receiver(Protocol):
    """What a `FrameReader` tells, synchronously, in the order of the bytes."""

    def on_open(self, stream: int, index: int, version: int) -> None: ...
    def on_stray(self, stream: int, data: memoryview) -> None:
        """DATA for which `find` knew no sink: of a stream that is gone, or one that came here by MOVE."""

    def on_fin(self, stream: int) -> None: ...
    def on_credit(self, stream: int, count: int) -> None: ...
    def on_rst(self, stream: int, reason: int) -> None: ...
    def on_move(self, stream: int) -> None: ...
    def on_retire(self) -> None: ...
    def on_ping(self, payload: bytes) -> None: ...
    def on_pong(self, payload: bytes) -> None: ...
    def on_close(self) -> None: ...


class Sink(Protocol):
    """Where the DATA of one stream goes; called for each piece, in order."""

    def deliver(self, data: memoryview) -> None: ...


class FrameReader:
    """Parses one direction of a channel, whatever the pieces it comes in.

    `find` gives the sink of a stream that speaks here, None for any other. `masked`: the peer is a client.
    """

    __slots__ = (
        "_data_left", "_data_stream", "_ended", "_find", "_fragmented", "_head", "_mask", "_mask_at", "_masked",
        "_message_left", "_partial", "_receiver",
    )  # fmt: skip

    def __init__(self, receiver: Receiver, find: Callable[[int], Sink | None], *, masked: bool) -> None:
        self._receiver = receiver
        self._find = find
        self._masked = masked
        self._head = b""  # of a WebSocket frame, while it is not whole; at most WS_ROOM + WS_MAX_CONTROL bytes
        self._fragmented = False  # a WebSocket message goes on in a continuation frame
        self._message_left = 0  # payload bytes of the current WebSocket frame not yet seen
        self._mask = b""  # empty while it is zero, which our own client's always is
        self._mask_at = 0
        self._partial = b""  # a frame's head or OPEN, while it is not whole; less than MAX_OPEN_PAYLOAD + 8 bytes
        self._data_left = 0  # payload bytes of the current DATA frame not yet seen
        self._data_stream = 0
        self._ended = False  # their close was seen; nothing after it counts

    def feed(self, view: memoryview) -> None:
        """Handle all of `view` (writable); DATA is passed on as slices of it, as it comes.

        Raises `RemoteProtocolError`, its own or a sink's; the channel is then over.
        """
        at, end = 0, len(view)
        while at < end:
            if self._message_left == 0:
                if self._ended:
                    return
                at = self._begin_message(view, at)
                continue
            stop = at + self._message_left
            if stop > end:
                stop = end
            self._message_left -= stop - at
            if self._mask:
                self._unmask(view[at:stop])
            if self._partial:
                at = self._complete(view, at, stop)
            self._frames(view, at, stop)
            at = stop

    def _frames(self, view: memoryview, at: int, stop: int) -> None:
        receiver, find, unpack = self._receiver, self._find, FRAME.unpack_from
        if self._data_left:
            at = self._go_on_with_data(view, at, stop)
        while stop - at >= FRAME_HEAD:
            word, stream = unpack(view, at)
            kind = word & KIND_MASK
            if kind == DATA:
                at += FRAME_HEAD
                end = at + (word & NUMBER_MASK)
                if end > stop:
                    self._data_left, self._data_stream = end - at, stream
                    self._go_on_with_data(view, at, stop)
                    return
                sink = find(stream)
                if sink is not None:
                    sink.deliver(view[at:end])
                else:
                    receiver.on_stray(stream, view[at:end])
                at = end
                continue
            if kind == CREDIT:
                receiver.on_credit(stream, word & NUMBER_MASK)
            elif kind == OPEN:
                size = _open_size(word)
                if stop - at < FRAME_HEAD + size:
                    break
                receiver.on_open(stream, *OPEN_PAYLOAD.unpack_from(view, at + FRAME_HEAD))
                at += size
            elif kind == FIN:
                receiver.on_fin(stream)
            elif kind == RST:
                receiver.on_rst(stream, word & NUMBER_MASK)
            elif kind == MOVE:
                receiver.on_move(stream)
            elif kind == RETIRE:
                if stream:
                    raise RemoteProtocolError(f"RETIRE of stream {stream}: channels retire, streams do not")
                receiver.on_retire()
            else:
                raise RemoteProtocolError(f"unknown frame kind {kind >> 24}")
            at += FRAME_HEAD
        if at < stop:
            self._partial = bytes(view[at:stop])

    def _go_on_with_data(self, view: memoryview, at: int, stop: int) -> int:
        """Pass on what is here of a DATA frame that does not end here, or did not begin here."""
        end = min(at + self._data_left, stop)
        if end > at:
            self._data_left -= end - at
            sink = self._find(self._data_stream)
            if sink is not None:
                sink.deliver(view[at:end])
            else:
                self._receiver.on_stray(self._data_stream, view[at:end])
        return end

    def _complete(self, view: memoryview, at: int, stop: int) -> int:
        """Take from `view` what the partial frame lacks; handle it if that is all there. Returns where it ends."""
        partial = self._partial
        while (missing := _frame_size(partial) - len(partial)) > 0:
            if at == stop:
                self._partial = partial
                return at
            taken = bytes(view[at : min(stop, at + missing)])
            partial += taken
            at += len(taken)
        self._partial = b""
        self._frames(memoryview(partial), 0, len(partial))
        return at

    def _begin_message(self, view: memoryview, at: int) -> int:
        """Take in what `view` has of a WebSocket frame's head; returns where its payload begins."""
        head = self._head + bytes(view[at : at + WS_ROOM + WS_MAX_CONTROL - len(self._head)])
        used = self._parse_head(head)
        if used == 0:  # not whole, so all of `view` is in it
            self._head = head
            return len(view)
        at += used - len(self._head)
        self._head = b""
        return at

    def _parse_head(self, head: bytes) -> int:
        """Take in a WebSocket frame's head (a control frame: all of it); 0 if it is not whole."""
        if len(head) < 2:
            return 0
        first, second = head[0], head[1]
        if first & 0x70:
            raise RemoteProtocolError("a WebSocket frame with reserved bits")
        if bool(second & 0x80) is not self._masked:
            raise RemoteProtocolError("a WebSocket frame masked like those of the wrong side")
        length, size = second & 0x7F, 2
        if length >= 126:
            size = 4 if length == 126 else 10
            length = int.from_bytes(head[2:size], "big")
        mask = b""
        if self._masked:
            mask = head[size : size + 4]
            size += 4
        if len(head) < size:
            return 0
        opcode = first & 0x0F
        if opcode >= _CLOSE:
            return self._control(first, length, mask, head[size:]) and size + length
        if opcode != (_CONTINUATION if self._fragmented else _BINARY):
            raise RemoteProtocolError(f"a WebSocket frame with opcode {opcode} where it has no place")
        self._fragmented = not first & 0x80
        self._message_left = length
        self._mask = mask if any(mask) else b""
        self._mask_at = 0
        return size

    def _control(self, first: int, length: int, mask: bytes, rest: bytes) -> bool:
        if length > WS_MAX_CONTROL or not first & 0x80:
            raise RemoteProtocolError("a WebSocket control frame that is too long or fragmented")
        if len(rest) < length:
            return False
        payload = bytes(byte ^ mask[i & 3] for i, byte in enumerate(rest[:length])) if mask else rest[:length]
        opcode = first & 0x0F
        if opcode == _PING:
            self._receiver.on_ping(payload)
        elif opcode == _PONG:
            self._receiver.on_pong(payload)
        elif opcode == _CLOSE:
            self._ended = True
            self._receiver.on_close()
        else:
            raise RemoteProtocolError(f"unknown WebSocket opcode {opcode}")
        return True

    def _unmask(self, part: memoryview) -> None:
        size, shift = len(part), self._mask_at
        key = ((self._mask[shift:] + self._mask[:shift]) * (size // 4 + 1))[:size]
        part[:] = (int.from_bytes(part, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
        self._mask_at = (shift + size) & 3


def _frame_size(partial: bytes) -> int:
    """How long a frame is that begins so, DATA's payload aside; as far as can be told."""
    if len(partial) < FRAME_HEAD:
        return FRAME_HEAD
    word = FRAME.unpack_from(partial)[0]
    return FRAME_HEAD + (_open_size(word) if word & KIND_MASK == OPEN else 0)


def _open_size(word: int) -> int:
    size = word & NUMBER_MASK
    if not OPEN_PAYLOAD.size <= size <= MAX_OPEN_PAYLOAD:
        raise RemoteProtocolError(f"OPEN with a payload of {size} bytes")
    return size


def put_message_head(out: bytearray, length: int, *, masked: bool, opcode: int = _BINARY) -> int:
    """Write the head of a message of `length` bytes so that it ends at ``out[WS_ROOM]``; returns where it begins."""
    mask_room = 4 if masked else 0
    mask_bit = 0x80 if masked else 0
    if length < 126:
        at = WS_ROOM - mask_room - 2
        out[at + 1] = mask_bit | length
    elif length < 65536:
        at = WS_ROOM - mask_room - 4
        out[at + 1] = mask_bit | 126
        out[at + 2 : at + 4] = length.to_bytes(2, "big")
    else:
        at = WS_ROOM - mask_room - 10
        out[at + 1] = mask_bit | 127
        out[at + 2 : at + 10] = length.to_bytes(8, "big")
    out[at] = 0x80 | opcode
    if masked:
        out[WS_ROOM - 4 : WS_ROOM] = b"\0\0\0\0"
    return at


def control_message(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    """A whole ping, pong or close."""
    out = bytearray(WS_ROOM)
    at = put_message_head(out, len(payload), masked=masked, opcode=opcode)
    return bytes(out[at:]) + payload


PING, PONG, CLOSE = _PING, _PONG, _CLOSE


def grown_window(window: int, delivered: int, seconds: float, round_trip: float) -> int:
    """The receive window after `delivered` bytes in `seconds`: doubled if it may have been what held the sender back.

    Such a sender uses all of its window in each round trip; one that is held back by its source or by the path takes
    longer. Up to four times a window's worth leaves room for a measured `round_trip` that was too short.
    """
    if delivered * 4 * round_trip < window * seconds:
        return window
    return min(window * 2, MAX_WINDOW)


def grant_size(window: int) -> int:
    """How much must have been delivered before it is granted again: half a window, of a big one less.

    What is delivered and not yet granted is missing from the window: of 8 MiB half was missing at times, which is less
    than what is under way on a path of 100 ms and 300 Mbit/s.
    """
    return min(window >> 1, MAX_GRANT)
