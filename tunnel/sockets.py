"""Sockets as the tunnel wants them: options, listening, dialling."""

import errno
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any, Protocol

import trio

from tunnel.addresses import HostPort, is_ip
from tunnel.errors import PeerLost

UNSPELLABLE = "no name can be spelled like that"
BACKLOG = 4096  # the kernel cuts it to somaxconn; a burst of visitors waits there, not in our memory
DEAD_PEER_MS = 30_000  # TCP_USER_TIMEOUT: unacknowledged this long, the connection ends (design §5)
RETRANSMIT_MS = 3_000  # between attempts at most: a path cut for 20 s is used again 3 s after it healed, not 20
UNSENT_BYTES = 256 * 1024  # one batch
BULK_UNSENT_BYTES = 1024 * 1024  # 28 ms at 300 Mbit/s; with 256 KiB a path ran dry at times (0.94 of what it can carry)
INHERITED = sys.platform == "linux"  # accepted sockets have the listener's options: two system calls less for each
# accept(2) waits for descriptors or memory: the same listener works again later.
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What it passes on from a connection that failed before it was accepted: the next one may be fine.
PASSING = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
           errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ETIMEDOUT, errno.EINTR}  # fmt: skip
TCP_RTO_MAX_MS = 44  # Linux 6.15; Python has no name for it
_WINDOW = struct.Struct("=24xI52xI")  # Linux' tcp_info: tcpi_unacked and tcpi_snd_cwnd, in packets
_NODELAY_OPTION = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(addr: str, port: int, *, family: int | None = None) -> socket.socket:
    """Bind and listen in one step (EADDRINUSE can come from either); IPv6 sockets are V6ONLY. Raises `OSError`."""
    if family is None:
        family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sys.platform != "win32":  # there it would let two processes share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((addr, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def is_addr_present(addr: str) -> bool:
    """Whether this host (still) has the address: a listener on one that went away hears and says nothing."""
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((addr, 0))
        except OSError as exc:
            return exc.errno != errno.EADDRNOTAVAIL
    return True


def no_delay(sock: socket.socket) -> None:
    with suppress(OSError):  # Unix sockets have no such option; a peer already gone shows at the next read
        sock.setsockopt(*_NODELAY_OPTION)


def tunnel_options(sock: socket.socket) -> None:
    """For control and data channels only: their readers never stop, so silence means death. A visitor may stop."""
    no_delay(sock)
    with suppress(OSError):  # macOS: a peer already gone, which shows at the next read
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", DEAD_PEER_MS),
    ):
        if hasattr(socket, name):  # not every platform has all four
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if sys.platform == "linux":
        with suppress(OSError):  # an older kernel: the intervals double as long as the cut lasts
            sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RETRANSMIT_MS)


LINGER_RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {on, 0 s}: close() sends RST
LINGER_CLEAN = bytes(8)


ENDED, UNREAD = "ended", "unread bytes"  # what a `peek` finds


def peek(sock: socket.socket) -> str | None:
    """Why an idle connection cannot be used any more; None if it can. At once, and nothing is taken from it.

    It `ENDED` (closed by the peer, cleanly or not), or has `UNREAD` bytes: the peer spoke unasked, or an answer was not
    read to its end.
    """
    try:
        return UNREAD if sock.recv(1, socket.MSG_PEEK) else ENDED
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return ENDED


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the peer has ended an idle connection, be it behind bytes that nobody has read yet."""
    if not hasattr(select, "POLLRDHUP"):  # elsewhere an end behind bytes shows only when they are read
        return peek(sock) == ENDED
    poll = select.poll()
    try:
        poll.register(sock, select.POLLRDHUP)
    except (OSError, ValueError):  # closed
        return True
    return bool(poll.poll(0))


class Resettable(Protocol):
    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...
    def close(self) -> None: ...


def expect_reset(sock: Resettable, expected: bool = True) -> None:
    """Whether closing `sock`, by us or by the kernel after a `kill -9`, resets it (else: a clean end)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET if expected else LINGER_CLEAN)
    except OSError:
        pass  # already disconnected


def reset(sock: Resettable) -> None:
    """Close `sock` so that its peer sees a reset, never a clean end."""
    expect_reset(sock)
    sock.close()


def visitor_options(sock: socket.socket) -> None:
    """For a visitor's socket, or the listener it comes from where accepted sockets inherit them (`INHERITED`)."""
    no_delay(sock)
    expect_reset(sock)


def limit_unsent(sock: socket.socket, size: int) -> None:
    """For data channels: at most `size` bytes wait unsent in the kernel, where small frames queue behind bulk ones.

    What is in flight is not limited by it, so a long path still fills. Where the system has no such option, nothing is
    changed.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)  # named since Python 3.12
    if option is not None:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, size)


def has_room_for(sock: socket.socket, packets: int) -> bool:
    """Whether so many packets more leave half of TCP's congestion window free; True where the system does not tell."""
    if sys.platform != "linux":
        return True
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WINDOW.size)
    except OSError:
        return True  # no TCP
    unacknowledged, window = _WINDOW.unpack(told)
    return bool(2 * (unacknowledged + packets) <= window)


async def dial_tcp(where: HostPort, *, name: str = "") -> socket.socket:
    """A connected, non-blocking socket; names are resolved and raced by Trio (RFC 8305).

    Raises `PeerLost` with the cause in words, which call it `name`. The caller holds the deadline; if cancelled,
    nothing is left open.
    """
    try:
        stream = await trio.open_tcp_stream(where.host, where.port)
    except OSError as exc:
        told = _first_cause(exc)
        number = None if isinstance(told, socket.gaierror) else told.errno  # the resolver's numbers are not errnos
        raise PeerLost(f"cannot reach {name or where}: {_plain(told)}", errno=number) from exc
    except UnicodeError as exc:  # an empty or an endless label
        raise PeerLost(f"cannot reach {name or where}: {UNSPELLABLE}") from exc
    raw = stream.socket
    trio.lowlevel.notify_closing(raw)
    sock = socket.socket(fileno=raw.detach())
    sock.setblocking(False)
    return sock


async def look_up_name(host: str, *, name: str) -> list[str]:
    """The numeric addresses that `host` stands for, each once, IPv6 and IPv4 by turns (RFC 8305 §4).

    Raises `PeerLost` with the cause in words, which call it `name`. The caller holds the deadline.
    """
    try:
        found: list[tuple[Any, ...]] = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise PeerLost(f"cannot reach {name}: {_plain(exc)}") from exc
    except UnicodeError as exc:  # an empty or an endless label
        raise PeerLost(f"cannot reach {name}: {UNSPELLABLE}") from exc
    families: dict[int, list[str]] = {}
    for family, _kind, _protocol, _canonical, address in found:
        families.setdefault(family, []).append(str(address[0]))
    mixed = chain.from_iterable(zip_longest(*families.values()))
    return list(dict.fromkeys(ip for ip in mixed if ip))


def _first_cause(exc: OSError) -> OSError:
    """Happy eyeballs bring one error for each address tried; they mostly agree."""
    cause: BaseException | None = exc.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else exc


def _plain(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return f"the name cannot be resolved ({exc.strerror})"
    return os.strerror(exc.errno) if exc.errno else str(exc)  # Trio's own text repeats the address


def family_of(addr: str) -> int:
    if not is_ip(addr):
        raise ValueError(f"{addr!r} is not an IP address")
    return socket.AF_INET6 if ":" in addr else socket.AF_INET
