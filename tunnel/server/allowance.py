"""What a client may have, where it changes while its session lives: bounds, and proxies it may publish no more."""

import logging
from collections.abc import Iterable
from functools import partial

import trio
from attrs import evolve

from tunnel.config import Grant
from tunnel.messages import Reason
from tunnel.rate_limited import RateLimited
from tunnel.relay import Pace, RelaySession
from tunnel.server.binding import BindFailed
from tunnel.server.proxy import Proxy
from tunnel.server.publication import check_allowed

log = logging.getLogger(__name__)


def bound(relay: RelaySession, grant: Grant) -> None:
    """Hold a session's visitors to what its client may have from now on; who is inside stays."""
    relay.max_streams = grant.max_visitors
    relay.pace = None
    if grant.max_visitor_rate is not None:
        told = RateLimited(log, trio.current_time, count=1)
        word = "new visitors of client '%s' wait: more come than its max_visitor_rate of %g a second"
        held_up = partial(told.log, logging.WARNING, word, grant.name, grant.max_visitor_rate, key="pace")
        relay.pace = Pace(grant.max_visitor_rate, relay.engine.now(), held_up=held_up)
    relay.engine.bounds.look_again()


def hold_to(grant: Grant, proxies: Iterable[Proxy]) -> None:
    """Close what the client may not publish (any more), try again what was refused and may be now.

    The others are not touched; of too many the first ones stay. Visitors inside may finish.
    """
    places = grant.max_proxies
    for proxy in proxies:
        was_refused = proxy.reason is Reason.NOT_ALLOWED
        may = places > 0 and _is_allowed(grant, proxy)
        if may and (proxy.is_held or was_refused):  # one that waits for its port takes a place when it has it
            places -= 1
        if may is was_refused:
            proxy.begin_anew("what its client may do has changed")


def _is_allowed(grant: Grant, proxy: Proxy) -> bool:
    """Where it stands now: a port that the server chose is one like others."""
    spec = evolve(proxy.spec, publish_port=proxy.where.port) if proxy.is_held else proxy.spec
    try:
        check_allowed(grant, spec)
    except BindFailed:
        return False
    return True
