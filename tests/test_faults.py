"""Failures are told apart by type, errno and phase; their text is for people and decides nothing."""

import errno
import socket
import ssl
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import LocalProtocolError, PeerLost, Refused, RemoteProtocolError, TunnelError
from tunnel.faults import MAX_LINKS, MAX_MESSAGE, Fault, Kind, Phase, classify


def caused(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


def system(number: int) -> OSError:
    return OSError(number, "text")


def happy_eyeballs(*errors: Exception) -> OSError:
    raised = OSError("all attempts to connect failed")  # as Trio raises it: no errno, a group for a cause
    raised.__cause__ = ExceptionGroup("several", list(errors)) if len(errors) > 1 else errors[0]
    return raised


BY_ERRNO = {
    "refused": ["ECONNREFUSED", "ENOENT"],
    "timeout": ["ETIMEDOUT"],
    "unreachable": ["ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EHOSTDOWN"],
    "reset": ["ECONNRESET", "ECONNABORTED", "EPIPE"],
    "resources": ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EAGAIN", "EADDRNOTAVAIL"],
    "invalid": ["EINVAL", "EAFNOSUPPORT", "EACCES", "EPERM"],
    "other": ["ENOEXEC", "EIO", "EBADF"],
}
ERRNO_CASES = [(getattr(errno, name), kind) for kind, names in BY_ERRNO.items() for name in names]
ERRNO_NAMES = [name for names in BY_ERRNO.values() for name in names]


@pytest.mark.parametrize(("number", "kind"), ERRNO_CASES, ids=ERRNO_NAMES)
def test_a_system_error_is_told_by_its_errno(number: int, kind: str) -> None:
    fault = classify(system(number), Phase.DIAL)
    assert (fault.kind, fault.retryable) == (kind, kind not in ("invalid", "other"))


@pytest.mark.parametrize(("number", "kind"), ERRNO_CASES, ids=ERRNO_NAMES)
def test_an_errno_counts_as_much_below_our_own_errors_and_trios(number: int, kind: str) -> None:
    broken = caused(trio.BrokenResourceError("gone"), system(number))
    lost = caused(PeerLost("lost", answered=True), broken)
    expected = "reset" if kind == "other" else kind  # of a number nobody knows, the stream's word is left
    assert classify(broken, Phase.HANDSHAKE).kind == classify(lost, Phase.HANDSHAKE).kind == expected


CASES: dict[str, tuple[BaseException, str, bool]] = {
    "name unknown": (socket.gaierror(socket.EAI_NONAME, ""), "unknown_name", False),
    "resolver busy": (socket.gaierror(socket.EAI_AGAIN, ""), "resolver", True),
    "resolver failed": (socket.gaierror(socket.EAI_FAIL, ""), "resolver", True),
    "family unknown": (socket.gaierror(socket.EAI_FAMILY, ""), "invalid", False),
    "a number of the resolver that is also an errno": (socket.gaierror(errno.ECONNREFUSED, ""), "resolver", True),
    "a number of OpenSSL that is also an errno": (ssl.SSLError(errno.ECONNREFUSED, ""), "tls", False),
    "name below ours": (caused(PeerLost(""), socket.gaierror(socket.EAI_NONAME, "")), "unknown_name", False),
    "name that cannot be": (caused(PeerLost(""), UnicodeError()), "unknown_name", False),
    "certificate": (ssl.SSLCertVerificationError(1, ""), "certificate", False),
    "certificate, as a dialer says it": (
        caused(Refused("certificate_untrusted", "", trust=True), ssl.SSLCertVerificationError(1, "")),
        "certificate", False,
    ),
    "pin": (Refused("pin_mismatch", "", trust=True), "certificate", False),
    "no TLS there": (caused(PeerLost("", answered=True), ssl.SSLError(1, "")), "tls", False),
    "hung up in the handshake": (ssl.SSLEOFError(8, ""), "reset", True),
    "said goodbye in the handshake": (ssl.SSLZeroReturnError(6, ""), "reset", True),
    "TLS below Trio's": (caused(trio.BrokenResourceError(), ssl.SSLError(1, "")), "tls", False),
    "token": (Refused("token_refused", "", trust=True), "refused_by_peer", False),
    "busy": (Refused("server_busy", "", trust=False), "refused_by_peer", True),
    "nonsense": (RemoteProtocolError(""), "protocol", False),
    "our nonsense": (LocalProtocolError(""), "other", False),
    "timeout": (TimeoutError(), "timeout", True),
    "timeout of Trio": (trio.TooSlowError(), "timeout", True),
    "broken without a cause": (trio.BrokenResourceError(), "reset", True),
    "broke off": (PeerLost("", answered=True), "reset", True),
    "nothing answered": (PeerLost(""), "unreachable", True),
    "errno of ours": (PeerLost("", errno=errno.ECONNREFUSED), "refused", True),
    "number of ours that is no errno": (PeerLost("", errno=-2), "unreachable", True),
    "reset without errno": (ConnectionResetError(), "reset", True),
    "refused without errno": (ConnectionRefusedError(), "refused", True),
    "end of file": (EOFError(), "reset", True),
    "out of memory": (MemoryError(), "resources", True),
    "bad value": (ValueError(), "invalid", False),
    "a bug": (KeyError("x"), "other", False),
    "ours, unspecific": (TunnelError(), "other", False),
    "nothing known": (OSError(), "other", False),
    "interrupted": (KeyboardInterrupt(), "other", False),
    "happy eyeballs, one": (happy_eyeballs(system(errno.ECONNREFUSED)), "refused", True),
    "happy eyeballs, no IPv6": (happy_eyeballs(system(errno.ENETUNREACH), system(errno.ECONNREFUSED)), "refused", True),
    "happy eyeballs, no IPv4": (happy_eyeballs(system(errno.ECONNREFUSED), system(errno.ENETUNREACH)), "refused", True),
    "happy eyeballs, some hope": (happy_eyeballs(system(errno.EACCES), system(errno.ENETUNREACH)), "unreachable", True),
    "happy eyeballs, below ours": (
        caused(PeerLost(""), happy_eyeballs(system(errno.EACCES), system(errno.ETIMEDOUT))), "timeout", True,
    ),
    "groups in groups": (ExceptionGroup("", [ExceptionGroup("", [system(errno.EMFILE)])]), "resources", True),
}  # fmt: skip


@pytest.mark.parametrize(("exc", "kind", "retryable"), CASES.values(), ids=CASES)
def test_each_failure_has_its_kind(exc: BaseException, kind: str, retryable: bool) -> None:
    fault = classify(exc, Phase.DIAL)
    assert (fault.phase, fault.kind, fault.retryable) == (Phase.DIAL, kind, retryable)


def test_an_unspellable_name_is_unknown_only_where_names_are_looked_up() -> None:
    kinds = {phase: classify(UnicodeError(), phase).kind for phase in Phase}
    assert kinds == {
        Phase.RESOLVE: "unknown_name", Phase.DIAL: "unknown_name", Phase.HANDSHAKE: "invalid",
        Phase.VALIDATE: "invalid", Phase.FIRST_BYTE: "invalid",
    }  # fmt: skip


@pytest.mark.parametrize("phase", Phase)
def test_once_some_of_the_request_may_have_left_nothing_is_tried_again(phase: Phase) -> None:
    reset, bad = system(errno.ECONNRESET), ssl.SSLCertVerificationError(1, "")
    assert classify(reset, phase).retryable is (phase is not Phase.FIRST_BYTE)
    assert classify(reset, phase, sent=False).retryable is True
    assert classify(bad, phase, sent=False).retryable is False


def test_causes_in_a_circle_and_without_end_come_to_an_end() -> None:
    a, b = PeerLost("a"), PeerLost("b", answered=True)
    a.__cause__, b.__cause__ = b, a
    assert classify(a, Phase.DIAL).kind == "reset"
    deep: BaseException = system(errno.ECONNREFUSED)
    for _ in range(MAX_LINKS):
        deep = caused(PeerLost(""), deep)
    assert classify(deep, Phase.DIAL).kind == "unreachable"


def test_the_message_is_the_errors_own_and_never_endless() -> None:
    assert classify(PeerLost("cannot reach nas:80"), Phase.DIAL).message == "cannot reach nas:80"
    assert classify(TimeoutError(), Phase.DIAL).message == "TimeoutError"
    assert len(classify(PeerLost("x" * 10_000), Phase.DIAL).message) == MAX_MESSAGE


# For any exception

MAKERS: list[Callable[[str, int], BaseException]] = [
    lambda text, number: OSError(number, text),
    lambda text, number: OSError(text),
    lambda text, number: socket.gaierror(number, text),
    lambda text, number: ssl.SSLError(number, text),
    lambda text, number: ssl.SSLCertVerificationError(number, text),
    lambda text, number: PeerLost(text, answered=number % 2 == 0, errno=number),
    lambda text, number: Refused("token_refused", text, trust=number % 2 == 0),
    lambda text, number: RemoteProtocolError(text),
    lambda text, number: trio.BrokenResourceError(text),
    lambda text, number: trio.TooSlowError(text),
    lambda text, number: ValueError(text),
    lambda text, number: RuntimeError(text),
    lambda text, number: KeyboardInterrupt(text),
]
Shape = tuple[int, int, "list[Shape]", bool]
LEAVES: st.SearchStrategy[Shape] = st.tuples(
    st.integers(0, len(MAKERS) - 1), st.sampled_from([-8, -3, -2, 1, 2, 8, 11, 24, 101, 104, 110, 111, 113]) |
    st.integers(-20, 150), st.just([]), st.booleans(),
)  # fmt: skip
SHAPES: st.SearchStrategy[Shape] = st.recursive(
    LEAVES, lambda inner: st.tuples(st.integers(0, len(MAKERS) - 1), st.integers(-20, 150),
                                    st.lists(inner, max_size=3), st.booleans()), max_leaves=8,
)  # fmt: skip


def build(shape: Shape, text: str) -> BaseException:
    """An exception of this shape, each part with `text`; the parts below are a group, or the cause."""
    index, number, below, grouped = shape
    made: BaseException = MAKERS[index](text, number)
    parts = [build(part, text) for part in below]
    if grouped and parts:
        return caused(BaseExceptionGroup(text, parts), made)
    return caused(made, BaseExceptionGroup(text, parts) if len(parts) > 1 else parts[0]) if parts else made


@given(SHAPES, st.sampled_from(Phase), st.booleans(), st.text(), st.sampled_from(["connection refused", "timed out"]))
def test_any_exception_gives_a_fault_and_its_text_never_matters(
    shape: Shape, phase: Phase, sent: bool, text: str, other: str
) -> None:
    fault, again = classify(build(shape, text), phase, sent=sent), classify(build(shape, other), phase, sent=sent)
    assert isinstance(fault, Fault)
    assert fault.kind in Kind
    assert (fault.phase, fault.kind, fault.retryable) == (again.phase, again.kind, again.retryable)
