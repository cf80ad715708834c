"""A TLS stream that can be taken apart, and the contexts and checks it is made with.

`TlsStream` runs `ssl.SSLObject` over two memory BIOs on a plain non-blocking socket. Trio's own `SSLStream` cannot be
taken apart by public API, and a data channel must be: after the upgrade its socket, TLS state and the bytes already
read go to the relay, which moves them without Trio tasks. Until then, and for control channels for good, this is an
ordinary `trio.abc.Stream`.

How it sends: ciphertext leaves through one synchronous "send what the BIO holds" whose progress is kept in the object.
A cancelled `send_all` therefore never breaks the record stream; but "cancelled" does not mean "not delivered".
"""

import hmac
import socket
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import trio
from attrs import frozen

from tunnel.certificates import pin_text, spki_pin
from tunnel.errors import Refused
from tunnel.sockets import ENDED, UNREAD, reset

_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
# For TLS 1.2, where that is allowed: forward secrecy and authenticated encryption, as those of 1.3 all have them.
OLDER_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_NO_PASSWORD = ""  # an encrypted key fails, instead of asking on the terminal
_ALERTS = {  # about certificates, by the name OpenSSL gives them behind the version
    "CERTIFICATE_REQUIRED": "it wants one, and none was given",
    "UNKNOWN_CA": "it does not know the CA",
    "BAD_CERTIFICATE": "it cannot verify it",
    "UNSUPPORTED_CERTIFICATE": "it is not one for clients",
    "CERTIFICATE_EXPIRED": "it has expired, or is not valid yet",
    "CERTIFICATE_REVOKED": "it was revoked",
    "CERTIFICATE_UNKNOWN": "it cannot verify it",
}
RECEIVE_BYTES = 64 * 1024  # one system call feeds the BIO; BIOs never shrink, so not more


def server_context(
    cert_file: Path, key_file: Path, *, client_ca_file: Path | None = None, min_version: str = "1.3"
) -> ssl.SSLContext:
    """With `client_ca_file`, for clients with a certificate of that CA only. `ssl.SSLError`/`OSError` when the pair
    cannot be read or does not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _speak(context, min_version)
    context.load_cert_chain(cert_file, key_file, password=_NO_PASSWORD)
    if client_ca_file is not None:
        context.load_verify_locations(cafile=client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    # A ticket sent to a client that only writes and closes is unread data there: its close becomes a reset, and bytes
    # are lost (100,000 sent, 49,152 arrived). Nothing here resumes sessions.
    context.num_tickets = 0
    return context


def client_context(*, ca_file: Path | None, pinned: bool, min_version: str = "1.3") -> ssl.SSLContext:
    """Verification by `ca_file`, else by the pin alone if there is one, else by the system's CAs."""
    if pinned and ca_file is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the pin is checked instead, before anything of ours is sent
    else:
        context = ssl.create_default_context(cafile=ca_file)
    _speak(context, min_version)
    return context


def show_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    """For servers that want one of their clients. Raises as `server_context` does."""
    context.load_cert_chain(cert_file, key_file, password=_NO_PASSWORD)


def _speak(context: ssl.SSLContext, min_version: str) -> None:
    context.minimum_version = _VERSIONS[min_version]
    if min_version != "1.3":
        context.set_ciphers(OLDER_CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET


def certificate_refused(error: ssl.SSLError | None) -> str | None:
    """Why a handshake failed for the client's certificate, as either side sees it; None where that was not it.

    With TLS 1.3 the client learns it by what it reads first, for its own handshake is over by then.
    """
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it gave none"
    return _ALERTS.get(reason.partition("_ALERT_")[2])


def client_certificate_refused(error: ssl.SSLError | None) -> Refused | None:
    """The same for the client's caller."""
    why = certificate_refused(error)
    if why is None or isinstance(error, ssl.SSLCertVerificationError):
        return None
    message = f"the server does not take this client's certificate: {why}; give one that its client_ca_file vouches for"
    return Refused("client_certificate_refused", f"{message} (cert_file and key_file)", trust=True)


def target_context() -> ssl.SSLContext:
    """For TLS targets: the system's CAs. Read again once an hour; reading takes everybody ten milliseconds."""
    return _system_cas(int(time.monotonic() // 3600))


@lru_cache(maxsize=1)
def _system_cas(_hour: int) -> ssl.SSLContext:
    return ssl.create_default_context()


def pin_check(pin: bytes) -> Callable[[ssl.SSLObject], None]:
    """A check for `do_handshake`: the peer's public key is the one whose SHA-256 is `pin`, or `Refused`."""

    def check(tls: ssl.SSLObject) -> None:
        der = tls.getpeercert(binary_form=True)
        try:
            theirs = spki_pin(der or b"")
        except ValueError as exc:
            raise Refused("pin_mismatch", f"the server's certificate cannot be read: {exc}", trust=True) from exc
        if not hmac.compare_digest(theirs, pin):
            raise Refused(
                "pin_mismatch",
                f"the server's key is {pin_text(theirs)}, not the pinned {pin_text(pin)}; either the server has a new "
                "key (compare with what `trio-tunnel serve` prints there) or somebody is in between",
                trust=True,
            )

    return check


@frozen
class Detached:
    """A TLS connection in parts, with what was read and what is still to be sent."""

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    plaintext: bytes  # decrypted, not yet consumed
    unsent: bytes  # ciphertext the kernel has not taken


def read_into(tls: ssl.SSLObject, size: int, buffer: memoryview) -> int:
    """`SSLObject.read` into a buffer: how many bytes came, 0 for close_notify. (typeshed knows only the other form.)"""
    return tls.read(size, buffer)  # type: ignore[return-value, arg-type, unused-ignore]


class TlsStream(trio.abc.Stream):
    """One TLS connection on `sock` (non-blocking, owned from now on). Ends with `aclose` or `detach`.

    One task may send while another receives. Errors: `BrokenResourceError` for anything that is not a clean
    close_notify, so that a cut is never taken for an end.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        except BaseException:
            sock.close()
            raise
        self.refused: Refused | None = None  # why the server ended it, where that was the client's certificate
        self._unsent = b""
        self._replay = b""
        self._send_lock = trio.Lock()
        self._users = 0  # tasks inside receive_some or send_all; detach() refuses while there are any
        self._closed = False
        self._is_mute = False  # the peer is not who it should be: not a byte more for it

    @property
    def socket(self) -> socket.socket:
        """For socket options and names; reading or writing it would break the TLS stream."""
        return self._sock

    @property
    def peer_certificate(self) -> bytes:
        """The peer's, in DER, once hands were shaken; empty if it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def cipher(self) -> str:
        """What was agreed on, such as ``TLSv1.3 TLS_AES_256_GCM_SHA384``."""
        used = self._tls.cipher()
        return f"{self._tls.version()} {used[0] if used else ''}".strip()

    async def do_handshake(self, check: Callable[[ssl.SSLObject], None] | None = None) -> None:
        """Shake hands, then `check` the peer before anything more is sent: if it raises, the peer sees only an end.

        Raises `ssl.SSLError` (verification among them) or `BrokenResourceError`. If cancelled, close the stream.
        """
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                self._flush_nowait()  # the alert tells the peer why
                raise
        if check is not None:
            try:
                check(self._tls)
            except BaseException:
                self._outgoing.read()  # our Finished stays here, and so does anything that close() would say
                self._is_mute = True
                raise
        await self._flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to `max_bytes` of plaintext; ``b""`` only for close_notify. Cancellation loses nothing."""
        self._check_open()
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        await trio.lowlevel.checkpoint_if_cancelled()
        limit = max_bytes or RECEIVE_BYTES
        if self._replay:
            await trio.lowlevel.cancel_shielded_checkpoint()
            data, self._replay = self._replay[:limit], self._replay[limit:]
            return data
        self._users += 1
        try:
            while True:
                try:
                    data = self._tls.read(limit)
                except ssl.SSLWantReadError:
                    self._flush_nowait()  # a key update may want an answer; never wait for it here
                    await self._fill()
                    continue
                except ssl.SSLZeroReturnError:
                    data = b""
                except ssl.SSLError as exc:
                    self.refused = client_certificate_refused(exc)
                    raise trio.BrokenResourceError(f"TLS: {exc.reason or exc}") from exc
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
        finally:
            self._users -= 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it all. If cancelled, an unknown part was delivered and the rest will follow with the next send."""
        self._check_open()
        self._users += 1
        try:
            async with self._send_lock:
                if data:
                    try:
                        self._tls.write(data)
                    except ssl.SSLError as exc:
                        raise trio.BrokenResourceError(f"TLS: {exc.reason or exc}") from exc
                await self._flush_locked()
        finally:
            self._users -= 1

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self._sock)

    def push_back(self, data: bytes) -> None:
        """Let `data` be read again, before anything else."""
        self._replay = data + self._replay

    def peek(self) -> str | None:
        """Why an idle connection cannot be used any more: it `ENDED`, or there are `UNREAD` bytes. None if it can.

        At once, and nothing is lost: what came is read by the next `receive_some`. Session tickets are taken in; a look
        at the bare socket would take them for data.
        """
        if self._closed:
            return ENDED
        while not self._replay:
            try:
                if not (self._tls.pending() or self._incoming.pending):
                    received = self._sock.recv(RECEIVE_BYTES)
                    if not received:
                        return ENDED
                    self._incoming.write(received)
                self._replay = self._tls.read(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                return None
            except ssl.SSLWantReadError:
                continue
            except OSError:  # `ssl.SSLError` too, close_notify among them
                return ENDED
            if not self._replay:
                return ENDED
        return UNREAD

    def detach(self) -> Detached:
        """Take the connection apart; afterwards this object is closed and the parts are the caller's."""
        self._check_open()
        if self._users:
            raise trio.BusyResourceError("a task is using this stream")
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)  # Trio's poller forgets the descriptor before ours takes it
        return Detached(self._sock, self._tls, self._incoming, self._outgoing, self._replay, self._unsent)

    async def aclose(self) -> None:
        """Close at once: close_notify if the kernel takes it without waiting, then the socket."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if self._closed:
            return
        self._say_goodbye()
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def abort(self) -> None:
        """Close with a reset and without a word."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock)
            reset(self._sock)

    async def end_politely(self) -> None:
        """After a last answer: close_notify, FIN, and read what still comes, so that the answer is not lost to a reset.

        Waits for the peer; the caller holds the deadline. Reads at most 256 KiB.
        """
        self._say_goodbye()
        try:
            self._sock.shutdown(socket.SHUT_WR)
            for _ in range(4):
                if not await self._receive_raw():
                    return
        except (OSError, trio.BrokenResourceError):
            return

    def _say_goodbye(self) -> None:
        """Only where nothing more is read: `unwrap()` takes an unread record for an error that ends all reading."""
        if self._is_mute:
            return
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError, OSError):
            pass  # the close_notify is in the BIO, or the handshake never ended
        try:
            self._flush_nowait()
        except trio.BrokenResourceError:
            pass  # they went first

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS stream was closed or detached")

    async def _flush(self) -> None:
        async with self._send_lock:
            await self._flush_locked()

    async def _flush_locked(self) -> None:
        while not self._flush_nowait():
            await trio.lowlevel.wait_writable(self._sock)

    def _flush_nowait(self) -> bool:
        """Hand the kernel what the BIO holds; True when nothing is left."""
        while True:
            if not self._unsent:
                self._unsent = self._outgoing.read(RECEIVE_BYTES)
                if not self._unsent:
                    return True
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc
            self._unsent = self._unsent[sent:]

    async def _fill(self) -> None:
        data = await self._receive_raw()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _receive_raw(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc
