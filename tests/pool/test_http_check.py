"""A connection is validated by an HTTP request: what passes, what does not, and that a bad answer is bounded."""

import h11
import pytest
import trio
from trio.testing import memory_stream_pair

from tunnel.errors import RemoteProtocolError
from tunnel.pool.http_check import MAX_ANSWER_BYTES, http_check

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


async def checked(check, *answers, end=False, url="https://example.org:8443"):
    """What the check asked, while a service gave it these pieces of an answer; the client's stream."""
    client, service = memory_stream_pair()
    asked = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            asked.append(await service.receive_some())
            for answer in answers:
                await service.send_all(answer)
            if end:
                await service.send_eof()

        with trio.fail_after(2):
            await check(client, url)
    return asked[0], client


async def refusal(check, *answers, end=False):
    with pytest.RaisesGroup(pytest.RaisesExc(RemoteProtocolError)) as caught:
        await checked(check, *answers, end=end)
    return str(caught.value.exceptions[0])


async def test_it_asks_for_the_path_under_the_name_and_port_of_the_url():
    asked, _ = await checked(http_check("/healthz"), OK)
    assert asked.startswith(b"GET /healthz HTTP/1.1\r\nHost: example.org:8443\r\n")


@pytest.mark.parametrize(
    "pieces",
    [
        [OK],
        [OK[:9], OK[9:30], OK[30:]],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nok\n\r\n", b"0\r\n\r\n"],
    ],
)
async def test_a_whole_answer_passes_and_nothing_of_it_is_left_on_the_connection(pieces):
    _, client = await checked(http_check(), *pieces)
    with trio.move_on_after(0) as scope:
        await client.receive_some()
    assert scope.cancelled_caught


async def test_the_expected_statuses_are_those_named():
    gone = OK.replace(b"200 OK", b"410 Gone")
    assert "status 410, not 200" in await refusal(http_check(), gone)
    await checked(http_check(expect=(204, 410)), gone)
    assert "status 200, not 204 or 410" in await refusal(http_check(expect=(204, 410)), OK)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not answer GET / as HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok", "as HTTP/1.1 does"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n", "does not keep the connection open"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n", "does not keep the connection open"),
        (OK + b"and more", "does not keep the connection open"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + bytes(MAX_ANSWER_BYTES),
            f"longer than {MAX_ANSWER_BYTES}",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_ANSWER_BYTES, "as HTTP/1.1 does"),
    ],
)
async def test_what_cannot_be_asked_again_is_refused(answer, why):
    assert why in await refusal(http_check(), answer, end=True)


async def test_an_end_without_an_answer_is_no_breach_of_the_protocol():
    """It may have been idle for too long, which a new connection mends."""
    client, service = memory_stream_pair()
    await service.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="without an answer"):
        await http_check()(client, "http://example.org")


@pytest.mark.parametrize("path", ["", "healthz", "/a b", "/\r\nHost: evil", "/ä"])
def test_a_path_is_checked_when_the_check_is_made(path):
    with pytest.raises(ValueError, match="is not a path"):
        http_check(path)


def test_h11_itself_refuses_heads_without_end():
    assert h11.Connection(h11.CLIENT)._max_incomplete_event_size <= MAX_ANSWER_BYTES
