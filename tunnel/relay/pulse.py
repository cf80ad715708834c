"""The pings of one data channel: that it lives, how far away the peer is, and what it has certainly seen.

A ping stands on the wire behind every frame that was put before it, so its pong proves that the peer has handled them.
Liveness proper is slow (half a minute), for a stalled path may come back and its streams with it; new visitors need not
wait for that. So a channel that was given a stream is *in doubt*: silent for too long it is *suspect*, and others are
preferred until anything comes from it.
"""

from typing import TYPE_CHECKING

import trio

from tunnel.errors import PeerLost
from tunnel.frames import PING

if TYPE_CHECKING:
    from tunnel.relay.channel import Channel

FIRST_ROUND_TRIP = 0.2  # seconds, until the first pong has told; too long only lets a window grow early
DOUBT_SECONDS = 0.25  # of silence before the peer is asked, and at least as long again before it is suspect
DOUBT_ROUND_TRIPS = 3  # or so many, on a long path: 1 s in all up to 250 ms away


class Pulse:
    """Owned by its channel, which passes on what the engine's deadlines and the peer's pongs say."""

    __slots__ = (
        "_asked_at", "_asking_since", "_channel", "_doubted_at", "_received_at_put", "_received_before",
        "_received_then", "_told", "answered", "nonce",
    )  # fmt: skip

    def __init__(self, channel: "Channel") -> None:
        self.nonce = 0  # of the newest ping
        self.answered = 0  # the newest nonce that came back
        self._channel = channel
        self._asked_at = 0.0  # when the newest ping was sent
        self._asking_since = 0.0  # when the first one was that is not answered
        self._received_before = 0  # when the deadline of the ping under way began
        self._doubted_at = 0.0
        self._received_then = 0  # when the doubt began
        self._received_at_put = 0  # when the newest stream was put here
        self._told: trio.Event | None = None  # while somebody waits for a pong

    @property
    def is_asking(self) -> bool:
        """A ping of ours is under way."""
        return self.answered < self.nonce

    def ping(self) -> None:
        """Ask for a sign of life, and measure the round trip; unanswered for its deadline, the channel is lost."""
        channel = self._channel
        engine = channel.engine
        now = self._asked_at = engine.now()
        if not self.is_asking:  # else the former one's deadline stands: asking often must not put it off
            self._asking_since = now
            self._received_before = channel.received
            engine.pongs.add(channel, now)
        self.nonce += 1
        engine.pings.add(channel, now)
        channel.put_control(PING, self.nonce.to_bytes(8, "big"))

    def on_pong(self, payload: bytes) -> None:
        number = int.from_bytes(payload, "big") if len(payload) == 8 else 0
        if not self.answered < number <= self.nonce:
            return  # unasked
        channel = self._channel
        self.answered = number
        if number == self.nonce:
            took = channel.engine.now() - self._asked_at
            # The least is nearest the truth: a busy moment only adds. A path that got longer is believed slowly.
            channel.round_trip = min(took, 0.8 * channel.round_trip + 0.2 * took)
            channel.engine.pongs.discard(channel)
        channel.answered()
        self.tell()

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

    def proves(self, nonce: int) -> bool:
        """Whether all is seen that was put while `nonce` was the newest; if not, a ping is under way that will tell."""
        if self.answered <= nonce == self.nonce:
            self.ping()
        return self.answered > nonce

    # Doubt

    def doubt(self) -> None:
        """A stream was put here: if nothing comes back, be suspect before the next visitors wait in vain."""
        channel = self._channel
        self._received_at_put = channel.received
        if channel.in_doubt:
            return
        channel.in_doubt = True
        self._received_then = channel.received
        self._doubted_at = channel.engine.now()
        channel.engine.watch(channel, self._doubted_at)

    def doubted(self) -> None:
        """DOUBT_SECONDS have passed, or passed again."""
        channel = self._channel
        if channel.received == self._received_then:
            channel.read_now()
        if not channel.alive:
            return
        now = channel.engine.now()
        if channel.received != self._received_then:
            if channel.received != self._received_at_put:
                channel.in_doubt = False
                return
            # Something came, but before the newest stream: that one must not wait until the next one is put here.
            self._received_then, self._doubted_at = channel.received, now
        if not self.is_asking:
            self.ping()
        patience = max(DOUBT_SECONDS, DOUBT_ROUND_TRIPS * channel.round_trip)
        if now >= max(self._asking_since, self._doubted_at) + patience:
            channel.in_doubt = False
            channel.is_suspect = True
            channel.session.fell_silent(channel)
            return
        channel.engine.doubts.add(channel, now)

    # For the pool

    async def wait_for(self, nonce: int) -> None:
        """Until this ping is answered. Raises `PeerLost` when the channel ends first; the caller holds the deadline."""
        await trio.lowlevel.checkpoint()
        channel = self._channel
        while self.answered < nonce:
            if not channel.alive:
                raise PeerLost(f"the data channel ended before it answered: {channel.why}")
            if self._told is None:
                self._told = trio.Event()
            await self._told.wait()

    def tell(self) -> None:
        """Something was answered, or nothing will be."""
        if self._told is not None:
            self._told.set()
            self._told = None
