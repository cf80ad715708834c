"""How an engine paces itself: how it waits for what comes next, and how much a turn may take. Pure; times in seconds.

*Waiting.* Who sleeps between two packets must be woken for each: by the scheduler, and on a virtual machine by an
interrupt to a halted core. That costs more than all that is done for the packet, and one visitor's request pays it four
times. So an engine that is alone in its process may watch its poller for a moment first, offering its core to others
all the while. Watching has to pay: one in vain is followed by ever more waits that are slept through.

*Taking.* Bulk alone goes fastest in big pieces. Beside interactive streams each piece is a delay to those, and a
process that never sleeps keeps others (the very services and visitors of those streams) from its core until the
scheduler's next tick, 4 ms where that is 250 Hz. So then pieces are small, and the core is offered after each turn.
"""

import os
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from attrs import Factory, define, field, frozen

from tunnel.frames import FRAME_HEAD, MAX_NUMBER, WS_ROOM

WATCH_SECONDS = 60e-6  # measured: 30 misses half of what comes next, 150 gains nothing more
SHORT_SECONDS = 2 * WATCH_SECONDS  # a sleep so short, being woken included, would better have been a watch
SHORT_SLEEPS = 4  # in a row, and watching may pay again
MAX_REST = 256  # waits slept through after a watch in vain: 60 µs of each 256 at worst

TURN_SECONDS = 0.002  # then the channels not yet served are first in the next turn; one bulk turn takes 0.3 ms
HORIZON = 16  # turns for which a stream that was seen counts as being there

LONG_SECONDS = 0.001  # that somebody else had our core: not a packet's work, but a program that calculates

offer_core: Callable[[], object] | None = getattr(os, "sched_yield", None)  # let who else is ready run first


@define
class Watch:
    """Whether the next wait begins with a watch."""

    resting: int = 0  # waits yet to be slept through
    rest: int = 0  # how many the last watch in vain was followed by
    short: int = 0  # sleeps in a row that were short

    @property
    def pays(self) -> bool:
        return not self.resting

    def paid(self) -> None:
        """Something came while it was watched."""
        self.rest = 0

    def was_in_vain(self) -> None:
        self.rest = min(2 * self.rest or 1, MAX_REST)
        self.resting = self.rest
        self.short = 0

    def slept(self, seconds: float) -> None:
        """A wait was slept through, which took so long."""
        self.resting -= 1
        self.short = self.short + 1 if seconds < SHORT_SECONDS else 0
        if self.short >= SHORT_SLEEPS:
            self.resting = self.rest = 0


@define
class Courtesy:
    """Whether to offer the core. Who calculates takes it for milliseconds each time, and then offering it after each
    turn would leave us a small part of our fair share: it is offered ever more rarely."""

    resting: int = 0  # offers yet to be left out
    rest: int = 0

    def may_offer(self) -> bool:
        """Asked before each offer."""
        if self.resting:
            self.resting -= 1
            return False
        return True

    def took(self, seconds: float) -> None:
        """The core was offered, and came back after so long."""
        if seconds < LONG_SECONDS:
            self.rest = 0
        else:
            self.rest = self.resting = min(2 * self.rest or 1, MAX_REST)


@frozen
class Share:
    """What may be taken in one turn, in bytes."""

    read: int  # from one stream
    batch: int  # for one channel; the last read may pass it
    inbound: int  # of ciphertext from one channel
    batch_end: int = field(default=Factory(lambda self: WS_ROOM + self.batch, takes_self=True))


ALONE = Share(read=256 * 1024, batch=256 * 1024, inbound=256 * 1024)  # more costs cache, measured
BESIDE = Share(read=64 * 1024, batch=64 * 1024, inbound=64 * 1024)  # bulk beside interactive streams
TIMID_INBOUND = 16 * 1024  # from a channel that made a turn late: thousands of tiny frames

BATCH_BYTES = ALONE.batch
CAPACITY = ALONE.batch_end + FRAME_HEAD + ALONE.read
BIG_BYTES = BESIDE.inbound  # at once from one stream or channel: bulk
SMALL_BYTES = 16 * 1024  # from a stream that has no more: interactive

assert ALONE.read < MAX_NUMBER


@define
class Mixture:
    """Which kinds of streams the last turns have seen; told by the turn's number."""

    small_at: int = -HORIZON
    big_at: int = -HORIZON

    def share(self, turn: int) -> Share:
        """What the turn after this one may take."""
        since = turn - HORIZON
        return BESIDE if self.small_at > since and self.big_at > since else ALONE


class Reader(Protocol):
    """A channel."""

    @property
    def session(self) -> Hashable: ...


R = TypeVar("R", bound=Reader)


@define
class Rota(Generic[R]):
    """Channels that have more than they were allowed, by session: each session has one turn, however many it has."""

    _lines: dict[Hashable, deque[R]] = Factory(dict)

    def __len__(self) -> int:
        """Sessions that wait."""
        return len(self._lines)

    def add(self, channel: R) -> None:
        line = self._lines.get(channel.session)
        if line is None:
            line = self._lines[channel.session] = deque()
        line.append(channel)

    def next(self) -> R:
        """The next session's next channel; the session goes to the end."""
        session = next(iter(self._lines))
        line = self._lines.pop(session)
        channel = line.popleft()
        if line:
            self._lines[session] = line
        return channel
