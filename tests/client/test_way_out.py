"""Through real HTTP CONNECT and SOCKS5 proxies on loopback: what they are asked, and what their answers mean."""

import errno
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from attrs import evolve
from dial_rig import cancelled_everywhere
from forward_rig import Proxy, exactly
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import contexts, echo, quiet, start_target, until

import tunnel
from tunnel.addresses import HostPort, Target
from tunnel.certificates import certificate_pin_of_file
from tunnel.client import way_out
from tunnel.client.dialer import Dialer, Turns
from tunnel.client.resolver import Resolver, leave_name
from tunnel.client.way_out import dial_through
from tunnel.config import ClientConfig, ForwardProxy, Grant, ProxyConfig, ServerConfig
from tunnel.config.diff import diff
from tunnel.errors import PeerLost, Refused
from tunnel.sockets import dial_tcp

TOKEN = "a-token-of-more-than-forty-characters-0123456789"
SCHEMES = ("http", "socks5", "socks5h")
TO = HostPort("server.invalid", 8443)


async def start(nursery: trio.Nursery, scheme: str, **changes: object) -> Proxy:
    return await Proxy(scheme, **changes).start(nursery)


async def says_hello(sock: socket.socket) -> bytes:
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        await stream.send_all(b"hello")
        return await exactly(stream, 5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pieces", [0, 1])
async def test_the_socket_is_as_if_dialled_directly(nursery: trio.Nursery, scheme: str, pieces: int) -> None:
    """Also where the proxy's answer comes byte by byte."""
    _, port = await start_target(nursery, quiet(echo))
    proxy = await start(nursery, scheme, names={"server.invalid": "127.0.0.1"}, pieces=pieces)
    sock = await dial_through(proxy.value(), HostPort("server.invalid", port))
    assert await says_hello(sock) == b"hello"
    assert proxy.asked == [f"server.invalid:{port}"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_with_the_right_credentials_it_goes_through_and_without_none_are_sent(
    nursery: trio.Nursery, scheme: str
) -> None:
    _, port = await start_target(nursery, quiet(echo))
    proxy = await start(nursery, scheme, auth="me:s3cret:word")
    sock = await dial_through(proxy.value("me", "s3cret:word"), HostPort("127.0.0.1", port))
    assert await says_hello(sock) == b"hello"
    for wrong in (proxy.value(), proxy.value("me", "other")):
        with pytest.raises(Refused) as caught:
            await dial_through(wrong, TO)
        assert (caught.value.reason, caught.value.trust) == ("proxy_auth", True)
        assert proxy.url in str(caught.value)
        assert "proxy_auth_file" in str(caught.value)
        assert "other" not in str(caught.value).replace("another", "")
    if scheme == "http":
        assert [b"Proxy-Authorization" in head for head in proxy.heads] == [True, False, True]


async def test_an_ipv6_server_is_named_in_brackets_to_http_and_in_bytes_to_socks(nursery: trio.Nursery) -> None:
    for scheme in SCHEMES:
        proxy = await start(nursery, scheme)
        with pytest.raises(PeerLost, match=re.escape(f"{proxy.url} cannot reach [::1]:1")):
            await dial_through(proxy.value(), HostPort("::1", 1))
        assert proxy.asked == ["[::1]:1"]


async def test_a_name_that_is_not_ascii_is_asked_for_as_dns_knows_it(nursery: trio.Nursery) -> None:
    for scheme in ("http", "socks5h"):
        proxy = await start(nursery, scheme, names={"xn--bcher-kva.invalid": "127.0.0.1"})
        with pytest.raises(PeerLost):
            await dial_through(proxy.value(), HostPort("bücher.invalid", 1))
        assert proxy.asked == ["xn--bcher-kva.invalid:1"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["bü..cher", "a..b", "x" * 64, "abc." * 64 + "de"])
async def test_a_name_that_no_dns_has_is_not_asked_for(scheme: str, name: str) -> None:
    with pytest.raises(PeerLost, match="spelled"):
        await dial_through(ForwardProxy(scheme, HostPort("127.0.0.1", 1)), HostPort(name, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_password_that_cannot_be_sent_is_refused_and_not_shown(scheme: str) -> None:
    for secret in ("pässword", "x" * 256):
        with pytest.raises(Refused, match="cannot be sent") as caught:
            await dial_through(ForwardProxy(scheme, HostPort("127.0.0.1", 1), "me", secret), TO)
        assert secret not in str(caught.value)


BAD = "HTTP/1.1 {} Said\r\nContent-Length: 0\r\n{}\r\n"
HTTP_ANSWERS = {
    "nobody behind it": (BAD.format(502, ""), PeerLost, "cannot reach server.invalid:8443: it answered 502 Said"),
    "too slow for it": (BAD.format(504, ""), PeerLost, "cannot reach server.invalid:8443: it answered 504"),
    "not allowed": (BAD.format(403, ""), Refused, "let the server listen on 443"),
    "refused by a rule": (BAD.format(400, ""), Refused, r"does not let .* through \(400 Said\)"),
    "no CONNECT": (BAD.format(405, ""), Refused, r"knows no CONNECT \(405 Said\)"),
    "a web server": (BAD.format(501, ""), Refused, r"knows no CONNECT \(501 Said\)"),
    "a login page": (BAD.format(302, "Location: http://login/\r\n"), PeerLost, "open a browser"),
    "another way to say who": (BAD.format(407, "Proxy-Authenticate: NTLM\r\n"), Refused, "only ntlm.*cntlm"),
    "garbage": ("\x05\x00 nothing\r\n\r\n", PeerLost, "no HTTP; if it is a SOCKS proxy, write socks5h://"),
    "nothing": ("", PeerLost, "hung up instead of answering CONNECT"),
    "half a head": ("HTTP/1.1 200 OK\r\nX: ", PeerLost, "hung up instead of answering CONNECT"),
    "a head without end": ("HTTP/1.1 200 OK\r\nX: " + "y" * 70_000, PeerLost, "no HTTP|without an end"),
    "somebody speaks first": ("HTTP/1.1 200 OK\r\n\r\n220 mail", PeerLost, "speak first"),
    "a switch that nobody asked for": ("HTTP/1.1 101 Switching\r\n\r\n", PeerLost, "no HTTP"),
    "escapes": ("HTTP/1.1 503 \x1b[31mred\r\n\r\n", PeerLost, "."),
}


@pytest.mark.parametrize(("raw", "kind", "words"), HTTP_ANSWERS.values(), ids=HTTP_ANSWERS)
async def test_what_an_http_proxy_answers_is_told_with_its_remedy(
    nursery: trio.Nursery, raw: str, kind: type[Exception], words: str
) -> None:
    proxy = await start(nursery, "http", raw=raw.encode("latin-1"))
    with pytest.raises(kind, match=words) as caught:
        await dial_through(proxy.value(), TO)
    assert f"127.0.0.1:{proxy.port}" in str(caught.value)
    assert str(caught.value).isprintable()
    await until(lambda: proxy.open == 0)


SOCKS_ANSWERS: dict[str, tuple[bytes, type[Exception], str]] = {
    "nothing": (b"", PeerLost, "does not answer as a SOCKS5 proxy"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", PeerLost, "if it is an HTTP proxy, write http://"),
    "half an answer": (b"\5", PeerLost, "does not answer as a SOCKS5 proxy"),
    "no method will do": (b"\5\xff", Refused, "wants a user and a password"),
    "a failure": (b"\5\0\5\1\0", PeerLost, "cannot reach server.invalid:8443: General SOCKS"),
    "not allowed": (b"\5\0\5\2\0", Refused, "does not let connections .* through"),
    "refused": (b"\5\0\5\5\0", PeerLost, "cannot reach server.invalid:8443: Connection refused"),
    "a name that is no text": (b"\5\0\5\0\0\3\2\xff\xfe\0\0", PeerLost, "does not answer as a SOCKS5 proxy"),
    "no names": (b"\5\0\5\x08\0", Refused, "try socks5://"),
    "an unknown code": (b"\5\0\5\x63\0", PeerLost, "does not answer as a SOCKS5 proxy"),
}


@pytest.mark.parametrize(("raw", "kind", "words"), SOCKS_ANSWERS.values(), ids=SOCKS_ANSWERS)
async def test_what_a_socks_proxy_answers_is_told_with_its_remedy(
    nursery: trio.Nursery, raw: bytes, kind: type[Exception], words: str
) -> None:
    proxy = await start(nursery, "socks5h", raw=raw)
    with pytest.raises(kind, match=words) as caught:
        await dial_through(proxy.value(), TO)
    assert f"127.0.0.1:{proxy.port}" in str(caught.value)
    await until(lambda: proxy.open == 0)


HEAD_PIECES = [
    b"HTTP/1.1 ", b"HTTP/1.0 200", b"101 Switching Protocols", b"100 Continue", b"200 OK", b"407 ", b"\r\n",
    b"\r\n\r\n", b"X: y", b"Upgrade: websocket", b"Connection: upgrade", b"Content-Length: -1",
    b"Transfer-Encoding: chunked", b"\x00", b"\xff",
]  # fmt: skip
SOCKS_PIECES = [
    b"\5\0", b"\5\2", b"\1\0", b"\5\0\0\1", b"\5\0\0\3", b"\5\0\0\4", b"\5\0\0\7", b"\2\xff\xfe\0\0", b"\0" * 6,
    b"\xff" * 18,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "pieces"), [("http", HEAD_PIECES), ("socks5h", SOCKS_PIECES)])
@settings(max_examples=60)
@given(data=st.data())
async def test_whatever_a_proxy_answers_only_our_errors_come_of_it(
    scheme: str, pieces: list[bytes], data: st.DataObject
) -> None:
    """Pieces of what is sensible, in any order, and anything else."""
    said = data.draw(st.lists(st.sampled_from(pieces) | st.binary(max_size=20), max_size=8))
    async with trio.open_nursery() as nursery:
        proxy = await start(nursery, scheme, raw=b"".join(said))
        with trio.fail_after(30), suppress(PeerLost, Refused):
            (await dial_through(proxy.value("me", "word"), TO)).close()
        await until(lambda: proxy.open == 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_is_not_there_is_named(scheme: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = ForwardProxy(scheme, HostPort(*nobody.getsockname()))
        with pytest.raises(PeerLost, match=re.escape(f"cannot reach the proxy {proxy}: Connection refused")) as caught:
            await dial_through(proxy, TO)
    assert (caught.value.errno, caught.value.answered) == (errno.ECONNREFUSED, False)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_hangs_is_named_before_the_dials_own_deadline(
    nursery: trio.Nursery, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way_out, "ANSWER_SECONDS", 0.05)
    gone = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        gone.set()

    proxy = ForwardProxy(scheme, HostPort(*await start_target(nursery, hang)))
    with pytest.raises(PeerLost, match=f"the proxy {re.escape(str(proxy))} gave no answer about {TO} within 0.05 s"):
        await dial_through(proxy, TO)
    await gone.wait()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_cancelled_at_each_await_it_leaves_no_socket(nursery: trio.Nursery, scheme: str) -> None:
    _, port = await start_target(nursery, quiet(echo))
    proxy = await start(nursery, scheme)

    async def dial() -> None:
        (await dial_through(proxy.value(), HostPort("127.0.0.1", port))).close()

    assert await cancelled_everywhere(dial) > 3
    await until(lambda: proxy.open == 0)


async def test_a_verified_connection_through_a_proxy_has_the_tunnels_options(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, contexts()[0], server_side=True) as tls:
            await tls.receive_some()

    _, port = await start_target(nursery, quiet(serve))
    proxy = await start(nursery, "http", names={"localhost": "127.0.0.1"})
    resolver = Resolver((HostPort("localhost", port),), look_up=leave_name)
    turns = Turns(Dialer(contexts()[1], None, proxy.value()), resolver)
    reached = await turns.dial()
    assert (str(reached.address), reached.address.place) == (f"localhost:{port}", f"localhost:{port}")
    assert reached.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    assert reached.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    reached.close()


async def test_a_proxys_refusal_ends_a_dial_and_counts_against_no_address(nursery: trio.Nursery) -> None:
    proxy = await start(nursery, "http", auth="me:word")
    resolver = Resolver((HostPort("a.invalid", 1), HostPort("b.invalid", 1)), look_up=leave_name)
    turns = Turns(Dialer(contexts()[1], None, proxy.value()), resolver)
    with pytest.raises(Refused, match="407"):
        await turns.dial()
    assert turns.has_another


@pytest.mark.slow
async def test_a_proxy_that_comes_by_a_reload_looks_names_up_from_then_on(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The client that knew no way to the server has a session as soon as its file names the proxy."""
    proxy = await start(nursery, "http", names={"tunnel.invalid": "127.0.0.1"})
    grant = Grant("home", tunnel.hash_token(TOKEN), allow_ports=None)
    server: tunnel.Server = await nursery.start(
        tunnel.serve, ServerConfig((HostPort("127.0.0.1", 0),), state_dir=tmp_path, clients=(grant,))
    )
    where = HostPort("tunnel.invalid", server.where.port)
    config = ClientConfig((where,), TOKEN, pin=certificate_pin_of_file(server.cert_file))
    async with tunnel.connect(config) as client:
        await until(lambda: "cannot be resolved" in client.connection.detail)
        client.apply(diff(config, evolve(config, via=proxy.value())))
        await until(client.is_ready)
        assert set(proxy.asked) == {str(where)}
    nursery.cancel_scope.cancel()


async def test_what_a_name_stands_for_is_asked_at_the_proxy_only() -> None:
    resolver = Resolver((HostPort("a.invalid", 1), HostPort("10.0.0.1", 2)), look_up=leave_name)
    assert [str(address) for address in await resolver.find()] == ["a.invalid:1", "10.0.0.1:2"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_whole_tunnel_goes_through_a_proxy_that_alone_knows_the_servers_name(
    nursery: trio.Nursery, scheme: str, tmp_path: Path
) -> None:
    """Control channel, data channels and a visitor; the service beside the client is dialled directly."""
    _, service = await start_target(nursery, quiet(echo))
    proxy = await start(nursery, scheme, names={"tunnel.invalid": "127.0.0.1"}, auth="me:s3cret")
    grant = Grant("home", tunnel.hash_token(TOKEN), allow_ports=None)
    server: tunnel.Server = await nursery.start(
        tunnel.serve, ServerConfig((HostPort("127.0.0.1", 0),), state_dir=tmp_path, clients=(grant,))
    )
    config = ClientConfig(
        (HostPort("tunnel.invalid", server.where.port),), TOKEN, pin=certificate_pin_of_file(server.cert_file),
        via=proxy.value("me", "s3cret"),
        proxies=(ProxyConfig("web", HostPort("127.0.0.1", 0), (Target("tcp", "127.0.0.1", service),)),),
    )  # fmt: skip
    async with tunnel.connect(config) as client:
        with trio.fail_after(30):
            await client.wait_healthy()
            sock = await dial_tcp(HostPort("127.0.0.1", client.statuses["web"].publish_port))
            assert await says_hello(sock) == b"hello"
        assert len(proxy.asked) >= 2
        assert set(proxy.asked) == {f"tunnel.invalid:{server.where.port}"}
    nursery.cancel_scope.cancel()
