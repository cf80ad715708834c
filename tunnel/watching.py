"""Notices that files of a configuration have changed, and asks for them to be read again. Used by `commands`.

    kernel (watchfiles) ──▶ something stirs there ─┐
    every few seconds  ────────────────────────────┴─▶ stamps differ? ─▶ they stand still? ─▶ read again, once

What counts is what `stat` says of the files, links followed; the kernel's word only makes us look sooner. So renames,
swapped links and directories that go and come back need no case of their own, and where the kernel tells of nothing
(its watches are used up, a network file system) we look more often instead.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import trio

from tunnel.config.credentials import noting, standing

C = TypeVar("C")

SETTLE_SECONDS = 0.3  # so long nothing may change: editors and `cp` write in several steps
LOOK_SECONDS = 10.0  # at the longest, while the kernel tells of changes
POLL_SECONDS = 2.0  # while it does not
AGAIN_SECONDS = 60.0  # until it is asked for that again
STEP_MILLISECONDS = 200  # how often watchfiles' thread looks whether it is to end, which then takes so long
DEBOUNCE_MILLISECONDS = 1000  # a directory in which others write all the time stirs us no oftener
TIMEOUT_MILLISECONDS = 60_000
MAX_LINKS = 40  # followed from one name, as the kernel does

log = logging.getLogger(__name__)


class Reading(Generic[C]):
    """Reads a configuration, and knows which `files` that took and how each stood before it was read. Blocks."""

    def __init__(self, load: Callable[[], C]) -> None:
        self._load = load
        self.files: dict[Path, object] = {}

    def then(self, complete: Callable[[C], C]) -> None:
        """Have `complete` applied to whatever is read from now on."""
        load = self._load
        self._load = lambda: complete(load())

    def __call__(self) -> C:
        """Raises what the loading does; `files` are known all the same."""
        with noting() as noted:
            try:
                return self._load()
            finally:
                self.files = noted


def stamps(paths: Iterable[Path]) -> dict[Path, object]:
    """How each file stands."""
    return {path: standing(path) for path in paths}


def folders(paths: Iterable[Path]) -> dict[Path, object]:
    """The directories in which something has to happen for one of the files to become another: those of its name and of
    all links on the way. Of one that is not there, the nearest that is."""
    found: set[Path] = set()
    for path in paths:
        for name in _names(path):
            folder = name.parent
            while not os.path.isdir(folder) and folder != folder.parent:
                folder = folder.parent
            found.add(folder)
    return {folder: _identity(folder) for folder in sorted(found)}


def _names(path: Path) -> list[Path]:
    """The name, and each other one that its links lead to, also those in its directories."""
    names = [path]
    for name in names:
        for part in (name, *name.parents):
            if len(names) < MAX_LINKS and (leads_to := _link(part)) is not None:
                further = Path(os.path.normpath(part.parent / leads_to / name.relative_to(part)))
                names += [one for one in (part, further) if one not in names]
    return names


def _link(path: Path) -> str | None:
    """Where a link leads; None where there is none, or none that may be looked at."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Watch:
    """Calls `request` when the files that `files` names (with how they stood when they were last read) have changed and
    stand still. Those in `but` are somebody else's to watch."""

    def __init__(
        self,
        files: Callable[[], dict[Path, object]],
        request: Callable[[], object],
        *,
        but: Callable[[], Collection[Path]] = tuple,
    ) -> None:
        self._files = files
        self._request = request
        self._but = but
        self._stirred = trio.Event()
        self._asked: dict[Path, object] = {}  # how they stood when we asked last
        self._is_told = False  # by the kernel
        self._again_at = -math.inf  # when it is asked for that again
        self._has_said = False

    async def run(self) -> None:
        """Until cancelled. What goes wrong in here costs a while without a look, and not the tunnel."""
        while True:
            try:
                await self._run()
            except Exception:
                log.exception("changed files are not looked for in the next %g s", AGAIN_SECONDS)
            await trio.sleep(AGAIN_SECONDS)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            listening = trio.CancelScope()
            where: dict[Path, object] = {}
            while True:
                now = await _in_thread(partial(folders, list(self._known())))
                if now != where or (not self._is_told and trio.current_time() >= self._again_at):
                    listening.cancel(reason="other directories")
                    listening, where = trio.CancelScope(), now
                    await nursery.start(self._listen, list(where), listening, name="file changes")
                stirred = self._stirred = trio.Event()  # before the look: a change after it sets this very event
                await self._look()
                with trio.move_on_after(LOOK_SECONDS if self._is_told else POLL_SECONDS):
                    await stirred.wait()

    def _known(self) -> dict[Path, object]:
        others = {Path(os.path.abspath(path)) for path in self._but()}
        return {path: stamp for path, stamp in self._files().items() if path not in others}

    async def _look(self) -> None:
        """Ask if something has changed since it was read, and since we asked; not before it stands still."""
        seen = await self._stand()
        while seen not in (self._known(), self._asked):
            await trio.sleep(SETTLE_SECONDS)
            now = await self._stand()
            if now == seen:
                self._asked = now
                self._request()
                return
            seen = now

    async def _stand(self) -> dict[Path, object]:
        return await _in_thread(partial(stamps, list(self._known())))

    async def _listen(self, where: list[Path], scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Be told by the kernel of what happens in these directories; where it cannot, say so once."""
        stop, token = threading.Event(), trio.lowlevel.current_trio_token()

        def listen() -> None:
            import watchfiles  # 3 MiB

            for _ in watchfiles.watch(
                *where, recursive=False, watch_filter=None, step=STEP_MILLISECONDS, debounce=DEBOUNCE_MILLISECONDS,
                rust_timeout=TIMEOUT_MILLISECONDS, stop_event=stop, raise_interrupt=False,
            ):  # fmt: skip
                token.run_sync_soon(self._stir)

        with scope:
            async with trio.open_nursery() as nursery:
                self._is_told = True
                nursery.start_soon(self._guarded, listen)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    stop.set()

    async def _guarded(self, listen: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(listen)  # not abandoned: a Rust thread must not outlive the interpreter
        except Exception as exc:
            self._is_told, self._again_at = False, trio.current_time() + AGAIN_SECONDS
            self._stir()
            if not self._has_said:
                self._has_said = True
                log.info("changed files are looked for every %g s, as the kernel tells of none: %s", POLL_SECONDS, exc)

    def _stir(self) -> None:
        self._stirred.set()


T = TypeVar("T")


async def _in_thread(look: Callable[[], T]) -> T:
    """A disk that hangs holds up nobody."""
    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)
