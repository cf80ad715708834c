"""Who holds which identity, which addresses and which tickets. Pure and synchronous: it decides, sessions carry out."""

import ipaddress
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import Factory, define, frozen

S = TypeVar("S")  # a session; opaque here

MAX_TICKETS_HELD = 64  # of one session; each lasts seconds
WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  compared with, not bound


@frozen
class Holder(Generic[S]):
    """Who has an identity, since when (for people), and which process and epoch of it."""

    session: S
    client: str
    instance: str
    epoch: int
    since: str
    yields: bool = False  # to whoever comes: it only looks (`trio-tunnel doctor`)


@frozen
class Address:
    """A published address in use. `client` is empty for the server's own."""

    addr: str
    port: int
    client: str
    proxy: str

    def overlaps(self, addr: str, port: int) -> bool:
        """Whether binding `addr` would clash: families are apart (V6ONLY), a wildcard takes all of its own."""
        if port != self.port or (":" in addr) != (":" in self.addr):
            return False
        ours, theirs = _canonical(self.addr), _canonical(addr)
        return ours == theirs or theirs in WILDCARDS or ours in WILDCARDS


def _canonical(addr: str) -> str:
    """One spelling for each address: ``0::1`` is ``::1``. The server's own may be a name."""
    try:
        return str(ipaddress.ip_address(addr))
    except ValueError:
        return addr


@define(eq=False)
class BindFigures:
    """Attempts to have an address for a client's proxy, since the start."""

    attempts: int = 0
    retries: int = 0  # those of them that followed a failure
    failures: Counter[str] = Factory(Counter)  # by reason


@define(eq=False)
class Registry(Generic[S]):
    _holders: dict[str, Holder[S]] = Factory(dict)
    _addresses: set[Address] = Factory(set)
    _tickets: dict[str, tuple[S, float]] = Factory(dict)
    _issued: dict[S, list[str]] = Factory(dict)  # of each session; used and expired ones among them
    _ports: dict[tuple[str, str], int] = Factory(dict)
    recall: Callable[[str, str], int] = lambda client, proxy: 0  # the port an earlier process chose
    binds: BindFigures = Factory(BindFigures)

    # Identities

    def holder(self, client: str) -> Holder[S] | None:
        return self._holders.get(client)

    def claim(self, client: str, instance: str, epoch: int, *, yields: bool = False) -> "Claim[S]":
        """What a newcomer may do: enter, replace the holder at once, wait for the holder's sign of life, or go."""
        holder = self._holders.get(client)
        if holder is None:
            return Claim("enter")
        if yields:
            return Claim("held", holder)
        if holder.yields:
            return Claim("replace", holder)
        if holder.instance != instance:
            return Claim("contest", holder)
        return Claim("replace" if epoch > holder.epoch else "stale", holder)

    def enter(self, client: str, session: S, *, instance: str, epoch: int, since: str, yields: bool = False) -> None:
        """The identity is this session's from now on."""
        self._holders[client] = Holder(session, client, instance, epoch, since, yields)

    def leave(self, session: S) -> None:
        """The session is over: its identity (unless a newer one has it) and tickets are free."""
        for client, holder in list(self._holders.items()):
            if holder.session is session:
                del self._holders[client]
        for ticket in self._issued.pop(session, ()):
            self._tickets.pop(ticket, None)

    # Addresses

    def taken_by(self, addr: str, port: int) -> Address | None:
        """Which of our own listeners stands in the way of binding `addr`:`port`."""
        return next((held for held in self._addresses if port and held.overlaps(addr, port)), None)

    def publish(self, address: Address) -> None:
        self._addresses.add(address)

    def withdraw(self, address: Address) -> None:
        self._addresses.discard(address)

    # Ports the server chose

    def chosen_port(self, client: str, proxy: str) -> int:
        """The port that was chosen for PUBLISH port 0 before, or 0."""
        return self._ports.get((client, proxy)) or self.recall(client, proxy)

    def choose_port(self, client: str, proxy: str, port: int) -> bool:
        """Remember it; True if that is news."""
        news = self.chosen_port(client, proxy) != port
        self._ports[client, proxy] = port
        return news

    # Tickets

    def issue_tickets(self, session: S, count: int, *, expires: float, now: float) -> tuple[str, ...]:
        """New single-use tickets for data channels; fewer than asked once the session holds too many unused ones."""
        held: list[str] = []
        for ticket in self._issued.get(session, ()):
            if ticket in self._tickets and self._tickets[ticket][1] > now:
                held.append(ticket)
            else:
                self._tickets.pop(ticket, None)
        issued = tuple(secrets.token_hex(16) for _ in range(min(count, MAX_TICKETS_HELD - len(held))))
        self._tickets.update(dict.fromkeys(issued, (session, expires)))
        self._issued[session] = [*held, *issued]
        return issued

    def redeem(self, ticket: str, *, now: float) -> S | None:
        """The session a ticket is for; the ticket is used up. A guess costs 2^128 tries, so a look-up leaks nothing."""
        session, expires = self._tickets.pop(ticket, (None, 0.0))
        return session if expires > now else None


@frozen
class Claim(Generic[S]):
    """`verdict`: ``enter``, ``replace``, ``contest`` (another process holds it), ``stale`` (an older epoch knocks),
    ``held`` (one that yields is not to disturb the holder)."""

    verdict: str
    holder: Holder[S] | None = None
