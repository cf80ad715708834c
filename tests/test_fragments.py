"""A WebSocket message in too many pieces is noticed, whatever comes between them and however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import RemoteProtocolError
from tunnel.fragments import MAX_FRAGMENTS, FragmentBound

HTTP = b"GET /control HTTP/1.1\r\nHost: h\r\n\r\n"
PIECE, REST, LAST, WHOLE, PING = 0x01, 0x00, 0x80, 0x81, 0x89


def frame(first: int, size: int = 0, *, masked: bool = True) -> bytes:
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([first, mask | size])
    elif size < 65536:
        head = bytes([first, mask | 126]) + size.to_bytes(2)
    else:
        head = bytes([first, mask | 127]) + size.to_bytes(8)
    return head + (b"mask" if masked else b"") + bytes([0x01]) * size


def feed(data: bytes, cuts: tuple[int, ...] = ()) -> int | None:
    """In pieces of the given sizes; where it was too much, how many pieces were taken."""
    bound, taken = FragmentBound(), 0
    while data:
        size = cuts[taken % len(cuts)] if cuts else len(data)
        try:
            bound.feed(data[:size])
        except RemoteProtocolError:
            return taken
        data, taken = data[size:], taken + 1
    return None


def test_a_message_may_come_in_so_many_fragments_and_not_in_one_more() -> None:
    pieces = frame(PIECE) + frame(REST) * (MAX_FRAGMENTS - 1)
    assert feed(HTTP + pieces + frame(LAST) + pieces + frame(LAST)) is None
    assert feed(HTTP + pieces + frame(REST)) == 0


def test_pings_in_between_neither_count_nor_end_a_message() -> None:
    assert feed(HTTP + frame(PIECE) + frame(PING, 5) * 5000 + frame(LAST)) is None
    assert feed(HTTP + frame(PIECE) + (frame(PING) + frame(REST)) * MAX_FRAGMENTS) == 0


def test_whole_messages_may_be_as_many_as_they_like() -> None:
    assert feed(HTTP + frame(WHOLE, 3) * 5000) is None


def test_a_payload_is_not_taken_for_frames() -> None:
    """Of 0x01 alone: each pair of them would be a fragment with a byte."""
    for size in (125, 126, 65535, 65536):
        assert feed(HTTP + frame(WHOLE, size, masked=False) * 4, (1000,)) is None


FRAMES = st.tuples(st.sampled_from([PIECE, REST, LAST, WHOLE, PING]), st.sampled_from([0, 1, 125, 126, 300, 65536]))


@settings(max_examples=30)
@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 2000), min_size=1, max_size=5), st.booleans())
def test_however_it_is_cut_the_same_message_is_too_much(
    frames: list[tuple[int, int]], cuts: list[int], masked: bool
) -> None:
    good = HTTP + b"".join(frame(first, size, masked=masked) for first, size in frames) + frame(LAST)
    assert feed(good, tuple(cuts)) is None
    assert feed(good + frame(PIECE) + frame(REST) * MAX_FRAGMENTS, tuple(cuts)) is not None


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1))
def test_any_bytes_are_followed(data: bytes, cuts: list[int]) -> None:
    feed(data, tuple(cuts))
    feed(HTTP + data, tuple(cuts))


def test_more_fragments_than_a_library_should_see_are_not_passed_on() -> None:
    bound = FragmentBound()
    bound.feed(HTTP)
    with pytest.raises(RemoteProtocolError, match="more than 1024 fragments"):
        bound.feed(frame(PIECE) + frame(REST) * 40_000)
