"""The half of the gate behind `/data`: a ticket is redeemed, and its session has one data channel more."""

import logging
from functools import partial

import trio

from tunnel.config import Limits
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.server.strangers import Stranger
from tunnel.tls import TlsStream
from tunnel.upgrade import Head, switching_protocols

log = logging.getLogger(__name__)

MAX_CHANNELS = 80  # of one session: a client keeps 64 at most, and the lost ones may not be noticed yet
MAX_PLACE = 64  # characters by which a client calls one of our addresses


async def take_data_channel(
    stream: TlsStream, head: Head, stranger: Stranger, *, registry: Registry[Session], limits: Limits
) -> None:
    """Hand `stream` to the relay of the session whose ticket `head` brings, or answer why not. The caller closes it."""
    session = registry.redeem(head.bearer, now=trio.current_time())
    if session is None or session.ended.is_set():
        stranger.tell(logging.WARNING, "a data channel with a bad ticket from %s")
        await stranger.refuse(stream, 401, "ticket_refused", "the ticket is unknown, used or expired")
        return
    if not head.is_upgrade:
        await stranger.refuse(stream, 426, "upgrade_required", "a data channel is a WebSocket")
        return
    stranger.login()
    if not _has_room(session):
        word = f"at most {MAX_CHANNELS} data channels for a session, or as many as the server has descriptors for"
        await stranger.refuse(stream, 503, "too_many_channels", word)
        return
    try:
        with trio.fail_after(limits.head_seconds):
            await stream.send_all(switching_protocols(head))
    except trio.TooSlowError:
        stranger.is_late("slow_upgrade")
        raise
    stream.push_back(head.rest)
    if session.ended.is_set() or not _has_room(session):  # others came while it was answered
        return
    parts = stream.detach()
    session.relay.add_channel(
        parts, masks=False, on_lost=partial(log.debug, "data channel ended: %s"),
        place=head.headers.get("trio-tunnel-place", "")[:MAX_PLACE],  # the client's own word for it, and its affair
    )  # fmt: skip


def _has_room(session: Session) -> bool:
    return len(session.relay.channels) < MAX_CHANNELS and session.relay.may_hold_more
