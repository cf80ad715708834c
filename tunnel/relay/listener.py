"""A proxy's listening socket in the relay: accepts visitors, or lets them wait in the kernel at a bound."""

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunnel.sockets import INHERITED, PASSING, SHORTAGES, reset, visitor_options

if TYPE_CHECKING:
    from tunnel.relay.session import RelaySession
    from tunnel.relay.tally import Tally

log = logging.getLogger(__name__)

ACCEPTS = 4  # from one listener in one turn: those taken in are on their way while the next are; 64 are 4 % slower


class Listener:
    """A proxy's listening socket. Level-triggered, and out of the poller while paused: visitors wait in the kernel."""

    def __init__(
        self,
        session: "RelaySession",
        sock: socket.socket,
        *,
        index: int,
        version: int,
        tally: "Tally",
        on_lost: Callable[[OSError], None],
    ) -> None:
        self.session = session
        self.engine = session.engine
        self.index, self.version = index, version  # follow the client's proxy set
        self.max_visitors: int | None = None
        self.on_closed: Callable[[], object] = lambda: None
        visitor_options(sock)
        self._sock = sock
        self._fd = sock.fileno()
        self._tally = tally
        self._on_lost = on_lost
        self._paused = True
        self._closed = False

    @property
    def is_at_bound(self) -> bool:
        return (
            self.engine.bounds.are_reached
            or self.session.is_full
            or (self.max_visitors is not None and self._tally.visitors >= self.max_visitors)
        )

    def on_event(self, event: int) -> None:
        pace = self.session.pace
        most = ACCEPTS if pace is None else pace.quota(self, self.engine.now(), ACCEPTS)
        for _ in range(most):
            if self.is_at_bound:
                self.pause()
                self.engine.bounds.wait(self)
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in PASSING:
                    continue
                self._accept_failed(exc)
                return
            self._welcome(sock)
            if pace is not None:
                pace.count()
        if pace is not None and most < ACCEPTS:
            self.pause()
            self.engine.rest(self)
            pace.rests(self)

    def _welcome(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            if not INHERITED:
                visitor_options(sock)
            self.session.accept(sock, self.index, self.version, self._tally)
        except Exception:
            reset(sock)
            log.exception("a visitor could not be taken in")

    def _accept_failed(self, exc: OSError) -> None:
        if exc.errno in SHORTAGES:
            self.pause()
            self.engine.short_of(self, exc)
            return
        self.close()
        self._on_lost(exc)

    def wants(self) -> int:
        return 0 if self._paused else 1

    def fail(self, exc: Exception) -> None:
        if not self._closed:
            self.pause()
            self.engine.short_of(self, exc)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.engine.unregister(self._fd)

    def resume(self) -> None:
        if self._paused and not self._closed:
            try:
                self.engine.register(self._fd, self, level=True)
            except OSError as exc:  # the poller is at a limit of the system's
                self.engine.short_of(self, exc)
            else:
                self._paused = False

    def close(self) -> None:
        """Stop accepting and free the address at once."""
        if self._closed:
            return
        self._closed = True
        try:
            self.pause()
        finally:
            self.engine.bounds.waiting.discard(self)
            self.engine.pauses.discard(self)
            self.session.listeners.discard(self)
            self.engine.bounds.fixture_left()
            self._sock.close()
            self.on_closed()
