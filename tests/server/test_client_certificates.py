"""Client certificates, and the least TLS version: what a handshake asks for, and how plainly each side says so."""

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from attrs import evolve
from gate_rig import authority, grants, until

import tunnel
from tunnel.addresses import HostPort
from tunnel.certificates import certificate_pin_of_file
from tunnel.client.app import Client, open_client
from tunnel.config import ClientConfig, ServerConfig
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.server.app import Server, open_server


@cache
def clients_authority() -> trustme.CA:
    return trustme.CA(organization_name="for clients")


def write_pair(folder: Path, ca: trustme.CA, name: str = "client") -> tuple[Path, Path]:
    """(certificate, key), the key for us alone."""
    issued = ca.issue_cert(f"{name}.example")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    return cert, key


@asynccontextmanager
async def serving(files: Path, tmp_path: Path, **more: Any) -> AsyncIterator[Server]:
    ca = tmp_path / "clients-ca.pem"
    clients_authority().cert_pem.write_to_path(ca)
    config = ServerConfig(
        listen=(HostPort("127.0.0.1", 0),), cert_file=files / "cert.pem", key_file=files / "key.pem", clients=grants(),
        **{"client_ca_file": ca, **more},
    )  # fmt: skip
    with trio.fail_after(30):
        async with open_server(config) as server:
            yield server


def client(server: Server, files: Path, pair: tuple[Path, Path] | None = None, **more: Any) -> ClientConfig:
    shown = {} if pair is None else {"cert_file": pair[0], "key_file": pair[1]}
    where = (HostPort("localhost", server.where.port),)
    return ClientConfig(**{"servers": where, "token": "lab-token", "ca_file": files / "ca.pem", **shown, **more})


async def log_in(config: ClientConfig) -> None:
    """Until the session is there; raises what `connect --once` would end with."""
    async with tunnel_of(config) as one, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: one.run(once=True))
        await until(one.is_ready)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tunnel_of(config: ClientConfig) -> AsyncIterator[Client]:
    async with tunnel.errors.unwrapped(), open_client(config) as one:
        yield one


async def test_a_client_with_a_certificate_of_that_ca_gets_in_and_needs_its_token_all_the_same(
    files: Path, tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, clients_authority())
    async with serving(files, tmp_path) as server:
        await log_in(client(server, files, pair))
        with pytest.raises(Refused) as caught:
            await log_in(client(server, files, pair, token="wrong"))
        assert caught.value.reason == "token_refused"


@pytest.mark.parametrize(
    ("shown", "why"),
    [("none", "it wants one, and none was given"), ("another CA's", "it does not know the CA")],
)
@pytest.mark.parametrize("trust", ["ca", "pin"])
async def test_a_client_without_a_good_one_is_told_so_and_sends_no_token(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: str, why: str, trust: str
) -> None:
    """TLS 1.3 ends the client's handshake before the server has seen the certificate."""
    pair = None if shown == "none" else write_pair(tmp_path, authority())
    trusted = {} if trust == "ca" else {"ca_file": None, "pin": certificate_pin_of_file(files / "cert.pem")}
    caplog.set_level(logging.WARNING, "tunnel.server")
    async with serving(files, tmp_path) as server:
        with pytest.raises(Refused) as caught:
            await log_in(client(server, files, pair, **trusted))
        word = f"the server does not take this client's certificate: {why}"
        assert (caught.value.reason, caught.value.trust) == ("client_certificate_refused", True)
        remedy = "give one that its client_ca_file vouches for (cert_file and key_file)"
        assert str(caught.value) == f"{word}; {remedy}"
        assert "a client at 127.0.0.1 is refused for its certificate: " in caplog.text
        assert server._gate.sessions == ()


async def test_a_client_that_was_refused_for_its_certificate_is_slow_to_try_again(files: Path, tmp_path: Path) -> None:
    async with (
        serving(files, tmp_path) as server,
        tunnel_of(client(server, files)) as one,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one.run)
        await until(lambda: one.connection.state == "lost")
        assert one.connection.retry_in is not None
        assert one.connection.retry_in >= 15  # 30 s, less what chance takes away
        nursery.cancel_scope.cancel()


async def test_when_certificates_are_asked_for_only_who_has_one_comes_back_and_other_changes_end_nothing(
    files: Path, tmp_path: Path
) -> None:
    """Turned on beside living sessions, by SIGHUP: nobody stays who came by less."""
    pair, ca = write_pair(tmp_path, clients_authority()), tmp_path / "clients-ca.pem"
    async with (
        serving(files, tmp_path, client_ca_file=None) as server,
        tunnel_of(client(server, files, pair)) as good,
        tunnel_of(client(server, files, token="home-token")) as bare,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(good.run)
        nursery.start_soon(bare.run)
        await until(lambda: good.is_ready() and bare.is_ready())
        before = server._gate.sessions
        server.apply(evolve(server._config, client_ca_file=ca))
        await until(lambda: bare.connection.retry_in is not None and bare.connection.retry_in >= 15)
        assert bare.connection.detail.startswith("the server does not take this client's certificate: it wants one")
        await until(lambda: good.is_ready() and len(server._gate.sessions) == 1)
        (session,) = server._gate.sessions
        assert session.client == "lab"
        assert session not in before
        server.apply(evolve(server._config, client_ca_file=None, tls_min_version="1.2"))
        assert server._gate.sessions == (session,)
        nursery.cancel_scope.cancel()


async def test_where_tls_12_is_allowed_by_both_sides_it_works_and_where_not_it_does_not(
    files: Path, tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, clients_authority())
    async with serving(files, tmp_path, tls_min_version="1.2") as server:
        assert await version(server, files, pair, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert await version(server, files, pair, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        await log_in(client(server, files, pair, tls_min_version="1.2"))
        await log_in(client(server, files, pair))
    async with serving(files, tmp_path, client_ca_file=None) as server:
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
            await version(server, files, None, ssl.TLSVersion.TLSv1_2)


async def version(server: Server, files: Path, pair: tuple[Path, Path] | None, most: ssl.TLSVersion) -> str | None:
    """What a handshake with at most this version agrees on."""
    context = ssl.create_default_context(cafile=files / "ca.pem")
    context.maximum_version = most
    if pair is not None:
        context.load_cert_chain(*pair)
    tcp = await trio.open_tcp_stream("127.0.0.1", server.where.port)
    async with trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True) as stream:
        await stream.do_handshake()
        found = stream.version()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 404 ")
        return found


async def test_with_tls_12_a_server_still_has_only_ciphers_with_forward_secrecy(files: Path, tmp_path: Path) -> None:
    context = tunnel.tls.server_context(files / "cert.pem", files / "key.pem", min_version="1.2")
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert all(name.startswith(("TLS_", "ECDHE-")) and ("GCM" in name or "CHACHA" in name) for name in names)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    strict = tunnel.tls.server_context(files / "cert.pem", files / "key.pem")
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda cert, key: cert.unlink(), "client.pem cannot be read: No such file or directory; put a PEM file there"),
        (lambda cert, key: cert.write_text("x"), "client.pem holds no certificate; put one there in PEM form"),
        (lambda cert, key: key.write_text("x"), "client.key holds no private key; put the certificate's there"),
        (lambda cert, key: key.write_text(ENCRYPTED), "the key wants a password, and nobody is there to type it"),
        (lambda cert, key: key.write_bytes(OTHER_KEY()), "they do not belong together, or one is damaged; put both"),
    ],
    ids=["missing", "no certificate", "no key", "encrypted", "of another"],
)
def test_a_pair_that_cannot_be_used_is_explained(tmp_path: Path, damage: Any, problem: str) -> None:
    pair = write_pair(tmp_path, clients_authority())
    damage(*pair)
    config = ClientConfig((HostPort("x", 1),), "token", cert_file=pair[0], key_file=pair[1])
    with pytest.raises(TunnelError) as caught:
        Client(config)
    assert problem in str(caught.value)


def OTHER_KEY() -> bytes:  # noqa: N802  stands for a constant that takes a while to make
    return clients_authority().issue_cert("other.example").private_key_pem.bytes()


ENCRYPTED = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"


async def test_a_stranger_in_between_that_breaks_off_is_no_word_about_certificates(files: Path, tmp_path: Path) -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, break_off, 0, host="127.0.0.1"))
        where = HostPort("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(PeerLost):
            await log_in(ClientConfig((where,), "token", ca_file=files / "ca.pem"))
        nursery.cancel_scope.cancel()
