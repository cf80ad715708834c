"""How late the event loop is: the time between when a sleeper should have been woken and when it was."""

import trio

from tunnel.histogram import Histogram

LOOK_SECONDS = 0.5  # 0.05 ms of CPU twice a second; a loop that is held up for longer than this is always noticed


class Lateness:
    """`seconds` grows while `run` does. A millisecond of it is the poller's own grain."""

    def __init__(self) -> None:
        self.seconds = Histogram()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due)
            self.seconds.add(trio.current_time() - due)
