"""One data channel: a TLS socket whose WebSocket messages carry the frames of many streams."""

import logging
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING

from tunnel.errors import RemoteProtocolError
from tunnel.frames import (
    CLOSE,
    FRAME,
    OPEN,
    OPEN_PAYLOAD,
    PONG,
    WS_ROOM,
    Abort,
    FrameReader,
    control_message,
    put_message_head,
)  # fmt: skip
from tunnel.relay.batch import read_streams
from tunnel.relay.poller import ERROR, HANGUP, READ, READ_END, WRITE
from tunnel.relay.pulse import FIRST_ROUND_TRIP, Pulse
from tunnel.relay.strays import moved, stray
from tunnel.relay.stream import Stream
from tunnel.relay.tempo import BATCH_BYTES, BIG_BYTES, TIMID_INBOUND
from tunnel.sockets import BULK_UNSENT_BYTES, UNSENT_BYTES, has_room_for, limit_unsent, reset
from tunnel.tls import Detached, read_into

if TYPE_CHECKING:
    from tunnel.relay.session import RelaySession

log = logging.getLogger(__name__)

FOLLOWERS = 3  # behind them a packet is taken for lost at once (RFC 8985 §6.2): every hundredth took 43 ms, with two 45
FAR_SECONDS = 0.005  # a round trip that is worth saving
COLD_SECONDS = 1.0  # without a new stream
WARM_BYTES = 64 * 1024  # received since: some three round trips of a growing window
GATHERS = hasattr(socket.socket, "sendmsg")  # not on Windows
STEP_BYTES = 128 * 1024  # BIOs never shrink, so they are filled and emptied in steps; 64 KiB are 8 % slower

# What a peer's RST may say of a visitor that was never served; any other reason cut one that was.
REFUSALS = {
    Abort.DIAL_REFUSED, Abort.DIAL_TIMEOUT, Abort.DIAL_FAILED, Abort.UNKNOWN_PROXY, Abort.OVER_LIMIT, Abort.TARGET_DOWN,
}  # fmt: skip


class Channel:
    """Owned by its `RelaySession`. Ends by `close`, or by `lost` when the peer or the wire ends it."""

    def __init__(self, session: "RelaySession", parts: Detached, *, masks: bool, place: str = "") -> None:
        self.session = session
        self.place = place  # which of the server's addresses it goes to: channels of one place share their fate
        self.engine = session.engine
        self.sock: socket.socket = parts.sock
        self.fd = -1  # until it is registered
        limit_unsent(parts.sock, UNSENT_BYTES)
        self.alive = True
        self.received = 0  # bytes of ciphertext: proof of life
        self.sent = 0
        self.round_trip = FIRST_ROUND_TRIP
        self.opened_at = self.engine.now()  # seconds of the engine's clock
        self.is_proven = False  # a ping of ours came back
        self.in_doubt = False  # watched: something was put here, and nothing has come since
        self.is_suspect = False  # silent for too long
        self.is_retiring = False  # to be left by both sides, then closed
        self.is_released = False  # the server has left it
        self.leaving: set[Stream] = set()  # those that still send on it, retiring
        self.departing: set[Stream] = set()  # those that will move when a pong here proves their former MOVE seen
        self.takes_moved = False  # a stream moved here, ours or the peer's: perhaps bulk, so others had better not
        self._picked_at = -COLD_SECONDS  # when the newest stream was opened here, or was to be
        self._warm_at = 0  # of `received`
        self.moved_nonce = 0  # the newest ping's when the last MOVE was put here
        self.why = ""  # it ended
        self.fresh: deque[Stream] = deque()  # became readable
        self.bulk: deque[Stream] = deque()  # filled their last read, so hold more
        self.stirred = False
        self._tls: ssl.SSLObject = parts.tls
        self._incoming, self._outgoing = parts.incoming, parts.outgoing
        self._masks = masks
        self.inbound: dict[int, Stream] = {}  # streams whose peer sends here
        self._reader = FrameReader(self, self.inbound.get, masked=not masks)
        self._small = bytearray()  # frames without DATA for the next batch; a few for each stream
        self._controls: list[bytes] = []  # WebSocket pings, pongs and a close
        self._pong: bytes | None = None  # the newest ping's answer; older ones need none (RFC 6455 §5.5.3)
        self._unsent: list[bytes | memoryview] = [parts.unsent] if parts.unsent else []  # the kernel had no room
        self.pulse = Pulse(self)
        self._ending = False  # their FIN has come: read until it is seen
        self._closing = False
        self._has_more = False  # waits in the engine's `rereads`
        self._has_bulk_room = False  # in the kernel
        self._is_timid = False  # what it said took long: less at a time
        self._first_plaintext = parts.plaintext

    @property
    def is_blocked(self) -> bool:
        """The kernel has not taken the last batch: nothing is read for this channel until it has."""
        return bool(self._unsent)

    @property
    def waiting_bytes(self) -> int:
        """Of frames without DATA, which have no credit to bound them."""
        return len(self._small)

    @property
    def users(self) -> int:
        """Streams whose peer sends here: at a client those that came here, less those that the server has moved."""
        return len(self.inbound)

    def is_warm(self, now: float) -> bool:
        """Whether what the peer sends here goes out at once, or it does not matter; asked for each new stream.

        A TCP connection that is new or has been silent for a while sends no more than ten packets before the first are
        acknowledged (RFC 6928, RFC 5681 §4.1), so the answers to a sudden crowd would wait for one round trip more.
        """
        if self.round_trip < FAR_SECONDS:
            return True
        if now - self._picked_at > COLD_SECONDS:
            self._warm_at = self.received + WARM_BYTES
        self._picked_at = now
        return self.received >= self._warm_at

    def begin(self) -> None:
        """Register, and step once: what was read before raises no edge."""
        fd = self.sock.fileno()
        self.engine.register(fd, self)
        self.fd = fd
        if self._first_plaintext:
            first, self._first_plaintext = self._first_plaintext, b""
            self._reader.feed(memoryview(bytearray(first)))
        if self.alive and self._decrypt():
            self._read()
        if self.alive:
            self.ping()

    # Events

    def on_event(self, event: int) -> None:
        if event & (READ | READ_END | HANGUP):
            if event & (READ_END | HANGUP):
                self._ending = True
            if not self._has_more:  # else when it is its session's turn
                if self.engine.is_late:
                    self._read_later()
                else:
                    self._read()
        elif event & ERROR:
            self.lost("the connection was reset")
        if event & WRITE and self._unsent:
            self.stir()

    def wants(self) -> int:
        return READ | WRITE if self._unsent else READ

    def fail(self, exc: Exception) -> None:
        """Caught by the engine's wall: the peer's fault or ours, the channel is over."""
        if isinstance(exc, RemoteProtocolError):
            self.lost(f"protocol error: {exc}")
        else:
            self.lost(f"internal error: {exc!r}")

    def stir(self) -> None:
        """There is something to send: be pumped in this turn."""
        if not self.stirred and self.alive:
            self.stirred = True
            self.engine.stirred.append(self)

    # Inbound

    def _read(self) -> None:
        """Take this turn's share of what has come."""
        engine = self.engine
        view = engine.inbound_view
        if self._is_timid:
            view = view[:TIMID_INBOUND]
        share = len(view)
        taken = 0
        while self.alive:
            try:
                size = self.sock.recv_into(view)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self.lost(exc.strerror or str(exc))
                return
            if size == 0:
                self.lost("the connection was cut")
                return
            self.received += size
            if self.is_suspect:
                self._spoke_again()
            if not self._take_in(view, size):
                return
            taken += size
            if size >= TIMID_INBOUND:
                self._is_timid = engine.look_at_clock()
                if size >= BIG_BYTES:
                    engine.mixture.big_at = engine.turns
            if size < share and not self._ending:
                return  # what comes next raises an edge; a FIN that came with these bytes would not
            if taken >= share:
                self._read_later()
                return

    def _take_in(self, view: memoryview, size: int) -> bool:
        """Decrypt `size` bytes and handle what they say; False when the channel has ended."""
        for begin in range(0, size, STEP_BYTES):
            end = begin + STEP_BYTES
            self._incoming.write(view[begin : end if end < size else size])
            if not self._decrypt():
                return False
        return True

    def _spoke_again(self) -> None:
        self.is_suspect = False
        self.session.judge_places()
        self.session.moving.retry()

    def _read_later(self) -> None:
        if not self._has_more:  # `read_now` may find it in the line
            self._has_more = True
            self.engine.rereads.add(self)

    def reread(self) -> None:
        """Go on reading where the last turn's share ended."""
        self._has_more = False
        self._read()

    def _decrypt(self) -> bool:
        """Decrypt what the BIO holds and handle it; False when the channel has ended."""
        view, tls, incoming = self.engine.plain_view, self._tls, self._incoming
        end = 0
        try:
            while True:
                size = read_into(tls, STEP_BYTES, view[end:])
                if size == 0:
                    self._reader.feed(view[:end])
                    self.on_close()
                    return False
                end += size
                # Asking both is cheaper than the SSLWantReadError of a read in vain (1 µs; every turn would pay it).
                if not incoming.pending and not tls.pending():
                    break
                if end >= STEP_BYTES:
                    self._reader.feed(view[:end])
                    end = 0
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self.lost(f"TLS: {exc.reason or exc}")
            return False
        if end:
            self._reader.feed(view[:end])
        return self.alive

    # What the frames say (`frames.Receiver`)

    def on_credit(self, sid: int, count: int) -> None:
        stream = self.session.streams.get(sid)
        if stream is not None:
            stream.credit += count
            if stream.queued is None:
                stream.ready()

    def on_open(self, sid: int, index: int, version: int) -> None:
        self.session.opened(self, sid, index, version)

    def on_stray(self, sid: int, data: memoryview) -> None:
        stray(self.session.streams, self, sid, data)

    def on_fin(self, sid: int) -> None:
        stream = self.inbound.get(sid)
        if stream is None:
            stray(self.session.streams, self, sid, None)
        else:
            stream.fin()

    def on_rst(self, sid: int, reason: int) -> None:
        stream = self.session.streams.get(sid)
        if stream is not None:
            told = Abort.of(reason)
            if told in REFUSALS:
                stream.refused_by_peer(told)
            else:
                stream.cut(told)

    def on_move(self, sid: int) -> None:
        moved(self.session.streams, self, sid)

    def on_retire(self) -> None:
        self.session.moving.told(self)

    def on_ping(self, payload: bytes) -> None:
        self._pong = payload
        self.stir()

    def on_pong(self, payload: bytes) -> None:
        self.pulse.on_pong(payload)

    def answered(self) -> None:
        """A pong of ours came: what was put before its ping is known to the peer."""
        self.is_proven = True
        if self.departing:
            streams, self.departing = self.departing, set()
            self.session.moving.depart(streams)
        if self.is_retiring:
            self.stir()

    def on_close(self) -> None:
        self.lost("the peer closed it", clean=True)

    # Outbound

    def put(self, word: int, sid: int) -> None:
        """Add a frame without payload to the next batch."""
        self._small += FRAME.pack(word, sid)
        if not self.stirred:
            self.stir()

    def put_open(self, sid: int, index: int, version: int) -> None:
        self._small += FRAME.pack(OPEN | OPEN_PAYLOAD.size, sid) + OPEN_PAYLOAD.pack(index, version)
        if not self.stirred:
            self.stir()

    def ping(self) -> None:
        self.pulse.ping()

    def unanswered(self) -> None:
        self.pulse.unanswered()

    def doubted(self) -> None:
        self.pulse.doubted()

    async def wait_proven(self) -> float:
        """Until the first ping came back; returns the round trip in seconds. Raises `PeerLost` if the channel ends."""
        await self.pulse.wait_for(1)
        return self.round_trip

    async def echo(self) -> float:
        """Ask now and wait for the answer: the seconds that took. Raises `PeerLost` if the channel ends before."""
        began = self.engine.now()
        if self.alive:
            self.ping()
            self.engine.wake()
        await self.pulse.wait_for(self.pulse.nonce if self.alive else self.pulse.nonce + 1)
        return self.engine.now() - began

    def put_control(self, opcode: int, payload: bytes) -> None:
        """Add a WebSocket ping or close."""
        self._controls.append(control_message(opcode, payload, masked=self._masks))
        self.stir()

    def become_bulk_lane(self) -> None:
        """Interactive streams have a channel of their own: here more may wait in the kernel, so that none runs dry."""
        if not self._has_bulk_room:
            self._has_bulk_room = True
            limit_unsent(self.sock, BULK_UNSENT_BYTES)
        self.takes_moved = True

    def read_now(self) -> None:
        """If it was us who did nothing (SIGSTOP), what came waits in the kernel."""
        self._read()

    def pump(self) -> None:
        """One turn's output: a read of each ready stream, one message, one send."""
        if self._unsent and not self._send():
            return
        size = self._collect()
        if size:
            self._encrypt_batch(size)
            if size >= BIG_BYTES:
                self.engine.look_at_clock()
            elif self.round_trip >= FAR_SECONDS:
                self.engine.unfollowed.add(self)
        if (self._controls or self._pong is not None) and not self._small:  # no ping overtakes a frame put before it
            self._encrypt_controls()
        if self._unsent:
            self._send()
        if (self.fresh or self.bulk or self._small) and not self._unsent:
            self.stir()
        if self.is_retiring and self.alive and not self._closing:
            self.session.moving.go_on(self)

    def follow_up(self) -> None:
        """Nothing has followed what was sent last, so send a few bytes that mean nothing (RFC 6455 §5.5.3).

        A lost packet shows when a later one arrives (RFC 8985). Without one the sender finds out by a timer of 200 ms
        and more: across a path of 20 ms that loses half a percent, every hundredth small request took that long.
        In a crowd the next visitor's bytes follow, and need the room: at first it is for ten packets (RFC 6928).
        """
        if not has_room_for(self.sock, FOLLOWERS):
            return
        for _ in range(FOLLOWERS):
            if not self._unsent and not self._closing:
                self._controls.append(control_message(PONG, b"", masked=self._masks))
                self._encrypt_controls()
                self._send()

    def _collect(self) -> int:
        """Fill the engine's batch: the small frames, then a read of each fresh stream, then of each bulk one.

        Returns where the batch ends, 0 if it is empty. What came before a small frame in the order of things stands
        before it on the wire, too: DATA is only ever added behind the small frames that were waiting.
        """
        end = WS_ROOM
        small = self._small
        if small:
            if len(small) > BATCH_BYTES:  # a batch of its own: cut anywhere, it must not be followed by DATA
                self.engine.batch[WS_ROOM : WS_ROOM + BATCH_BYTES] = small[:BATCH_BYTES]
                del small[:BATCH_BYTES]
                return WS_ROOM + BATCH_BYTES
            end += len(small)
            self.engine.batch[WS_ROOM:end] = small
            small.clear()
        bulk = len(self.bulk)
        if self.fresh:
            end = read_streams(self, self.fresh, len(self.fresh), end)
        if bulk:
            end = read_streams(self, self.bulk, bulk, end)
        return end if end > WS_ROOM else 0

    def _encrypt_controls(self) -> None:
        if self._pong is not None:
            self._controls.append(control_message(PONG, self._pong, masked=self._masks))
            self._pong = None
        for message in self._controls:
            self._tls.write(message)
        self._controls.clear()
        self._unsent.append(self._outgoing.read())

    def _encrypt_batch(self, end: int) -> None:
        """Encrypt the engine's batch up to `end` as one WebSocket message, in steps."""
        view, write = self.engine.batch_view, self._tls.write
        begin = put_message_head(self.engine.batch, end - WS_ROOM, masked=self._masks)
        while end - begin > STEP_BYTES:
            write(view[begin : begin + STEP_BYTES])
            self._unsent.append(self._outgoing.read())
            begin += STEP_BYTES
        write(view[begin:end])
        self._unsent.append(self._outgoing.read())

    def _send(self) -> bool:
        """Hand the kernel what is encrypted, in one call; True when it took all."""
        ready = self._unsent
        if len(ready) > 1 and not GATHERS:
            ready[:] = [b"".join(ready)]
        try:
            sent = self.sock.send(ready[0]) if len(ready) == 1 else self.sock.sendmsg(ready)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self.lost(exc.strerror or str(exc))
            return False
        self.sent += sent
        while ready and sent >= len(ready[0]):
            sent -= len(ready[0])
            del ready[0]
        if ready:
            ready[0] = memoryview(ready[0])[sent:]
            return False
        return True

    # Ends

    def lost(self, why: str, *, clean: bool = False) -> None:
        """The peer or the wire ended it: its streams are reset, its owner is told why. `clean`: the peer said so."""
        if clean and self.is_released and not self.leaving:
            why = "retired"
        if self._leave(why):
            reset(self.sock)
            self.session.channel_lost(self, why, clean=clean)

    def close(self, why: str = "closed") -> None:
        """Say goodbye if that needs no waiting, and close; its streams are reset."""
        if not self.alive:
            return
        self._closing = True
        self._controls.append(control_message(CLOSE, (1000).to_bytes(2, "big"), masked=self._masks))
        try:
            self.pump()
            self._tls.unwrap()
        except (ssl.SSLError, OSError, ValueError):
            pass  # close_notify is in the BIO, and the peer's may be on its way
        try:
            if self.alive and not self._unsent:
                self.sock.send(self._outgoing.read())
        except OSError:
            pass  # it was only a courtesy
        if self._leave(why):
            self.sock.close()
            self.session.channel_lost(self, why, clean=why == "retired")

    def _leave(self, why: str) -> bool:
        if not self.alive:
            return False
        self.alive = False
        self.why = why
        if self.fd >= 0:
            self.engine.unregister(self.fd)
        self.engine.pings.discard(self)
        self.engine.pongs.discard(self)
        self.engine.doubts.discard(self)
        self.engine.unfollowed.discard(self)
        self.pulse.tell()
        self._small.clear()
        self.fresh.clear()
        self.bulk.clear()
        return True
