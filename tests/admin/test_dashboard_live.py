"""`/events` in virtual time: what is sent when, to whom, and what nobody looking costs."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from attrs import Factory, define
from test_dashboard_picture import ROW, SINCE, proxy
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from tunnel.admin import http as admin_http
from tunnel.admin import live as live_module
from tunnel.admin.http import WRITE_SECONDS, Request, serve_connection
from tunnel.admin.live import GATHER_SECONDS, HEARTBEAT_SECONDS, Live
from tunnel.admin.reader import MAX_BEHIND, MAX_BEHIND_BYTES
from tunnel.snapshot import FOLLOWER_EVENTS, RECENT_EVENTS, EventStream, ProxyView, SessionView


class House:
    """A source with one session, whose looks are counted."""

    def __init__(self) -> None:
        self.events = EventStream()
        self.proxies: dict[str, ProxyView] = {"web": proxy()}
        self.looks: list[float] = []
        self.on_look: Callable[[], None] = lambda: None

    def views(self) -> Iterator[SessionView]:
        self.looks.append(trio.current_time())
        self.on_look()
        yield SessionView("home", SINCE, tuple(self.proxies.values()))

    def stats(self) -> dict[str, Any]:
        return {"gate": {"logins": 1}}

    def is_ready(self) -> bool:
        return True

    def why_not_ready(self) -> str:
        return ""


@define
class Reading:
    """What one reader was sent: (seconds, kind, id, data); comments have the kind ``:``."""

    told: list[tuple[float, str, str, Any]] = Factory(list)
    pause: Callable[[], float] = lambda: 0.0
    _rest: bytes = b""

    async def send(self, chunk: bytes) -> None:
        await trio.sleep(self.pause())
        *messages, self._rest = (self._rest + chunk).split(b"\n\n")
        for raw in messages:
            lines = [line.partition(": ") for line in raw.decode().splitlines()]
            fields = {name: value for name, _, value in lines if name != "data"}
            data = "\n".join(value for name, _, value in lines if name == "data")
            kind = fields.get("event", ":" if "" in fields else "retry")
            told = (trio.current_time(), kind, fields.get("id", ""), json.loads(data) if data else None)
            self.told.append(told)

    def of(self, *kinds: str) -> list[Any]:
        return [data for _, kind, _, data in self.told if kind in kinds]

    def times(self, kind: str) -> list[float]:
        return [round(at, 6) for at, other, _, _ in self.told if other == kind]


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.house = House()
        self.live = Live(self.house, role="server", can_write=True)
        self.nursery = nursery
        nursery.start_soon(self.live.run)

    async def read(
        self, query: str = "", reading: Reading | None = None, **headers: str
    ) -> tuple[Reading, trio.CancelScope]:
        reading, scope = reading or Reading(), trio.CancelScope()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.live.route.handler(Request("GET", "/events", query, named, b""))
        assert response.content_type == "text/event-stream"
        assert response.stream is not None
        stream = response.stream

        async def run() -> None:
            with scope:
                await stream(reading.send)

        self.nursery.start_soon(run)
        return reading, scope


@pytest.fixture
def rig(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Where looking costs no time, on whatever machine."""
    monkeypatch.setattr(live_module, "perf_counter", lambda: 0.0)
    return Rig(nursery)


async def test_nobody_looks_while_nobody_reads(rig: Rig, autojump_clock: MockClock) -> None:
    await trio.sleep(3600)
    assert rig.house.looks == []
    assert rig.house.events._followers == []
    _, scope = await rig.read()
    await trio.sleep(2.5)
    scope.cancel()
    await trio.sleep(3600)
    assert rig.house.looks == [3600, 3601, 3602]
    assert rig.house.events._followers == []


async def test_the_state_comes_at_once_and_a_change_each_second(rig: Rig, autojump_clock: MockClock) -> None:
    reading, _ = await rig.read()
    await trio.sleep(1.5)
    rig.house.proxies["web"] = proxy(visitors=3)
    await trio.sleep(2.0)
    [state] = reading.of("state")
    assert {key: value for key, value in state.items() if key not in ("at", "started", "pid")} == {
        "role": "server", "version": live_module.__version__, "can_write": True, "ready": True, "why_not_ready": "",
        "uptime": 0.0, "gate": {"logins": 1}, "sessions": {"home": {"since": SINCE, "proxies": {"web": ROW}}},
    }  # fmt: skip
    changes = reading.of("change")
    for change in changes:
        del change["at"]
    assert changes == [
        {"uptime": 1.0, "seconds": 1.0},
        {"uptime": 2.0, "seconds": 1.0, "sessions": {"home": {"proxies": {"web": {"visitors": 3}}}}},
        {"uptime": 3.0, "seconds": 1.0},
    ]
    assert (reading.times("state"), reading.times("change")) == ([0.0], [1.0, 2.0, 3.0])


async def test_one_look_serves_all_readers_and_who_comes_later_has_what_is_known(
    rig: Rig, autojump_clock: MockClock
) -> None:
    first, _ = await rig.read()
    await trio.sleep(1.5)
    second, _ = await rig.read()
    await trio.sleep(1.0)
    assert rig.house.looks == [0, 1, 2]
    assert second.times("state") == [1.5]
    assert second.of("change") == first.of("change")[1:]


async def test_a_page_that_is_loaded_again_need_not_wait_for_the_next_look(rig: Rig, autojump_clock: MockClock) -> None:
    _, scope = await rig.read()
    await trio.sleep(1.5)
    scope.cancel()
    await trio.sleep(0.1)
    again, _ = await rig.read()
    await trio.sleep(0.1)
    assert again.times("state") == [1.6]


async def test_with_many_proxies_looks_are_further_apart(
    rig: Rig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(live_module, "perf_counter", lambda: 0.03 * next(clock))  # 30 ms between any two askings
    await rig.read()
    await trio.sleep(7)
    assert rig.house.looks == pytest.approx([0, 3, 6])  # 60 ms of work are 2 % of 3 s


async def test_events_come_at_once_and_those_close_to_each_other_together(rig: Rig, autojump_clock: MockClock) -> None:
    reading, _ = await rig.read("only=events")
    await trio.sleep(5)
    rig.house.events.publish("session.started", client="home", peer="192.0.2.1:5")
    await trio.sleep(0.05)
    for _ in range(3):
        rig.house.events.publish("proxy.removed", client="home", proxy="web")
    await trio.sleep(1)
    assert reading.times("event") == [5.0, *[5.0 + GATHER_SECONDS] * 3]
    assert [number for _, kind, number, _ in reading.told if kind == "event"] == ["1", "2", "3", "4"]
    first = reading.of("event")[0]
    assert first | {"at": ""} == {
        "id": 1, "kind": "session.started", "at": "", "client": "home", "proxy": "", "fields": {"peer": "192.0.2.1:5"},
    }  # fmt: skip


async def test_a_program_that_wants_events_alone_costs_no_look(rig: Rig, autojump_clock: MockClock) -> None:
    reading, _ = await rig.read("only=events")
    await trio.sleep(2 * HEARTBEAT_SECONDS + 1)
    assert rig.house.looks == []
    beats = reading.times(":")
    assert [round(at) for at in beats] == [15, 30]


@pytest.mark.parametrize(
    ("query", "headers", "told"),
    [
        ("", {}, []),
        ("after=0", {}, [1, 2, 3]),
        ("after=2", {}, [3]),
        ("after=3", {}, []),
        ("after=99", {}, [1, 2, 3]),  # of a process before this one
        ("after=1", {"last_event_id": "2"}, [3]),  # the browser's own word is the newer one
        ("after=x&after=2", {}, []),
        ("after=-1", {}, []),
        ("after=" + "9" * 5000, {}, []),
    ],
)
async def test_events_after_the_last_one_known_are_told_again(
    rig: Rig, autojump_clock: MockClock, query: str, headers: dict[str, str], told: list[int]
) -> None:
    for _ in range(3):
        rig.house.events.publish("proxy.removed")
    reading, _ = await rig.read(f"only=events&{query}", **headers)
    await trio.sleep(1)
    assert [event["id"] for event in reading.of("event")] == told


async def test_it_is_told_how_many_events_are_lost(rig: Rig, autojump_clock: MockClock) -> None:
    for _ in range(RECENT_EVENTS + 10):
        rig.house.events.publish("proxy.removed")
    reading, _ = await rig.read("only=events&after=4")
    await trio.sleep(1)
    assert reading.of("missed") == [{"count": 6}]
    assert len(reading.of("event")) == RECENT_EVENTS
    for _ in range(FOLLOWER_EVENTS + 7):
        rig.house.events.publish("proxy.removed")
    await trio.sleep(1)
    assert reading.of("missed")[1:] == [{"count": 7}]


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
    monkeypatch.setattr(admin_http, "WRITE_SECONDS", 1.0)
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
