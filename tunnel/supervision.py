"""Tells systemd, where it started this process and wants to know, how the process is: ready, reloading, stopping, a
line for `systemctl status`, and that its event loop turns. Used by `commands`.

    started ─▶ READY=1 ─▶ STATUS=… (what changed, at most once a second)        ─▶ STOPPING=1, EXTEND_TIMEOUT_USEC=…
               RELOADING=1 … READY=1 around each reload                            while visitors inside finish
               WATCHDOG=1 every half of WatchdogSec, from the event loop itself: one that stands still says nothing
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from tunnel.api import Client, Server
from tunnel.notify_socket import NotifySocket
from tunnel.snapshot import EventStream, Snapshot
from tunnel.wording import clean

STATUS_SECONDS = 1.0  # between two lines: who reads them asks no oftener
STATUS_SHARE = 0.01  # of the time at most goes into them, where there are thousands of proxies
AGAIN_SECONDS = 0.1  # after systemd took no more; it empties its queue in milliseconds
EXTEND_SECONDS = 15.0  # each time; the drain has a deadline of its own, which a reload may have moved
EXTEND_EVERY_SECONDS = 5.0


class Supervision:
    """One process as systemd sees it. `describe` gives the line for people, and is quick. Nothing is said, nor does
    anything run, where nobody listens."""

    def __init__(self, notify: NotifySocket, describe: Callable[[], str]) -> None:
        self._notify = notify
        self._describe = describe
        self._said = ""  # the last line that systemd took
        self._is_stopping = False
        self._owed: Callable[[str], bool] | None = None  # a word that changes the unit's state, and was not taken yet
        self._note = ""

    async def run(self, events: EventStream, *, drain: trio.Event) -> None:
        """The process is ready now. Until cancelled; then systemd sees the process end."""
        if self._notify.address is None:
            return
        self._tell(self._notify.ready)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_stopping, drain, name="stopping, to systemd")
            nursery.start_soon(self._tell_changes, events, name="status, to systemd")
            if self._notify.watchdog_seconds is not None:
                nursery.start_soon(self._show_life, self._notify.watchdog_seconds / 2, name="watchdog, to systemd")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read again in the body, and carried out, or not."""
        if not self._is_stopping:
            self._notify.reloading()
        try:
            yield
        finally:
            if not self._is_stopping:
                self._tell(self._notify.ready)

    # No await from here to the tasks: what is told is true when it is told.

    def _line(self) -> str:
        return f"{'stopping: ' if self._is_stopping else ''}{self._describe()}{self._note}"

    def _tell(self, word: Callable[[str], bool], line: str | None = None) -> None:
        line = self._line() if line is None else line
        self._owed = None if word(line) else word
        self._said = line if self._owed is None else ""

    def _tell_status(self) -> None:
        line = self._line()
        if line != self._said:
            self._tell(self._owed or self._notify.status, line)

    # Tasks

    async def _tell_changes(self, events: EventStream) -> None:
        changed = trio.Event()

        def wake() -> None:
            changed.set()

        with events.follow() as follower:
            follower.wake = wake
            while True:
                changed = trio.Event()  # before the line is made: what changes later makes another one
                for event in follower.drain():
                    self._hear(event.kind)
                began = time.perf_counter()
                self._tell_status()
                took = time.perf_counter() - began
                pause = STATUS_SECONDS if self._owed is None else AGAIN_SECONDS
                await trio.sleep(max(pause, took / STATUS_SHARE))
                if self._owed is None:
                    await changed.wait()

    def _hear(self, kind: str) -> None:
        if kind == "config.refused":
            self._note = "; the configuration was read again, has mistakes, and was not changed: see the log"
        elif kind == "config.reloaded":
            self._note = ""

    async def _tell_stopping(self, drain: trio.Event) -> None:
        await drain.wait()
        self._is_stopping = True
        self._tell(self._notify.stopping)
        while True:
            self._notify.extend(EXTEND_SECONDS)
            await trio.sleep(EXTEND_EVERY_SECONDS)

    async def _show_life(self, seconds: float) -> None:
        while True:
            self._notify.alive()
            await trio.sleep(seconds)


def describe_server(server: Server) -> str:
    where = ", ".join(map(str, server.addresses))
    snapshot = server.snapshot()
    return f"{_count(len(snapshot.sessions), 'client')}, {_proxies(snapshot)}; listening on {where}"


def describe_client(client: Client) -> str:
    now = client.connection
    if now.state == "connected":
        return f"connected as {clean(now.detail)}: {_proxies(client.snapshot())}"
    why = f": {clean(now.detail)}" if now.detail else ""
    return f"{'connecting' if now.state == 'connecting' else 'no session'}{why}"


def _proxies(snapshot: Snapshot) -> str:
    found = Counter(proxy.status for session in snapshot.sessions for proxy in session.proxies)
    return f"{found['healthy']} of {_count(found.total(), 'proxy', 'proxies')} healthy"


def _count(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or f'{one}s'}"
