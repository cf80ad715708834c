"""What systemd is told of this process: one datagram for each word, by the protocol of sd_notify(3). Used by
`supervision`.

Nothing is said, and nothing fails, where nobody listens. No word ever makes the event loop wait.
"""

import os
import re
import socket
import time
from collections.abc import MutableMapping

from attrs import define, field

from tunnel.wording import clean

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
MICROSECONDS = 1_000_000
_MICROSECONDS = re.compile(r"[0-9]{1,20}")  # 64 bits


@define(eq=False)
class NotifySocket:
    """Where to say it; `address` None: nobody asked. `watchdog_seconds` is how long systemd waits for a sign of life
    before it kills the process; None: it does not wait for any."""

    address: str | None = None
    watchdog_seconds: float | None = None
    _sock: socket.socket | None = field(default=None, init=False)

    @classmethod
    def take(cls, environ: MutableMapping[str, str] | None = None) -> "NotifySocket":
        """As the environment has it, which our children do not inherit."""
        environ = os.environ if environ is None else environ
        address, microseconds, pid = (environ.pop(variable, "") for variable in VARIABLES)
        if not address.startswith(("/", "@")):  # those of other families (vsock) are for whole machines
            return cls()
        is_watched = _MICROSECONDS.fullmatch(microseconds) and pid in ("", str(os.getpid()))
        seconds = int(microseconds) / MICROSECONDS if is_watched else 0
        return cls(address, seconds or None)

    def say(self, *words: str) -> bool:
        """Whether it was said. A receiver that takes no more loses it: the next word, or the watchdog's, is newer."""
        if self.address is None:
            return False
        message = "\n".join(words).encode("utf-8", "replace")
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        try:
            self._sock.sendto(message, name)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    # The words

    def ready(self, status: str) -> bool:
        """It can be used; also after `reloading`. `status` is a line for people."""
        return self.say("READY=1", _status(status))

    def reloading(self) -> bool:
        """`ready` is to follow. With the time, by which systemd tells this reload from one asked for later."""
        return self.say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> bool:
        return self.say("STOPPING=1", _status(status))

    def status(self, text: str) -> bool:
        return self.say(_status(text))

    def alive(self) -> bool:
        return self.say("WATCHDOG=1")

    def extend(self, seconds: float) -> bool:
        """What goes on takes so long more, from now."""
        return self.say(f"EXTEND_TIMEOUT_USEC={int(seconds * MICROSECONDS)}")


def _status(text: str) -> str:
    return f"STATUS={clean(text)}"  # a line feed of a peer's would begin a word of ours
