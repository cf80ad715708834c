"""What a session has in the relay: its streams, its channels, its listeners. Leaving the `with` ends them all."""

import logging
import socket
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import trio

from tunnel.errors import RemoteProtocolError
from tunnel.frames import RETIRE, RST, Abort
from tunnel.relay.channel import Channel
from tunnel.relay.listener import Listener
from tunnel.relay.moving import Moving, leading
from tunnel.relay.pace import Pace
from tunnel.relay.strays import is_cut_short, settle
from tunnel.relay.stream import Stream, Unanswered
from tunnel.relay.tally import Tally
from tunnel.tls import Detached

if TYPE_CHECKING:
    from tunnel.relay.engine import Engine, Member

log = logging.getLogger(__name__)

MAX_OPENS_BYTES = 256 * 1024  # of OPENs and RSTs that a client does not take: ten thousand visitors, 1 KiB each
MAX_SMALL_BYTES = 4 * 1024 * 1024  # of answers to OPEN that the server does not take: half a million


class Route(Protocol):
    """Where a client takes the streams of one proxy."""

    tally: Tally

    def dial(self, stream: Stream) -> None:
        """Begin; ends, now or later, in `stream.dial`, `stream.connected` or `stream.refuse`."""


class RelaySession:
    """Made by `Engine.attach`. The server's accepts visitors and opens streams; the client's is given a `route`."""

    def __init__(
        self,
        engine: "Engine",
        *,
        route: Callable[[int, int], Route | None] | None = None,
        max_streams: int | None = None,
    ) -> None:
        self.engine = engine
        self.streams: dict[int, Stream] = {}
        self.channels: list[Channel] = []
        self.listeners: set[Listener] = set()
        self.max_streams = max_streams
        self.pace: Pace | None = None  # of new visitors
        self.moving = Moving(self)
        self.on_silent: Callable[[], None] = lambda: None  # no channel answers, and there are streams on them
        self.opened_total = 0  # streams that the server has opened; a client's figure
        self._route = route
        self._next_sid = 1
        self._waiting: dict[Stream, tuple[int, int]] = {}  # visitors for whom there is no channel yet
        self._on_lost: dict[Channel, Callable[[str], None]] = {}
        self._is_spread = False  # the channels go to several places
        self._shunned: set[str] = set()  # places of which a channel is suspect
        self._emptied: trio.Event | None = None  # while somebody waits for it

    def __enter__(self) -> "RelaySession":
        self.engine.sessions.add(self)
        self.engine.bounds.fixture_came()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its listeners, reset its streams, close its channels; at once, and harmless when done before."""
        for listener in list(self.listeners):
            self._walled(listener, listener.close)
        for stream in list(self.streams.values()):
            self._walled(stream, partial(stream.abort, Abort.SESSION_ENDED))
        for channel in list(self.channels):
            self._walled(channel, channel.close)
        if self in self.engine.sessions:
            self.engine.sessions.discard(self)
            self.engine.bounds.fixture_left()

    @property
    def may_hold_more(self) -> bool:
        """Whether there are descriptors for one more listener or channel of this session."""
        return self.engine.bounds.room.allows(len(self.listeners) + len(self.channels))

    def _walled(self, member: "Member", end: Callable[[], None]) -> None:
        try:
            end()
        except Exception as exc:
            self.engine.wall(member, exc)

    # Channels

    def add_channel(self, parts: Detached, *, masks: bool, on_lost: Callable[[str], None], place: str = "") -> Channel:
        """Take a validated TLS connection to the `place` named. `on_lost` is called once, with the reason, whoever
        ends it."""
        channel = Channel(self, parts, masks=masks, place=place)
        self.channels.append(channel)
        self.engine.ledger.channels_opened += 1
        self.engine.bounds.fixture_came()
        self.judge_places()
        self._on_lost[channel] = on_lost
        try:
            channel.begin()
        except Exception as exc:
            self.engine.wall(channel, exc)
        if channel.alive and self._waiting:
            waiting, self._waiting = self._waiting, {}
            for stream, (index, version) in waiting.items():
                self.engine.waits.discard(stream)
                self._open(stream, index, version)
        if channel.alive:
            self.moving.retry()
        self.engine.wake()
        return channel

    def describe(self) -> dict[str, int]:
        """For `/stats`."""
        channels = self.channels
        return {
            "channels": len(channels),
            "streams": len(self.streams),
            "suspect": sum(channel.is_suspect for channel in channels),
            "retiring": sum(channel.is_retiring for channel in channels),
        }

    def channel_lost(self, channel: Channel, why: str, *, clean: bool) -> None:
        """Reset the streams that used it, either way; the peer is told on another channel, should it not know which."""
        self.channels.remove(channel)
        self.engine.ledger.end_channel(why, clean=clean)
        self.engine.bounds.fixture_left()
        self.judge_places()
        other = self._pick()
        for stream in list(self.streams.values()):
            if stream.channel is channel or is_cut_short(stream, channel, clean=clean):
                stream.cut(Abort.CHANNEL_LOST)
                if other is not None:
                    other.put(RST | Abort.CHANNEL_LOST, stream.sid)
            elif stream.source is channel:
                stream.source = None
        self.moving.lost(channel, clean=clean)
        self._on_lost.pop(channel)(why)

    def retire(self, channel: Channel) -> None:
        """Stop using this channel without cutting a stream; closed when both sides have left it (`on_lost`: retired).

        For a client. Streams leave it for the other channels; while there is none, it stays in use. Nothing bounds how
        long a peer may take: who has waited long enough calls `channel.close()`, which resets the streams still there.
        """
        assert not self.opens_streams, "only a client retires channels"
        if channel.alive and not channel.is_retiring:
            channel.put(RETIRE, 0)
            self.moving.leave(channel)
            self.engine.wake()

    def judge_places(self) -> None:
        """A channel came, went, fell silent or spoke again. What is silent may be its place: others are preferred."""
        self._is_spread = len({channel.place for channel in self.channels}) > 1
        self._shunned = {channel.place for channel in self.channels if channel.is_suspect}

    def fell_silent(self, channel: Channel) -> None:
        """It is suspect now. The others of its place are asked before visitors have to find out."""
        self.judge_places()
        for other in self.channels:
            if other.place == channel.place and not other.is_suspect:
                other.pulse.doubt()
        if all(other.is_suspect or other.is_released for other in self.channels):
            self.on_silent()

    def _pick(self) -> Channel | None:
        """The first good channel that is not held up: sharing one makes bigger batches than spreading, once it is warm.
        Of the first ones of several places the least used: should a place fail, the others' visitors do not notice."""
        if self._is_spread:
            leads = leading([one for one in self.channels if _is_good(one) and one.place not in self._shunned])
            if leads:
                return min(leads, key=lambda channel: channel.users)
        for channel in self.channels:
            if _is_good(channel):
                return channel if channel.is_warm(self.engine.now()) else self._least_used(channel)
        return min((channel for channel in self.channels if not channel.is_released), key=_reluctance, default=None)

    def _least_used(self, lead: Channel) -> Channel:
        """While the leading channel is cold: several carry more of a crowd's answers in the first round trip."""
        good = (one for one in self.channels if one.place == lead.place and _is_good(one) and not one.takes_moved)
        return min(good, key=lambda channel: channel.users, default=lead)

    # Streams

    @property
    def opens_streams(self) -> bool:
        """It is the server's."""
        return self._route is None

    @property
    def is_full(self) -> bool:
        return self.max_streams is not None and len(self.streams) >= self.max_streams

    def accept(self, sock: socket.socket, index: int, version: int, tally: Tally) -> None:
        """A visitor came: open a stream for it, or let it wait for a channel. The socket is the stream's."""
        while self._next_sid in self.streams:
            self._next_sid = self._next_sid % 0xFFFFFFFF + 1
        stream = Unanswered(self, self._next_sid, tally)
        self._next_sid = self._next_sid % 0xFFFFFFFF + 1
        self._keep(stream)
        try:
            stream.attach(sock)
            self._open(stream, index, version)
        except Exception as exc:
            self.engine.wall(stream, exc)

    def _open(self, stream: Stream, index: int, version: int) -> None:
        channel = self._pick()
        if channel is None:
            self._waiting[stream] = (index, version)
            self.engine.waits.add(stream, self.engine.now())
            return
        stream.channel = channel
        settle(stream, channel)
        if channel.is_blocked and channel.waiting_bytes > MAX_OPENS_BYTES:
            channel.lost("it does not read")  # visitors come and go, and it has not even heard of the first
            return
        channel.put_open(stream.sid, index, version)
        stream.came_nonce = channel.pulse.nonce
        channel.pulse.doubt()
        if channel.is_retiring:
            channel.leaving.add(stream)
        stream.ready()

    def opened(self, channel: Channel, sid: int, index: int, version: int) -> None:
        """The server opened a stream."""
        if self._route is None:
            raise RemoteProtocolError("OPEN from a client")
        if sid in self.streams:
            raise RemoteProtocolError(f"OPEN of stream {sid}, which is open")
        if channel.waiting_bytes > MAX_SMALL_BYTES:
            raise RemoteProtocolError("it asks and does not read the answers")
        if channel.is_released:
            raise RemoteProtocolError("OPEN on a channel that it has left")
        self.opened_total += 1
        route = self._route(index, version)
        if route is None or self.is_full or self.engine.bounds.are_reached:
            refusal = Abort.UNKNOWN_PROXY if route is None else Abort.OVER_LIMIT
            self.engine.ledger.refuse(refusal)
            channel.put(RST | refusal, sid)
            return
        stream = Stream(self, sid, route.tally)
        self._keep(stream)
        stream.channel = channel
        settle(stream, channel)
        if channel.is_retiring:
            channel.leaving.add(stream)
            self.moving.depart([stream])
        try:
            route.dial(stream)
        except Exception as exc:
            self.engine.wall(stream, exc)

    def _keep(self, stream: Stream) -> None:
        self.streams[stream.sid] = stream
        self.engine.bounds.stream_came()
        self.engine.ledger.visitors += 1

    async def wait_empty(self) -> None:
        """Until no stream is left."""
        while self.streams:
            if self._emptied is None or self._emptied.is_set():
                self._emptied = trio.Event()
            await self._emptied.wait()

    def forget(self, stream: Stream) -> None:
        del self.streams[stream.sid]
        if self._emptied is not None and not self.streams:
            self._emptied.set()
        engine = self.engine
        if stream.channel is None:
            self._waiting.pop(stream, None)
            engine.waits.discard(stream)
        if stream.connecting:
            engine.dials.discard(stream)
        if stream.silent_at >= 0:
            engine.half_closed.discard(stream)
        if stream.lease is not None:
            stream.lease.release()
        engine.ledger.leave(stream)
        engine.bounds.stream_left(stream.window)

    def half_closed(self, stream: Stream) -> None:
        """One direction has ended: from now on silence has a deadline."""
        stream.silent_at = stream.moved
        self.engine.half_closed.add(stream, self.engine.now())

    # Listeners

    def listen(
        self, sock: socket.socket, *, index: int, version: int, tally: Tally, on_lost: Callable[[OSError], None]
    ) -> "Listener":
        """Accept visitors of `sock` (listening, owned from now on) until the listener is closed.

        `on_lost` is told of an error that accepting will not get over; the listener is closed by then.
        """
        listener = Listener(self, sock, index=index, version=version, tally=tally, on_lost=on_lost)
        self.listeners.add(listener)
        self.engine.bounds.fixture_came()
        listener.resume()
        self.engine.wake()
        return listener


def _is_good(channel: Channel) -> bool:
    return channel.is_proven and not channel.is_suspect and not channel.is_retiring and not channel.is_blocked


def _reluctance(channel: Channel) -> tuple[bool, bool, bool, bool]:
    """Smaller is better, for a new stream that finds no good channel."""
    return channel.is_suspect, channel.is_retiring, channel.is_blocked, not channel.is_proven
