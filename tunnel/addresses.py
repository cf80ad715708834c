"""Addresses as people write them: HOST:PORT, PUBLISH, TARGET, port ranges. Pure parsing; every error is a ValueError
whose text says what is wrong and what to write instead."""

import ipaddress
import re

from attrs import frozen

DEFAULT_PORT = 8443
PROXY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")  # safe in logs, terminals, labels and file names
INTERFACE = re.compile(r"[A-Za-z0-9._-]{1,15}\Z")  # Linux's limit; `ipaddress` would take anything, a zero byte too


@frozen
class HostPort:
    """A host (name or IP literal, without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Target:
    """What a client dials for a proxy: `kind` is ``tcp``, ``tls`` or ``unix``; `host` is the path for ``unix``.

    `weight` is its share among several; a `backup` is asked when no other can be had. `connect_to` is where to connect
    instead of `host` and `port` (which still give the name that TLS asks for, unless `server_name` does).
    """

    kind: str
    host: str
    port: int = 0
    weight: int = 1
    backup: bool = False
    connect_to: HostPort | None = None
    server_name: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.host}"
        where = str(HostPort(self.host, self.port))
        return f"tls://{where}" if self.kind == "tls" else where

    @property
    def where(self) -> HostPort:
        """Where to connect; means nothing for ``unix``."""
        return self.connect_to or HostPort(self.host, self.port)

    @property
    def is_literal(self) -> bool:
        """True when dialling needs neither a name look-up nor a handshake."""
        return self.kind == "tcp" and is_ip(self.where.host)


@frozen
class PortRange:
    first: int
    last: int

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def is_ip(text: str) -> bool:
    """Whether `text` is a numeric address. IPv6 may name an interface, as ``fe80::1%eth0`` does."""
    _, percent, interface = text.partition("%")
    if percent and not INTERFACE.match(interface):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_name(name: str) -> str:
    if not PROXY_NAME.match(name):
        raise ValueError(
            f"{name!r} is not a name; use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return name


def parse_port(text: str, *, zero: bool = False) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535 or (int(text) == 0 and not zero):
        raise ValueError(f"{text!r} is not a port; write a number from {0 if zero else 1} to 65535")
    return int(text)


def parse_host_port(text: str, *, default_port: int | None = DEFAULT_PORT, zero: bool = False) -> HostPort:
    """``HOST``, ``HOST:PORT``, ``[V6]`` or ``[V6]:PORT``; without a port, `default_port` (None: a port is needed)."""
    host, port = _split_host(text)
    if port is None and default_port is None:
        raise ValueError(f"{text!r} has no port; write HOST:PORT")
    return HostPort(host, default_port if port is None and default_port else parse_port(port or "", zero=zero))


def _split_host(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not is_ip(host):
            raise ValueError(f"{text!r} is not an address; write IPv6 as [ADDRESS]:PORT")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        raise ValueError(f"{text!r} is not an address; write IPv6 in brackets: [ADDRESS]:PORT")
    host, colon, port = text.partition(":")
    if not host or any(c.isspace() or c in "/@" or not c.isprintable() for c in host):
        raise ValueError(f"{text!r} is not an address; write HOST:PORT")
    return host, port if colon else None


def check_publish_addr(text: str) -> str:
    """A published address is numeric: what a name stands for could change between two attempts to bind it."""
    if not is_ip(text):
        raise ValueError(f"{text!r} is not an IP address; write one such as 0.0.0.0, 127.0.0.1 or ::")
    return text


def parse_publish(text: str) -> HostPort:
    """``PORT``, ``0``, ``ADDR:PORT`` or ``[V6]:PORT``; without an address 0.0.0.0."""
    if text.isascii() and text.isdigit():
        return HostPort("0.0.0.0", parse_port(text, zero=True))  # noqa: S104  what is published is meant to be reached
    where = parse_host_port(text, default_port=None, zero=True)
    check_publish_addr(where.host)
    return where


def parse_target(text: str) -> Target:
    """``PORT``, ``HOST:PORT``, ``tls://HOST:PORT`` or ``unix:/path``; without a host 127.0.0.1."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{text!r} is not a target; write unix:/absolute/path")
        if len(path.encode()) > 107:  # sockaddr_un on Linux holds 108 bytes with the final zero
            raise ValueError(f"{text!r} is too long for a Unix socket; use a path of at most 107 bytes")
        return Target("unix", path)
    kind = "tcp"
    if "://" in text:
        scheme, _, text = text.partition("://")
        if scheme not in ("tls", "tcp"):
            raise ValueError(f"{scheme!r} is not a kind of target; write HOST:PORT, tls://HOST:PORT or unix:/path")
        kind = scheme
    if text.isascii() and text.isdigit():
        return Target(kind, "127.0.0.1", parse_port(text))
    where = parse_host_port(text, default_port=None)
    return Target(kind, where.host, where.port)


def parse_proxy_option(text: str) -> tuple[str, HostPort, Target]:
    """The value of ``-p``: NAME=PUBLISH:TARGET. PUBLISH is digits up to the first colon, or IP literal and port."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not a proxy; write NAME=PUBLISH:TARGET, such as web=8001:127.0.0.1:8080")
    check_name(name)
    match = re.match(r"(\d+|\[[^\]]*\]:\d+|[^:\[\]]+:\d+):(.+)\Z", rest, re.DOTALL)
    if match is None:
        raise ValueError(f"{rest!r} is not PUBLISH:TARGET; write 8001:8080, 127.0.0.1:8001:8080 or 8001:unix:/path")
    return name, parse_publish(match.group(1)), parse_target(match.group(2))


def parse_port_range(text: str) -> PortRange:
    """``8001`` or ``8000-8999``."""
    first, dash, last = text.partition("-")
    found = PortRange(parse_port(first.strip()), parse_port((last if dash else first).strip()))
    if found.first > found.last:
        raise ValueError(f"{text!r} runs backwards; write the smaller port first")
    return found


def parse_pin(text: str) -> bytes:
    """``sha256:HEX``, the SHA-256 of a certificate's public key (SPKI): 32 bytes."""
    scheme, _, digits = text.partition(":")
    if scheme != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        raise ValueError(f"{text!r} is not a pin; write sha256: and 64 hexadecimal digits, as `serve` prints it")
    return bytes.fromhex(digits)
