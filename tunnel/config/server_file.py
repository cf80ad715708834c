"""What `server.toml` says, as a `ServerConfig`. Called by `config_file`."""

import hashlib
import re
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tunnel.addresses import DEFAULT_PORT, HostPort, PortRange, parse_port_range
from tunnel.backoff import RetryPolicy
from tunnel.config import DEFAULT_ADMIN, Grant, ServerConfig
from tunnel.config.history import take_history
from tunnel.config.notices import take_notices
from tunnel.config.sections import (
    admin_is_asked_for,
    blame_repeats,
    take_addresses,
    take_admin,
    take_bind_retry,
    take_ca_file,
    take_limits,
    take_min_version,
    take_pair,
    take_process,
    take_state_dir,
)
from tunnel.config.table import Findings, Spot, Table
from tunnel.config.values import MAX_COUNT, host, host_port, name, network, number, publish_addr, text, whole
from tunnel.messages import MAX_PROXIES

MAX_LISTEN = 16  # addresses; one for each family and way into a host is far fewer
MIN_RATE = 0.01  # new visitors a second: less is a port that nobody should have
_OF_NOTHING = tuple(hashlib.sha256(nothing).digest() for nothing in (b"", b"\n"))  # what an unset variable gives
_ANY = "0.0.0.0"  # noqa: S104  a public server listens to all


def read_server(table: Table, base: Path) -> ServerConfig:
    """The whole file; relative paths in it start at `base`. Worth nothing if `table.findings` has mistakes then."""
    tls = table.table("tls")
    cert_file, key_file = _pair(tls, base)
    admin, admin_hosts = take_admin(table, DEFAULT_ADMIN)
    return ServerConfig(
        listen=_listen(table),
        proxy_protocol_from=table.many("proxy_protocol_from", network, ()),
        state_dir=take_state_dir(table, base),
        cert_file=cert_file,
        key_file=key_file,
        clients=_clients(table),
        bind_retry=take_bind_retry(table) or RetryPolicy(),
        admin=admin,
        admin_hosts=admin_hosts,
        admin_required=admin_is_asked_for(table),
        limits=take_limits(table),
        history=take_history(table, base),
        **take_process(table),
        client_ca_file=None if tls is None else take_ca_file(tls, "client_ca_file", base),
        tls_min_version=take_min_version(tls),
        notices=take_notices(table, base, is_server=True),
    )


def _listen(table: Table) -> tuple[HostPort, ...]:
    """``listen``, or what ``bind_addr`` and ``bind_port`` say, which are for one address."""
    one = HostPort(table.take("bind_addr", host, _ANY), table.take("bind_port", whole(0, 65535), DEFAULT_PORT))
    several = take_addresses(table, "listen", host_port(zero=True), at_most=MAX_LISTEN)
    for key in ("bind_addr", "bind_port"):
        if "listen" in table and key in table:
            table.blame(key, "stands beside listen", "keep one of the two")
    return several or (one,)


def _pair(section: Table | None, base: Path) -> tuple[Path | None, Path | None]:
    if section is None:
        return None, None
    return take_pair(section, base, group=True, without=" and the server makes a certificate itself")


@frozen
class _Client:
    """A ``[[clients]]`` entry as far as it could be read."""

    table: Table
    name: str | None
    token_sha256: bytes | None = field(repr=False)
    allow_ports: tuple[PortRange, ...]
    allow_addrs: tuple[str, ...] | None
    allow_names: tuple[str, ...] | None
    max_proxies: int
    max_visitors: int | None
    max_visitor_rate: float | None

    def grant(self) -> Grant | None:
        if self.name is None or self.token_sha256 is None:
            return None
        return Grant(
            self.name,
            self.token_sha256,
            allow_ports=self.allow_ports,
            allow_addrs=self.allow_addrs,
            allow_names=self.allow_names,
            max_proxies=self.max_proxies,
            max_visitors=self.max_visitors,
            max_visitor_rate=self.max_visitor_rate,
        )


def _clients(table: Table) -> tuple[Grant, ...]:
    clients = [_client(entry) for entry in table.tables("clients")]
    findings = table.findings
    _check_repeats(findings, clients)
    return tuple(grant for client in clients if (grant := client.grant()) is not None)


def _check_repeats(findings: Findings, clients: list[_Client]) -> None:
    names: list[tuple[Spot, Any]] = [(client.table.spot("name"), client.name) for client in clients]
    blame_repeats(names, findings.blame, "the name at", "give each client a name of its own")
    tokens: list[tuple[Spot, Any]] = [(client.table.spot("token_sha256"), client.token_sha256) for client in clients]
    blame_repeats(tokens, findings.blame, "the token at", "make one for each client, with `trio-tunnel token new NAME`")


def _client(entry: Table) -> _Client:
    return _Client(
        table=entry,
        name=entry.need("name", name, 'name = "home"'),
        token_sha256=entry.need("token_sha256", _digest, "the line that `trio-tunnel token new NAME` prints"),
        allow_ports=entry.many("allow_ports", _port_range, ()),
        allow_addrs=entry.many("allow_addrs", publish_addr, None),
        allow_names=entry.many("allow_names", name, None),
        max_proxies=entry.take("max_proxies", whole(1, MAX_PROXIES), MAX_PROXIES),
        max_visitors=entry.take("max_visitors", whole(1, MAX_COUNT), None),
        max_visitor_rate=entry.take("max_visitor_rate", number(MIN_RATE, MAX_COUNT), None),
    )


def _digest(value: Any) -> bytes:
    digits = text(value)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):  # the message keeps it to itself: it may be the token
        raise ValueError(f"is no SHA-256 ({len(digits)} characters); write 64 hexadecimal digits")
    digest = bytes.fromhex(digits)
    if digest in _OF_NOTHING:
        raise ValueError("is the SHA-256 of nothing at all, not of a token; make one with `trio-tunnel token new NAME`")
    return digest


def _port_range(value: Any) -> PortRange:
    if type(value) is int:
        raise ValueError(f'is a number, not a text; write "{value}", or a range such as "8000-8999"')
    return parse_port_range(text(value))
