"""How a process is told to stop. Used by `commands` and `demo`."""

import logging
import signal

import trio

log = logging.getLogger(__name__)


class Stopping:
    """The first signal asks for a graceful end (`drain`), the second cuts (`scope`)."""

    def __init__(self) -> None:
        self.drain = trio.Event()
        self.scope = trio.CancelScope()
        self.forced = False

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        wanted = [signal.SIGINT, signal.SIGTERM]
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for _ in signals:
                if self.drain.is_set():
                    self.forced = True
                    self.scope.cancel(reason="a second signal")
                else:
                    log.info("stopping once the visitors inside have finished; a second signal stops at once")
                self.drain.set()
