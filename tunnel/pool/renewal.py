"""A pool that a bug has ended costs its connections alone: it is told, and another takes its place."""

import logging
from collections.abc import Callable
from typing import Any

import trio

from tunnel.pool.core import Pool

log = logging.getLogger(__name__)

RESTART_SECONDS = 1.0  # before the next is run: one that fails at once must not keep a core busy


async def keep_running(pool: Pool[Any, Any], renew: Callable[[], Pool[Any, Any] | None], *, whose: str) -> None:
    """Run `pool` until cancelled, and what `renew` gives after each that failed; until it gives None.

    The next one is had at once, so that whoever asks meanwhile waits there, for one that is closed refuses.
    """
    while True:
        try:
            await pool.run()
        except Exception:
            log.exception("the pool of %s failed", whose)
        renewed = renew()
        if renewed is None:
            return
        pool = renewed
        await trio.sleep(RESTART_SECONDS)
