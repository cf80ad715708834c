"""The order of a stream's bytes across channels: what comes on the new one before MOVE on the old one waits for it."""

from typing import TYPE_CHECKING

from tunnel.errors import RemoteProtocolError

if TYPE_CHECKING:
    from tunnel.relay.channel import Channel
    from tunnel.relay.stream import Stream


class Strays:
    """What came of a moved stream before its MOVE did: the bytes, in one piece whatever theirs were, and its FIN."""

    __slots__ = ("channel", "data", "fin")

    def __init__(self, channel: "Channel") -> None:
        self.channel = channel
        self.data = bytearray()
        self.fin = False


def settle(stream: "Stream", channel: "Channel") -> None:
    """The peer sends on this channel from now on."""
    stream.source = channel
    channel.inbound[stream.sid] = stream


def moved(streams: "dict[int, Stream]", channel: "Channel", sid: int) -> None:
    """The peer goes on sending elsewhere: on the channel whose frames wait, or on whichever brings the first."""
    stream = channel.inbound.pop(sid, None)
    if stream is None:
        if sid in streams:
            raise RemoteProtocolError(f"MOVE of stream {sid}, which does not send here")
        return
    stream.source = None
    strays, stream.strays = stream.strays, None
    if strays is not None:
        if strays.channel.alive:
            settle(stream, strays.channel)
            strays.channel.takes_moved = True
        if strays.data:
            if not stream.fin_seen:
                stream.allowance += len(strays.data)  # `deliver` takes it again
            stream.deliver(memoryview(strays.data))
        if strays.fin and stream.alive:
            stream.fin()


def stray(streams: "dict[int, Stream]", channel: "Channel", sid: int, data: memoryview | None) -> None:
    """A frame (FIN: None) of a stream that does not send on this channel, or not yet."""
    stream = streams.get(sid)
    if stream is None:
        return  # it crossed our RST
    if stream.source is None:
        settle(stream, channel)
        channel.takes_moved = True
        if data is None:
            stream.fin()
        elif data:
            stream.deliver(data)
        return
    if stream.strays is None:
        stream.strays = Strays(channel)
    strays = stream.strays
    if strays.channel is not channel or strays.fin:
        raise RemoteProtocolError(f"stream {sid} sends on several channels, or after its FIN")
    if data is None:
        strays.fin = True
        return
    strays.data += data
    stream.allowance -= len(data)  # at once: what comes on the old channel meanwhile must find the rest of it only
    if stream.allowance < 0:
        raise RemoteProtocolError(f"DATA beyond the credit of stream {sid}")


def is_cut_short(stream: "Stream", channel: "Channel", *, clean: bool) -> bool:
    """Whether bytes of the peer may be missing now that this channel has ended (`clean`: with all that was sent)."""
    if stream.source is channel:
        return not (clean and stream.fin_seen)
    return stream.strays is not None and stream.strays.channel is channel and not (clean and stream.strays.fin)
