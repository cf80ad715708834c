"""Known sources outlive the process: clients behind the address of a guesser are heard at once after a restart, too.

Ages are kept, not times, so that no clock that jumps makes anybody known or forgotten; that the time between two
processes does not count makes a source known for longer by just that.
"""

import logging
import math

import trio

from tunnel.errors import TunnelError
from tunnel.server.admission import KNOWN_SECONDS
from tunnel.server.strangers import Strangers
from tunnel.state import StateDir

LOOK_SECONDS = 10.0  # a process that is killed forgets those who came since
REWRITE_SECONDS = 600.0  # ages alone are no reason to write more often
MAX_KEPT = 10_000  # sources; half a megabyte

log = logging.getLogger(__name__)


class Acquaintances:
    """One for a server with a state directory. A file that cannot be read or written costs the memory, nothing else."""

    def __init__(self, strangers: Strangers, state: StateDir | None) -> None:
        self._strangers = strangers
        self._state = state
        self._written: frozenset[str] = frozenset()
        self._written_at = -math.inf
        self._is_failing = False

    def recall(self) -> None:
        """Before anybody knocks. Reads the disk."""
        if self._state is None:
            return
        try:
            ages = self._state.known_sources()
        except TunnelError as exc:
            log.warning("nobody is known from before: %s", exc)
            return
        self._strangers.recall({source: age for source, age in ages.items() if 0 <= age < KNOWN_SECONDS})

    async def watch(self) -> None:
        """Write who is known soon after it changed, until cancelled."""
        while self._state is not None:
            await trio.sleep(LOOK_SECONDS)
            ages = self._ages()
            is_old = trio.current_time() - self._written_at >= REWRITE_SECONDS
            if ages.keys() != self._written or (ages and is_old):
                await trio.to_thread.run_sync(self._write, ages, abandon_on_cancel=True)
                self._written, self._written_at = frozenset(ages), trio.current_time()

    def write_last(self) -> None:
        """At the end of a process that was not killed. Writes to the disk."""
        ages = self._ages()
        if ages.keys() != self._written:
            self._write(ages)

    def _ages(self) -> dict[str, float]:
        ages = self._strangers.known()
        newest = sorted(ages, key=ages.__getitem__)[:MAX_KEPT]
        return {source: round(ages[source], 1) for source in newest}

    def _write(self, ages: dict[str, float]) -> None:
        if self._state is None:
            return
        try:
            self._state.keep_known_sources(ages)
        except TunnelError as exc:  # said once for each bout of a full disk
            if not self._is_failing:
                log.warning("who is known is not kept for after a restart: %s", exc)
            self._is_failing = True
        else:
            self._is_failing = False
