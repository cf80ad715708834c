"""`/events` in virtual time: what is sent when, to whom, and what nobody looking costs."""

import pytest
import trio
from live_rig import Rig
from test_dashboard_picture import ROW, SINCE, proxy
from trio.testing import MockClock

from tunnel.admin import live as live_module
from tunnel.admin.live import GATHER_SECONDS, HEARTBEAT_SECONDS
from tunnel.snapshot import FOLLOWER_EVENTS, RECENT_EVENTS


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
