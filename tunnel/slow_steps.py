"""Which tasks held up the others, and for how long: an instrument for `trio.run`, installed only while profiling.

A step is what a task does between two waits; nothing else runs meanwhile. Of the relay's one task a step is a turn.
"""

import heapq
import re
import time
from collections.abc import Callable

import trio
from attrs import define, frozen

KEPT = 50  # slowest steps
MAX_NAMES = 200  # of which totals are kept; beyond, all share one
OTHERS = "(other tasks)"
MAX_NAME_CHARS = 200
_NUMBERED = re.compile(r"\s*\d+$")


@frozen(order=True)
class Step:
    ms: float
    ended: float  # seconds since the epoch
    task: str


@define
class Total:
    """Of all steps of tasks whose names begin alike."""

    steps: int = 0
    ms: float = 0.0
    longest_ms: float = 0.0


class SlowSteps(trio.abc.Instrument):
    """Keeps the slowest steps and totals by name; its memory is bounded. Costs each step about two microseconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._began = clock()
        self._heap: list[Step] = []
        self._totals: dict[str, Total] = {}

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = self._clock()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        ms = (self._clock() - self._began) * 1000
        total = self._total(task.name)
        total.steps += 1
        total.ms += ms
        if ms > total.longest_ms:
            total.longest_ms = ms
        if len(self._heap) < KEPT:
            heapq.heappush(self._heap, self._step(ms, task))
        elif ms > self._heap[0].ms:
            heapq.heapreplace(self._heap, self._step(ms, task))

    def _step(self, ms: float, task: trio.lowlevel.Task) -> Step:
        return Step(ms, self._wall(), task.name[:MAX_NAME_CHARS])

    def _total(self, task_name: str) -> Total:
        name = kind_of(task_name)
        total = self._totals.get(name)
        if total is None:
            if len(self._totals) >= MAX_NAMES:
                name = OTHERS
            total = self._totals.setdefault(name, Total())
        return total

    @property
    def slowest(self) -> list[Step]:
        """The slowest first."""
        return sorted(self._heap, reverse=True)

    @property
    def totals(self) -> list[tuple[str, Total]]:
        """By name; those that took most in all first."""
        return sorted(self._totals.items(), key=lambda item: item[1].ms, reverse=True)


def kind_of(task_name: str) -> str:
    """The first two words of a task's name, without a number: ``data channel`` of ``data channel 3``."""
    return _NUMBERED.sub("", " ".join(task_name.split(maxsplit=2)[:2])[:MAX_NAME_CHARS])
