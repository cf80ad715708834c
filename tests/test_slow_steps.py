"""The instrument that times steps: its bounds with made-up times, and a small Trio run."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tunnel.slow_steps import KEPT, MAX_NAMES, OTHERS, SlowSteps, Step, Total, kind_of


class Times:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Times:
    return Times()


@pytest.fixture
def steps(clock: Times) -> SlowSteps:
    return SlowSteps(clock, lambda: 1000.0 + clock.now)


def take(steps: SlowSteps, clock: Times, name: str, ms: float) -> None:
    task: Any = SimpleNamespace(name=name)
    steps.before_task_step(task)
    clock.now += ms / 1000
    steps.after_task_step(task)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("relay", "relay"),
        ("relay deadlines", "relay deadlines"),
        ("data channel 3", "data channel"),
        ("channel 17", "channel"),
        ("connection from 127.0.0.1", "connection from"),
        ("health check of web: 127.0.0.1:80", "health check"),
        ("tunnel.stopping.Stopping.watch", "tunnel.stopping.Stopping.watch"),
        ("", ""),
    ],
)
def test_tasks_whose_names_begin_alike_are_of_one_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_only_the_slowest_steps_are_kept_slowest_first(steps: SlowSteps, clock: Times) -> None:
    for ms in [*range(1, 101), *range(100, 0, -1)]:
        take(steps, clock, "relay", ms)
    assert [round(step.ms) for step in steps.slowest] == [ms for ms in range(100, 75, -1) for _ in range(2)]
    assert len(steps.slowest) == KEPT


def test_a_step_tells_when_it_ended(steps: SlowSteps, clock: Times) -> None:
    take(steps, clock, "proxy web", 250)
    assert steps.slowest == [Step(pytest.approx(250), 1100.25, "proxy web")]


def test_totals_are_by_kind_and_the_costliest_comes_first(steps: SlowSteps, clock: Times) -> None:
    for name, ms in (("data channel 1", 1), ("data channel 2", 3), ("relay", 10)):
        take(steps, clock, name, ms)
    assert steps.totals == [
        ("relay", Total(1, pytest.approx(10), pytest.approx(10))),
        ("data channel", Total(2, pytest.approx(4), pytest.approx(3))),
    ]


def test_names_without_end_take_no_memory_without_end(steps: SlowSteps, clock: Times) -> None:
    for number in range(MAX_NAMES + 100):
        take(steps, clock, f"proxy p{number}." + "x" * 1000, 1)
    totals = dict(steps.totals)
    assert len(totals) == MAX_NAMES + 1
    assert totals[OTHERS].steps == 100
    assert max(len(step.task) for step in steps.slowest) == max(map(len, totals)) == 200


def test_in_a_real_run_the_task_that_blocks_is_found() -> None:
    steps = SlowSteps()

    async def blocks() -> None:
        await trio.lowlevel.checkpoint()
        began = time.perf_counter()
        while time.perf_counter() - began < 0.02:
            pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint, name="innocent 1")
            nursery.start_soon(blocks, name="blocker 1")

    trio.run(main, instruments=[steps])
    totals = dict(steps.totals)
    assert totals["blocker"].longest_ms >= 20
    assert totals["blocker"].steps == 2
    assert any(step.task == "blocker 1" and step.ms >= 20 for step in steps.slowest)
