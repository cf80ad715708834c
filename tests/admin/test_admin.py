"""The admin address over real sockets; deadlines over memory streams and a clock that jumps."""

import errno
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from tunnel.addresses import HostPort
from tunnel.admin import http as admin_http
from tunnel.admin import room
from tunnel.admin.http import Request, Response, serve_connection
from tunnel.admin.site import AdminSource, Route, Site, bind_admin, serve_admin
from tunnel.errors import TunnelError
from tunnel.snapshot import SessionView
from tunnel.version import __version__

TOKEN = "s3cret-admin-token"


def retry(name: str) -> list[str]:
    if name == "web":
        return ["home/web"]
    if name == "ssh":
        raise ValueError("two clients have a proxy 'ssh'; say home/ssh or lab/ssh")
    raise LookupError(f"no proxy {name!r}")


def make_source(**changes: object) -> AdminSource:
    values: dict[str, object] = {
        "role": "server",
        "views": lambda: iter((SessionView("home", "2026-01-01T00:00:00.000Z", ()),)),
        "ready": lambda: True,
        "retry": retry,
        "token": TOKEN,
        "hosts": ("tunnel.example.com", "Server."),
    }
    return AdminSource(**{**values, **changes})  # type: ignore[arg-type]


async def events(_request: Request) -> Response:
    async def produce(send: Callable[[bytes], Awaitable[None]]) -> None:
        for number in range(3):
            await send(b"data: %d\n\n" % number)

    return Response(200, content_type="text/event-stream", stream=produce)


async def endless(_request: Request) -> Response:
    async def produce(send: Callable[[bytes], Awaitable[None]]) -> None:
        await send(b"first")
        await trio.sleep_forever()

    return Response(200, stream=produce)


async def flood(_request: Request) -> Response:
    async def produce(send: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            await send(bytes(65536))

    return Response(200, stream=produce)


async def broken(_request: Request) -> Response:
    raise RuntimeError("a bug")


MORE = [Route("GET", path, handler) for path, handler in
        {"/events": events, "/endless": endless, "/flood": flood, "/broken": broken}.items()]  # fmt: skip


async def start(nursery: trio.Nursery, **changes: object) -> HostPort:
    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    port = listeners[0].socket.getsockname()[1]

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await serve_admin(listeners, source=make_source(**changes), more=MORE, task_status=task_status)

    await nursery.start(serve)
    return HostPort("127.0.0.1", port)


@pytest.fixture
async def where(nursery: trio.Nursery) -> HostPort:
    return await start(nursery)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def say(where: HostPort, raw: bytes) -> bytes:
    """Send `raw` and everything answered until the server closes."""
    async with await trio.open_tcp_stream(where.host, where.port) as stream:
        await stream.send_all(raw)
        return await read_all(stream)


async def ask(
    where: HostPort, line: str, *headers: str, body: bytes = b"", host: str = "localhost"
) -> tuple[int, bytes]:
    head = [f"{line} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        head.append(f"Content-Length: {len(body)}")
    answer = await say(where, "\r\n".join(head).encode() + b"\r\n\r\n" + body)
    status, _, rest = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), rest


async def test_stats_is_the_snapshot_and_what_is_added_to_it(nursery: trio.Nursery) -> None:
    where = await start(nursery, extra_stats=lambda: {"connection_pool": {"idle": 2}})
    status, body = await ask(where, "GET /stats?pretty=1")
    assert status == 200
    assert json.loads(body) == {
        "role": "server",
        "version": __version__,
        "sessions": [{"client": "home", "since": "2026-01-01T00:00:00.000Z", "proxies": []}],
        "connection_pool": {"idle": 2},
    }


async def test_healthz_is_alive_and_readyz_means_it(nursery: trio.Nursery) -> None:
    where = await start(nursery, ready=lambda: False)
    assert await ask(where, "GET /healthz") == (200, b"ok\n")
    assert await ask(where, "GET /readyz") == (503, b"not ready\n")
    assert await ask(await start(nursery), "GET /readyz") == (200, b"ready\n")


async def test_head_answers_without_a_body(where: HostPort) -> None:
    answer = await say(where, b"HEAD /healthz HTTP/1.1\r\nHost: [::1]:8480\r\nConnection: close\r\n\r\n")
    assert b"content-length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_every_answer_carries_the_security_headers_and_no_cors(where: HostPort) -> None:
    answer = await say(where, b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"x-content-type-options: nosniff\r\n" in answer
    assert b"cache-control: no-store\r\n" in answer
    assert b"content-security-policy: default-src 'none'" in answer
    assert b"access-control" not in answer.lower()


async def test_another_method_is_told_which_are_allowed(where: HostPort) -> None:
    answer = await say(where, b"OPTIONS /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: GET, HEAD\r\n" in answer
    assert (await ask(where, "GET /retry"))[0] == 405


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8480", "[::1]", "10.0.0.7", "Tunnel.Example.com", "server:8480"]
)
async def test_our_own_hosts_are_served(where: HostPort, host: str) -> None:
    assert (await ask(where, "GET /healthz", host=host))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a:b:c", "x@y"]
)
async def test_a_rebound_host_is_refused_on_reads_too(where: HostPort, host: str) -> None:
    assert (await ask(where, "GET /stats", host=host))[0] == 421


async def test_an_http_1_0_probe_needs_no_host(where: HostPort) -> None:
    assert (await say(where, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def post(where: HostPort, body: bytes, *headers: str) -> tuple[int, object]:
    status, answer = await ask(where, "POST /retry", *headers, body=body)
    return status, json.loads(answer)


async def test_retry_tells_what_it_restarted_or_why_not(where: HostPort) -> None:
    right = f"Authorization: Bearer {TOKEN}"
    assert await post(where, b'{"name": "web"}', right) == (200, {"restarted": ["home/web"]})
    assert await post(where, b'{"name": "nope"}', right) == (404, {"error": "no proxy 'nope'"})
    assert (await post(where, b'{"name": "ssh"}', right))[0] == 409
    for nonsense in (b'"web"', b'{"name": 1}', b"{", b"\xff", b"[" * 60000, b"{}"):
        assert (await post(where, nonsense, right))[0] == 400


@pytest.mark.parametrize(
    "header",
    ["X-Nothing: 1", "Authorization: Bearer wrong", f"Authorization: Basic {TOKEN}", f"Authorization: Bearer {TOKEN}x",
     "Authorization: Bearer", "Authorization: Bearer \xe9"],
)  # fmt: skip
async def test_a_write_without_the_token_is_refused(where: HostPort, header: str) -> None:
    assert (await post(where, b'{"name": "web"}', header))[0] == 401


async def test_an_empty_admin_token_opens_nothing(nursery: trio.Nursery) -> None:
    where = await start(nursery, token="")
    assert (await post(where, b'{"name": "web"}', "Authorization: Bearer "))[0] == 401


async def test_a_write_of_a_foreign_origin_is_refused_even_with_the_token(where: HostPort) -> None:
    right = f"Authorization: Bearer {TOKEN}"
    for origin in ("https://evil.example", "null", "http://localhost:81"):
        assert (await post(where, b'{"name": "web"}', right, f"Origin: {origin}"))[0] == 403
    assert (await post(where, b'{"name": "web"}', right, "Origin: http://localhost"))[0] == 200


async def test_a_connection_serves_request_after_request_also_pipelined(where: HostPort) -> None:
    once = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with await trio.open_tcp_stream(where.host, where.port) as stream:
        await stream.send_all(once + once + once.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = await read_all(stream)
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"ok\n") == 3


async def test_a_stream_arrives_in_chunks_and_ends(where: HostPort) -> None:
    answer = await say(where, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"content-type: text/event-stream\r\n" in answer
    assert answer.endswith(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")


async def test_a_reader_that_hangs_up_ends_its_stream() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, Site(make_source(), MORE).answer)
        await ours.send_all(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ours.receive_some(1)
        await ours.aclose()


@pytest.mark.parametrize(
    "raw",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"SSH-2.0-OpenSSH_9.6\r\n",
     b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
     b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"GET http://evil.example/stats HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"POST /retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"],
)  # fmt: skip
async def test_garbage_is_answered_400_and_the_server_goes_on(
    where: HostPort, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with await trio.open_tcp_stream(where.host, where.port) as stream:
        await stream.send_all(raw)
        await stream.send_eof()
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
    assert await ask(where, "GET /healthz") == (200, b"ok\n")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_head_over_the_bound_is_refused_in_one_piece_or_many(where: HostPort) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Padding: " + b"x" * admin_http.MAX_HEAD_BYTES
    assert (await say(where, head + b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")
    assert (await say(where, head)).startswith(b"HTTP/1.1 431 ")


async def test_a_body_over_the_bound_is_refused_announced_or_chunked(where: HostPort) -> None:
    head = b"POST /retry HTTP/1.1\r\nHost: localhost\r\n"
    announced = b"Content-Length: %d\r\n\r\n" % (admin_http.MAX_BODY_BYTES + 1)
    assert (await say(where, head + announced)).startswith(b"HTTP/1.1 413 ")
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    assert (await say(where, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)).startswith(b"HTTP/1.1 413 ")


async def test_expect_continue_is_answered_before_the_body(where: HostPort) -> None:
    head = f"POST /retry HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    async with await trio.open_tcp_stream(where.host, where.port) as stream:
        await stream.send_all(
            head.encode() + b"Content-Length: 15\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b'{"name": "web"}')
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")


async def test_a_bug_in_a_handler_is_logged_and_answered_500(where: HostPort, caplog: pytest.LogCaptureFixture) -> None:
    assert (await ask(where, "GET /broken"))[0] == 500
    assert "admin.handler_failed" in caplog.messages
    assert (await ask(where, "GET /healthz"))[0] == 200


@pytest.mark.parametrize(
    ("sent", "answer", "seconds"),
    [
        (b"", b"", 5.0),
        (b"GET /healthz HT", b"HTTP/1.1 408 ", 6.0),  # five for the head, one for the peer to read the answer
        (b"POST /retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 408 ", 6.0),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 ", 30.0),  # idle
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET", b"HTTP/1.1 200 ", 6.0),  # the second head is slow
    ],
)
async def test_a_silent_peer_is_cut(autojump_clock: MockClock, sent: bytes, answer: bytes, seconds: float) -> None:
    ours, theirs = memory_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, Site(make_source()).answer)
        await ours.send_all(sent)
        got = await read_all(ours)  # until their end of stream; the server closes a little later
    assert got.startswith(answer)
    assert bool(got) == bool(answer)
    assert trio.current_time() - began == seconds


async def test_a_slow_head_is_cut_five_seconds_after_it_began(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    ended: list[float] = []

    async def drip(stream: trio.abc.SendStream) -> None:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n":
            await stream.send_all(bytes([byte]))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, Site(make_source()).answer)
        nursery.start_soon(drip, ours)
        assert (await read_all(ours)).startswith(b"HTTP/1.1 408 ")
        ended.append(trio.current_time())
        nursery.cancel_scope.cancel(reason="seen enough")
    assert ended == [5.0]


async def test_a_reader_that_stops_reading_is_cut_by_the_write_deadline(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # holds nothing: a send waits for its reader
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, Site(make_source(), MORE).answer)
        await ours.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ours.receive_some(100_000)
    assert trio.current_time() == admin_http.WRITE_SECONDS


async def hold(where: HostPort, path: str = "") -> trio.SocketStream:
    """A connection that was taken; then it is silent, or with a `path` does not read beyond the answer's beginning."""
    stream = await trio.open_tcp_stream(where.host, where.port)
    await stream.send_all(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (path or "/healthz").encode())
    await stream.receive_some(20)  # an answer proves it
    return stream


async def test_when_it_is_full_who_kept_silent_for_longest_leaves_for_who_comes(
    where: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 2)
    first, second = await hold(where), await hold(where)
    assert (await ask(where, "GET /healthz"))[0] == 200
    async with first, second:
        with trio.fail_after(30):
            assert (await read_all(first)).endswith(b"ok\n")  # and then its end
            await second.send_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await read_all(second)).endswith(b"ready\n")


async def test_streams_stay_however_many_come_and_are_bounded_so_that_others_get_in(
    where: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(room, "MAX_STREAMS", 1)
    staying = await hold(where, "/endless")
    status, body = await ask(where, "GET /endless")
    assert (status, b"close one of them" in body) == (503, True)
    silent = [await hold(where) for _ in range(6)]
    assert (await ask(where, "GET /healthz"))[0] == 200
    await staying.receive_some(1000)  # the rest of its beginning
    with trio.move_on_after(0.05) as waited:
        await staying.receive_some()
    assert waited.cancelled_caught, "it has not ended"
    await staying.aclose()
    for stream in silent:
        await stream.aclose()
    with trio.fail_after(30):
        while (await ask(where, "GET /events"))[0] == 503:  # until the server has seen its end
            pass


async def test_when_all_wait_for_their_answers_the_newest_makes_room_so_that_the_oldest_gets_its_own(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 3)
    go, asked = trio.Event(), []

    async def slow(request: Request) -> Response:
        asked.append(request.query)
        await go.wait()
        return Response(200, b"made")

    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    where = HostPort("127.0.0.1", listeners[0].socket.getsockname()[1])
    site = partial(serve_admin, listeners, source=make_source(), more=[Route("GET", "/slow", slow)])
    await nursery.start(site)
    waiting = []
    with trio.fail_after(30):
        for number in range(3):
            waiting.append(await trio.open_tcp_stream(where.host, where.port))
            head = f"GET /slow?{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            await waiting[-1].send_all(head.encode())
            while len(asked) <= number:
                await trio.sleep(0.001)
        assert (await ask(where, "GET /healthz"))[0] == 200
        go.set()
        assert [(await read_all(stream))[-4:] for stream in waiting] == [b"made", b"made", b""]
    for stream in waiting:
        await stream.aclose()


async def test_answers_that_nobody_reads_take_a_bounded_memory_and_the_newest_reader_has_its_own(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 16 * 1024 * 1024  # more than the kernel takes of one
    monkeypatch.setattr(room, "MAX_UNREAD_BYTES", 2 * size)

    async def big(_request: Request) -> Response:
        return Response(200, bytes(size))

    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    where = HostPort("127.0.0.1", listeners[0].socket.getsockname()[1])
    site = partial(serve_admin, listeners, source=make_source(), more=[Route("GET", "/big", big)])
    await nursery.start(site)
    slow = [await hold(where, "/big") for _ in range(4)]
    assert len((await ask(where, "GET /big"))[1]) == size
    ends = []
    for stream in slow:
        with trio.fail_after(30), suppress(trio.BrokenResourceError):
            ends.append(len(await stream.receive_some(1)))
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            ends[-1] = len(await read_all(stream))
        await stream.aclose()
    assert [end > size for end in ends] == [False, False, False, True], "the slowest have made room"


class Failing:
    """A listener whose first accepts meet a full descriptor table."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked_at: list[float] = []

    async def accept(self) -> trio.SocketStream:
        self.asked_at.append(trio.current_time())
        if len(self.asked_at) <= self.failures:
            raise OSError(errno.EMFILE, "Too many open files")
        return await trio.sleep_forever()

    async def __aenter__(self) -> "Failing":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_running_out_of_descriptors_pauses_accepting_and_is_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Failing(5)
    with trio.move_on_after(10):
        await serve_admin([listener], source=make_source())  # type: ignore[list-item]
    assert listener.asked_at == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert caplog.messages == ["admin.accept_failed"]


async def test_cancelling_the_server_frees_its_port_and_drops_its_peers(nursery: trio.Nursery) -> None:
    async with trio.open_nursery() as serving:
        where = await start(serving)
        stream = await trio.open_tcp_stream(where.host, where.port)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await stream.receive_some()
        serving.cancel_scope.cancel(reason="end of test")
    async with stream:
        assert await stream.receive_some() == b""
    for listener in await bind_admin(where, asked_for=True):
        await listener.aclose()


async def test_a_taken_address_costs_a_warning_unless_it_was_asked_for(
    where: HostPort, caplog: pytest.LogCaptureFixture
) -> None:
    assert await bind_admin(where, asked_for=False) == []
    assert caplog.messages == ["admin.not_listening"]
    with pytest.raises(TunnelError, match=rf"{where} is already in use .*--admin off"):
        await bind_admin(where, asked_for=True)
    await serve_admin([], source=make_source())  # and without listeners there is nothing to do


async def test_an_address_that_others_reach_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for listener in await bind_admin(HostPort("0.0.0.0", 0), asked_for=True):
        await listener.aclose()
    assert caplog.messages == ["admin.exposed"]
