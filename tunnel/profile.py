"""A look inside a running process: SIGUSR2 writes what its tasks wait for, its figures and its slowest steps to a file.

`commands` makes one `Profile` a process. All that may change is read in one go in the event loop; the rest, the writing
above all, is done in a thread. A dump holds names and places in the code, no variables; what looks like a token is cut.
"""

import gc
import json
import logging
import math
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import asdict

from tunnel.errors import TunnelError
from tunnel.log_lines import escape, redact
from tunnel.relay import Engine
from tunnel.slow_steps import SlowSteps
from tunnel.version import __version__

log = logging.getLogger(__name__)

MAX_TASKS = 2000  # shown in a dump; 4,096 visitors have no task each, so these are most of any process
MAX_INDENT = 20  # levels
FRAMES = 6  # innermost ones shown of each task; the first three are mostly Trio's own
SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR2", None)  # Windows has none


class Profile:
    """Answers SIGUSR2 in `watch`. `directory` None: with a word on how to get a dump, where it would end the process.

    `sections` gives what else is to be shown, as values for JSON. Hand `instruments` to `trio.run`.
    Raises `TunnelError` when the directory cannot be written to.
    """

    def __init__(self, role: str, directory: Path | None, *, number: signal.Signals | None = SIGNAL) -> None:
        self.sections: Callable[[], Mapping[str, Any]] = dict
        self.steps = None if directory is None else SlowSteps()
        self._role = role
        self._directory = directory and _writable(directory.absolute())
        self._signal = number
        self._started = time.monotonic()
        if directory is not None and number is None:
            raise TunnelError("--profile-dir waits for the signal SIGUSR2, and this system has none; leave it out")

    @property
    def instruments(self) -> list[trio.abc.Instrument]:
        return [] if self.steps is None else [self.steps]

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. One dump at a time: signals that come meanwhile are answered with one more."""
        if self._signal is None:
            task_status.started()
            return
        with trio.open_signal_receiver(self._signal) as signals:
            task_status.started()
            async for _ in signals:
                if self._directory is None:
                    log.warning("SIGUSR2 asks for a dump; start with --profile-dir DIR to have it written there")
                else:
                    await self._dump(self._directory)

    async def _dump(self, directory: Path) -> None:
        now = datetime.now(UTC)
        name = f"trio-tunnel-{self._role}-{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z-{os.getpid()}.txt"
        try:
            lines = self._lines()
            write = partial(write_dump, directory / name, lines)
            await trio.to_thread.run_sync(write, abandon_on_cancel=True)  # a disk that hangs must not hold up the end
        except OSError as exc:
            log.error("the dump %s cannot be written: %s", directory / name, exc.strerror)
        except Exception:
            log.exception("a dump failed")
        else:
            log.info("wrote the dump %s", directory / name)

    def _lines(self) -> list[str]:
        """All that is in the event loop's hands; no await, so that it is one moment's picture."""
        up = time.monotonic() - self._started
        return [
            f"trio-tunnel {__version__}, {self._role}, process {os.getpid()}, up {up:.1f} s, "
            f"Python {platform.python_version()}, Trio {trio.__version__}",
            *("", "== figures ==", _as_json({"trio": _trio_figures(), **self._asked_sections()})),
            *("", "== slowest steps: ms, when they ended, task =="),
            *(f"{step.ms:12.3f}  {_stamp(step.ended)}  {escape(step.task)}" for step in self._steps().slowest),
            *("", "== steps by the beginning of the task's name: ms in all, how many, the longest's ms =="),
            *(
                f"{total.ms:12.1f} {total.steps:10} {total.longest_ms:10.3f}  {escape(name)}"
                for name, total in self._steps().totals
            ),
            *("", "== tasks, and where each stands, innermost first =="),
            *task_lines(trio.lowlevel.current_root_task()),
        ]

    def _steps(self) -> SlowSteps:
        assert self.steps is not None
        return self.steps

    def _asked_sections(self) -> Mapping[str, Any]:
        try:
            return self.sections()
        except Exception as exc:  # the rest is worth having
            log.exception("a dump's sections failed")
            return {"sections": f"failed: {type(exc).__name__}"}


def relay_figures(engine: Engine) -> dict[str, Any]:
    """What a relay is doing, in numbers."""
    sessions = list(engine.sessions)
    return {
        "sessions": len(sessions),
        "channels": sum(len(session.channels) for session in sessions),
        "streams": engine.bounds.open_streams,
        "max_streams": engine.bounds.max_streams,
        "turns": engine.turns,
        "errors": engine.errors,
        "budget_free": engine.bounds.budget.free,
        "paused_listeners": len(engine.bounds.waiting),
    }


def task_lines(root: trio.lowlevel.Task | None, limit: int = MAX_TASKS) -> Iterator[str]:
    """The tree below `root`, each task by name with its innermost frames; siblings by name, at most `limit` tasks."""
    waiting = [(root, 0)] if root is not None else []
    for _ in range(limit):
        if not waiting:
            return
        task, depth = waiting.pop()
        indent = "  " * min(depth, MAX_INDENT)
        yield f"{indent}{escape(task.name)}"
        for frame, line in reversed(deque(task.iter_await_frames(), FRAMES)):
            code = frame.f_code
            yield f"{indent}    {'/'.join(Path(code.co_filename).parts[-3:])}:{line} {code.co_qualname}"
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        children.sort(key=lambda child: child.name, reverse=True)  # taken from the end
        waiting += [(child, depth + 1) for child in children]
    if waiting:
        yield f"… {len(waiting)} more, and their children"


def write_dump(path: Path, lines: list[str]) -> None:
    """Write the lines and what a thread can tell, for this user's eyes only. The file appears whole or not at all."""
    text = "\n".join([lines[0], "", "== process ==", _as_json(_process_figures()), *lines[1:], ""])
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(redact(text).encode("utf-8", "backslashreplace"))
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            aside.unlink()
        raise


def _trio_figures() -> dict[str, Any]:
    found = trio.lowlevel.current_statistics()
    deadline = found.seconds_to_next_deadline
    return {
        "tasks": found.tasks_living,
        "runnable": found.tasks_runnable,
        "next_deadline_seconds": None if deadline == math.inf else round(deadline, 3),
        "run_sync_soon": found.run_sync_soon_queue_size,
        "io": asdict(found.io_statistics),
    }


def _process_figures() -> dict[str, Any]:
    return {
        "resident_bytes": _resident_bytes(),
        "open_descriptors": _open_descriptors(),
        "cpu_seconds": round(time.process_time(), 3),
        "threads": threading.active_count(),
        "gc": {"count": gc.get_count(), "frozen": gc.get_freeze_count(), "generations": gc.get_stats()},
    }


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None  # only Linux tells so


def _open_descriptors() -> int | None:
    try:
        return len(os.listdir("/dev/fd")) - 1  # without the one that lists them
    except OSError:
        return None


def _as_json(figures: Mapping[str, Any]) -> str:
    return json.dumps(figures, indent=1, default=str)


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _writable(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise TunnelError(
            f"--profile-dir {directory} cannot be made: {exc.strerror}; make it, or name another"
        ) from exc
    if not os.access(directory, os.W_OK | os.X_OK):
        raise TunnelError(f"--profile-dir {directory} is not ours to write to; change its owner, or name another")
    return directory
