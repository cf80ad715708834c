"""Through a forward proxy to the server: HTTP CONNECT or SOCKS5, then the socket is as if it had been dialled directly.

CONNECT is spoken by h11, SOCKS5 by python-socks (which takes the first piece of an HTTP answer for all of it, so that
the rest of a head that comes in two pieces would be read as TLS). What a proxy answers is bounded and never believed:
who is at the other end, the TLS handshake shows.
"""

import base64
import socket
from collections.abc import Awaitable
from typing import Any, TypeVar

import h11
import trio

from tunnel.addresses import HostPort, is_ip
from tunnel.config import ForwardProxy
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.sockets import UNSPELLABLE, dial_tcp
from tunnel.version import __version__

ANSWER_SECONDS = 8.0  # for proxy and server together: less than a dial's 10 s, so that what is told names the proxy
MAX_HEAD_BYTES = 16 * 1024
MAX_CREDENTIAL = 255  # bytes, by RFC 1929
MAX_NAME = 253  # characters of a name in DNS
MAX_SHOWN = 100  # characters of what a proxy said
AUTH_REMEDY = "put user:password in a file and name it in proxy_auth_file, or in TRIO_TUNNEL_PROXY_AUTH"
_PROXY_AUTH, _NO_CONNECT, _NOT_LET_THROUGH = 407, (405, 501), range(400, 500)
_SOCKS_NOT_ALLOWED, _SOCKS_CANNOT = 2, (7, 8)  # RFC 1928 §6: by its rules; command or kind of address unknown to it

T = TypeVar("T")


async def dial_through(proxy: ForwardProxy, to: HostPort) -> socket.socket:
    """A connected, non-blocking socket to `to`, of which the proxy is told the name where there is one.

    Raises `PeerLost` where the proxy or what is behind it cannot be reached, `Refused` for what a person has to mend
    (`proxy_auth`, `proxy_refused`); both name the proxy. If cancelled, nothing is left open.
    """
    if any(not word.isascii() or len(word) > MAX_CREDENTIAL for word in (proxy.username, proxy.password)):
        raise Refused(
            "proxy_auth", f"the proxy {proxy} cannot be sent this user or password; {AUTH_REMEDY}", trust=True
        )
    to = HostPort(to.host if is_ip(to.host) else _spelled(to), to.port)
    if proxy.scheme == "http":
        sock = await _in_time(proxy, to, dial_tcp(proxy.where, name=f"the proxy {proxy}"))
        try:
            await _in_time(proxy, to, _ask_http(sock, proxy, to))
        except BaseException:
            trio.lowlevel.notify_closing(sock)
            sock.close()
            raise
        return sock
    return await _in_time(proxy, to, _dial_socks(proxy, to))


def _spelled(to: HostPort) -> str:
    """The name as DNS knows it, and as SOCKS has room for."""
    try:
        name = to.host.encode("idna").decode("ascii")
    except UnicodeError as exc:  # an empty or an endless label
        raise PeerLost(f"cannot reach {to}: {UNSPELLABLE}") from exc
    if len(name) > MAX_NAME:
        raise PeerLost(f"cannot reach {to.host[:MAX_SHOWN]}…: {UNSPELLABLE}")
    return name


async def _in_time(proxy: ForwardProxy, to: HostPort, act: Awaitable[T]) -> T:
    with trio.move_on_after(ANSWER_SECONDS):
        return await act
    word = f"the proxy {proxy} gave no answer about {to} within {ANSWER_SECONDS:g} s"
    raise PeerLost(f"{word}; it is down, or what is behind it does not answer")


# HTTP


async def _ask_http(sock: socket.socket, proxy: ForwardProxy, to: HostPort) -> None:
    """Returns once the way is open and nothing but the other end's bytes will come."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    headers = [("Host", str(to)), ("User-Agent", f"trio-tunnel/{__version__}")]
    if proxy.username:
        both = base64.b64encode(f"{proxy.username}:{proxy.password}".encode("latin-1")).decode()
        headers.append(("Proxy-Authorization", f"Basic {both}"))
    request = parser.send(h11.Request(method="CONNECT", target=str(to), headers=headers)) or b""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))  # it would close the socket that we hand on
    try:
        await stream.send_all(request + (parser.send(h11.EndOfMessage()) or b""))
        answer = await _read_answer(stream, parser, proxy)
    except trio.BrokenResourceError as exc:
        raise PeerLost(f"the proxy {proxy} hung up within CONNECT to {to}", answered=True) from exc
    except h11.RemoteProtocolError as exc:
        word = f"what listens at {proxy.where} answers CONNECT with something that is no HTTP"
        raise PeerLost(f"{word}; if it is a SOCKS proxy, write socks5h://{proxy.where}", answered=True) from exc
    finally:
        await trio.aclose_forcefully(stream)
    if not 200 <= answer.status_code < 300:
        raise _http_refusal(proxy, to, answer)
    if parser.trailing_data[0]:
        raise PeerLost(f"the proxy {proxy} let {to} speak first, which no server of ours does", answered=True)


async def _read_answer(stream: trio.SocketStream, parser: h11.Connection, proxy: ForwardProxy) -> h11.Response:
    received = 0
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.PAUSED:  # it never ends by itself
            raise PeerLost(f"the proxy {proxy} answers CONNECT with another protocol", answered=True)
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(MAX_HEAD_BYTES))
            received += len(data)
            if not data or received > 2 * MAX_HEAD_BYTES:
                did = "hung up instead of answering CONNECT" if not data else "answers CONNECT without an end"
                raise PeerLost(f"the proxy {proxy} {did}", answered=True)
            parser.receive_data(data)


def _http_refusal(proxy: ForwardProxy, to: HostPort, answer: h11.Response) -> TunnelError:
    said = f"{answer.status_code} {_plain(bytes(answer.reason))}".strip()
    if answer.status_code == _PROXY_AUTH:
        offered = [value for name, value in answer.headers if name == b"proxy-authenticate"]
        return _auth_refusal(proxy, said, {_plain(value).partition(" ")[0].lower() for value in offered})
    if answer.status_code in _NO_CONNECT:
        word = f"what listens at {proxy.where} knows no CONNECT ({said})"
        return Refused("proxy_refused", f"{word}; name a proxy for HTTPS, or write socks5h:// if it is one", trust=True)
    if answer.status_code in _NOT_LET_THROUGH:
        return _not_let_through(proxy, to, said)
    if answer.status_code < 400:
        word = f"the proxy {proxy} answered CONNECT to {to} with {said}, as a page does where one has to log in first"
        return PeerLost(f"{word}; open a browser there", answered=True)
    return PeerLost(f"the proxy {proxy} cannot reach {to}: it answered {said}")


def _auth_refusal(proxy: ForwardProxy, said: str, offered: set[str]) -> Refused:
    if offered and "basic" not in offered:
        remedy = (
            f"it takes only {', '.join(sorted(offered))}, which is not spoken here: let a helper that does (cntlm, px) "
            "listen on this machine, and write that one's address"
        )
        word = f"the proxy {proxy} wants to know who is there ({said})"
    elif proxy.username:
        word, remedy = (
            f"the proxy {proxy} does not take user '{proxy.username}' with this password ({said})",
            AUTH_REMEDY,
        )
    else:
        word, remedy = f"the proxy {proxy} wants a user and a password ({said})", AUTH_REMEDY
    return Refused("proxy_auth", f"{word}; {remedy}", trust=True)


def _not_let_through(proxy: ForwardProxy, to: HostPort, said: str) -> Refused:
    word = f"the proxy {proxy} does not let connections to {to} through ({said})"
    remedy = f"have it allow port {to.port}"
    if to.port != 443:
        remedy += ", or let the server listen on 443, too, which most proxies allow"
    return Refused("proxy_refused", f"{word}; {remedy}", trust=True)


def _plain(text: bytes) -> str:
    """A stranger's words for a terminal."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text.decode("latin-1"))
    return shown[:MAX_SHOWN]


# SOCKS


async def _dial_socks(proxy: ForwardProxy, to: HostPort) -> socket.socket:
    from python_socks import ProxyError, ProxyType  # only where one is used
    from python_socks.async_.trio import Proxy

    before: Any = _Dialled(proxy)
    socks: Any = Proxy(
        ProxyType.SOCKS5, proxy.where.host, proxy.where.port, proxy.username or None, proxy.password or None,
        rdns=True, forward=before,
    )  # fmt: skip
    try:
        connected = await socks.connect(to.host, to.port, timeout=10 * ANSWER_SECONDS)
    except ProxyError as exc:
        raise _socks_refusal(proxy, to, exc) from exc
    except OSError as exc:
        raise PeerLost(f"the proxy {proxy} hung up: {exc.strerror or exc}", answered=True) from exc
    except (ValueError, IndexError) as exc:  # python-socks 3.2.1 decodes a name that is no text
        raise _no_socks(proxy, "nonsense") from exc
    trio.lowlevel.notify_closing(connected)
    sock = socket.socket(fileno=connected.detach())
    sock.setblocking(False)
    return sock


class _Dialled:
    """Stands where python-socks expects the proxy before the proxy: its own dial tries one address of a name only."""

    def __init__(self, proxy: ForwardProxy) -> None:
        self._proxy = proxy

    async def connect(self, **_where: Any) -> trio.socket.SocketType:
        sock = await dial_tcp(self._proxy.where, name=f"the proxy {self._proxy}")
        return trio.socket.from_stdlib_socket(sock)


def _socks_refusal(proxy: ForwardProxy, to: HostPort, exc: Any) -> TunnelError:
    said = _plain(str(exc).encode("latin-1", "replace"))
    if exc.error_code == _SOCKS_NOT_ALLOWED:
        return _not_let_through(proxy, to, said)
    if exc.error_code in _SOCKS_CANNOT:
        other = "socks5h" if proxy.scheme == "socks5" else "socks5"
        word = f"the proxy {proxy} cannot do what is needed for {to} ({said}); try {other}://{proxy.where}"
        return Refused("proxy_refused", word, trust=True)
    if exc.error_code is not None:
        return PeerLost(f"the proxy {proxy} cannot reach {to}: {said}")
    if "authentication" in said:  # python-socks has no code for it
        return _auth_refusal(proxy, said, set())
    return _no_socks(proxy, said)


def _no_socks(proxy: ForwardProxy, said: str) -> PeerLost:
    word = f"what listens at {proxy.where} does not answer as a SOCKS5 proxy ({said})"
    return PeerLost(f"{word}; if it is an HTTP proxy, write http://{proxy.where}", answered=True)
