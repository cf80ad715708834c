"""How a target is reached, for visitors, health checks and hot connections alike: first a socket, then TLS on it.

Two functions, so that callers know in which phase something failed. Both leave the deadline to the caller.
"""

import socket

import trio

from tunnel.addresses import Target
from tunnel.errors import PeerLost
from tunnel.sockets import dial_tcp, no_delay
from tunnel.tls import TlsStream, target_context

UNIX_RETRY_SECONDS = 0.01


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

    Raises `ssl.SSLError` (verification among them), `trio.BrokenResourceError`, `OSError` (CA files that cannot be
    read) or `PeerLost` (a name TLS cannot ask for); then, and if cancelled, the socket is closed.
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
    except BaseException:
        tls.abort()
        raise
    return tls


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
