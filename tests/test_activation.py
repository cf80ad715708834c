"""Sockets that systemd passes on: which are taken, which are refused and in what words, and for which address each
stands."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tunnel.activation import MAX_PASSED, Passed, match, take_passed
from tunnel.addresses import HostPort
from tunnel.errors import TunnelError
from tunnel.sockets import listen

LOOPBACK = "127.0.0.1"


class Descriptors:
    """Descriptors one after the other, as systemd passes them; `first` is where they begin."""

    def __init__(self) -> None:
        self.first = 0
        self.count = 0

    def put(self, *descriptors: int) -> None:
        """Copies of these, inherited by children, as after an exec."""
        self.first, self.count = _free_run(len(descriptors)), len(descriptors)
        for place, descriptor in enumerate(descriptors, self.first):
            os.dup2(descriptor, place, inheritable=True)

    def environ(self, **more: str) -> dict[str, str]:
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(self.count), "PATH": "/bin", **more}

    def are_closed(self) -> bool:
        return all(_is_closed(place) for place in range(self.first, self.first + self.count))

    def close(self) -> None:
        for place in range(self.first, self.first + self.count):
            if not _is_closed(place):
                os.close(place)


def _free_run(length: int) -> int:
    first = 200
    while not all(_is_closed(place) for place in range(first, first + length)):
        first += 1
    return first


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def passing(stack: ExitStack) -> Descriptors:
    found = Descriptors()
    stack.callback(found.close)
    return found


def take(passing: Descriptors, stack: ExitStack, environ: dict[str, str]) -> tuple[Passed, ...]:
    taken = take_passed(environ, first=passing.first)
    for one in taken:
        stack.enter_context(one.sock)
    return taken


# What is taken


def test_listening_sockets_are_taken_with_their_names_and_children_get_neither_them_nor_the_variables(
    passing: Descriptors, stack: ExitStack
) -> None:
    one, other = stack.enter_context(listen(LOOPBACK, 0)), stack.enter_context(listen("::1", 0))
    passing.put(one.fileno(), other.fileno())
    environ = passing.environ(LISTEN_FDNAMES="web:six")
    taken = take(passing, stack, environ)
    assert [(found.name, found.where) for found in taken] == [
        ("web", HostPort(LOOPBACK, one.getsockname()[1])),
        ("six", HostPort("::1", other.getsockname()[1])),
    ]
    assert environ == {"PATH": "/bin"}
    assert not any(found.sock.get_inheritable() for found in taken)
    assert not any(found.sock.getblocking() for found in taken)


def test_sockets_without_names_are_unknown(passing: Descriptors, stack: ExitStack) -> None:
    passing.put(stack.enter_context(listen(LOOPBACK, 0)).fileno())
    assert [found.name for found in take(passing, stack, passing.environ())] == ["unknown"]


@pytest.mark.parametrize("changed", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}])
def test_what_is_for_another_process_is_left_alone_and_its_variables_go_all_the_same(
    changed: dict[str, str], passing: Descriptors, stack: ExitStack
) -> None:
    passing.put(stack.enter_context(listen(LOOPBACK, 0)).fileno())
    environ = {**passing.environ(), **changed}
    assert take_passed(environ, first=passing.first) == ()
    assert environ == {"PATH": "/bin"}
    assert os.get_inheritable(passing.first)


# What is refused


def _datagram() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _unix() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # an abstract name of the kernel's choice
    sock.listen()
    return sock


def _not_listening() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def _of_both_versions() -> socket.socket:
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


UNFIT = [
    (_datagram, "is no TCP socket; write ListenStream= in the socket unit"),
    (_unix, "is of AF_UNIX; clients come by TCP, write ListenStream=ADDRESS:PORT in the socket unit"),
    (_not_listening, "does not listen, but is a connection; take Accept=yes out of the socket unit"),
    (_of_both_versions, "takes IPv4 and IPv6 at once; write BindIPv6Only=ipv6-only, and a ListenStream= for each"),
]


@pytest.mark.parametrize(("make", "problem"), UNFIT)
def test_a_socket_of_the_wrong_kind_is_refused_with_the_remedy_and_all_are_closed(
    make: Callable[[], socket.socket], problem: str, passing: Descriptors, stack: ExitStack
) -> None:
    good, bad = stack.enter_context(listen(LOOPBACK, 0)), stack.enter_context(make())
    passing.put(good.fileno(), bad.fileno(), good.fileno())
    with pytest.raises(TunnelError) as caught:
        take_passed(passing.environ(LISTEN_FDNAMES="one:two:three"), first=passing.first)
    assert str(caught.value) == f"systemd passed descriptor {passing.first + 1} ('two'), which {problem}"
    assert passing.are_closed()


def test_a_file_is_refused_as_no_socket(passing: Descriptors) -> None:
    read, write = os.pipe()
    passing.put(read)
    os.close(read)
    os.close(write)
    with pytest.raises(TunnelError) as caught:
        take_passed(passing.environ(), first=passing.first)
    assert str(caught.value) == (
        f"systemd passed descriptor {passing.first} ('unknown'), which is no socket; "
        "leave only ListenStream=ADDRESS:PORT lines in the socket unit"
    )
    assert passing.are_closed()


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    first = _free_run(1)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with pytest.raises(TunnelError, match=rf"LISTEN_FDS counts descriptor {first}, which is not open"):
        take_passed(environ, first=first)


@pytest.mark.parametrize("count", ["many", "-1", "٣", "1.0", str(MAX_PASSED + 1)])
def test_a_count_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(TunnelError, match="is no number of sockets"):
        take_passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


# For which address


def test_each_stands_for_the_address_it_is_bound_to_however_that_is_spelled(stack: ExitStack) -> None:
    four, six = stack.enter_context(listen(LOOPBACK, 0)), stack.enter_context(listen("::1", 0))
    wanted = HostPort("0:0:0:0:0:0:0:1", six.getsockname()[1])
    passed = [Passed("six", six), Passed("four", four)]
    other = HostPort(LOOPBACK, 1)
    found = match(passed, [other, HostPort(LOOPBACK, four.getsockname()[1]), wanted])
    assert found == {wanted: passed[0], HostPort(LOOPBACK, four.getsockname()[1]): passed[1]}


def test_one_at_an_address_that_nobody_wants_is_refused_with_those_that_are(stack: ExitStack) -> None:
    sock = stack.enter_context(listen(LOOPBACK, 0))
    where = HostPort(LOOPBACK, sock.getsockname()[1])
    with pytest.raises(TunnelError) as caught:
        match([Passed("web", sock)], [HostPort("0.0.0.0", 8443)])
    assert str(caught.value) == (
        f"systemd passed a socket at {where} ('web'), where this server is not to listen; "
        "make the socket unit and the configuration agree, which names 0.0.0.0:8443"
    )
    with pytest.raises(TunnelError, match="which names no other"):
        match([Passed("web", sock), Passed("twin", sock)], [where])
