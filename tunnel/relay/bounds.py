"""How much may be inside a process at a time, and the listeners that wait where that is reached.

Visitors who cannot come in wait in the kernel, unaccepted; those inside notice nothing. Pure.
"""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import Factory, define, field

from tunnel.config import Limits
from tunnel.frames import FIRST_WINDOW
from tunnel.relay.line import Line, Waiter
from tunnel.relay.room import Room

log = logging.getLogger(__name__)

W = TypeVar("W", bound=Waiter)  # a listener


@define(eq=False)
class Budget:
    """Bytes of receive windows this process has promised (design §6); at its end listeners pause.

    Half of it is kept for first windows: thirty-two streams that were fast once must not shut every listener.
    """

    free: int
    reserve: int = field(default=Factory(lambda self: self.free // 2, takes_self=True))
    size: int = field(default=Factory(lambda self: self.free, takes_self=True))  # in all

    def take(self, size: int) -> bool:
        """Let a window grow by `size`; False (and nothing taken) when that is more than there is for growth."""
        if size > self.free - self.reserve:
            return False
        self.free -= size
        return True

    def give(self, size: int) -> None:
        self.free += size

    def become(self, size: int) -> None:
        """So much in all from now on; what was promised stays promised, and may be more than that for a while."""
        self.free += size - self.size
        self.size, self.reserve = size, size // 2


class Bounds(Generic[W]):
    """The engine's: streams, their windows, and sockets. `wake` is called when listeners may go on."""

    def __init__(self, limits: Limits, room: Room, *, now: Callable[[], float], wake: Callable[[], None]) -> None:
        self.budget = Budget(limits.buffer_budget)
        self.max_streams = limits.max_visitors
        self.open_streams = 0
        self.room = room
        self.waiting: Line[W] = Line()  # listeners that paused at a bound
        self._now = now
        self._wake = wake
        self._said_at = 0.0  # that a bound is reached

    def apply(self, limits: Limits) -> None:
        """Others from now on. Nobody inside goes."""
        self.budget.become(limits.buffer_budget)
        self.max_streams = limits.max_visitors
        self.look_again()

    @property
    def are_reached(self) -> bool:
        """No room for one more stream: descriptors or budget are used up."""
        return (
            self.budget.free < FIRST_WINDOW
            or (self.max_streams is not None and self.open_streams >= self.max_streams)
            or self.room.is_full(self.open_streams)
        )

    # Who comes and goes

    def stream_came(self) -> None:
        """Whether there is room was asked before."""
        self.budget.free -= FIRST_WINDOW
        self.open_streams += 1

    def stream_left(self, window: int) -> None:
        self.budget.give(window)
        self.open_streams -= 1
        if self.waiting:
            self.look_again()

    def fixture_came(self) -> None:
        """A listener, a channel or a session, with its socket."""
        self.room.fixtures += 1

    def fixture_left(self) -> None:
        self.room.fixtures -= 1
        if self.waiting:
            self.look_again()

    # Listeners that wait

    def wait(self, listener: W) -> None:
        """A bound is reached, and the listener has paused. Says so at most once a minute."""
        self.waiting.add(listener)
        now = self._now()
        if now - self._said_at > 60 or not self._said_at:
            self._said_at = now
            log.warning(
                "new visitors wait: %d are inside, and that is the bound (limits: max_visitors, buffer_budget of 64 KiB"
                " for each, the client's max_visitors, or the descriptors: ulimit -n)",
                self.open_streams,
            )

    def look_again(self) -> None:
        """A bound is further away than it was: listeners that have room again go on, one at the end of each turn."""
        if self.waiting and not self.waiting.unseen:
            self._wake()
        self.waiting.look_again()

    def next(self) -> W | None:
        """Who goes on, and has a turn's time to take what room there is before the next one does."""
        if self.are_reached:
            self.waiting.unseen = 0  # who leaves next lets us look again
            return None
        listener = self.waiting.next()
        if self.waiting.unseen:
            self._wake()
        return listener
