"""How a target is reached, for visitors, health checks and hot connections alike: first a socket, then TLS on it.

Two functions, so that callers know in which phase something failed. Both leave the deadline to the caller.
"""

import socket
import ssl

import trio

from tunnel.addresses import Target
from tunnel.errors import PeerLost
from tunnel.sockets import dial_tcp, no_delay
from tunnel.tls import TlsStream, target_context

UNIX_RETRY_SECONDS = 0.01
_WRONG_NAME = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


async def dial_target(target: Target) -> socket.socket:
    """A connected, non-blocking socket to where `target` is, TLS not begun.

    Raises `PeerLost` (TCP) or `OSError` (Unix). If cancelled, nothing is left open.
    """
    if target.kind == "unix":
        return await _dial_unix(target.host)
    sock = await dial_tcp(target.where)
    no_delay(sock)
    return sock


async def shake_hands(sock: socket.socket, target: Target) -> TlsStream:
    """TLS on a socket from `dial_target`, whatever the target's kind; the socket is the stream's from now on.

    Raises `PeerLost`, whose cause is the `ssl.SSLError` or `trio.BrokenResourceError` there was, or `OSError` (CA files
    that cannot be read); then, and if cancelled, the socket is closed.
    """
    name = target.server_name or ("localhost" if target.kind == "unix" else target.host)
    try:
        context = target_context()
    except BaseException:
        sock.close()
        raise
    try:
        tls = TlsStream(sock, context, server_side=False, server_hostname=name)
    except ValueError as exc:  # an empty label, a leading dot; a certificate that is not trusted is one too, but later
        raise PeerLost(f"TLS cannot ask for the name {name!r}: {exc}") from exc
    try:
        await tls.do_handshake()
    except (ssl.SSLError, trio.BrokenResourceError) as exc:
        tls.abort()
        raise PeerLost(f"{target} {_in_words(exc)}", answered=True) from exc
    except BaseException:
        tls.abort()
        raise
    return tls


def _in_words(exc: Exception) -> str:
    """What the target did in the handshake, and for its certificate what to do."""
    match exc:
        case ssl.SSLCertVerificationError(verify_code=code) if code in _WRONG_NAME:
            why = exc.verify_message.rstrip(".")
            return f"has a certificate for another name: {why}; server_name says which name to expect"
        case ssl.SSLCertVerificationError():
            return (
                f"has a certificate that is not trusted: {exc.verify_message}; its CA must be one of the system's, "
                "or stand in the file that SSL_CERT_FILE names"
            )
        case ssl.SSLError() if not isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return f"does not speak our TLS: {exc.reason or exc}"
        case _:
            return "ended the connection in the TLS handshake"


async def _dial_unix(path: str) -> socket.socket:
    """Again and again while the backlog is full: unlike TCP's, the kernel does not wait for room, and says no event."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)
            await trio.lowlevel.checkpoint()
        except BlockingIOError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        await trio.sleep(UNIX_RETRY_SECONDS)
