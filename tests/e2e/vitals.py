"""What a process weighs: resident memory and descriptors from /proc, tasks from the dump that SIGUSR2 asks for."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from processes import Process, resident_kib

DUMP_SECONDS = 15.0  # a busy process takes its time


@frozen
class Vitals:
    resident_mib: float
    descriptors: int
    tasks: int | None  # None: not asked for
    channels: int | None = None  # of the relay


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def weigh(process: Process, dumps: Path | None = None) -> Vitals:
    """Now. `dumps` is what the process was given as --profile-dir."""
    figures = ask(process, dumps) if dumps is not None else None
    return Vitals(
        resident_kib(process.pid) / 1024,
        descriptors_of(process.pid),
        figures and figures["trio"]["tasks"],
        figures and figures["relay"]["channels"],
    )


def ask(process: Process, dumps: Path) -> dict[str, Any]:
    """The figures of a dump made now; the dump is deleted."""
    process.send(signal.SIGUSR2)
    deadline = time.monotonic() + DUMP_SECONDS
    while time.monotonic() < deadline:
        for path in dumps.glob("trio-tunnel-*.txt"):  # whole as soon as it has this name
            found = re.search(r"^== figures ==\n(.*?)\n\n", path.read_text(), re.DOTALL | re.MULTILINE)
            path.unlink()
            assert found, f"{path} has no figures"
            return dict(json.loads(found.group(1)))
        time.sleep(0.01)
    raise AssertionError(f"{process.name} wrote no dump within {DUMP_SECONDS:g} s\n{process.report()}")


@define(eq=False)
class Watch:
    """Samples a process's memory and descriptors while the body runs; `peak` is the largest of each."""

    process: Process
    every_seconds: float = 0.2
    peak_mib: float = 0.0
    peak_descriptors: int = 0
    _over: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._over.wait(self.every_seconds):
            try:
                now = weigh(self.process)
            except OSError:
                return  # it has gone, which others find out
            self.peak_mib = max(self.peak_mib, now.resident_mib)
            self.peak_descriptors = max(self.peak_descriptors, now.descriptors)
