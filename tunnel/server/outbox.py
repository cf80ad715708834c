"""What a session has still to say to its client: answers in their order, and the newest status of each proxy.

Nothing here grows: a client that reads slowly is told fewer statuses, and one that has stopped reading is lost.
"""

from collections import deque

import trio

from tunnel.control_line import ControlLine
from tunnel.errors import PeerLost
from tunnel.messages import ChannelsSilent, Heartbeat, Message
from tunnel.server.standing import Standing

MAX_REPLIES = 64  # waiting for a control channel that does not drain; then the peer is lost
WRITE_SECONDS = 30.0  # for one message; a client that does not read for so long is gone (design §5)


class Outbox:
    """One for a session. What is added is sent once `write` runs."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._replies: deque[Message] = deque()
        self._changed: dict[str, Standing] = {}  # statuses not sent yet: the newest of each proxy, in order of change
        self._seq = 0  # of statuses
        self._beats = 0
        self._is_asked = False  # for a sign of life; needs no place among the replies
        self._wake = trio.Event()

    def reply(self, message: Message) -> None:
        """Raises `PeerLost` when too many wait."""
        if len(self._replies) >= MAX_REPLIES:
            raise PeerLost(f"client '{self._client}' does not read its control channel")
        self._replies.append(message)
        self._nudge()

    def beat(self) -> None:
        """Raises as `reply` does."""
        self._beats += 1
        self.reply(Heartbeat(self._beats))

    def ask(self) -> None:
        """Beat before all else that waits."""
        self._is_asked = True
        self._nudge()

    def tell_silence(self) -> None:
        """The client alone can open other data channels. Called by the relay, which is not to hear of a full queue."""
        if ChannelsSilent() not in self._replies and len(self._replies) < MAX_REPLIES:
            self.reply(ChannelsSilent())

    def post(self, proxy: Standing) -> None:
        """Its status has changed: the client gets it as it is by then, in the order of first change."""
        self._changed[proxy.spec.name] = proxy
        self._nudge()

    def forget(self, name: str) -> None:
        """Nothing is to be said of that proxy (any more)."""
        self._changed.pop(name, None)

    async def write(self, line: ControlLine) -> None:
        """Send until cancelled. Raises `PeerLost`, and `TooSlowError` when a message takes too long."""
        while True:
            wake = self._wake  # before the look: what is added after it sets this very event
            while self._is_asked or self._replies or self._changed:
                with trio.fail_after(WRITE_SECONDS):
                    await line.send(self._next())
            await wake.wait()

    def _nudge(self) -> None:
        self._wake.set()
        self._wake = trio.Event()

    def _next(self) -> Message:
        if self._is_asked:
            self._is_asked = False
            self._beats += 1
            return Heartbeat(self._beats)
        if self._replies:
            return self._replies.popleft()
        proxy = self._changed.pop(next(iter(self._changed)))
        self._seq += 1
        return proxy.update(self._seq)
