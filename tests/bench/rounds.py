"""Runs the figures: in each round each figure of every system in turn, so that a noisy minute hits all alike."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from attrs import Factory, define, frozen

from .figures import Figure, Sizes
from .loads import Target
from .machine import busy_percent
from .processes import Failed
from .services import Services
from .systems import Stage, System

QUIET_PERCENT = 10


@define
class Measured:
    """All that one system's rounds gave. A figure that failed is missing from that round, and noted."""

    values: dict[str, list[float]] = Factory(dict)
    notes: list[str] = Factory(list)

    def add(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)

    def medians(self) -> dict[str, float]:
        return {key: statistics.median(values) for key, values in self.values.items()}


@frozen
class Plan:
    systems: Sequence[type[System]]
    figures: Sequence[Figure]
    rounds: int
    sizes: Sizes


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Runner:
    """The systems of one run; those that have been started stay up, idle, while others are measured."""

    def __init__(self, plan: Plan, stage: Stage, services: Services) -> None:
        self.plan = plan
        self.stage = stage
        self.services = services
        self.measured = {kind.name: Measured() for kind in plan.systems}
        self.busy: list[float] = []  # percent of the CPU that others used before each round
        self._up: dict[str, System] = {}

    def run(self) -> None:
        for number in range(1, self.plan.rounds + 1):
            self.busy.append(busy_percent())
            if self.busy[-1] > QUIET_PERCENT:
                say(f"round {number}: other processes use {self.busy[-1]:.0f} % of the CPU; these figures will be poor")
            try:
                for figure in self.plan.figures:
                    for kind in self.plan.systems:
                        if figure.systems and kind.name not in figure.systems:
                            continue
                        self._measure(kind, figure, f"round {number}/{self.plan.rounds}")
            finally:
                self._stop_all()

    def _measure(self, kind: type[System], figure: Figure, where: str) -> None:
        measured = self.measured[kind.name]
        try:
            system = self._running(kind, fresh=figure.cold)
            values = figure.measure(system, self._target(system), self.plan.sizes)
        except Failed as exc:
            measured.notes.append(f"{where}, {figure.name}: {exc}")
            say(f"{where} {figure.name:12} {kind.name:12} FAILED: {exc}")
            self._stop(kind)  # whatever it is stuck in, the next figure starts it afresh
            if "iperf3" in str(exc):
                self.services.restart_bulk()
            return
        measured.add(values)
        shown = "  ".join(f"{key} {value:,.4g}" for key, value in values.items()) or "-"
        say(f"{where} {figure.name:12} {kind.name:12} {shown}")

    def _running(self, kind: type[System], *, fresh: bool) -> System:
        if fresh:
            self._stop(kind)
        if kind.name not in self._up:
            folder = self.stage.folder / kind.name
            stage = Stage(folder, self.stage.near, self.stage.far, self.stage.services, self.stage.files)
            system = kind(stage)
            system.start()
            self._up[kind.name] = system
        return self._up[kind.name]

    def _target(self, system: System) -> Target:
        return Target(system.host, system.port("web"), system.port("bulk"), self.stage.near, self.stage.folder)

    def _stop(self, kind: type[System]) -> None:
        if system := self._up.pop(kind.name, None):
            system.stop()

    def _stop_all(self) -> None:
        for kind in self.plan.systems:
            self._stop(kind)
