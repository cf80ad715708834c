"""What systemd hears of a process's life, word by word and second by second."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.notify_socket import NotifySocket
from tunnel.snapshot import EventStream
from tunnel.supervision import AGAIN_SECONDS, EXTEND_EVERY_SECONDS, EXTEND_SECONDS, Supervision

EXTEND = f"EXTEND_TIMEOUT_USEC={int(EXTEND_SECONDS * 1_000_000)}"


class Heard(NotifySocket):
    """Writes down what was said, and when; takes nothing while `is_full`."""

    def __init__(self, *, watchdog_seconds: float | None = None) -> None:
        super().__init__("@nowhere", watchdog_seconds)
        self.words: list[tuple[float, str]] = []
        self.is_full = False

    def say(self, *words: str) -> bool:
        if self.is_full:
            return False
        self.words += [(trio.current_time(), word.partition("MONOTONIC")[0]) for word in words if word[:4] != "MONO"]
        return True

    def at(self, start: float = 0.0) -> list[tuple[float, str]]:
        return [(time, word) for time, word in self.words if time >= start]


class Process:
    """What is supervised: `line` is how it is."""

    def __init__(self, *, watchdog_seconds: float | None = None) -> None:
        self.heard = Heard(watchdog_seconds=watchdog_seconds)
        self.events = EventStream()
        self.drain = trio.Event()
        self.line = "starting"
        self.looks = 0
        self.supervision = Supervision(self.heard, self._describe)

    def _describe(self) -> str:
        self.looks += 1
        return self.line

    async def run(self) -> None:
        await self.supervision.run(self.events, drain=self.drain)

    def change(self, line: str, kind: str = "proxy.status") -> None:
        self.line = line
        self.events.publish(kind)


async def start(nursery: trio.Nursery, process: Process) -> Process:
    nursery.start_soon(process.run)
    await wait_all_tasks_blocked()
    return process


async def until(time: float) -> None:
    await trio.sleep_until(time)
    await wait_all_tasks_blocked()


async def test_it_is_ready_at_once_and_tells_each_change_with_a_second_between(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process())
    assert process.heard.words == [(0, "READY=1"), (0, "STATUS=starting")]
    await until(10)
    process.change("one")
    await until(10.5)
    for count in range(1000):
        process.change(f"{count} clients")
    await until(30)
    assert process.heard.at(1) == [(10, "STATUS=one"), (11, "STATUS=999 clients")]
    process.change("999 clients", "proxy.removed")  # nothing that a person would see
    await until(40)
    assert process.heard.at(30) == []


async def test_nothing_is_looked_at_while_nothing_happens(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process())
    await until(1)
    looks = process.looks
    await until(100_000)
    assert process.looks == looks


async def test_a_line_that_takes_long_to_make_is_made_more_rarely(
    nursery: trio.Nursery, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.autojump_threshold = 0.0
    process = Process()
    spent = 0.0

    def describe() -> str:
        nonlocal spent
        spent += 0.25
        return process.line

    monkeypatch.setattr("time.perf_counter", lambda: spent)
    process.supervision = Supervision(process.heard, describe)
    await start(nursery, process)
    spent = 0.0
    for count in range(600):
        process.change(f"{count} clients")
        await trio.sleep(1)
    assert spent <= 0.01 * 600 + 0.5


async def test_life_is_shown_at_half_of_what_systemd_waits(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process(watchdog_seconds=30))
    await until(31)
    assert [time for time, word in process.heard.words if word == "WATCHDOG=1"] == [0, 15, 30]


async def test_a_loop_that_stands_still_shows_no_life(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    process = await start(nursery, Process(watchdog_seconds=30))
    mock_clock.jump(1000)  # whatever held the loop for so long
    await wait_all_tasks_blocked()
    assert [time for time, word in process.heard.words if word == "WATCHDOG=1"] == [0, 1000]


async def test_a_reload_is_told_from_its_beginning_to_its_end(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process())
    await until(5)
    with process.supervision.reloading():
        await trio.sleep(2)
        process.line = "reloaded"
    assert process.heard.at(5) == [(5, "RELOADING=1"), (7, "READY=1"), (7, "STATUS=reloaded")]


async def test_a_configuration_that_was_refused_shows_until_one_is_taken(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process())
    await until(5)
    process.events.publish("config.refused")
    await until(10)
    process.events.publish("config.reloaded")
    await until(20)
    note = "; the configuration was read again, has mistakes, and was not changed: see the log"
    assert process.heard.at(1) == [(5, f"STATUS=starting{note}"), (10, "STATUS=starting")]


async def test_while_it_stops_it_asks_for_more_time_and_shows_life_and_is_not_ready_again(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0.0
    process = await start(nursery, Process(watchdog_seconds=30))
    await until(20)
    with process.supervision.reloading():
        process.drain.set()
        await wait_all_tasks_blocked()
    await until(31)
    words = process.heard.at(20)
    assert words[:3] == [(20, "RELOADING=1"), (20, "STOPPING=1"), (20, "STATUS=stopping: starting")]
    times = [20 + EXTEND_EVERY_SECONDS * turn for turn in range(3)]
    assert sorted(words[3:]) == [*[(time, EXTEND) for time in times], (30, "WATCHDOG=1")]


async def test_readiness_that_systemd_did_not_take_is_told_again_soon(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0.0
    process = Process()
    process.heard.is_full = True
    await start(nursery, process)
    await until(1.05)
    process.heard.is_full = False
    await until(100)
    (at, ready), (_, status) = process.heard.words
    assert (ready, status) == ("READY=1", "STATUS=starting")
    assert 1.05 <= at <= 1.05 + AGAIN_SECONDS


async def test_where_nobody_listens_nothing_runs(autojump_clock: MockClock) -> None:
    process = Process()
    process.supervision = Supervision(NotifySocket(), process._describe)
    with trio.fail_after(1):
        await process.run()
    with process.supervision.reloading():
        pass
