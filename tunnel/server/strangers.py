"""Those at the gate who have not proved anything yet: counted, told of at a bounded rate, and sent away with a word."""

import logging

import trio

from tunnel.rate_limited import RateLimited
from tunnel.server.admission import Admission
from tunnel.tls import TlsStream
from tunnel.upgrade import refuse

log = logging.getLogger(__name__)

REFUSE_SECONDS = 2.0  # for an answer that says no, and the peer's FIN


class Strangers:
    """One for a gate. `arrive` is asked before a connection costs anything but its descriptor."""

    def __init__(self) -> None:
        self._admission = Admission()
        self._told = RateLimited(log, trio.current_time, count=1, interval_seconds=60.0)  # for each source

    def arrive(self, source: str) -> "Stranger | None":
        """The newcomer, whose `leave` must follow; None if there is no room for it."""
        if not self._admission.admit(source, trio.current_time()):
            self.tell(logging.WARNING, "too many unauthenticated connections: one from %s dropped", source)
            return None
        return Stranger(self, self._admission, source)

    def tell(self, level: int, message: str, source: str, *args: str) -> None:
        """At most a line a minute for each source."""
        self._told.log(level, message, source, *args, key=source)


class Stranger:
    """A connection's time as a stranger: ends at the login, or with the connection."""

    def __init__(self, strangers: Strangers, admission: Admission, source: str) -> None:
        self.source = source
        self._strangers = strangers
        self._admission = admission
        self._over = False

    def login(self) -> None:
        """It has shown a good token or ticket."""
        self._admission.login(self.source, trio.current_time())
        self.leave()

    def leave(self) -> None:
        if not self._over:
            self._over = True
            self._admission.leave(self.source)

    def tell(self, level: int, message: str, *args: str) -> None:
        """`message` names the source first."""
        self._strangers.tell(level, message, self.source, *args)

    async def refuse(self, stream: TlsStream, status: int, reason: str, message: str) -> None:
        with trio.move_on_after(REFUSE_SECONDS):
            await refuse(stream, status, reason, message)
