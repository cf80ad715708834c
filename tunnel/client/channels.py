"""The client's data channels: kept at their number, dialled ahead of need, replaced when they end."""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from tunnel.backoff import RetryPolicy
from tunnel.client.dialer import DIAL_SECONDS, Dialer
from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.relay import RelaySession
from tunnel.upgrade import request_upgrade

log = logging.getLogger(__name__)

TICKET_SECONDS = 6.0  # a ticket is good for 10 s at the server; the rest is for the way there
MAX_TICKETS = 64  # kept, the newest: one for each channel there can be
RETRY = RetryPolicy(initial_delay=0.5, factor=2.0, max_delay=5.0, max_retries=None, jitter=0.5)
STEADY_SECONDS = 30.0  # a channel that lasted so long was no failure


class Tickets:
    """Tickets at hand, and who waits for one. `ask` sends a request for so many over the control channel."""

    def __init__(self, first: tuple[str, ...], ask: Callable[[int], None]) -> None:
        self._tickets: deque[tuple[str, float]] = deque(maxlen=MAX_TICKETS)  # a server may send as many as it likes
        self._ask = ask
        self._arrived = trio.Event()
        self.add(first)

    def add(self, tickets: tuple[str, ...]) -> None:
        self._tickets.extend((ticket, trio.current_time() + TICKET_SECONDS) for ticket in tickets)
        self._arrived.set()
        self._arrived = trio.Event()

    async def take(self) -> str:
        """A fresh ticket, asked for if there is none. The caller holds the deadline."""
        asked = False
        while True:
            while self._tickets:
                ticket, expires = self._tickets.popleft()
                if expires > trio.current_time():
                    return ticket
            if not asked:
                asked = True
                self._ask(1)
            await self._arrived.wait()


async def keep_channel(dialer: Dialer, tickets: Tickets, relay: RelaySession) -> None:
    """Keep one data channel: dial, attach, wait for its end, again; until cancelled (leaving `relay` closes it)."""
    delays = RETRY.delays()
    while True:
        began = trio.current_time()
        try:
            why = await _one_channel(dialer, tickets, relay)
            log.debug("data channel ended: %s", why)
        except (PeerLost, Refused, RemoteProtocolError, trio.TooSlowError) as exc:
            log.warning("data channel could not be opened: %s", str(exc) or "too slow")
        if trio.current_time() - began > STEADY_SECONDS:
            delays = RETRY.delays()
        else:
            await trio.sleep(next(delays))


async def _one_channel(dialer: Dialer, tickets: Tickets, relay: RelaySession) -> str:
    ended: list[str] = []
    over = trio.Event()

    def on_lost(why: str) -> None:
        ended.append(why)
        over.set()

    with trio.fail_after(DIAL_SECONDS):
        stream = await dialer.dial()
        try:
            ticket = await tickets.take()
            headers = {"Authorization": f"Bearer {ticket}"}
            stream.push_back(await request_upgrade(stream, str(dialer.server), "/data", headers))
            # No await until the relay has it: a cancel here would orphan the connection.
            relay.add_channel(stream.detach(), masks=True, on_lost=on_lost)
        except BaseException:
            with suppress(trio.ClosedResourceError):
                stream.close()
            raise
    await over.wait()
    return ended[0]
