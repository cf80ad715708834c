"""Which channel the bytes of a stream leave on: bulk gets its own, and a retiring channel is left before it is closed.

The sender's half of the rules in `tunnel.frames`; `strays` is the receiver's. A stream that may not move yet waits for
the pong that proves its former MOVE (or OPEN) seen; everything else waits for a channel to go to. Nothing polls.
"""

from collections.abc import Iterable
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

from tunnel.errors import RemoteProtocolError
from tunnel.frames import DATA, MOVE, RETIRE

if TYPE_CHECKING:
    from tunnel.relay.channel import Channel
    from tunnel.relay.session import RelaySession
    from tunnel.relay.stream import Stream


class Moving:
    """Owned by its `RelaySession`; synchronous, and never called while a channel's queues are being read."""

    def __init__(self, session: "RelaySession") -> None:
        self._session = session

    def make_room(self, stream: "Stream") -> bool:
        """Send the rest of a bulk stream on another channel than an interactive (leading) one, if there is another.

        Called in the middle of a turn's reading, with the stream in no queue; it is in the other's when this is True.
        """
        if len(self._session.channels) < 2:
            return False
        refuges = self._refuges()
        leads = leading(refuges)
        if stream.channel not in leads or len(leads) == len(refuges) or _unknown(stream):
            return False
        there = min(_beside(leads, refuges), key=lambda channel: len(channel.bulk))
        there.become_bulk_lane()
        _put_on(stream, there)  # MOVE goes behind the DATA of this very turn
        stream.is_bulk = True
        there.bulk.append(stream)
        there.stir()
        return True

    # Retiring

    def leave(self, channel: "Channel") -> None:
        """Send nothing new on this channel, and move away what is sent there, now or when it may."""
        channel.is_retiring = True
        channel.leaving = {stream for stream in self._session.streams.values() if stream.channel is channel}
        self.depart(channel.leaving)
        channel.stir()

    def told(self, channel: "Channel") -> None:
        """RETIRE came: at the server the client's wish, at the client its answer."""
        if self._session.opens_streams:
            if not channel.is_retiring:
                self.leave(channel)
        elif channel.is_retiring:
            channel.is_released = True
            channel.stir()
        else:
            raise RemoteProtocolError("RETIRE from a server that was not asked")

    def depart(self, streams: "Iterable[Stream]") -> None:
        """Move those of these streams that send on a retiring channel, may leave it, and have somewhere to go."""
        channels = self._refuges()
        if not channels:
            return
        refuges = _Refuges(channels)
        for channel in {left for stream in list(streams) if (left := _send_away(stream, refuges)) is not None}:
            _hand_over(channel)
            channel.stir()

    def retry(self) -> None:
        """There is a channel more to go to. Who waits for a pong here is not asked: its coming asks again."""
        for channel in list(self._session.channels):
            if channel.is_retiring:
                self.depart(channel.leaving - channel.departing)
                channel.stir()

    def go_on(self, channel: "Channel") -> None:
        """After each pump of a retiring channel: the server says when it has left, the client closes when both have."""
        if channel.leaving or channel.waiting_bytes or channel.is_blocked:
            return
        if self._session.opens_streams:
            if not channel.is_released and self._refuges():
                channel.is_released = True
                channel.put(RETIRE, 0)
        elif channel.is_released and channel.pulse.proves(channel.moved_nonce):
            channel.close(why="retired")

    def lost(self, channel: "Channel", *, clean: bool) -> None:
        """A channel has ended. A peer that closed it has seen all our MOVEs there, or has reset the stream."""
        for stream in self._session.streams.values():
            if stream.left is channel:
                stream.left = None
                # Else the peer may learn of the loss half a minute later, and till then may wait for the MOVE.
                stream.is_pinned = not clean and channel.pulse.answered <= stream.left_nonce
        self.depart(channel.departing)

    def _refuges(self) -> "list[Channel]":
        """Where a stream may go."""
        usable = [channel for channel in self._session.channels if not channel.is_retiring and not channel.is_suspect]
        return [channel for channel in usable if channel.is_proven] or usable


def leading(channels: "list[Channel]") -> "list[Channel]":
    """The first channel of each place: the interactive ones."""
    leads: dict[str, Channel] = {}
    for channel in channels:
        leads.setdefault(channel.place, channel)
    return list(leads.values())


class _Refuges:
    """Where streams may go, judged once for all that go at one moment: a channel may have thousands."""

    def __init__(self, channels: "list[Channel]") -> None:
        leads = leading(channels)
        bulky = _beside(leads, channels)
        self._interactive = _Line(leads, [lead.users for lead in leads])
        self._bulk = _Line(bulky, [len(channel.bulk) for channel in bulky])

    def choose(self, stream: "Stream") -> "Channel":
        return (self._bulk if stream.is_bulk else self._interactive).next()


class _Line:
    """Each goes where the fewest are by then: those of a place or a channel that is left spread over the others."""

    def __init__(self, channels: "list[Channel]", loads: "list[int]") -> None:
        self._channels = channels
        self._queue = [(channel.is_blocked, loads[at], at) for at, channel in enumerate(channels)]
        heapify(self._queue)

    def next(self) -> "Channel":
        is_blocked, load, at = self._queue[0]
        heapreplace(self._queue, (is_blocked, load + 1, at))
        return self._channels[at]


def _send_away(stream: "Stream", refuges: _Refuges) -> "Channel | None":
    """Returns the channel that the stream has left; its queues still hold the stream."""
    here = stream.channel
    if here is None or not here.is_retiring or not stream.alive:
        return None
    unknown = _unknown(stream)
    for channel in unknown:
        channel.departing.add(stream)
    if unknown:
        return None
    _put_on(stream, refuges.choose(stream))
    here.leaving.discard(stream)
    here.departing.discard(stream)  # one that ended while it was pinned
    return here


def _beside(leads: "list[Channel]", channels: "list[Channel]") -> "list[Channel]":
    """Where bulk belongs: the channels that do not lead, if there are any."""
    interactive = set(leads)
    return [channel for channel in channels if channel not in interactive] or channels


def _unknown(stream: "Stream") -> "list[Channel]":
    """The channels whose next pong must come before this stream may move; empty when it may.

    The peer must have seen that the stream left the former channel and that it came to this one: else what we send on
    the next could reach it first, and be taken for what comes here.
    """
    here, former = stream.channel, stream.left
    assert here is not None
    if stream.is_pinned and not stream.ended:
        return [here]
    unknown = [] if here.pulse.proves(stream.came_nonce) else [here]
    if former is not None and not stream.ended and not former.pulse.proves(stream.left_nonce):
        unknown.append(former)
    return unknown


def _put_on(stream: "Stream", there: "Channel") -> None:
    here = stream.channel
    assert here is not None
    if not stream.ended:
        here.put(MOVE, stream.sid)
        there.put(DATA, stream.sid)  # empty: it comes here
        here.moved_nonce = stream.left_nonce = here.pulse.nonce
        stream.left = here
    stream.came_nonce = there.pulse.nonce
    stream.channel = there
    there.pulse.doubt()


def _hand_over(here: "Channel") -> None:
    """Streams that have left wait for their turn where they are now."""
    for queue, name in ((here.fresh, "fresh"), (here.bulk, "bulk")):
        for _ in range(len(queue)):
            stream = queue.popleft()
            there = stream.channel
            if there is here or there is None:
                queue.append(stream)
            else:
                (there.fresh if name == "fresh" else there.bulk).append(stream)
                there.stir()
