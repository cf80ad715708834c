"""One data channel: a TLS socket whose WebSocket messages carry the frames of many streams."""

import logging
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING

from tunnel.errors import RemoteProtocolError
from tunnel.frames import (
    CLOSE,
    DATA,
    FIN,
    FRAME,
    FRAME_HEAD,
    MAX_NUMBER,
    OPEN,
    OPEN_PAYLOAD,
    PING,
    PONG,
    WS_ROOM,
    Abort,
    FrameReader,
    control_message,
    put_message_head,
)  # fmt: skip
from tunnel.relay.poller import ERROR, HANGUP, READ, READ_END, WRITE
from tunnel.relay.stream import Stream
from tunnel.tls import Detached, read_into, reset

if TYPE_CHECKING:
    from tunnel.relay.session import RelaySession

log = logging.getLogger(__name__)

READ_BYTES = 128 * 1024  # from one stream in one turn
BATCH_BYTES = 256 * 1024  # of DATA in one turn; more costs cache, measured
CAPACITY = WS_ROOM + BATCH_BYTES + READ_BYTES + 64 * 1024  # the last read may pass BATCH_BYTES; small frames follow
STEP_BYTES = 64 * 1024  # BIOs never shrink, so they are filled and emptied in steps
INBOUND_BYTES = 1024 * 1024  # taken from one channel in one turn, so that the others have theirs
FIRST_ROUND_TRIP = 0.2  # seconds, until the first pong has told; too long only lets a window grow early

assert CAPACITY < MAX_NUMBER
_pack_head = FRAME.pack_into


class Channel:
    """Owned by its `RelaySession`. Ends by `close`, or by `lost` when the peer or the wire ends it."""

    def __init__(self, session: "RelaySession", parts: Detached, *, masks: bool) -> None:
        self.session = session
        self.engine = session.engine
        self.sock: socket.socket = parts.sock
        self.fd = parts.sock.fileno()
        self.alive = True
        self.received = 0  # bytes of ciphertext: proof of life
        self.sent = 0
        self.round_trip = FIRST_ROUND_TRIP
        self.fresh: deque[Stream] = deque()  # became readable
        self.bulk: deque[Stream] = deque()  # filled their last read, so hold more
        self.stirred = False
        self._tls: ssl.SSLObject = parts.tls
        self._incoming, self._outgoing = parts.incoming, parts.outgoing
        self._masks = masks
        self._reader = FrameReader(self, session.streams.get, masked=not masks)
        self._out: tuple[bytearray, memoryview] | None = None  # lent by the engine while frames are pending
        self._pos = WS_ROOM
        self._overflow: deque[bytes] = deque()  # small frames for which the batch had no room; a few for each stream
        self._controls: list[bytes] = []  # WebSocket pings, pongs and a close
        self._pong: bytes | None = None  # the newest ping's answer; older ones need none (RFC 6455 §5.5.3)
        self._unsent: list[bytes | memoryview] = [parts.unsent] if parts.unsent else []  # the kernel had no room
        self._ping_nonce = 0
        self._ping_at = 0.0
        self._first_plaintext = parts.plaintext

    @property
    def is_blocked(self) -> bool:
        """The kernel has not taken the last batch: nothing is read for this channel until it has."""
        return bool(self._unsent)

    def begin(self) -> None:
        """Register, and step once: what was read before raises no edge."""
        self.engine.register(self.fd, self)
        if self._first_plaintext:
            first, self._first_plaintext = self._first_plaintext, b""
            self._reader.feed(memoryview(bytearray(first)))
        self._read()
        self.ping()

    # Events

    def on_event(self, event: int) -> None:
        if event & (READ | READ_END | HANGUP):
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
        cipher, view = self.engine.cipher, self.engine.cipher_view
        taken = 0
        while self.alive:
            try:
                size = self.sock.recv_into(cipher)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self.lost(exc.strerror or str(exc))
                return
            if size == 0:
                self.lost("the connection was cut")
                return
            self.received += size
            for begin in range(0, size, STEP_BYTES):
                end = begin + STEP_BYTES
                self._incoming.write(view[begin : end if end < size else size])
                if not self._decrypt():
                    return
            taken += size
            if size < len(cipher):
                return
            if taken >= INBOUND_BYTES:
                self.engine.rereads.append(self)
                return

    def reread(self) -> None:
        """Go on reading where the last turn's share ended."""
        self._read()

    def _decrypt(self) -> bool:
        """Decrypt what the BIO holds and handle it; False when the channel has ended."""
        view = self.engine.plain_view
        tls, room, end = self._tls, len(view), 0
        more = True
        while more:
            try:
                while end < room:
                    size = read_into(tls, STEP_BYTES, view[end:])
                    if size == 0:
                        self._reader.feed(view[:end])
                        self.lost("the peer closed it")
                        return False
                    end += size
            except ssl.SSLWantReadError:
                more = False
            except ssl.SSLError as exc:
                self.lost(f"TLS: {exc.reason or exc}")
                return False
            self._reader.feed(view[:end])
            end = 0
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

    def on_fin(self, sid: int) -> None:
        stream = self.session.streams.get(sid)
        if stream is not None:
            if stream.fin_seen:
                raise RemoteProtocolError("a second FIN")
            stream.fin()

    def on_rst(self, sid: int, reason: int) -> None:
        stream = self.session.streams.get(sid)
        if stream is not None:
            if reason:
                stream.tally.refuse(Abort.of(reason))
            stream.cut()

    def on_move(self, sid: int) -> None:
        raise RemoteProtocolError("MOVE, which was not agreed on")

    def on_ping(self, payload: bytes) -> None:
        self._pong = payload
        self.stir()

    def on_pong(self, payload: bytes) -> None:
        if payload == self._ping_nonce.to_bytes(8, "big") and self._ping_at:
            took = self.engine.now() - self._ping_at
            # The least is nearest the truth: a busy moment only adds. A path that got longer is believed slowly.
            self.round_trip = min(took, 0.8 * self.round_trip + 0.2 * took)
            self._ping_at = 0.0
            self.engine.pongs.discard(self)

    def on_close(self) -> None:
        self.lost("the peer closed it")

    # Outbound

    def put(self, word: int, sid: int) -> None:
        """Add a frame without payload to the batch."""
        if not self.alive:
            return
        pos = self._pos
        if pos + FRAME_HEAD > CAPACITY:
            self._overflow.append(FRAME.pack(word, sid))
            return
        _pack_head(self._buffer(), pos, word, sid)
        self._pos = pos + FRAME_HEAD
        self.stir()

    def put_open(self, sid: int, index: int, version: int) -> None:
        frame = FRAME.pack(OPEN | OPEN_PAYLOAD.size, sid) + OPEN_PAYLOAD.pack(index, version)
        pos = self._pos
        if pos + len(frame) > CAPACITY:
            self._overflow.append(frame)
            return
        self._buffer()[pos : pos + len(frame)] = frame
        self._pos = pos + len(frame)
        self.stir()

    def ping(self) -> None:
        """Ask for a sign of life, and measure the round trip; unanswered for its deadline, the channel is lost."""
        self._ping_nonce += 1
        self._ping_at = self.engine.now()
        self._controls.append(control_message(PING, self._ping_nonce.to_bytes(8, "big"), masked=self._masks))
        self.engine.pongs.add(self, self._ping_at)
        self.engine.pings.add(self, self._ping_at)
        self.stir()

    def _buffer(self) -> bytearray:
        if self._out is None:
            self._out = self.engine.lend()
        return self._out[0]

    def pump(self) -> None:
        """One turn's output: a read of each ready stream, one message, one send."""
        if self._unsent and not self._send():
            return
        self._collect()
        if self._pos > WS_ROOM or self._controls or self._pong is not None:
            self._encrypt()
            self._send()
        if not self._unsent and (self.fresh or self.bulk or self._overflow):
            self.stir()

    def _collect(self) -> None:
        """Fill the batch: small frames that had no room, then fresh streams, then bulk ones, each one read."""
        while self._overflow and self._pos + len(self._overflow[0]) <= CAPACITY:
            frame = self._overflow.popleft()
            self._buffer()[self._pos : self._pos + len(frame)] = frame
            self._pos += len(frame)
        bulk = len(self.bulk)
        self._read_streams(self.fresh, len(self.fresh))
        self._read_streams(self.bulk, min(bulk, len(self.bulk)))

    def _read_streams(self, queue: deque[Stream], count: int) -> None:
        """One read of each of the first `count` streams, in place behind its frame's head, while the batch has room."""
        limit = WS_ROOM + BATCH_BYTES
        bulk = self.bulk
        while count and self._pos < limit:
            count -= 1
            stream = queue.popleft()
            if not stream.alive:
                continue
            want = stream.credit
            if want <= 0:
                stream.queued = None  # parked; CREDIT brings it back
                continue
            if want > READ_BYTES:
                want = READ_BYTES
            stream.queued = False
            out = self._out
            if out is None:
                out = self._out = self.engine.lend()
            pos = self._pos
            begin = pos + FRAME_HEAD
            try:
                size = stream.recv_into(out[1][begin : begin + want])
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                stream.abort(Abort.RESET)
                continue
            except Exception as exc:
                self.engine.wall(stream, exc)
                continue
            if not size:
                self.put(FIN, stream.sid)
                stream.at_end()
                continue
            _pack_head(out[0], pos, DATA | size, stream.sid)
            self._pos = begin + size
            stream.credit -= size
            stream.bytes_read += size
            if size == want or stream.ending:
                stream.queued = True
                bulk.append(stream)

    def _encrypt(self) -> None:
        write, outgoing, ready = self._tls.write, self._outgoing, self._unsent
        if self._pong is not None:
            self._controls.append(control_message(PONG, self._pong, masked=self._masks))
            self._pong = None
        for message in self._controls:
            write(message)
        self._controls.clear()
        if self._pos > WS_ROOM:
            assert self._out is not None
            buffer, view = self._out
            begin, end = put_message_head(buffer, self._pos - WS_ROOM, masked=self._masks), self._pos
            while end - begin > STEP_BYTES:
                write(view[begin : begin + STEP_BYTES])
                ready.append(outgoing.read())
                begin += STEP_BYTES
            write(view[begin:end])
            self._pos = WS_ROOM
        ready.append(outgoing.read())
        if self._out is not None:
            self.engine.give_back(self._out)
            self._out = None

    def _send(self) -> bool:
        """Hand the kernel what is encrypted, in one call; True when it took all."""
        ready = self._unsent
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

    def lost(self, why: str) -> None:
        """The peer or the wire ended it: its streams are reset, its owner is told why."""
        if self._leave():
            reset(self.sock)
            self.session.channel_lost(self, why)

    def close(self) -> None:
        """Say goodbye if that needs no waiting, and close; its streams are reset."""
        if not self.alive:
            return
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
        if self._leave():
            self.sock.close()
            self.session.channel_lost(self, "closed")

    def _leave(self) -> bool:
        if not self.alive:
            return False
        self.alive = False
        self.engine.unregister(self.fd)
        self.engine.pings.discard(self)
        self.engine.pongs.discard(self)
        if self._out is not None:
            self.engine.give_back(self._out)
            self._out = None
        self.fresh.clear()
        self.bulk.clear()
        return True
