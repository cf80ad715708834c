"""Heartbeats on a control channel, the same on both ends: beat, and notice when the peer has stopped (design §5).

With beats every 10 s a peer is given up 26 s after its last word: two of its beats have not come, nor answers to two of
ours. Half a beat is the grace of a slow path, the last second that of our own process: after it was stopped, or the
machine was, what the peer said meanwhile is still to be read.
"""

from collections.abc import Callable

import trio

MISSES = 2.5  # beats
LOOK_SECONDS = 1.0  # at most half a beat


async def keep_beating(seconds: float, *, beat: Callable[[], None], heard: Callable[[], float]) -> float:
    """Call `beat` every so many seconds; returns once the peer is given up, and says for how long it was silent.

    `heard` tells when its last word came, by Trio's clock.
    """
    beat_at = trio.current_time() + seconds
    while True:
        await trio.sleep_until(min(beat_at, heard() + MISSES * seconds))
        now = trio.current_time()
        if now >= beat_at:
            beat()
            beat_at = now + seconds
        if now >= heard() + MISSES * seconds:
            await trio.sleep(min(LOOK_SECONDS, seconds / 2))
            if now >= heard() + MISSES * seconds:
                return trio.current_time() - heard()
