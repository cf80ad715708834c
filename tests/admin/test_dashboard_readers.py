"""Readers of `/events` that stop reading, leave, or come to a source that fails: none costs the others anything."""

import logging

import pytest
import trio
from live_rig import Reading, Rig
from test_dashboard_picture import ROW, proxy
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from tunnel.admin import http as admin_http
from tunnel.admin import live as live_module
from tunnel.admin.http import WRITE_SECONDS, Request, serve_connection
from tunnel.admin.reader import MAX_BEHIND, MAX_BEHIND_BYTES


@pytest.fixture
def rig(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Where looking costs no time, on whatever machine."""
    monkeypatch.setattr(live_module, "perf_counter", lambda: 0.0)
    return Rig(nursery)


async def test_who_does_not_read_is_cut_off_and_others_go_on(
    rig: Rig, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    good, _ = await rig.read()
    slow = Reading(pause=lambda: 0.0 if not slow.told else 1e6)
    ended: list[float] = []

    async def crawl() -> None:
        response = await rig.live.route.handler(Request("GET", "/events", "", {}, b""))
        assert response.stream is not None
        with pytest.raises(trio.TooSlowError):
            await response.stream(slow.send)
        ended.append(trio.current_time())

    nursery.start_soon(crawl)
    await trio.sleep(MAX_BEHIND + 10.5)
    assert ended == [MAX_BEHIND + 1]
    assert len(good.of("change")) == MAX_BEHIND + 10
    assert len(rig.live._readers) == 1


async def test_what_waits_for_a_slow_reader_is_bounded_in_bytes_too(
    rig: Rig, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    slow = Reading(pause=lambda: 0.0 if not slow.told else 1e6)
    big = MAX_BEHIND_BYTES // 4

    def grow() -> None:
        rig.house.proxies["web"] = proxy(error_message=chr(97 + len(rig.house.looks)) * big)

    rig.house.on_look = grow
    ended: list[float] = []

    async def crawl() -> None:
        response = await rig.live.route.handler(Request("GET", "/events", "", {}, b""))
        assert response.stream is not None
        with pytest.raises(trio.TooSlowError):
            await response.stream(slow.send)
        ended.append(trio.current_time())

    nursery.start_soon(crawl)
    await trio.sleep(10)
    assert ended == [4.0]  # the fourth of a quarter each, with what stands around it


async def test_a_connection_that_is_not_read_is_closed_by_the_write_deadline_at_the_latest(
    rig: Rig, autojump_clock: MockClock
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # holds nothing: a send waits for its reader
    async with trio.open_nursery() as connections:
        connections.start_soon(serve_connection, theirs, rig.live.route.handler)
        await ours.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ours.receive_some(10_000)
        began = trio.current_time()
    assert trio.current_time() - began <= WRITE_SECONDS
    await wait_all_tasks_blocked()
    assert rig.live._readers == []
    assert rig.house.events._followers == []


async def test_a_look_that_fails_ends_the_streams_and_the_next_reader_is_served(
    rig: Rig, autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    reading = Reading()
    ended = trio.Event()

    async def read() -> None:
        response = await rig.live.route.handler(Request("GET", "/events", "", {}, b""))
        assert response.stream is not None
        with pytest.raises(trio.TooSlowError):
            await response.stream(reading.send)
        ended.set()

    def fail() -> None:
        raise RuntimeError("a bug")

    nursery.start_soon(read)
    await trio.sleep(0.5)
    rig.house.on_look = fail
    await ended.wait()
    assert "dashboard.look_failed" in caplog.messages
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    rig.house.on_look = lambda: None
    after, _ = await rig.read()
    await trio.sleep(1.5)
    assert after.of("state")[0]["sessions"]["home"]["proxies"] == {"web": ROW}


async def test_a_reader_who_leaves_leaves_nothing_behind(rig: Rig, autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as connections:
        connections.start_soon(serve_connection, theirs, rig.live.route.handler)
        await ours.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ours.receive_some(10_000)
        await trio.sleep(2)
        assert len(rig.live._readers) == 1
        await ours.aclose()
    assert rig.live._readers == []
    assert rig.house.events._followers == []


@pytest.mark.slow
async def test_over_a_socket_a_reader_that_stops_reading_is_dropped_and_another_is_not(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_http, "WRITE_SECONDS", 3.0)  # the good one is not cut while the machine stands still
    monkeypatch.setattr(live_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(live_module, "GATHER_SECONDS", 0.0)
    rig = Rig(nursery)

    def grow() -> None:  # much to tell at each look, so that what the kernel keeps for a reader is soon full
        rig.house.proxies["web"] = proxy(error_message=str(len(rig.house.looks)) * 100_000)

    rig.house.on_look = grow
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(admin_http.serve_http, listeners, rig.live.route.handler)
    where = listeners[0].socket.getsockname()[:2]
    lazy = trio.socket.socket()
    lazy.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    with lazy:
        await lazy.connect(where)
        await lazy.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with await trio.open_tcp_stream(*where) as good:
            await good.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            both = False
            with trio.fail_after(60):
                while not both or len(rig.live._readers) == 2:
                    assert await good.receive_some()
                    both = both or len(rig.live._readers) == 2
            assert len(rig.live._readers) == 1
            assert await good.receive_some()
    nursery.cancel_scope.cancel(reason="seen enough")
