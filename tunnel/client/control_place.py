"""Where the control channel goes: away from an address that is to be left, and on in time, before it grows old."""

import logging
import random
from collections.abc import Awaitable, Callable
from math import inf

import trio

from tunnel.backoff import exponential
from tunnel.client.dialer import Reached, Turns
from tunnel.client.reach import DIAL_SECONDS
from tunnel.client.resolver import Resolver, ServerAddress
from tunnel.config import PoolConfig
from tunnel.errors import PeerLost, Refused, RemoteProtocolError

log = logging.getLogger(__name__)

RETRY = exponential(initial=5.0, factor=2.0, max_delay=60.0, max_retries=None, jitter=0.5)  # the old one serves on


async def keep_control_placed(
    at: ServerAddress,
    change: Callable[[Reached], Awaitable[None]],
    *,
    turns: Turns,
    resolver: Resolver,
    config: Callable[[], PoolConfig],
    rand: Callable[[], float] = random.random,
) -> None:
    """Until cancelled: when `at` is none of the server's addresses any more, or after the data channels' `max_age`,
    `change` to a connection to another address (the same, where there is no other).

    What comes to nothing is tried again; the session goes on meanwhile, and `change` must leave it well when it raises.
    """
    delays, due = RETRY.delays(rand), trio.current_time() + _lifetime(config(), rand)
    while True:
        await _wait_due(at, resolver, due)
        try:
            with trio.fail_after(DIAL_SECONDS):
                reached = await turns.dial_other(at)
            await _try_change(reached, change, turns)
        except (PeerLost, Refused, RemoteProtocolError, trio.TooSlowError) as exc:
            log.warning("the control channel stays at %s for now: %s", at, str(exc) or "no answer")
            await trio.sleep(next(delays))  # still due then, unless it was for an address that has come back
        else:
            log.info("the control channel moved from %s to %s", at, reached.address)
            at, delays = reached.address, RETRY.delays(rand)
            due = trio.current_time() + _lifetime(config(), rand)


async def _try_change(reached: Reached, change: Callable[[Reached], Awaitable[None]], turns: Turns) -> None:
    """So that the next try, should there be one, begins elsewhere."""
    try:
        await change(reached)
    except Refused as exc:
        turns.refuse(reached.address) if exc.trust else turns.avoid(reached.address)
        raise
    except (PeerLost, RemoteProtocolError):
        turns.avoid(reached.address)
        raise


def _lifetime(config: PoolConfig, rand: Callable[[], float]) -> float:
    return inf if config.max_age is None else config.max_age * (1 - config.age_jitter * rand())


async def _wait_due(at: ServerAddress, resolver: Resolver, due: float) -> None:
    with trio.move_on_at(due):
        while at in resolver.addresses:
            await resolver.changed.wait()
