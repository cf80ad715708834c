"""The frames of a data channel: whatever the pieces, fragments and masks, the same events come out, in order."""

import struct
import tracemalloc
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tunnel import frames
from tunnel.errors import RemoteProtocolError
from tunnel.frames import (
    CLOSE,
    CREDIT,
    DATA,
    FIN,
    FIRST_WINDOW,
    FRAME,
    FRAME_HEAD,
    MAX_GRANT,
    MAX_OPEN_PAYLOAD,
    MAX_WINDOW,
    MOVE,
    OPEN,
    PING,
    PONG,
    RETIRE,
    RST,
    WS_MAX_CONTROL,
    WS_ROOM,
    Abort,
    FrameReader,
    control_message,
    grant_size,
    grown_window,
    put_message_head,
)

Told = tuple[Any, ...]  # ("data", stream, bytes), ("open", stream, index, version), ("ping", payload), …
GONE = 13  # the stream that `find` does not know


class Recorder:
    """Writes down what a reader tells, consecutive bytes of one stream as one."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def find(self, stream: int) -> "Sink | None":
        return None if stream == GONE else Sink(self, stream)

    def on_data(self, kind: str, stream: int, data: memoryview) -> None:
        add_data(self.told, (kind, stream, bytes(data)))

    def on_stray(self, stream: int, data: memoryview) -> None:
        self.on_data("stray", stream, data)

    def on_open(self, stream: int, index: int, version: int) -> None:
        self.told.append(("open", stream, index, version))

    def on_fin(self, stream: int) -> None:
        self.told.append(("fin", stream))

    def on_credit(self, stream: int, count: int) -> None:
        self.told.append(("credit", stream, count))

    def on_rst(self, stream: int, reason: int) -> None:
        self.told.append(("rst", stream, reason))

    def on_move(self, stream: int) -> None:
        self.told.append(("move", stream))

    def on_retire(self) -> None:
        self.told.append(("retire", 0))

    def on_ping(self, payload: bytes) -> None:
        self.told.append(("ping", payload))

    def on_pong(self, payload: bytes) -> None:
        self.told.append(("pong", payload))

    def on_close(self) -> None:
        self.told.append(("close",))


class Sink:
    def __init__(self, recorder: Recorder, stream: int) -> None:
        self._recorder, self._stream = recorder, stream

    def deliver(self, data: memoryview) -> None:
        self._recorder.on_data("data", self._stream, data)


def add_data(told: list[Told], told_now: Told) -> None:
    kind, stream, data = told_now
    if not data:
        return
    if told and told[-1][:2] == (kind, stream):
        told[-1] = kind, stream, told[-1][2] + data
    else:
        told.append(told_now)


def read(wire: bytes, pieces: Iterator[int], *, masked: bool) -> list[Told]:
    """Feed a reader in pieces of these sizes; what it keeps is bounded at every moment."""
    recorder = Recorder()
    reader = FrameReader(recorder, recorder.find, masked=masked)
    at = 0
    while at < len(wire):
        size = next(pieces)
        reader.feed(memoryview(bytearray(wire[at : at + size])))
        at += size
        assert len(reader._head) < WS_ROOM + WS_MAX_CONTROL
        assert len(reader._partial) < FRAME_HEAD + MAX_OPEN_PAYLOAD
    return recorder.told


# The reference: it writes frames and messages by the RFC's letter, and knows what must be told since it made them.


def frame_bytes(frame: Told) -> bytes:
    kind, stream, *rest = frame
    match kind:
        case "open":
            index, version, extra = rest
            payload = struct.pack("!II", index, version) + extra
            return struct.pack("!II", 1 << 24 | len(payload), stream) + payload
        case "data":
            return struct.pack("!II", 2 << 24 | len(rest[0]), stream) + rest[0]
        case "fin":
            return struct.pack("!II", 3 << 24, stream)
        case "credit":
            return struct.pack("!II", 4 << 24 | rest[0], stream)
        case "rst":
            return struct.pack("!II", 5 << 24 | rest[0], stream)
        case "move":
            return struct.pack("!II", 6 << 24, stream)
        case _:
            return struct.pack("!II", 7 << 24, 0)


def ws_frame(opcode: int, payload: bytes, mask: bytes | None, *, fin: bool = True) -> bytes:
    """RFC 6455 §5.2, one byte at a time."""
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0 if mask is None else 0x80
    if len(payload) <= 125:
        head += bytes([bit | len(payload)])
    elif len(payload) <= 65535:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ key for byte, key in zip(payload, cycle(mask), strict=False))


def expected(sent: list[Told], controls: list[tuple[int, Told]]) -> list[Told]:
    """What must be told of these frames, with a control message after so many bytes of payload each.

    After the first close nothing counts.
    """
    told: list[Told] = []
    waiting = list(controls)
    at = 0
    for frame in sent:
        end = at + len(frame_bytes(frame))
        kind, stream, *rest = frame
        seen = min(at + FRAME_HEAD, end)
        while waiting and waiting[0][0] < end:
            offset, control = waiting.pop(0)
            if kind == "data" and offset > seen:
                tell_data(told, stream, rest[0][seen - at - FRAME_HEAD : offset - at - FRAME_HEAD])
                seen = offset
            told.append(control)
        if kind == "data":
            tell_data(told, stream, rest[0][seen - at - FRAME_HEAD :])
        else:
            told.append(frame[:4])
        at = end
    told += [control for _, control in waiting]
    return told[: told.index(("close",)) + 1] if ("close",) in told else told


def tell_data(told: list[Told], stream: int, data: bytes) -> None:
    add_data(told, ("stray" if stream == GONE else "data", stream, data))


STREAMS = st.sampled_from([1, 2, GONE, 0, 2**32 - 1])
U32, U24 = st.integers(0, 2**32 - 1), st.integers(0, 2**24 - 1)
CONTENT = st.builds(bytes.__mul__, st.binary(max_size=12), st.sampled_from([1, 1, 1, 9, 80, 6000]))
FRAMES = st.one_of(
    st.tuples(st.just("data"), STREAMS, CONTENT),
    st.tuples(st.just("data"), STREAMS, CONTENT),
    st.tuples(st.just("open"), STREAMS, U32, U32, st.binary(max_size=MAX_OPEN_PAYLOAD - 8)),
    st.tuples(st.sampled_from(["credit", "rst"]), STREAMS, U24),
    st.tuples(st.sampled_from(["fin", "move"]), STREAMS),
    st.just(("retire", 0)),
)
MASKS = st.binary(min_size=4, max_size=4) | st.just(bytes(4))
ASIDES = st.tuples(st.sampled_from(["ping", "pong"]), st.binary(max_size=125))
CONTROLS = st.one_of(ASIDES, ASIDES, ASIDES, ASIDES, st.just(("close",)))
FRAGMENTS = st.lists(  # size, whether it ends its message, control messages before it
    st.tuples(st.integers(0, 40) | st.integers(0, 70_000), st.booleans(), st.lists(CONTROLS, max_size=2)), max_size=8
)
OPCODES = {"ping": 9, "pong": 10, "close": 8}


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Told], list[int], bool]:
    """Bytes on the wire, what must be told of them, the sizes of the pieces they come in, and whether masked."""
    sent = draw(st.lists(FRAMES, max_size=8))
    masked = draw(st.booleans())
    payload = b"".join(map(frame_bytes, sent))
    wire, at, fragmented = b"", 0, False
    controls: list[tuple[int, Told]] = []
    for size, fin, asides in [*draw(FRAGMENTS), (len(payload), True, [])]:
        for control in asides:
            wire += ws_frame(OPCODES[control[0]], b"".join(control[1:]), draw(MASKS) if masked else None)
            controls.append((at, control))
        part = payload[at : at + size]
        wire += ws_frame(0 if fragmented else 2, part, draw(MASKS) if masked else None, fin=fin)
        fragmented, at = not fin, at + len(part)
    least = len(wire) // 300 + 1  # a byte at a time where it is short
    pieces = draw(st.lists(st.integers(least, max(2 * least, 60)) | st.just(len(wire)), min_size=1, max_size=6))
    return wire, expected(sent, controls), pieces, masked


@given(conversations())
def test_any_frames_in_any_fragments_masks_and_pieces_are_told_the_same(
    conversation: tuple[bytes, list[Told], list[int], bool],
) -> None:
    """B22"""
    wire, told, pieces, masked = conversation
    assert read(wire, cycle(pieces), masked=masked) == told


EVERY_KIND: list[Told] = [
    ("open", 1, 7, 9, b""), ("data", 1, b"hello"), ("data", 2, b""), ("open", 3, 1, 2, b"later"), ("credit", 1, 65536),
    ("fin", 1), ("rst", 2, 5), ("move", 3), ("retire", 0), ("data", GONE, b"crossed"), ("data", 3, b"x" * 300),
]  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 1000])
def test_every_kind_of_frame_is_told_in_order_whatever_the_pieces(size: int, masked: bool) -> None:
    payload = b"".join(map(frame_bytes, EVERY_KIND))
    wire = ws_frame(2, payload, b"\1\2\3\4" if masked else None)
    assert read(wire, cycle([size]), masked=masked) == expected(EVERY_KIND, [])


@pytest.mark.parametrize("size", [1, 1000])
def test_nothing_after_a_close_counts_not_even_nonsense(size: int) -> None:
    """B37: a byte after the close."""
    wire = ws_frame(2, frame_bytes(("data", 1, b"hello"))[:-2], None) + ws_frame(8, b"\x03\xe8", None)
    wire += ws_frame(2, b"lo", None) + b"\xff" * 20
    assert read(wire, cycle([size]), masked=False) == [("data", 1, b"hel"), ("close",)]


def test_data_is_passed_on_as_it_comes_as_slices_of_what_was_fed() -> None:
    recorder = Recorder()
    seen: list[memoryview] = []

    class Keeps:
        def deliver(self, data: memoryview) -> None:
            seen.append(data)

    reader = FrameReader(recorder, lambda stream: Keeps(), masked=False)
    first = memoryview(bytearray(ws_frame(2, frame_bytes(("data", 1, b"abcdef")), None)[:-4]))
    reader.feed(first)
    assert [bytes(data) for data in seen] == [b"ab"]
    assert seen[0].obj is first.obj


@given(st.binary(max_size=80), st.booleans())
@example(b"\x82\x7f" + b"\xff" * 8, False)
def test_any_bytes_give_events_or_a_remote_protocol_error(wire: bytes, masked: bool) -> None:
    """B37"""
    only_remote_protocol_error(wire, masked=masked)


@given(st.binary(max_size=80), MASKS, st.booleans())
def test_any_payload_of_a_message_gives_events_or_a_remote_protocol_error(
    payload: bytes, mask: bytes, masked: bool
) -> None:
    """B41"""
    only_remote_protocol_error(ws_frame(2, payload, mask if masked else None), masked=masked)


@given(conversations(), st.data())
def test_one_byte_changed_gives_events_or_a_remote_protocol_error(
    conversation: tuple[bytes, list[Told], list[int], bool], data: Any
) -> None:
    wire, _, _, masked = conversation
    changed = bytearray(wire[:2000])
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    only_remote_protocol_error(bytes(changed), masked=masked)


def only_remote_protocol_error(wire: bytes, *, masked: bool) -> None:
    ends = []
    for size in (1, len(wire) + 1):
        try:
            read(wire, cycle([size]), masked=masked)
        except RemoteProtocolError as exc:
            ends.append(str(exc))
        else:
            ends.append("")
    assert ends[0] == ends[1]


# Strictness


BROKEN = {
    "reserved bits": (b"\xc2\x00", "reserved bits"),
    "another reserved bit": (b"\x92\x00", "reserved bits"),
    "masked by a server": (b"\x82\x80\0\0\0\0", "masked like those of the wrong side"),
    "text": (b"\x81\x00", "opcode 1"),
    "continuation of nothing": (b"\x80\x00", "opcode 0"),
    "a new message inside another": (b"\x02\x00\x82\x00", "opcode 2"),
    "unknown data opcode": (b"\x83\x00", "opcode 3"),
    "unknown control opcode": (b"\x8b\x00", "unknown WebSocket opcode 11"),
    "fragmented ping": (b"\x09\x00", "too long or fragmented"),
    "long ping": (b"\x89\x7e\x00\x7e", "too long or fragmented"),
    "very long close": (b"\x88\x7f" + bytes(8), "too long or fragmented"),
    "frame kind 0": (ws_frame(2, bytes(8), None), "unknown frame kind 0"),
    "frame kind 8": (ws_frame(2, b"\x08" + bytes(7), None), "unknown frame kind 8"),
    "RETIRE of a stream": (ws_frame(2, b"\x07" + bytes(6) + b"\x01", None), "RETIRE of stream 1: channels retire"),
    "frame kind 255": (ws_frame(2, b"\xff" * 8, None), "unknown frame kind 255"),
    "short OPEN": (ws_frame(2, b"\x01\0\0\x07" + bytes(4), None), "OPEN with a payload of 7 bytes"),
    "long OPEN": (ws_frame(2, b"\x01\0\x02\x01" + bytes(4), None), "OPEN with a payload of 513 bytes"),
}


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(("wire", "words"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_rules_is_the_peers_fault(wire: bytes, words: str, size: int) -> None:
    """B41"""
    if words.endswith("too long or fragmented") and len(wire) == 2 + 8:
        wire = wire[:2] + (300).to_bytes(8, "big")
    with pytest.raises(RemoteProtocolError, match=words):
        read(wire, cycle([size]), masked=False)


def test_a_client_that_does_not_mask_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="masked like those of the wrong side"):
        read(b"\x82\x00", cycle([2]), masked=True)


def test_what_a_sink_raises_ends_the_reading() -> None:
    recorder = Recorder()

    class Full:
        def deliver(self, data: memoryview) -> None:
            raise RemoteProtocolError("DATA beyond credit")

    reader = FrameReader(recorder, lambda stream: Full(), masked=False)
    with pytest.raises(RemoteProtocolError, match="beyond credit"):
        reader.feed(memoryview(bytearray(ws_frame(2, frame_bytes(("data", 1, b"x")), None))))


@pytest.mark.parametrize("masked", [False, True])
def test_a_message_of_gigabytes_costs_no_memory(masked: bool) -> None:
    """B27"""
    piece = 16 * 1024

    class Null:
        seen = 0

        def deliver(self, data: memoryview) -> None:
            self.seen += len(data)

    sink, recorder = Null(), Recorder()
    reader = FrameReader(recorder, lambda stream: sink, masked=masked)
    head = b"\x82" + bytes([0x80 * masked | 127]) + (2**40).to_bytes(8, "big") + (b"\0abc" if masked else b"")
    key = bytes(cycle_bytes(b"\0abc", 8)) if masked else bytes(8)
    word = bytes(a ^ b for a, b in zip(struct.pack("!II", DATA | 0xFFFFFF, 1), key, strict=True))
    reader.feed(memoryview(bytearray(head + word)))
    view = memoryview(bytearray(piece))
    tracemalloc.start()
    try:
        for _ in range(200):
            reader.feed(view)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sink.seen == 200 * piece
    assert peak < 8 * piece


def cycle_bytes(key: bytes, size: int) -> bytes:
    return (key * (size // len(key) + 1))[:size]


# Writing


HEADS = {
    0: b"\x82\x00",
    1: b"\x82\x01",
    125: b"\x82\x7d",
    126: b"\x82\x7e\x00\x7e",
    65535: b"\x82\x7e\xff\xff",
    65536: b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
    2**32: b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00",
}


@pytest.mark.parametrize(("length", "head"), HEADS.items())
def test_the_head_of_a_message_ends_where_its_payload_begins(length: int, head: bytes) -> None:
    out = bytearray(b"\xaa" * (WS_ROOM + 3))
    at = put_message_head(out, length, masked=False)
    assert out == b"\xaa" * (WS_ROOM - len(head)) + head + b"\xaa" * 3
    assert at == WS_ROOM - len(head)


@pytest.mark.parametrize(("length", "head"), HEADS.items())
def test_a_clients_head_has_the_mask_bit_and_a_mask_of_zero(length: int, head: bytes) -> None:
    out = bytearray(b"\xaa" * WS_ROOM)
    at = put_message_head(out, length, masked=True)
    assert bytes(out[at:]) == head[:1] + bytes([head[1] | 0x80]) + head[2:] + bytes(4)
    assert bytes(out[:at]) == b"\xaa" * at


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
def test_what_we_write_we_read(length: int, masked: bool) -> None:
    content = b"x" * max(length - FRAME_HEAD, 0)
    payload = (FRAME.pack(DATA | len(content), 1) + content)[:length]
    told = read(message(payload, masked=masked), cycle([1000]), masked=masked)
    assert told == ([("data", 1, content)] if content else [])


def message(payload: bytes, *, masked: bool) -> bytes:
    out = bytearray(WS_ROOM) + payload
    return bytes(out[put_message_head(out, len(payload), masked=masked) :])


# An independent peer: wsproto


def their_events(connection: Connection, wire: bytes, size: int) -> list[Event]:
    found: list[Event] = []
    for at in range(0, len(wire), size):
        connection.receive_data(wire[at : at + size])
        found += connection.events()
    return found


@pytest.mark.parametrize("masked", [False, True], ids=["as a server", "as a client"])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_wsproto_reads_what_we_write(length: int, masked: bool) -> None:
    peer = Connection(ConnectionType.SERVER if masked else ConnectionType.CLIENT)
    payload = bytes(range(256)) * (length // 256 + 1)
    wire = message(payload[:length], masked=masked) + control_message(PING, b"p" * 125, masked=masked)
    wire += control_message(PONG, b"", masked=masked) + control_message(CLOSE, b"\x03\xe8", masked=masked)
    *parts, ping, pong, close = their_events(peer, wire, 10_000)
    assert b"".join(bytes(part.data) for part in parts if isinstance(part, BytesMessage)) == payload[:length]
    assert all(isinstance(part, BytesMessage) for part in parts)
    assert (ping, pong) == (Ping(b"p" * 125), Pong(b""))
    assert isinstance(close, CloseConnection)
    assert close.code == 1000


@pytest.mark.parametrize("masked", [False, True], ids=["a server", "a client"])
@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_we_read_what_wsproto_writes(size: int, masked: bool) -> None:
    peer = Connection(ConnectionType.CLIENT if masked else ConnectionType.SERVER)
    payload = b"".join(map(frame_bytes, EVERY_KIND))
    wire = b""
    for at in range(0, len(payload), 60):
        last = at + 60 >= len(payload)
        wire += peer.send(BytesMessage(payload[at : at + 60], message_finished=last))
        wire += peer.send(Ping(b"at %d" % at))
    wire += peer.send(Pong(b"x" * 125)) + peer.send(CloseConnection(1000, "done"))
    told = read(wire, cycle([size]), masked=masked)
    controls = [(min(at + 60, len(payload)), ("ping", b"at %d" % at)) for at in range(0, len(payload), 60)]
    end = len(payload)
    assert told == expected(EVERY_KIND, [*controls, (end, ("pong", b"x" * 125)), (end, ("close",))])


def test_we_refuse_the_text_wsproto_writes() -> None:
    peer = Connection(ConnectionType.CLIENT)
    with pytest.raises(RemoteProtocolError, match="opcode 1"):
        read(peer.send(TextMessage("hello")), cycle([100]), masked=True)


# Numbers


def test_the_numbers_on_the_wire_are_fixed() -> None:
    """An old peer knows these."""
    assert [kind >> 24 for kind in (OPEN, DATA, FIN, CREDIT, RST, MOVE, RETIRE)] == [1, 2, 3, 4, 5, 6, 7]
    assert {reason.name: reason.value for reason in Abort} == {
        "RESET": 0, "DIAL_REFUSED": 1, "DIAL_TIMEOUT": 2, "DIAL_FAILED": 3, "UNKNOWN_PROXY": 4, "OVER_LIMIT": 5,
        "IDLE": 6, "CHANNEL_LOST": 7, "SESSION_ENDED": 8, "INTERNAL": 9, "TARGET_DOWN": 10,
    }  # fmt: skip
    assert (FIRST_WINDOW, MAX_WINDOW, frames.MAX_NUMBER) == (65_536, 8_388_608, 16_777_215)


@pytest.mark.parametrize(
    ("number", "reason"), [(0, Abort.RESET), (7, Abort.CHANNEL_LOST), (10, Abort.TARGET_DOWN), (11, Abort.INTERNAL),
                           (0xFFFFFF, Abort.INTERNAL)]
)  # fmt: skip
def test_a_later_versions_reason_is_an_internal_one(number: int, reason: Abort) -> None:
    assert Abort.of(number) is reason


HALF = FIRST_WINDOW // 2
WINDOWS = [
    # window, bytes delivered, in so many seconds, round trip, the window after
    (FIRST_WINDOW, HALF, 0.05, 0.1, 2 * FIRST_WINDOW),
    (FIRST_WINDOW, HALF, 0.2, 0.1, 2 * FIRST_WINDOW),
    (FIRST_WINDOW, HALF, 0.21, 0.1, FIRST_WINDOW),
    (FIRST_WINDOW, HALF, 10.0, 0.1, FIRST_WINDOW),
    (FIRST_WINDOW, FIRST_WINDOW, 0.4, 0.1, 2 * FIRST_WINDOW),
    (FIRST_WINDOW, FIRST_WINDOW, 0.41, 0.1, FIRST_WINDOW),
    (FIRST_WINDOW, HALF, 0.0, 0.0, 2 * FIRST_WINDOW),
    (FIRST_WINDOW, HALF, 0.001, 0.0, FIRST_WINDOW),
    (MAX_WINDOW // 2, MAX_GRANT, 0.05, 0.1, MAX_WINDOW),
    (MAX_WINDOW // 2, MAX_GRANT, 0.051, 0.1, MAX_WINDOW // 2),
    (MAX_WINDOW // 2 + 1, MAX_GRANT + 1, 0.05, 0.1, MAX_WINDOW),
    (MAX_WINDOW, MAX_GRANT, 0.01, 0.1, MAX_WINDOW),
]


@pytest.mark.parametrize(("window", "delivered", "seconds", "round_trip", "after"), WINDOWS)
def test_a_window_that_is_the_limit_doubles_up_to_the_bound(
    window: int, delivered: int, seconds: float, round_trip: float, after: int
) -> None:
    """B30"""
    assert grown_window(window, delivered, seconds, round_trip) == after


def test_half_of_a_small_window_is_granted_at_once_and_less_of_a_big_one() -> None:
    sizes = [FIRST_WINDOW << doublings for doublings in range(8)]
    assert [grant_size(size) for size in sizes] == [size // 2 for size in sizes[:5]] + [MAX_GRANT] * 3


def test_a_window_reaches_its_bound_in_seven_grants() -> None:
    window, grants = FIRST_WINDOW, 0
    while window < MAX_WINDOW:
        window, grants = grown_window(window, grant_size(window), 0.01, 0.1), grants + 1
    assert grants == 7
