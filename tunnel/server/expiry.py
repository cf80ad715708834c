"""Tells of the certificate's end, once a day while it is near: a server that nobody looks at ends with its certificate.

Near is thirty days, or a third of what the certificate was made for, if that is less: one that is made for a week, and
renewed every few days, is no news.
"""

import logging
import math
from datetime import UTC, datetime, timedelta

import trio

from tunnel.certificates import lifetime_of_file
from tunnel.errors import TunnelError
from tunnel.server.certificate import Certificate
from tunnel.snapshot import EventStream

log = logging.getLogger(__name__)

NEAR = timedelta(days=30)
SHARE = 3  # near is at most this part of the whole
LOOK_SECONDS = 60.0  # between looks at the clock, and at whether there is another certificate
TELL_SECONDS = 86_400.0  # between words about one certificate


async def watch_expiry(certificate: Certificate, events: EventStream) -> None:
    """Publish that there is another certificate, and each day while its end is near that it is, until cancelled.

    The wall clock says whether it is near, and may jump; how often is told does not go by it.
    """
    loaded: datetime | None = None
    near, told_at = NEAR, -math.inf
    while True:
        end = certificate.not_after
        if end is not None and end != loaded:
            if loaded is not None:
                events.publish("certificate.loaded", not_after=end.isoformat())
            loaded, told_at = end, -math.inf
            near = await trio.to_thread.run_sync(_near, certificate, abandon_on_cancel=True)
        left = None if end is None else end - datetime.now(UTC)
        if left is not None and left <= near and trio.current_time() >= told_at + TELL_SECONDS:
            told_at = trio.current_time()
            _tell(certificate, left, events)
        await trio.sleep(LOOK_SECONDS)


def _near(certificate: Certificate) -> timedelta:
    try:
        return min(NEAR, lifetime_of_file(certificate.files.cert_file) / SHARE)
    except TunnelError:  # it is being replaced
        return NEAR


def _tell(certificate: Certificate, left: timedelta, events: EventStream) -> None:
    """Whole days, rounded down: -1 from the moment on that it has ended."""
    end, file = certificate.not_after, certificate.files.cert_file
    assert end is not None
    remedy = "put a new one there: it is taken over by itself"
    if left.days < 0:
        log.error("the certificate %s has ended, at %s; %s", file, end, remedy)
    else:
        log.warning("the certificate %s ends in %d days, at %s; %s", file, left.days, end, remedy)
    events.publish("certificate.expiring", not_after=end.isoformat(), days=left.days)
