"""What people write for addresses, and that every mistake is a ValueError in words."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.addresses import (
    HostPort,
    PortRange,
    Target,
    check_name,
    check_publish_addr,
    is_ip,
    parse_host_port,
    parse_pin,
    parse_port,
    parse_port_range,
    parse_proxy_option,
    parse_publish,
    parse_target,
)

PARSERS: dict[str, Callable[[str], Any]] = {
    "name": check_name,
    "port": parse_port,
    "port or 0": lambda text: parse_port(text, zero=True),
    "host and port": parse_host_port,
    "host with port": lambda text: parse_host_port(text, default_port=None),
    "publish address": check_publish_addr,
    "publish": parse_publish,
    "target": parse_target,
    "proxy option": parse_proxy_option,
    "port range": parse_port_range,
    "pin": parse_pin,
}
# What addresses are made of, in any order: nearer to the edges than arbitrary text.
PIECES = st.lists(
    st.sampled_from(
        [":", "::", "[", "]", "/", "//", "=", "-", "%", ".", "0", "1", "443", "65535", "65536", "٣", "²", " ", "\n",
         "\0", "\ud800", "é", "a", "web", "tls://", "unix:", "127.0.0.1", "::1", "[::1]", "sha256:", "f" * 64]
    ),
    max_size=8,
).map("".join)  # fmt: skip

HOST_PORTS = {
    "tunnel.example.com": HostPort("tunnel.example.com", 8443),
    "tunnel.example.com:443": HostPort("tunnel.example.com", 443),
    "10.0.0.1": HostPort("10.0.0.1", 8443),
    "[::1]": HostPort("::1", 8443),
    "[2001:db8::2]:1": HostPort("2001:db8::2", 1),
    "host:65535": HostPort("host", 65535),
}
NO_HOST_PORTS = [
    "", ":", ":443", "host:", "host:0", "host:65536", "host:-1", "host:+1", "host:1_0", "host:٣", "host:8 ",
    "::1", "::1:443", "[::1", "[::1]443", "[::1]:", "[host]:1", "[]:1", "http://host", "user@host", "ho st", "ho\nst",
    "host:" + "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(("text", "where"), HOST_PORTS.items())
def test_a_server_is_a_host_with_or_without_a_port(text: str, where: HostPort) -> None:
    assert parse_host_port(text) == where


@pytest.mark.parametrize("text", NO_HOST_PORTS, ids=lambda text: repr(text[:20]))
def test_what_is_no_host_and_port_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_host_port(text)


def test_a_port_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="'host' has no port; write HOST:PORT"):
        parse_host_port("host", default_port=None)
    assert parse_host_port("host:0", zero=True) == HostPort("host", 0)


PUBLISHED = {
    "8001": HostPort("0.0.0.0", 8001),
    "0": HostPort("0.0.0.0", 0),
    "127.0.0.1:8001": HostPort("127.0.0.1", 8001),
    "127.0.0.1:0": HostPort("127.0.0.1", 0),
    "[::]:8001": HostPort("::", 8001),
}


@pytest.mark.parametrize(("text", "where"), PUBLISHED.items())
def test_publish_is_a_port_or_a_numeric_address_and_a_port(text: str, where: HostPort) -> None:
    assert parse_publish(text) == where


@pytest.mark.parametrize("text", ["", "65536", "host:80", "127.0.0.1", "127.1:80", "[::]", "::", "-1", "8001 ", "٣"])
def test_what_cannot_be_published_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_publish(text)


TARGETS = {
    "8080": Target("tcp", "127.0.0.1", 8080),
    "nas:22": Target("tcp", "nas", 22),
    "tcp://nas:22": Target("tcp", "nas", 22),
    "[::1]:22": Target("tcp", "::1", 22),
    "tls://nas:443": Target("tls", "nas", 443),
    "tls://443": Target("tls", "127.0.0.1", 443),
    "unix:/run/web.sock": Target("unix", "/run/web.sock"),
    "unix:/" + "x" * 106: Target("unix", "/" + "x" * 106),
}


@pytest.mark.parametrize(("text", "target"), TARGETS.items())
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    ["", "0", "nas", "nas:0", "http://nas:80", "unix:", "unix:run/web", "unix:/" + "x" * 107, "unix:/" + "é" * 54,
     "unix:/\ud800", "tls://unix:/x", "://nas:1", "tls://tls://nas:1", "::1:22"],
)  # fmt: skip
def test_what_is_no_target_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_target(text)


def test_only_a_plain_ip_needs_neither_a_look_up_nor_a_handshake() -> None:
    literal = {text for text, target in TARGETS.items() if target.is_literal}
    assert literal == {"8080", "[::1]:22"}


PROXY_OPTIONS = {
    "web=8001:8080": ("web", "0.0.0.0:8001", "127.0.0.1:8080"),
    "web=0:8080": ("web", "0.0.0.0:0", "127.0.0.1:8080"),
    "web=8001:nas:80": ("web", "0.0.0.0:8001", "nas:80"),
    "web=8001:127.0.0.1:80": ("web", "0.0.0.0:8001", "127.0.0.1:80"),
    "web=127.0.0.1:8001:8080": ("web", "127.0.0.1:8001", "127.0.0.1:8080"),
    "web=[::1]:8001:[::1]:8080": ("web", "[::1]:8001", "[::1]:8080"),
    "web=8001:tls://nas:443": ("web", "0.0.0.0:8001", "tls://nas:443"),
    "web=8001:unix:/run/a=b:c": ("web", "0.0.0.0:8001", "unix:/run/a=b:c"),
    "web=127.0.0.1:8001:unix:/run/web": ("web", "127.0.0.1:8001", "unix:/run/web"),
}


@pytest.mark.parametrize(("text", "parts"), PROXY_OPTIONS.items())
def test_a_proxy_option_is_a_name_a_public_address_and_a_target(text: str, parts: tuple[str, str, str]) -> None:
    name, publish, target = parse_proxy_option(text)
    assert (name, str(publish), str(target)) == parts


@pytest.mark.parametrize(
    "text", ["", "web", "web=", "=8001:8080", "web=8001", "web=8001:", "web=:8080", "we b=1:2", "web=host:1:2",
             "web=٣:8080", "-web=1:2", "a" * 64 + "=1:2"]
)  # fmt: skip
def test_what_is_no_proxy_option_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_proxy_option(text)


@pytest.mark.parametrize(
    ("text", "found"), {"80": PortRange(80, 80), "8000-8999": PortRange(8000, 8999), " 1 - 2 ": PortRange(1, 2)}.items()
)
def test_port_ranges(text: str, found: PortRange) -> None:
    assert parse_port_range(text) == found


@pytest.mark.parametrize("text", ["", "-", "80-", "-80", "0", "0-80", "80-65536", "90-80", "1-2-3", "a-b"])
def test_what_is_no_port_range_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_port_range(text)


def test_a_port_range_holds_its_ends_and_only_numbers() -> None:
    ports = PortRange(80, 82)
    assert [port for port in range(79, 85) if port in ports] == [80, 81, 82]
    assert "81" not in ports
    assert (str(ports), str(PortRange(80, 80))) == ("80-82", "80")


def test_a_pin_is_the_hash_as_serve_prints_it() -> None:
    assert parse_pin("sha256:" + "0aF" * 21 + "0") == bytes.fromhex("0af" * 21 + "0")


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha1:" + "0" * 64, "sha256:" + "g" * 64,
             "0" * 64, "sha256:" + "٠" * 64, "sha256:" + "0" * 64 + "\n"]
)  # fmt: skip
def test_what_is_no_pin_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        parse_pin(text)


@pytest.mark.parametrize("name", ["a", "web", "web-2.lab_x", "0", "a" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a\n", "a/b", "é", "a" * 64, "<script>", "a\0"])
def test_what_is_no_name_is_told(name: str) -> None:
    with pytest.raises(ValueError):
        check_name(name)


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
@given(text=PIECES | st.text())
@example("[::1%\x1b[2J]:80")
@example("web=[::1%\0]:80:80")
def test_any_text_gives_a_value_or_a_valueerror(parser: Callable[[str], Any], text: str) -> None:
    try:
        parser(text)
    except ValueError as exc:
        assert str(exc)  # noqa: PT017  most texts raise nothing else, and which do is not the point


def test_an_interface_in_an_address_is_a_plain_word() -> None:
    assert is_ip("fe80::1%eth0")
    assert not any(is_ip(f"fe80::1%{scope}") for scope in ("\x1b[2J", "a b", "a\0", "\ud800", "é", "a]", "", "x" * 64))


HOSTS = st.sampled_from(["host", "a.example", "127.0.0.1", "::1", "2001:db8::1"])
PORTS = st.integers(1, 65535)


@given(st.builds(HostPort, HOSTS, PORTS))
def test_a_host_and_port_is_read_back_as_written(where: HostPort) -> None:
    assert parse_host_port(str(where)) == where


@given(
    st.builds(Target, st.sampled_from(["tcp", "tls"]), HOSTS, PORTS)
    | st.builds(Target, st.just("unix"), st.text("abc/é=: ", max_size=40).map("/".__add__))
)
def test_a_target_is_read_back_as_written(target: Target) -> None:
    assert parse_target(str(target)) == target
