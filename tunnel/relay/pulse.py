"""The pings of one data channel: that it lives, and how long a round trip takes."""

from typing import TYPE_CHECKING

from tunnel.frames import PING

if TYPE_CHECKING:
    from tunnel.relay.channel import Channel

FIRST_ROUND_TRIP = 0.2  # seconds, until the first pong has told; too long only lets a window grow early


class Pulse:
    """Owned by its channel, which passes on what the engine's deadlines and the peer's pongs say."""

    __slots__ = ("_asked_at", "_channel", "_received_before", "answered", "nonce")

    def __init__(self, channel: "Channel") -> None:
        self.nonce = 0  # of the newest ping
        self.answered = 0  # the newest nonce that came back
        self._channel = channel
        self._asked_at = 0.0  # when the newest ping was sent
        self._received_before = 0  # when the deadline of the ping under way began

    @property
    def is_asking(self) -> bool:
        """A ping of ours is under way."""
        return self.answered < self.nonce

    def ping(self) -> None:
        """Ask for a sign of life, and measure the round trip; unanswered for its deadline, the channel is lost."""
        channel = self._channel
        engine = channel.engine
        self._asked_at = engine.now()
        if not self.is_asking:  # else the former one's deadline stands: asking often must not put it off
            self._received_before = channel.received
            engine.pongs.add(channel, self._asked_at)
        self.nonce += 1
        engine.pings.add(channel, self._asked_at)
        channel.put_control(PING, self.nonce.to_bytes(8, "big"))

    def on_pong(self, payload: bytes) -> None:
        number = int.from_bytes(payload, "big") if len(payload) == 8 else 0
        if not self.answered < number <= self.nonce:
            return  # unasked
        self.answered = number
        if number < self.nonce:
            return
        channel = self._channel
        took = channel.engine.now() - self._asked_at
        # The least is nearest the truth: a busy moment only adds. A path that got longer is believed slowly.
        channel.round_trip = min(took, 0.8 * channel.round_trip + 0.2 * took)
        channel.engine.pongs.discard(channel)

    def unanswered(self) -> None:
        """No pong yet. On a slow link it may stand behind megabytes; as long as those arrive, the channel lives."""
        channel = self._channel
        channel.read_now()
        if not channel.alive or not self.is_asking:
            return
        if channel.received == self._received_before:
            channel.lost("no sign of life")
            return
        self._received_before = channel.received
        channel.engine.pongs.add(channel, channel.engine.now())
