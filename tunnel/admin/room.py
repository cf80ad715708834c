"""Who is inside at the admin address: few at a time, and nobody keeps the next one out by being slow. Pure but for the
clock and the scopes."""

import trio
from attrs import define, field

MAX_CONNECTIONS = 64  # a person, a few scrapers and dashboards; each costs at most a head, a body and an answer
MAX_STREAMS = 32  # of those; they last, and half of the room is left for what passes


@define(eq=False)
class Guest:
    """A connection. `scope` is its task's; `since` is when it last got on, and it `stays` while its answer streams."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    since: float = field(factory=trio.current_time)
    stays: bool = False

    def gets_on(self) -> None:
        self.since = trio.current_time()


@define(eq=False)
class Room:
    """Where it is full, who has not got on for longest leaves for who comes: silent peers, idle connections (which may
    come again), and slow readers do not keep an operator or a health check out."""

    _guests: dict[Guest, None] = field(factory=dict, init=False)

    def enter(self) -> Guest:
        if len(self._guests) >= MAX_CONNECTIONS:
            slowest = min((one for one in self._guests if not one.stays), key=lambda one: one.since)
            slowest.scope.cancel(reason="somebody else wants in at the admin address, which is full")
            del self._guests[slowest]
        guest = Guest()
        self._guests[guest] = None
        return guest

    def leave(self, guest: Guest) -> None:
        """Again is nothing."""
        self._guests.pop(guest, None)

    def lets_stay(self, guest: Guest) -> bool:
        """Whether there is room for one more that streams; it `stays` then."""
        guest.stays = sum(one.stays for one in self._guests) < min(MAX_STREAMS, MAX_CONNECTIONS - 1)
        return guest.stays
