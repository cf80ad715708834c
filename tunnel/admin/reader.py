"""One reader of `/events` that wants the state: what waits for it, bounded."""

from collections import deque
from collections.abc import Iterator

import trio
from attrs import Factory, define

MAX_BEHIND = 30  # changes not read yet; who is further behind is cut off, and begins again with the newest state
MAX_BEHIND_BYTES = 8 * 1024 * 1024  # the same; changes are shared between readers


@define(eq=False)
class Reader:
    """Fed synchronously, by `begin` once and then by `post`; `woken` is set by each, and its task makes a new one.

    `scope` is that task's, and cancelled for a reader that does not keep up.
    """

    scope: trio.CancelScope = Factory(trio.CancelScope)
    woken: trio.Event = Factory(trio.Event)
    has_begun: bool = False
    _opening: Iterator[bytes] = Factory(lambda: iter(()))
    _changes: deque[bytes] = Factory(deque)
    _bytes: int = 0

    def wake(self) -> None:
        self.woken.set()

    def begin(self, opening: Iterator[bytes]) -> None:
        """The state, in pieces; they are made as they are read."""
        self._opening, self.has_begun = opening, True
        self.wake()

    def post(self, change: bytes) -> None:
        self._changes.append(change)
        self._bytes += len(change)
        if len(self._changes) > MAX_BEHIND or self._bytes > MAX_BEHIND_BYTES:
            self.scope.cancel(reason="a reader of /events does not keep up")
        self.wake()

    def opening(self) -> Iterator[bytes]:
        """What is left of the state; all changes come after it."""
        return self._opening

    def take(self) -> bytes:
        """All changes that wait."""
        taken = b"".join(self._changes)
        self._changes.clear()
        self._bytes = 0
        return taken
