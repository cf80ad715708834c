"""What a failed bind means: reason, words, and whether waiting can mend it."""

import errno
import os
import socket
from collections.abc import Callable

import pytest

from tunnel.addresses import HostPort
from tunnel.messages import Reason
from tunnel.server.binding import BindFailed, bind, check_address, explain
from tunnel.server.registry import Address
from tunnel.sockets import listen

WHERE = HostPort("0.0.0.0", 8002)
FAILED = "Failed to bind proxy listener on 0.0.0.0:8002: "
PERMISSION = "Permission denied to bind to 0.0.0.0:8002 - may need administrator privileges"
ERRORS = {
    errno.EADDRINUSE: (Reason.ADDR_IN_USE, "Port 8002 is already in use by another process", False),
    errno.EACCES: (Reason.PERMISSION_DENIED, PERMISSION, False),
    errno.EPERM: (Reason.PERMISSION_DENIED, PERMISSION, False),
    errno.EADDRNOTAVAIL: (Reason.ADDR_NOT_AVAILABLE, FAILED + os.strerror(errno.EADDRNOTAVAIL), False),
    errno.EMFILE: (Reason.OUT_OF_DESCRIPTORS, FAILED + os.strerror(errno.EMFILE), False),
    errno.ENFILE: (Reason.OUT_OF_DESCRIPTORS, FAILED + os.strerror(errno.ENFILE), False),
    errno.ENOBUFS: (Reason.OUT_OF_MEMORY, FAILED + os.strerror(errno.ENOBUFS), False),
    errno.ENOMEM: (Reason.OUT_OF_MEMORY, FAILED + os.strerror(errno.ENOMEM), False),
    errno.EIO: (Reason.OS_ERROR, FAILED + os.strerror(errno.EIO), False),
    errno.EAFNOSUPPORT: (Reason.FAMILY_NOT_SUPPORTED, FAILED + os.strerror(errno.EAFNOSUPPORT), True),
    errno.EINVAL: (Reason.MALFORMED_ADDR, FAILED + os.strerror(errno.EINVAL), True),
}


def raises(exc: Exception) -> Callable[[str, int], socket.socket]:
    def listen_in_vain(host: str, port: int) -> socket.socket:
        raise exc

    return listen_in_vain


def failure(where: HostPort, listen: Callable[[str, int], socket.socket], held_by: Address | None = None) -> BindFailed:
    with pytest.raises(BindFailed) as caught:
        bind(where, listen=listen, held_by=held_by)
    return caught.value


@pytest.mark.parametrize(("code", "meaning"), ERRORS.items(), ids=[errno.errorcode[code] for code in ERRORS])
def test_an_errno_has_a_reason_words_and_a_verdict(code: int, meaning: tuple[Reason, str, bool]) -> None:
    """B9, B10"""
    failed = failure(WHERE, raises(OSError(code, "the text of the exception does not matter")))
    assert (failed.reason, str(failed), failed.final) == meaning
    assert isinstance(failed.__cause__, OSError)


def test_ipv6_stands_in_brackets() -> None:
    failed = explain(HostPort("::1", 80), OSError(errno.EACCES, ""))
    assert str(failed) == "Permission denied to bind to [::1]:80 - may need administrator privileges"


def test_an_error_without_a_number_is_told_as_it_is() -> None:
    failed = explain(WHERE, OSError("something odd"))
    assert (failed.reason, str(failed), failed.final) == (Reason.OS_ERROR, FAILED + "something odd", False)


def test_an_interface_that_is_not_there_may_come() -> None:
    exc = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    failed = explain(HostPort("fe80::1%eth9", 80), exc)
    assert (failed.reason, failed.final) == (Reason.ADDR_NOT_AVAILABLE, False)
    assert str(failed) == "Failed to bind proxy listener on [fe80::1%eth9]:80: Name or service not known"


HOLDERS = {
    "Port 8002 is already published by client 'lab' (proxy 'ssh')": Address("0.0.0.0", 8002, "lab", "ssh"),
    "Port 8002 is already in use by this server itself (its admin address)": Address(
        "127.0.0.1", 8002, "", "its admin address"
    ),
}


@pytest.mark.parametrize(("words", "holder"), HOLDERS.items())
def test_an_address_of_ours_is_not_even_tried(words: str, holder: Address) -> None:
    """B10"""
    failed = failure(WHERE, raises(AssertionError("the kernel was asked")), held_by=holder)
    assert (failed.reason, str(failed), failed.final) == (Reason.ADDR_IN_USE, words, False)


@pytest.mark.parametrize(
    "addr",
    ["", "localhost", "0.0.0.0 ", "1.2.3", "127.1", "256.0.0.1", "0x7f.1", "::g", "[::1]", "\0", "::1%\0", "\ud800",
     "127.0.0.1\n", "0.0.0.0/0", "*", "١.1.1.1", "<script>", "9" * 1024],
    ids=lambda addr: repr(addr[:12]),
)  # fmt: skip
def test_a_malformed_address_is_final_and_never_tried(addr: str) -> None:
    """B11: a hand-made message may bring anything."""
    failed = failure(HostPort(addr, 8002), raises(AssertionError("the kernel was asked")))
    assert (failed.reason, failed.final) == (Reason.MALFORMED_ADDR, True)
    with pytest.raises(BindFailed, match="is not a numeric address; publish on an IP such as"):
        check_address(addr)


@pytest.mark.parametrize("port", [-1, 65536, 2**53])
def test_a_number_that_is_no_port_is_final(port: int) -> None:
    """B11"""
    failed = failure(HostPort("127.0.0.1", port), listen)
    assert (failed.reason, failed.final) == (Reason.MALFORMED_ADDR, True)
    assert str(failed) == f"{port} is not a port; publish on 0 to 65535"


def test_a_real_port_that_is_taken_is_told_so() -> None:
    with listen("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        failed = failure(HostPort("127.0.0.1", port), listen)
        assert str(failed) == f"Port {port} is already in use by another process"
    with bind(HostPort("127.0.0.1", port), listen=listen, held_by=None) as sock:
        assert sock.getsockname()[1] == port


def test_an_address_this_host_does_not_have_is_retried() -> None:
    failed = failure(HostPort("192.0.2.1", 0), listen)
    assert (failed.reason, failed.final) == (Reason.ADDR_NOT_AVAILABLE, False)
