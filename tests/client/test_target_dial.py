"""Reaching a target over real sockets: where it is dialled, the name TLS asks for, and that nothing is left open."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from dial_rig import http_service, nothing_left_open, trusted_service

from tunnel.addresses import HostPort, Target
from tunnel.client import target_dial
from tunnel.client.target_dial import dial_target, shake_hands
from tunnel.errors import PeerLost
from tunnel.faults import Kind, Phase, classify
from tunnel.sockets import listen


@pytest.fixture
def leaves_nothing_open() -> Iterator[None]:
    with nothing_left_open():
        yield


@pytest.fixture
def server_context(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    return trusted_service("service.example", monkeypatch)


def test_where_a_target_is_dialled_is_its_pinned_address_if_it_has_one() -> None:
    named = Target("tcp", "nas", 80)
    pinned = Target("tcp", "nas", 80, connect_to=HostPort("10.0.0.7", 8080))
    assert (named.where, named.is_literal) == (HostPort("nas", 80), False)
    assert (pinned.where, pinned.is_literal) == (HostPort("10.0.0.7", 8080), True)
    assert not Target("tcp", "10.0.0.7", 80, connect_to=HostPort("nas", 80)).is_literal


@pytest.mark.usefixtures("leaves_nothing_open")
async def test_tls_takes_the_name_from_the_target_and_the_address_from_connect_to(
    server_context: ssl.SSLContext,
) -> None:
    async with http_service(server_context) as port:
        where = HostPort("127.0.0.1", port)
        by_host = Target("tls", "service.example", 443, connect_to=where)
        by_server_name = Target("tls", "127.0.0.1", port, server_name="service.example")
        for target in (by_host, by_server_name):
            async with await shake_hands(await dial_target(target), target):
                pass


WRONG: dict[str, tuple[str, type[Exception], str]] = {
    "another name": (
        "other.example", PeerLost,
        r"^tls://127\.0\.0\.1:\d+ has a certificate for another name: .*other\.example.*; server_name says which",
    ),
    "no name at all": (".example", PeerLost, r"^TLS cannot ask for the name '\.example': "),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "text"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("leaves_nothing_open")
async def test_a_handshake_that_fails_says_why_and_leaves_no_socket(
    name: str, kind: type[Exception], text: str, server_context: ssl.SSLContext
) -> None:
    async with http_service(server_context) as port:
        target = Target("tls", "127.0.0.1", port, server_name=name)
        sock = await dial_target(target)
        with pytest.raises(kind, match=text):
            await shake_hands(sock, target)
        assert sock.fileno() == -1


async def test_an_authority_that_is_not_trusted_is_told_with_the_remedy() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("service.example").configure_cert(context)
    async with http_service(context) as port:
        target = Target("tls", "service.example", port, connect_to=HostPort("127.0.0.1", port))
        with pytest.raises(
            PeerLost, match=r"not trusted: .*; its CA must be one of the system's.* SSL_CERT_FILE"
        ) as lost:
            await shake_hands(await dial_target(target), target)
        assert classify(lost.value, Phase.HANDSHAKE).kind is Kind.CERTIFICATE


async def test_a_target_without_tls_is_told_so() -> None:
    async with http_service() as port:
        target = Target("tls", "127.0.0.1", port)
        with pytest.raises(PeerLost, match=rf"^tls://127\.0\.0\.1:{port} does not speak our TLS: ") as lost:
            await shake_hands(await dial_target(target), target)
        assert classify(lost.value, Phase.HANDSHAKE).kind is Kind.TLS


@pytest.mark.usefixtures("leaves_nothing_open")
async def test_a_handshake_that_is_cancelled_leaves_no_socket(server_context: ssl.SSLContext) -> None:
    with listen("127.0.0.1", 0) as silent:
        target = Target("tls", "service.example", 443, connect_to=HostPort("127.0.0.1", silent.getsockname()[1]))
        sock = await dial_target(target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake_hands, sock, target)
            await trio.testing.wait_all_tasks_blocked()
            assert sock.fileno() != -1
            nursery.cancel_scope.cancel()
        assert sock.fileno() == -1


@pytest.mark.usefixtures("leaves_nothing_open")
async def test_ca_files_that_cannot_be_read_leave_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def target_context() -> ssl.SSLContext:
        raise FileNotFoundError("SSL_CERT_FILE")

    monkeypatch.setattr(target_dial, "target_context", target_context)
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(FileNotFoundError):
            await shake_hands(ours, Target("tls", "service.example", 443))
        assert ours.fileno() == -1


async def test_a_unix_socket_whose_backlog_is_full_is_dialled_again_until_there_is_room(tmp_path: Path) -> None:
    """B26: the kernel neither waits nor says when there is room."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = await dial_target(Target("unix", path))
        with first:
            late: list[socket.socket] = []

            async def dial() -> None:
                late.append(await dial_target(Target("unix", path)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                await trio.sleep(0.05)
                assert late == []
                listener.accept()[0].close()
            late[0].close()
