"""Who is inside at the admin address: few at a time, and nobody keeps the next one out by being slow. Pure but for the
clock and the scopes."""

import trio
from attrs import define, field

MAX_CONNECTIONS = 64  # a person, a few scrapers and dashboards; each costs at most a head, a body and an answer
MAX_UNREAD_BYTES = 32 * 1024 * 1024  # of all answers together; that of 10,000 proxies takes six
MAX_STREAMS = 32  # of those; they last, and half of the room is left for what passes


@define(eq=False)
class Guest:
    """A connection. `scope` is its task's; `since` is when it last got on, and it `stays` while its answer streams;
    `unread` bytes of one are to be sent."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    since: float = field(factory=trio.current_time)
    stays: bool = False
    unread: int = 0


@define(eq=False)
class Room:
    """Where it is full, who has not got on for longest leaves for who comes: silent peers, idle connections (which may
    come again), and slow readers do not keep an operator or a health check out."""

    _guests: dict[Guest, None] = field(factory=dict, init=False)

    def enter(self) -> Guest:
        if len(self._guests) >= MAX_CONNECTIONS:
            self._send_away(min((one for one in self._guests if not one.stays), key=_since))
        guest = Guest()
        self._guests[guest] = None
        return guest

    def _send_away(self, guest: Guest) -> None:
        guest.scope.cancel(reason="the admin address has no room for so many slow peers")
        self.leave(guest)

    def leave(self, guest: Guest) -> None:
        """Again is nothing."""
        self._guests.pop(guest, None)

    def gets_on(self, guest: Guest, unread: int = 0) -> None:
        """A whole request has come, or an answer with so much to read is to go. Of slow readers there are only so many,
        whose answers memory has room for."""
        guest.since, guest.unread = trio.current_time(), unread
        while sum(one.unread for one in self._guests) > MAX_UNREAD_BYTES:
            slowest = min((one for one in self._guests if one.unread), key=_since)
            if slowest is guest:
                return  # it alone
            self._send_away(slowest)

    def lets_stay(self, guest: Guest) -> bool:
        """Whether there is room for one more that streams; it `stays` then."""
        guest.stays = sum(one.stays for one in self._guests) < min(MAX_STREAMS, MAX_CONNECTIONS - 1)
        return guest.stays


def _since(guest: Guest) -> float:
    return guest.since
