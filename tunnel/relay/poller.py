"""Which sockets are ready: epoll on Linux, kqueue on macOS, plain Trio waits anywhere else."""

import select
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

# The bits of an event; epoll's own values, so that Linux needs no translation.
READ, URGENT, WRITE, ERROR, HANGUP, READ_END = 0x001, 0x002, 0x004, 0x008, 0x010, 0x2000
LOOK_SECONDS = 0.5  # between looks for resets where nothing is waited for; B24 allows a second
MAX_EVENTS = 512  # in one turn, where it can be chosen


class Entry(Protocol):
    """What is registered: a stream, a channel or a listener."""

    def on_event(self, event: int) -> None:
        """Handle what became ready, without waiting."""

    def wants(self) -> int:
        """The bits this entry waits for just now; only pollers without edges ask."""


class Poller(Protocol):
    """Registered once for both directions; an event is told once, until the socket was exhausted (an edge)."""

    tells_errors: bool  # an ERROR bit comes with a failed connect; elsewhere SO_ERROR has to be asked
    waits: bool  # `poll` can wait, or be asked again and again, outside Trio

    def register(self, fd: int, entry: Entry) -> None: ...
    def register_level(self, fd: int, entry: Entry) -> None:
        """For listeners: told again as long as it is readable."""

    def unregister(self, fd: int) -> None:
        """For good or until it is registered again; before it is closed: then its number may be somebody else's."""

    def closing(self, fd: int) -> None:
        """In place of `unregister`, by who closes the descriptor at once and has no copy of it."""

    def poll(self, timeout: float) -> list[tuple[int, int]]: ...
    async def wait(self) -> None:
        """Until `poll` has something to tell. Cancellation leaves nothing behind."""

    def close(self) -> None: ...


class EpollPoller:
    tells_errors = True
    waits = True

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self.poll: Callable[[float], list[tuple[int, int]]] = self._epoll.poll
        self._edges = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

    def register(self, fd: int, entry: Entry) -> None:
        self._epoll.register(fd, self._edges)

    def register_level(self, fd: int, entry: Entry) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """The kernel forgets a descriptor with its last copy: a system call saved for each visitor, at each end."""

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._fd)
        self._epoll.close()


if sys.platform == "darwin":

    class KqueuePoller:
        tells_errors = False
        waits = True

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def register(self, fd: int, entry: Entry) -> None:
            edge = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            both = [select.kevent(fd, which, edge) for which in (select.KQ_FILTER_READ, select.KQ_FILTER_WRITE)]
            self._kqueue.control(both, 0)

        def register_level(self, fd: int, entry: Entry) -> None:
            self._kqueue.control([select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD)], 0)

        def unregister(self, fd: int) -> None:
            for which in (select.KQ_FILTER_READ, select.KQ_FILTER_WRITE):
                try:
                    self._kqueue.control([select.kevent(fd, which, select.KQ_EV_DELETE)], 0)
                except FileNotFoundError:
                    pass  # a listener has no write filter

        def closing(self, fd: int) -> None:
            """As with epoll."""

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return [(event.ident, _from_kevent(event)) for event in self._kqueue.control(None, MAX_EVENTS, timeout)]

        async def wait(self) -> None:
            await trio.lowlevel.wait_readable(self._kqueue.fileno())

        def close(self) -> None:
            trio.lowlevel.notify_closing(self._kqueue.fileno())
            self._kqueue.close()

    def _from_kevent(event: select.kevent) -> int:
        bits = READ if event.filter == select.KQ_FILTER_READ else WRITE
        if event.flags & select.KQ_EV_EOF:
            bits |= READ_END
            if event.fflags:  # the socket's error
                bits |= ERROR
        return bits


class TrioPoller:
    """One Trio wait for each direction an entry wants: slow with many sockets, and at home everywhere.

    There are no edges here: each wait asks every entry what it wants, so nothing spins on a stream without credit. One
    that waits for nothing is looked at now and then, for a reset would be told only to who reads or writes.
    """

    tells_errors = False
    waits = False

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._ready: dict[int, int] = {}

    def register(self, fd: int, entry: Entry) -> None:
        self._entries[fd] = entry

    register_level = register

    def unregister(self, fd: int) -> None:
        del self._entries[fd]
        self._ready.pop(fd, None)
        trio.lowlevel.notify_closing(fd)

    closing = unregister

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """`timeout` has no meaning here: lingering needs a real poller."""
        ready, self._ready = self._ready, {}
        return list(ready.items())

    async def wait(self) -> None:
        if self._ready:
            await trio.lowlevel.checkpoint()
            return
        while not self._ready:
            with trio.move_on_after(LOOK_SECONDS):
                await self._wait_any()
            self._look_for_resets()

    async def _wait_any(self) -> None:
        async with trio.open_nursery() as waits:
            for fd, entry in self._entries.items():
                wants = entry.wants()
                if wants & READ:
                    waits.start_soon(self._wait_one, waits, trio.lowlevel.wait_readable, fd, READ)
                if wants & WRITE:
                    waits.start_soon(self._wait_one, waits, trio.lowlevel.wait_writable, fd, WRITE)

    def _look_for_resets(self) -> None:
        for fd, entry in self._entries.items():
            if not entry.wants():
                sock = socket.socket(fileno=fd)
                try:
                    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        self._ready[fd] = ERROR
                finally:
                    sock.detach()

    async def _wait_one(self, waits: trio.Nursery, wait: Callable[[int], Awaitable[None]], fd: int, bit: int) -> None:
        try:
            await wait(fd)
        except (trio.ClosedResourceError, OSError):
            pass
        else:
            self._ready[fd] = self._ready.get(fd, 0) | bit
        waits.cancel_scope.cancel()

    def close(self) -> None:
        self._entries.clear()


def available() -> list[type[Poller]]:
    """The pollers this platform has, the best first."""
    found: list[type[Poller]] = []
    if hasattr(select, "epoll"):
        found.append(EpollPoller)
    if sys.platform == "darwin":
        found.append(KqueuePoller)
    return [*found, TrioPoller]
