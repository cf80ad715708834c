"""The PROXY header: what it says, in whatever pieces it comes, and not a byte more than it is."""

import socket

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tunnel.server.balancers import MAX_WAITING, Balancers
from tunnel.server.proxy_protocol import MAX_HEADER_BYTES, SIGNATURE, TrustedPeers, missing, source_address

IP4 = st.ip_addresses(v=4)
IP6 = st.ip_addresses(v=6)
PORTS = st.integers(0, 65535)


def v2(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2) + rest


def taken(data: bytes) -> bytes:
    """What a reader that asks `missing` takes of `data`."""
    header = b""
    while wanted := missing(header):
        piece = data[len(header) : len(header) + wanted]
        if not piece:
            raise EOFError
        header += piece
    return header


def v1_of(source: object, destination: object, sport: int, dport: int) -> bytes:
    return f"PROXY TCP{getattr(source, 'version', 4)} {source} {destination} {sport} {dport}\r\n".encode()


def v2_of(source, destination, sport, dport, tlvs=b""):  # type: ignore[no-untyped-def]
    family = 0x11 if source.version == 4 else 0x21
    return v2(0x21, family, source.packed + destination.packed + sport.to_bytes(2) + dport.to_bytes(2) + tlvs)


@given(st.one_of(st.tuples(IP4, IP4), st.tuples(IP6, IP6)), PORTS, PORTS, st.sampled_from([v1_of, v2_of]), st.binary())
def test_of_a_good_header_the_source_is_known_and_nothing_behind_it_is_taken(pair, sport, dport, make, behind):
    header = make(*pair, sport, dport)
    assert taken(header + behind) == header
    assert source_address(header) == str(pair[0])


WHOLE = {
    "the longest of IPv4": (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    "IPv6, in any spelling": (b"PROXY TCP6 2001:DB8:0:0::1 ::1 1 2\r\n", "2001:db8::1"),
    "unknown, short": (b"PROXY UNKNOWN\r\n", None),
    "unknown, with what is not to be read": (b"PROXY UNKNOWN ffff:f...f:ffff x y z\r\n", None),
    "a check of the balancer's own": (v2(0x20, 0x00, b""), None),
    "a check that has addresses all the same": (v2(0x20, 0x11, bytes(12)), None),
    "unspecified": (v2(0x21, 0x00, b"\x04\x00\x01\x00"), None),
    "a Unix socket": (v2(0x21, 0x31, bytes(216)), None),
    "with TLVs": (v2(0x21, 0x11, bytes([192, 0, 2, 9]) + bytes(8) + b"\x04\x00\x02\x00\x00"), "192.0.2.9"),
    "as long as may be": (v2(0x21, 0x11, bytes([192, 0, 2, 9]) + bytes(MAX_HEADER_BYTES - 20)), "192.0.2.9"),
}  # fmt: skip


@pytest.mark.parametrize("what", WHOLE)
def test_a_header_says(what: str) -> None:
    header, source = WHOLE[what]
    assert taken(header + b"\x16\x03\x01") == header
    assert source_address(header) == source


WRONG = {
    "a ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
    "HTTP": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: here\r\n\r\n",
    "small letters": b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "half a signature": SIGNATURE[:11] + b"X" + bytes(600),
    "no CRLF": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 200,
    "two blanks": b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "no port": b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
    "a word more": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
    "port 65536": b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
    "port 01": b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
    "port +1": b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
    "UDP": b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "the other family": b"PROXY TCP4 ::1 ::2 1 2\r\n",
    "a name": b"PROXY TCP4 localhost 2.2.2.2 1 2\r\n",
    "no address": b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
    "an interface": b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
    "not ASCII": "PROXY TCP4 1.1.1.１ 2.2.2.2 1 2\r\n".encode(),
    "version 3": v2(0x31, 0x11, bytes(12)),
    "version 1 in the form of 2": v2(0x11, 0x11, bytes(12)),
    "another command": v2(0x22, 0x11, bytes(12)),
    "datagrams": v2(0x21, 0x12, bytes(12)),
    "another family": v2(0x21, 0x41, bytes(12)),
    "addresses cut short": v2(0x21, 0x11, bytes(11)),
    "IPv6 addresses cut short": v2(0x21, 0x21, bytes(35)),
    "too long": v2(0x21, 0x11, bytes(MAX_HEADER_BYTES - 15)),
    "64 KiB": v2(0x21, 0x11, bytes(65535)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_header_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|names|has|does) "):
        source_address(taken(WRONG[what]))


@given(st.one_of(st.binary(max_size=700), st.binary(max_size=700).map(lambda rest: SIGNATURE + rest),
                 st.binary(max_size=200).map(lambda rest: b"PROXY " + rest + b"\r\n")))  # fmt: skip
def test_any_bytes_are_a_header_or_none_within_its_bound(data: bytes) -> None:
    try:
        header = taken(data)
        assert len(header) <= MAX_HEADER_BYTES
        source_address(header)
    except (ValueError, EOFError):
        pass


@pytest.mark.parametrize(
    ("networks", "address", "is_trusted"),
    [
        ((), "127.0.0.1", False),
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.7",), "10.0.0.7", True),
        (("10.0.0.7",), "10.0.0.8", False),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::5", True),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", True),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("0.0.0.0/0",), "::1", False),
        (("0.0.0.0/0",), "", False),
    ],
)
def test_trusted_is_who_is_named(networks: tuple[str, ...], address: str, is_trusted: bool) -> None:
    assert (address in TrustedPeers(networks)) is is_trusted


# From a socket

HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 8443\r\n"


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def balancers(seconds: float = 5.0) -> Balancers:
    return Balancers(["10.0.0.0/8"], header_seconds=seconds)


@pytest.mark.parametrize("header", [HEADER, v2(0x21, 0x11, bytes([192, 0, 2, 1]) + bytes(8) + b"\x04\x00\x01\x00")])
async def test_a_header_that_comes_byte_by_byte_is_heard_and_what_follows_is_left(pair, header):
    ours, theirs = pair
    told = []

    async def hear():
        told.append(await balancers().hear(ours))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        for byte in header:
            await trio.testing.wait_all_tasks_blocked()
            assert not told
            theirs.send(bytes([byte]))
    theirs.send(b"hello")
    assert told == ["192.0.2.1"]
    assert ours.recv(100) == b"hello"


async def test_a_header_and_a_hello_in_one_piece_are_told_apart(pair):
    ours, theirs = pair
    theirs.send(HEADER + b"hello")
    assert await balancers().hear(ours) == "192.0.2.1"
    assert ours.recv(100) == b"hello"


async def test_a_header_has_a_deadline(pair, autojump_clock):
    theirs = pair[1]
    theirs.send(HEADER[:20])
    began = trio.current_time()
    with pytest.raises(ValueError, match="did not come within 5 s"):
        await balancers().hear(pair[0])
    assert trio.current_time() == began + 5.0


async def test_a_check_that_says_nothing_is_no_mistake_and_half_a_header_is(pair):
    ours, theirs = pair
    other, gone = socket.socketpair()
    with other:
        other.setblocking(False)
        gone.close()
        with pytest.raises(trio.BrokenResourceError):
            await balancers().hear(other)
    theirs.send(HEADER[:20])
    theirs.close()
    with pytest.raises(ValueError, match="ends too early"):
        await balancers().hear(ours)


async def test_headers_that_are_waited_for_have_a_bound_and_make_room_as_they_end(pair, autojump_clock):
    ours, theirs = pair
    crowd = balancers()
    crowd._waiting = MAX_WAITING - 1

    async def slow():
        with pytest.raises(ValueError, match="within"):
            await crowd.hear(ours)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="is missing on 256 connections"):
            await crowd.hear(ours)
    theirs.send(HEADER)
    assert await crowd.hear(ours) == "192.0.2.1"
    assert crowd._waiting == MAX_WAITING - 1
