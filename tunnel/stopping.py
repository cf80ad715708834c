"""How a process is told to stop, and what SIGHUP means. Used by `commands` and `demo`."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

import trio

LOOKS = 0.1, 0.9, 4.0  # seconds from SIGHUP to a look at the terminal, and on to the next
STANDARD = range(3)  # the descriptors of input, output and error

log = logging.getLogger(__name__)


class Stopping:
    """The first SIGINT or SIGTERM asks for a graceful end (`drain`), the second cuts (`scope`).

    SIGHUP asks for the graceful end when the terminal is gone that the process was started in, else for a reload.
    `terminals` are the descriptors of that terminal; by default, those standard ones that are a terminal now.
    """

    def __init__(self, *, terminals: Sequence[int] | None = None) -> None:
        self.drain = trio.Event()
        self.scope = trio.CancelScope()
        self.forced = False
        self._terminals = [fd for fd in STANDARD if os.isatty(fd)] if terminals is None else terminals
        self._looking = trio.CancelScope()

    async def watch(self, reload: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled. Where SIGHUP was ignored from the start, as `nohup` has it, it stays so."""
        wanted = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            async with trio.open_nursery() as looks:
                task_status.started()
                async for number in signals:
                    if number in (signal.SIGINT, signal.SIGTERM):
                        self._stop()
                    elif not self._stop_without_terminal():
                        reload()
                        self._looking.cancel(reason="a later SIGHUP has looks of its own")
                        self._looking = trio.CancelScope()
                        looks.start_soon(self._look_again, self._looking, name="terminal")

    def _stop(self) -> None:
        if self.drain.is_set():
            self.forced = True
            self.scope.cancel(reason="a second signal")
        else:
            log.info("stopping once the visitors inside have finished; a second signal stops at once")
        self.drain.set()

    def _stop_without_terminal(self) -> bool:
        """A terminal that closes sends SIGHUP, and its shell does, too: of several, none cuts."""
        has_hung_up = bool(self._terminals) and not any(os.isatty(fd) for fd in self._terminals)
        if has_hung_up and not self.drain.is_set():
            log.info("stopping once the visitors inside have finished, as the terminal was closed")
            self.drain.set()
        return has_hung_up

    async def _look_again(self, scope: trio.CancelScope) -> None:
        """Shells send their jobs SIGHUP and only then end, which closes the terminal: a job hears of that no more."""
        with scope:
            for seconds in LOOKS:
                await trio.sleep(seconds)
                if self._stop_without_terminal():
                    return
