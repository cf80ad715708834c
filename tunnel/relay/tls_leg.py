"""The local side of a stream whose target speaks TLS: looks like a plain socket to the stream.

Chosen when the target is attached, so that no frame of a plain target pays for the choice. A target that ends without
close_notify was cut: `recv_into` raises, and the visitor sees a reset.
"""

import ssl

from tunnel.relay.poller import WRITE
from tunnel.relay.stream import Stream
from tunnel.tls import Detached, read_into

RECEIVE_BYTES = 64 * 1024


class TlsLeg:
    """Stands between the poller and `stream`: what TLS itself has to send goes out on its own edges."""

    def __init__(self, parts: Detached, stream: Stream) -> None:
        self._sock = parts.sock
        self._tls = parts.tls
        self._incoming, self._outgoing = parts.incoming, parts.outgoing
        self._unsent: bytes | memoryview = parts.unsent
        self._stream = stream
        self._rescued = bytearray(parts.plaintext)  # read before, or what unwrap() would have thrown away
        self._has_ended = False  # close_notify was said, if not yet sent
        self.fileno = parts.sock.fileno
        self.getsockopt = parts.sock.getsockopt
        self.setsockopt = parts.sock.setsockopt
        self.close = parts.sock.close

    # For the poller

    def on_event(self, event: int) -> None:
        if event & WRITE:
            try:
                self._flush()
            except OSError:
                pass  # the stream meets it at its next send or read
        self._stream.on_event(event)

    def wants(self) -> int:
        return self._stream.wants() | (WRITE if self._unsent else 0)

    def fail(self, exc: Exception) -> None:
        self._stream.fail(exc)

    # For the stream (`LocalSocket`)

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        if not self._flush():
            raise BlockingIOError
        self._tls.write(data)
        self._flush()
        return len(data)

    def recv_into(self, buffer: memoryview, /) -> int:
        filled = 0
        if self._rescued:
            filled = min(len(buffer), len(self._rescued))
            buffer[:filled] = self._rescued[:filled]
            del self._rescued[:filled]
        while filled < len(buffer):
            try:
                size = read_into(self._tls, len(buffer) - filled, buffer[filled:])
            except ssl.SSLWantReadError:
                try:
                    self._fill()
                except BlockingIOError:
                    break
                continue
            except ssl.SSLZeroReturnError:
                size = 0  # close_notify, told in this way once ours was said
            except ssl.SSLError as exc:
                if filled:
                    self._stream.ending = True  # read again: the error comes again, an event may not
                    return filled
                raise ConnectionResetError(f"TLS: {exc.reason or exc}") from exc
            if not size:
                self._stream.ending = True  # close_notify; no event tells of it again
                return filled
            filled += size
        if not filled:
            raise BlockingIOError
        return filled

    def shutdown(self, how: int, /) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._rescue()
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # wants the peer's close_notify, which may come later; ours is in the BIO
        if not self._flush():
            raise BlockingIOError

    def _rescue(self) -> None:
        """Decrypt what the BIO holds, at most one fill of it.

        unwrap() looks for close_notify; a whole record in its place is lost, and so is all that follows, for every
        later read fails with "EOF occurred in violation of protocol". A record that came in part is kept.
        """
        try:
            while data := self._tls.read(RECEIVE_BYTES):
                self._rescued += data
        except ssl.SSLError:
            pass  # nothing more is there, or an end that comes again with the next read

    def _fill(self) -> None:
        data = self._sock.recv(RECEIVE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> bool:
        """Hand the kernel what TLS has to send; True when nothing is left."""
        while True:
            if not self._unsent:
                self._unsent = self._outgoing.read()
                if not self._unsent:
                    return True
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return False
            self._unsent = self._unsent[sent:]
