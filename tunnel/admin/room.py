"""Who is inside at the admin address: few at a time, and nobody keeps the next one out by being slow. Pure but for the
clock and the scopes."""

import trio
from attrs import define, field

MAX_CONNECTIONS = 64  # a person, a few scrapers and dashboards; each costs at most a head, a body and an answer
MAX_UNREAD_BYTES = 32 * 1024 * 1024  # of all answers together; that of 10,000 proxies takes six
MAX_STREAMS = 32  # of those; they last, and half of the room is left for what passes


@define(eq=False)
class Guest:
    """A connection. `scope` is its task's; `since` is when it last got on. Its answer is being made (`is_ours`), has so
    many `unread` bytes to be sent, or streams, for which it `stays`."""

    room: "Room"
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    since: float = field(factory=trio.current_time)
    is_ours: bool = False
    stays: bool = False
    unread: int = 0

    def asks(self) -> None:
        """A whole request has come."""
        self.is_ours, self.since = True, trio.current_time()

    def reads(self, unread: int) -> None:
        """An answer with so much to read is to go."""
        self.is_ours, self.since, self.unread = False, trio.current_time(), unread
        self.room.bound_unread(self)

    def has_read(self) -> None:
        self.since, self.unread = trio.current_time(), 0

    def may_stay(self) -> bool:
        """Whether there is room for one more that streams; it `stays` then."""
        self.stays = self.room.streams < min(MAX_STREAMS, MAX_CONNECTIONS - 1)
        return self.stays


@define(eq=False)
class Room:
    """Where it is full, who has not got on for longest leaves for who comes: silent peers, idle connections (which may
    come again), and slow readers do not keep an operator or a health check out."""

    _guests: dict[Guest, None] = field(factory=dict, init=False)

    @property
    def streams(self) -> int:
        return sum(one.stays for one in self._guests)

    def enter(self) -> Guest:
        if len(self._guests) >= MAX_CONNECTIONS:
            self._send_away(min((one for one in self._guests if not one.stays), key=_rank))
        guest = Guest(self)
        self._guests[guest] = None
        return guest

    def leave(self, guest: Guest) -> None:
        """Again is nothing."""
        self._guests.pop(guest, None)

    def bound_unread(self, newest: Guest) -> None:
        """Of slow readers there are only so many whose answers memory has room for; the newest is none yet."""
        while sum(one.unread for one in self._guests) > MAX_UNREAD_BYTES:
            slow = [one for one in self._guests if one.unread and one is not newest]
            if not slow:
                return
            self._send_away(min(slow, key=_rank))

    def _send_away(self, guest: Guest) -> None:
        guest.scope.cancel(reason="the admin address has no room for so many slow peers")
        self.leave(guest)


def _rank(guest: Guest) -> tuple[bool, float]:
    """Who leaves first. Of those that only wait for us the newest: the oldest's answer is nearly made."""
    return guest.is_ours, -guest.since if guest.is_ours else guest.since
