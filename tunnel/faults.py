"""What went wrong on the way to somebody, and whether trying again can help: pure values.

Told by the exception's type, by errno and by the phase, never by its text: texts differ with the system and the
language, and "connection" stands in those of a refused certificate, too. Pools and health checks ask; `backoff` then
says when to try again, and its `RetryBudget` whether.
"""

import errno
import socket
import ssl
from enum import StrEnum

from attrs import frozen

from tunnel.errors import LocalProtocolError, PeerLost, Refused, RemoteProtocolError

MAX_MESSAGE = 1000  # characters; a peer may have had a hand in the text
MAX_LINKS = 100  # exceptions looked at in one tree of causes; happy eyeballs bring two for each address


class Phase(StrEnum):
    """How far it had come. Until `FIRST_BYTE` nothing of the request itself is on its way."""

    RESOLVE = "resolve"
    DIAL = "dial"
    HANDSHAKE = "handshake"
    VALIDATE = "validate"
    FIRST_BYTE = "first_byte"


class Kind(StrEnum):
    """What it was. Bounded, so that it may be a label of a metric."""

    REFUSED = "refused"  # nobody listens there
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    RESET = "reset"  # what answered broke off, cleanly or not
    UNKNOWN_NAME = "unknown_name"
    RESOLVER = "resolver"  # no answer about the name, which may be a good one
    CERTIFICATE = "certificate"  # the peer is not who it should be
    TLS = "tls"  # no common version, an alert, or no TLS at all
    PROTOCOL = "protocol"  # the peer said what it must not say
    RESOURCES = "resources"  # this machine is out of descriptors, ports or memory
    REFUSED_BY_PEER = "refused_by_peer"  # understood, and declined
    INVALID = "invalid"  # what was asked for cannot be, or is not permitted
    OTHER = "other"


@frozen
class Fault:
    """One failure, classified. `retryable`: a later try of the same thing may go well, and does no harm."""

    phase: Phase
    kind: Kind
    retryable: bool
    message: str  # for people only


_Verdict = tuple[Kind, bool]

RETRYABLE = frozenset({
    Kind.REFUSED, Kind.TIMEOUT, Kind.UNREACHABLE, Kind.RESET, Kind.RESOLVER,
    Kind.RESOURCES,
})  # fmt: skip

_ERRNOS = {
    Kind.REFUSED: (errno.ECONNREFUSED, errno.ENOENT),  # ENOENT: a Unix socket whose service is not up yet
    Kind.TIMEOUT: (errno.ETIMEDOUT,),
    Kind.UNREACHABLE: (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
    Kind.RESET: (
        errno.ECONNRESET, errno.ECONNABORTED, errno.ENETRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN,
    ),
    Kind.RESOURCES: (
        errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EWOULDBLOCK,
        errno.EADDRNOTAVAIL, errno.EADDRINUSE,  # of a dial: no port of ours was free
    ),
    Kind.INVALID: (
        errno.EINVAL, errno.EAFNOSUPPORT, errno.EPROTOTYPE, errno.EPROTONOSUPPORT, errno.EACCES, errno.EPERM,
        errno.ENOTSOCK, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
    ),
}  # fmt: skip
_BY_ERRNO = {number: kind for kind, numbers in _ERRNOS.items() for number in numbers}

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_ASKED_WRONGLY = {socket.EAI_FAMILY, socket.EAI_SERVICE, socket.EAI_SOCKTYPE, socket.EAI_BADFLAGS}

_OUR_CHECKS = frozenset({"certificate_untrusted", "pin_mismatch"})  # reasons of `Refused`: we refused, not the peer

# Most special first. Only asked where no errno told more.
_BY_TYPE: tuple[tuple[type[BaseException], Kind], ...] = (
    (ssl.SSLCertVerificationError, Kind.CERTIFICATE),
    (ssl.SSLEOFError, Kind.RESET),
    (ssl.SSLZeroReturnError, Kind.RESET),
    (ssl.SSLError, Kind.TLS),
    (socket.herror, Kind.RESOLVER),
    (ConnectionRefusedError, Kind.REFUSED),
    (ConnectionError, Kind.RESET),
    (TimeoutError, Kind.TIMEOUT),
    (BlockingIOError, Kind.RESOURCES),
    (PermissionError, Kind.INVALID),
    (RemoteProtocolError, Kind.PROTOCOL),
    (LocalProtocolError, Kind.OTHER),
    (EOFError, Kind.RESET),
    (MemoryError, Kind.RESOURCES),
    (ValueError, Kind.INVALID),
)


def classify(exc: BaseException, phase: Phase, *, sent: bool = True) -> Fault:
    """What `exc`, raised in `phase`, amounts to. Never raises.

    `sent` counts in `FIRST_BYTE` alone: whether any of the request may have left. The peer may then have acted on it,
    so nothing is tried again, whatever went wrong; whoever knows that nothing left says ``sent=False``.

    Of the several errors of happy eyeballs the one that gives most hope counts, and an address that answered before
    one that no route leads to: a host without IPv6 must not turn every refusal into "unreachable".
    """
    kind, again = min(_verdicts(exc, phase), key=_hope, default=(Kind.OTHER, False))
    if phase is Phase.FIRST_BYTE and sent:
        again = False
    return Fault(phase, kind, again, (str(exc) or type(exc).__name__)[:MAX_MESSAGE])


def _hope(verdict: _Verdict) -> tuple[bool, bool]:
    kind, again = verdict
    return not again, kind is Kind.UNREACHABLE


def _verdicts(exc: BaseException, phase: Phase) -> list[_Verdict]:
    """What the exception says, or, where it says nothing exact, those below it: group members and causes."""
    exact: list[_Verdict] = []
    rough: list[_Verdict] = []
    seen: set[int] = set()
    waiting: list[BaseException] = [exc]
    while waiting and len(seen) < MAX_LINKS:
        link = waiting.pop()
        if id(link) in seen:  # causes may run in a circle
            continue
        seen.add(id(link))
        verdict = _exact(link, phase)
        if verdict is not None:
            exact.append(verdict)
            continue
        rough += _rough(link)
        if link.__cause__ is not None:
            waiting.append(link.__cause__)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(reversed(link.exceptions))
    return exact or rough[-1:]  # the last: nearest to the cause


def _exact(exc: BaseException, phase: Phase) -> _Verdict | None:
    if isinstance(exc, Refused):  # where trust is missing, only a person helps; "busy" may be asked again
        kind = Kind.CERTIFICATE if exc.reason in _OUR_CHECKS else Kind.REFUSED_BY_PEER
        return kind, not exc.trust
    found = _by_number(exc) or _by_type(exc, phase)
    return None if found is None else (found, found in RETRYABLE)


def _by_number(exc: BaseException) -> Kind | None:
    """By errno, or by what stands in its place: `gaierror` has numbers of its own there, and so has `ssl.SSLError`."""
    if isinstance(exc, socket.gaierror):
        if exc.errno in _NO_SUCH_NAME:
            return Kind.UNKNOWN_NAME
        return Kind.INVALID if exc.errno in _ASKED_WRONGLY else Kind.RESOLVER
    if isinstance(exc, (ssl.SSLError, socket.herror)) or not isinstance(exc, (OSError, PeerLost)):
        return None
    return None if exc.errno is None else _BY_ERRNO.get(exc.errno)


def _by_type(exc: BaseException, phase: Phase) -> Kind | None:
    if isinstance(exc, UnicodeError) and phase in (Phase.RESOLVE, Phase.DIAL):
        return Kind.UNKNOWN_NAME  # no name can be spelled like that
    if _trio_name(exc) == "TooSlowError":
        return Kind.TIMEOUT
    return next((kind for type_, kind in _BY_TYPE if isinstance(exc, type_)), None)


def _rough(exc: BaseException) -> list[_Verdict]:
    """What is left to say of an error that has no cause which says more."""
    if _trio_name(exc) == "BrokenResourceError" or (isinstance(exc, PeerLost) and exc.answered):
        return [(Kind.RESET, True)]
    return [(Kind.UNREACHABLE, True)] if isinstance(exc, PeerLost) else []


def _trio_name(exc: BaseException) -> str:
    """The name of Trio's class, or "". By name, because this module must do without Trio."""
    return next((kind.__name__ for kind in type(exc).__mro__ if kind.__module__ == "trio"), "")
