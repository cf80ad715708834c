"""Keeps a history while a process runs: a thread of its own, which alone touches the file, fed from the events.

The tunnel never waits for it. What the file cannot take for now is kept in memory, bounded; that there is trouble is
told once, and so is its end, with how much was lost. Called by `beside`.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio
from attrs import field, frozen

from tunnel.errors import TunnelError
from tunnel.history.ledger import Ledger
from tunnel.history.life import own_life
from tunnel.history.store import PRUNE_ROWS, SLACK, Run, Store
from tunnel.snapshot import Event, EventStream, Snapshot
from tunnel.version import __version__

log = logging.getLogger(__name__)

MAX_QUEUED = 10_000  # events between the tunnel and the thread, which takes them once a second; 10 MiB
MAX_WAITING = 10_000  # intervals kept for a file that cannot be written; 5 MiB
COMMIT_SECONDS = 1.0  # between transactions
BEAT_SECONDS = 30.0  # without news; so well is it known when a killed process ended
RETRY_SECONDS = 5.0  # after a failure
PRUNE_SECONDS = 600.0
STOP_SECONDS = 2.0  # for the last transaction; a disk that hangs holds up no end
STEADY_SECONDS = 600.0  # the wall clock must have gone right for so long before rows are deleted by their age
JUMP_SECONDS = 60.0  # it has not, when it differs from the other clock by so much more than before
DAY = 86_400.0


def uptime_clock() -> float:
    """Seconds that no one sets, and that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@frozen
class Clocks:
    """Two of them: one to measure by, one to show and to place what was measured."""

    steady: Callable[[], float] = uptime_clock
    wall: Callable[[], float] = time.time


@frozen(kw_only=True)
class Keeping:
    """Where a history is kept, and how much. Of a file that is not `own` one was told; what is not a history there is
    left alone, not moved aside."""

    path: Path
    own: bool = True
    max_age_days: float = 90.0
    max_rows: int = 1_000_000
    clocks: Clocks = field(factory=Clocks)


class Source(Protocol):
    events: EventStream

    def snapshot(self) -> Snapshot: ...


async def run_history(
    source: Source, keeping: Keeping, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Record what `source` tells until cancelled; then the last of it is written, for `STOP_SECONDS` at most."""
    recorder = Recorder(source.snapshot(), keeping)
    done, token = trio.Event(), trio.lowlevel.current_trio_token()

    def end() -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            pass  # a disk that hung has held nobody up

    def work() -> None:
        try:
            recorder.run()
        except Exception:
            log.exception("the history ends here: a bug")
        finally:
            end()

    with source.events.follow() as follower:

        def wake() -> None:
            for event in follower.drain():
                recorder.offer(event, source.snapshot)

        follower.wake = wake
        threading.Thread(target=work, name="history", daemon=True).start()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            recorder.stop()
            with trio.move_on_after(STOP_SECONDS, shield=True):
                await done.wait()


class Recorder:
    """`offer` and `stop` are the tunnel's, and never wait; `run` is the thread's, with all else."""

    def __init__(self, snapshot: Snapshot, keeping: Keeping) -> None:
        self._keeping = keeping
        self._clocks = keeping.clocks
        self._queue: deque[tuple[float, float, Event | Snapshot]] = deque()
        self._dropped = 0  # written by the tunnel's thread alone
        self._is_behind = False  # likewise: events were dropped, and a look at all is due
        self._news, self._stopping = threading.Event(), threading.Event()
        self._began = self._clocks.steady()
        began_at = self._clocks.wall()
        self._ledger = Ledger(snapshot.role)
        self._ledger.look(snapshot, 0.0, began_at)
        self._run = Run(snapshot.role, __version__, began_at, own_life())
        self._store: Store | None = None
        self._trouble = ""  # as told; empty while the file can be written
        self._was_open = False
        self._calendar = Calendar(began_at)
        self._prune_at = 0.0
        self._written = 0  # rows since the file was last pruned

    # The tunnel's side

    def offer(self, event: Event, look: Callable[[], Snapshot]) -> None:
        """Take an event in; where there is no room it is dropped, and made up for by a `look` at all, later."""
        if len(self._queue) >= MAX_QUEUED:
            self._dropped += 1
            self._is_behind = True
            return
        now = self._clocks.steady() - self._began
        self._queue.append((now, 0.0, event))
        if self._is_behind and len(self._queue) < MAX_QUEUED // 2:
            self._is_behind = False
            self._queue.append((now, self._clocks.wall(), look()))
        self._news.set()

    def stop(self) -> None:
        self._stopping.set()
        self._news.set()

    # The thread's side

    def run(self) -> None:
        """Until stopped: write what is new, once a second at most, and a sign of life without news."""
        pause = COMMIT_SECONDS if self.step() else RETRY_SECONDS  # the file is open from the beginning
        while not self._stopping.wait(pause):
            pause = COMMIT_SECONDS if self.step() else RETRY_SECONDS
            if not self._trouble and not self._stopping.is_set():
                self._news.wait(BEAT_SECONDS - COMMIT_SECONDS)
            self._news.clear()
        self._run.stopped = True
        self.step()
        if self._store is not None:
            self._store.close()

    def step(self) -> bool:
        """Hear what was offered and write it; False when the file cannot be written for now."""
        self._hear()
        try:
            self._write()
        except (sqlite3.Error, OSError, TunnelError) as exc:
            self._fail(exc)
            return False
        if self._trouble:
            log.warning("the history is kept again in %s; %s", self._keeping.path, _lost(self._run.lost))
            self._trouble = ""
        return True

    def _hear(self) -> None:
        while self._queue:
            now, at, heard = self._queue.popleft()
            if isinstance(heard, Event):
                self._ledger.hear(heard, now)
            else:
                self._ledger.look(heard, now, at, missed=True)
        self._ledger.tidy(self._now)

    @property
    def _now(self) -> float:
        return self._clocks.steady() - self._began

    def _write(self) -> None:
        store, ledger, run = self._opened(), self._ledger, self._run
        run.last, run.last_at = self._now, self._clocks.wall()
        run.lost = ledger.lost + self._dropped
        self._calendar.look(run.last, run.last_at)
        spans, sessions = dict(ledger.spans), dict(ledger.sessions)
        store.write(run, spans.values(), sessions.values(), renamed=ledger.renamed)
        ledger.saved(spans, sessions)
        self._written += len(spans) + len(sessions)
        if run.last >= self._prune_at or self._written > SLACK * self._keeping.max_rows:
            self._prune(store)

    def _prune(self, store: Store) -> None:
        keeping, run = self._keeping, self._run
        before = run.last_at - keeping.max_age_days * DAY if self._calendar.is_steady(run.last) else None
        most = PRUNE_ROWS + 2 * self._written  # more than came, or a client that publishes without end fills the disk
        deleted = store.prune(before=before, max_rows=keeping.max_rows, run=run.id, most=most)
        self._written = 0
        self._prune_at = run.last + (0.0 if deleted else PRUNE_SECONDS)

    def _opened(self) -> Store:
        if self._store is not None and self._store.is_gone():
            log.warning("%s was taken away; the history begins anew there", self._keeping.path)
            self._close()
        if self._store is None:
            if self._keeping.own:
                self._keeping.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = Store(self._keeping.path)
            self._was_open = True
            if self._run.id is not None and not self._store.knows(self._run):  # it was taken away meanwhile
                self._begin_file()
        return self._store

    def _begin_file(self) -> None:
        """Another file than before: it gets a run of its own, and all that lasts."""
        self._run.id = None
        self._ledger.begin_file()

    def _close(self) -> None:
        """What is opened next trusts nothing that was read before."""
        if self._store is not None:
            self._store.close()
        self._store = None

    def _fail(self, exc: Exception) -> None:
        self._ledger.shed(MAX_WAITING)
        self._close()
        if _is_damage(exc) and (self._keeping.own or self._was_open):
            self._move_aside(exc)
            return
        if not self._trouble:
            self._trouble = str(exc)
            log.warning(
                "the history cannot be kept in %s for now: %s; the tunnel goes on, and it is tried every %g s: "
                "see that the disk has room and that this user may write there",
                self._keeping.path, exc, RETRY_SECONDS,
            )  # fmt: skip

    def _move_aside(self, exc: Exception) -> None:
        path = self._keeping.path
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
            for more in ("-wal", "-shm"):  # they belong to what was moved
                path.with_name(path.name + more).unlink(missing_ok=True)
        except OSError as failure:
            self._trouble = self._trouble or str(failure)
            log.error("the history in %s is damaged (%s) and cannot be moved aside: %s", path, exc, failure)
            return
        self._begin_file()
        log.error("the history in %s was damaged (%s): it is %s now, and a new one begins", path, exc, aside)


class Calendar:
    """Whether the wall clock can be believed: it has gone as the other clock does for a while."""

    def __init__(self, wall: float) -> None:
        self._offset = wall
        self._steady_since = 0.0

    def look(self, now: float, wall: float) -> None:
        if abs(wall - now - self._offset) > JUMP_SECONDS:
            self._steady_since = now
        self._offset = wall - now

    def is_steady(self, now: float) -> bool:
        return now - self._steady_since >= STEADY_SECONDS


def _is_damage(exc: Exception) -> bool:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _lost(count: int) -> str:
    return f"{count} changes were lost" if count else "nothing was lost"
