"""The HTTP head under its caps: what is no head is our own error, and a refusal arrives whatever was unread."""

import json
import time
from email.utils import formatdate
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel import upgrade
from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.upgrade import (
    MAX_HEAD_BYTES,
    accept_key,
    read_head,
    refuse,
    request_upgrade,
    switching_protocols,
)

HEAD = (
    b"GET /data HTTP/1.1\r\nHost: here\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: bearer  abc \r\n\r\n"
)


class Pieces:
    """Stands in for a `TlsStream`: gives what it was given, then the end; keeps what it was sent."""

    refused = None

    def __init__(self, *pieces, broken=False):
        self._pieces = list(pieces)
        self._broken = broken
        self.sent = b""

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            if self._broken:
                raise trio.BrokenResourceError
            return b""
        piece = self._pieces.pop(0)
        if max_bytes is not None and len(piece) > max_bytes:
            self._pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        self.sent += data


async def test_a_head_is_read_whole_with_what_follows_it():
    head = await read_head(Pieces(HEAD + b"early frames"))
    assert (head.method, head.path, head.bearer, head.is_upgrade) == ("GET", "/data", "abc", True)
    assert (head.raw, head.rest) == (HEAD, b"early frames")


@given(st.integers(1, 40))
async def test_a_head_may_come_in_any_pieces(size):
    head = await read_head(Pieces(*(HEAD[at : at + size] for at in range(0, len(HEAD), size))))
    assert (head.raw, head.rest, head.is_upgrade) == (HEAD, b"", True)


@pytest.mark.parametrize("step", [1000, 16_384, 100_000])
@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 1, 20_000, 32_000, 10**6])
async def test_a_head_over_the_cap_is_refused_however_it_comes(size, step):
    long = HEAD[:-2] + b"X: "
    long += b"x" * (size - len(long) - 4) + b"\r\n\r\n"
    stream = Pieces(*(long[at : at + step] for at in range(0, len(long), step)))
    with pytest.raises(RemoteProtocolError):
        await read_head(stream)


async def test_a_head_of_just_the_cap_is_read():
    long = HEAD[:-2] + b"X: "
    long += b"x" * (MAX_HEAD_BYTES - len(long) - 4) + b"\r\n\r\n"
    assert len((await read_head(Pieces(long))).raw) == MAX_HEAD_BYTES


@pytest.mark.parametrize("name", [b"Authorization", b"Sec-WebSocket-Key", b"Upgrade"])
async def test_a_header_that_decides_stands_only_once(name):
    with pytest.raises(RemoteProtocolError, match="two "):
        await read_head(Pieces(HEAD[:-2] + name + b": again\r\n\r\n"))


@pytest.mark.parametrize(
    "without", [b"Upgrade: WebSocket", b"Sec-WebSocket-Version: 13", b"Connection: keep-alive, Upgrade", b"=="]
)
async def test_half_an_upgrade_is_none(without):
    assert not (await read_head(Pieces(HEAD.replace(without, b"X: y" if b":" in without else b"")))).is_upgrade


async def test_hanging_up_within_the_head_is_a_protocol_error():
    with pytest.raises(RemoteProtocolError, match="hung up"):
        await read_head(Pieces(HEAD[:50]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.booleans())
async def test_garbage_gives_only_protocol_errors(pieces, with_request_line):
    if with_request_line:
        pieces = [b"GET /control HTTP/1.1\r\n", *pieces]
    try:
        await read_head(Pieces(*pieces, b"\r\n\r\n"))
    except RemoteProtocolError:
        pass


def test_the_key_of_the_rfc_gives_the_answer_of_the_rfc():
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


async def test_what_we_ask_is_an_upgrade_and_what_we_answer_is_taken():
    question = Pieces()
    with pytest.raises((PeerLost, RemoteProtocolError)):
        await request_upgrade(question, "here:8443", "/data", {"Authorization": "Bearer abc"})
    head = await read_head(Pieces(question.sent))
    assert (head.path, head.bearer, head.is_upgrade, head.headers["host"]) == ("/data", "abc", True, "here:8443")


class Answering(Pieces):
    """Answers the upgrade it is asked for."""

    async def send_all(self, data):
        await super().send_all(data)
        if b"\r\n\r\n" in self.sent:
            self._pieces.append(switching_protocols(await read_head(Pieces(self.sent))) + b"first frames")


async def test_bytes_behind_the_101_are_handed_on():
    assert await request_upgrade(Answering(), "here", "/data", {}) == b"first frames"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", (PeerLost, RemoteProtocolError)),
        (b"HTTP/1.1 101 Switching", (PeerLost, RemoteProtocolError)),
        (b"SSH-2.0\r\n\r\n", RemoteProtocolError),
        (b"\xff" * 100, RemoteProtocolError),
        (b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000, RemoteProtocolError),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, RemoteProtocolError),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", Refused),
        (b"HTTP/1.1 200 OK\r\n\r\nread until I close", Refused),
    ],
)
async def test_any_other_answer_is_an_error_of_ours(answer, error):
    with pytest.raises(error):
        await request_upgrade(Pieces(answer), "here", "/data", {})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=4), st.booleans())
async def test_random_answers_are_errors_of_ours(pieces, with_status_line):
    if with_status_line:
        pieces = [b"HTTP/1.1 403 Forbidden\r\n", *pieces]
    with pytest.raises((PeerLost, Refused, RemoteProtocolError)):
        await request_upgrade(Pieces(*pieces, broken=True), "here", "/data", {})


@pytest.mark.parametrize("ticket", ["", "a\r\nX: y", "\u20ac", " padded", "\0"])
async def test_a_ticket_that_fits_in_no_header_is_the_servers_fault(ticket):
    with pytest.raises((RemoteProtocolError, PeerLost)) as caught:
        await request_upgrade(Pieces(broken=True), "here", "/data", {"Authorization": f"Bearer {ticket}"})
    assert "X: y" not in str(caught.value)


async def test_a_refusal_carries_its_reason():
    class Ending(Pieces):
        ended = False

        async def end_politely(self):
            self.ended = True

    stream = Ending()
    await refuse(stream, 409, "identity_held", "since yesterday")
    assert stream.ended
    with pytest.raises(Refused, match="since yesterday") as caught:
        await request_upgrade(Pieces(stream.sent), "here", "/control", {})
    assert (caught.value.reason, caught.value.trust) == ("identity_held", True)
    assert json.loads(stream.sent.partition(b"\r\n\r\n")[2]) == {
        "reason": "identity_held", "message": "since yesterday",
    }  # fmt: skip
    assert b"retry-after" not in stream.sent.lower()


@pytest.mark.parametrize(("reason", "trust"), [("token_refused", True), ("something_else", False)])
async def test_too_many_requests_is_for_a_person_where_the_token_is_what_is_wrong(reason, trust):
    class Ending(Pieces):
        async def end_politely(self):
            pass

    stream = Ending()
    await refuse(stream, 429, reason, "wait", retry_after=15)
    assert stream.sent.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 15\r\n" in stream.sent
    with pytest.raises(Refused) as caught:
        await request_upgrade(Pieces(stream.sent), "here", "/control", {})
    assert (caught.value.reason, caught.value.trust) == (reason, trust)


@pytest.mark.parametrize("seconds", [0, 951_827_696, 1_795_132_799, 1_796_083_200])
def test_the_date_is_what_http_wants(seconds, monkeypatch):
    """`trio-tunnel doctor` compares it with its own clock."""
    monkeypatch.setattr(upgrade.time, "gmtime", partial(time.gmtime, seconds))
    assert upgrade.http_date() == formatdate(seconds, usegmt=True)
