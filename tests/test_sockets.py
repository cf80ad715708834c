"""Dialling: what is told of a dial that failed; and what a tunnel asks of the kernel."""

import errno
import socket
import sys
from typing import Any

import pytest
import trio

from tunnel.addresses import HostPort
from tunnel.errors import PeerLost
from tunnel.faults import Phase, classify
from tunnel.sockets import TCP_RTO_MAX_MS, dial_tcp, has_room_for, tunnel_options


class NoNames(trio.abc.HostnameResolver):
    """Answers every question with one error."""

    def __init__(self, error: socket.gaierror) -> None:
        self._error = error

    async def getaddrinfo(self, *_args: Any) -> Any:
        raise self._error

    async def getnameinfo(self, *_args: Any) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("number", "kind"),
    [(socket.EAI_NONAME, "unknown_name"), (socket.EAI_AGAIN, "resolver"), (errno.ECONNREFUSED, "resolver")],
)
async def test_a_resolvers_number_is_never_taken_for_an_errno(number: int, kind: str) -> None:
    """On some systems the numbers of `getaddrinfo` are positive, and each of them is some errno, too."""
    trio.socket.set_custom_hostname_resolver(NoNames(socket.gaierror(number, "no")))
    with pytest.raises(PeerLost) as caught:
        await dial_tcp(HostPort("nas.example", 80))
    assert str(caught.value) == "cannot reach nas.example:80: the name cannot be resolved (no)"
    assert (caught.value.errno, classify(caught.value, Phase.DIAL).kind) == (None, kind)


async def test_a_refused_dial_has_its_errno() -> None:
    with socket.socket() as bound:  # and not listening: nobody else can take the port meanwhile
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(PeerLost) as caught:
            await dial_tcp(HostPort("127.0.0.1", bound.getsockname()[1]))
    assert (caught.value.errno, classify(caught.value, Phase.DIAL).kind) == (errno.ECONNREFUSED, "refused")


async def test_a_name_that_cannot_be_spelled_is_unknown() -> None:
    with pytest.raises(PeerLost) as caught:
        await dial_tcp(HostPort("x" * 64 + ".example", 80))
    assert classify(caught.value, Phase.DIAL).kind == "unknown_name"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_tunnels_connection_is_given_up_after_30_seconds_and_tried_again_every_three(
    family: socket.AddressFamily,
) -> None:
    with socket.socket(family) as sock:
        try:
            sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS)
        except OSError:
            pytest.skip("no such option here: Linux has it since 6.15")
        tunnel_options(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) == 3000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell")
def test_a_new_connection_has_room_for_a_few_packets_more_until_half_its_window_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        assert [has_room_for(sock, packets) for packets in (1, 5, 6)] == [True, True, False]  # of ten (RFC 6928)


def test_what_is_no_tcp_connection_has_room() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert has_room_for(one, 1000)
