"""One turn's reading for a channel: each ready stream's bytes, in place in the batch behind their frame's head."""

from collections import deque
from typing import TYPE_CHECKING

from tunnel.frames import DATA, FIN, FRAME, FRAME_HEAD, Abort
from tunnel.relay.tempo import BIG_BYTES, SMALL_BYTES

if TYPE_CHECKING:
    from tunnel.relay.channel import Channel
    from tunnel.relay.stream import Stream

BULK_BYTES = 512 * 1024  # a stream that filled a read and has sent so much is bulk: it leaves the interactive one

_pack_head = FRAME.pack_into


def read_streams(channel: "Channel", queue: "deque[Stream]", count: int, end: int) -> int:
    """One read of each of the first `count` streams, in place behind its frame's head, while the batch has room.

    `end` is where the batch ends; returns where it ends then.
    """
    engine = channel.engine
    batch, view, bulk = engine.batch, engine.batch_view, channel.bulk
    moving = channel.session.moving
    share = engine.share
    most, full = share.read, share.batch_end
    has_small = has_big = False
    while count and end < full:
        count -= 1
        stream = queue.popleft()
        if not stream.alive:
            continue
        want = stream.credit
        if want <= 0:
            stream.queued = None  # parked; CREDIT brings it back
            continue
        if want > most:
            want = most
        stream.queued = False
        begin = end + FRAME_HEAD
        try:
            size = stream.recv_into(view[begin : begin + want])
        except (BlockingIOError, InterruptedError):
            continue
        except OSError:
            stream.abort(Abort.RESET)
            continue
        except Exception as exc:
            engine.wall(stream, exc)
            continue
        if size:
            _pack_head(batch, end, DATA | size, stream.sid)
            end = begin + size
            stream.credit -= size
            stream.bytes_read += size
            if size == want:
                has_big = has_big or size >= BIG_BYTES
                stream.queued = True
                if stream.bytes_read > BULK_BYTES and not stream.is_bulk and moving.make_room(stream):
                    continue
                bulk.append(stream)
            else:
                if size < SMALL_BYTES:
                    has_small = True
                if stream.ending:  # its FIN stands next: told in this very batch, it saves a turn on both sides
                    stream.queued = True
                    queue.appendleft(stream)
                    count += 1
        else:
            _pack_head(batch, end, FIN, stream.sid)
            end = begin
            stream.at_end()
    if has_small:
        engine.mixture.small_at = engine.turns
    if has_big:
        engine.mixture.big_at = engine.turns
    return end
