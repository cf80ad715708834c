"""What `client.toml` and the options of `connect` say, as far as a `ClientConfig`. Called by `config_file`.

Proxies of the file and of ``-p`` become claims first, whole or not, so that the rules across proxies see all of them.
"""

import re
from ipaddress import ip_address
from typing import Any

from attrs import frozen

from tunnel.addresses import HostPort, Target, parse_proxy_option, parse_target
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.config_sections import blame_repeats, take_addresses, take_bind_retry
from tunnel.config_table import Findings, Spot, Table, show_value
from tunnel.config_values import DAY, MAX_COUNT, host, host_port, name, number, publish_addr, text, whole
from tunnel.messages import MAX_PROXIES

MAX_SERVERS = 16  # addresses of one server: each is kept connected, each look-up may find several more
CHECK_TYPES = ("tcp", "tls", "http")
_ANY = "0.0.0.0"  # noqa: S104  what is published is meant to be reached
_HTTP_PATH = re.compile(r"/[\x21-\x7e]*")
_HTTP_HOST = re.compile(r"[\x21-\x7e]+")


@frozen
class Claim:
    """A proxy as far as it could be read; `proxy` is None where it could not be read whole."""

    named_at: Spot
    name: str | None
    published_at: Spot
    publish: HostPort | None
    proxy: ProxyConfig | None


def take_servers(table: Table) -> tuple[HostPort, ...] | None:
    """``servers``, or the one ``server``; None where there is neither."""
    server = table.take("server", host_port(), None)
    servers = take_addresses(table, "servers", host_port(), at_most=MAX_SERVERS)
    if "server" in table and "servers" in table:
        table.blame("servers", "stands beside server", "keep one of the two")
    return servers if server is None else (server,)


def take_proxies(table: Table) -> list[Claim]:
    entries = table.tables("proxies")
    if len(entries) > MAX_PROXIES:
        table.blame("proxies", f"has {len(entries)} members", f"a client has at most {MAX_PROXIES}")
    return [_claim(entry) for entry in entries]


def claim_option(option: str) -> Claim:
    """A proxy of ``-p``; ValueError if it is none."""
    proxy_name, publish, target = parse_proxy_option(option)
    if target.kind != "unix":
        host(target.host)
    spot = Spot("-p", 0, "", show_value(option))
    return Claim(spot, proxy_name, spot, publish, ProxyConfig(proxy_name, publish, (target,)))


def check_claims(claims: list[Claim], findings: Findings) -> None:
    """Blame a name that stands twice, and an address that two proxies publish."""
    names: list[tuple[Spot, Any]] = [(claim.named_at, claim.name) for claim in claims]
    blame_repeats(names, findings.blame, "the name at", "give each proxy a name of its own")
    published: dict[tuple[int, int], dict[Any, Claim]] = {}  # by IP version and port, then by address; None: wildcard
    for claim in claims:
        if claim.publish is None or claim.publish.port == 0:  # port 0 is a free one
            continue
        address = ip_address(claim.publish.host)
        key = None if address.is_unspecified else address
        earlier = published.setdefault((address.version, claim.publish.port), {})  # IPv6 sockets are V6ONLY
        other = next(iter(earlier.values()), None) if key is None else earlier.get(key) or earlier.get(None)
        if other is not None:
            problem = f"publishes {claim.publish}, which {other.published_at} has with {other.publish}"
            findings.blame(claim.published_at, problem, "choose another port, or two addresses that do not overlap")
        earlier.setdefault(key, claim)


def _claim(entry: Table) -> Claim:
    proxy_name = entry.need("name", name, 'name = "web"')
    no_default = "publish_addr" in entry or entry.findings.partial
    addr = entry.take("publish_addr", publish_addr, None if no_default else _ANY)
    port = entry.need("publish_port", whole(0, 65535), "publish_port = 8001, or 0 and the server chooses")
    publish = None if addr is None or port is None else HostPort(addr, port)
    targets, retry, check = _targets(entry), take_bind_retry(entry), _health_check(entry)
    proxy = None
    if proxy_name is not None and publish is not None:
        proxy = ProxyConfig(proxy_name, publish, targets, retry, check)
    return Claim(entry.spot("name"), proxy_name, entry.spot("publish_port"), publish, proxy)


def _targets(entry: Table) -> tuple[Target, ...]:
    one = entry.take("target", _target, None)
    several = entry.many("targets", _target, ())
    if "target" in entry and "targets" in entry:
        entry.blame("targets", "stands beside target", "keep one of the two")
    elif "target" not in entry and "targets" not in entry:
        entry.missing("target", 'add target = "127.0.0.1:8080"')
    elif entry.data.get("targets") == []:
        entry.blame("targets", "is empty", 'write at least one, such as "127.0.0.1:8080"')
    return several if one is None else (one,)


def _target(value: Any) -> Target:
    if type(value) is int:
        raise ValueError(f'is a number, not a text; write "{value}" or "127.0.0.1:{value}"')
    if isinstance(value, list):
        raise ValueError("is a list, not a text; write targets = […] for several")
    target = parse_target(text(value))
    if target.kind != "unix":
        host(target.host)
    return target


def _health_check(entry: Table) -> HealthCheck | None:
    section = entry.table("health_check")
    if section is None:
        return None
    normal = HealthCheck()
    check = HealthCheck(
        type=section.take("type", _check_type, normal.type),
        path=section.take("path", _http_path, normal.path),
        expect_status=section.many("expect_status", whole(100, 599), normal.expect_status),
        host=section.take("host", _http_host, None),
        interval=section.take("interval", number(0, DAY, above=True), normal.interval),
        timeout=section.take("timeout", number(0, DAY, above=True), normal.timeout),
        rise=section.take("rise", whole(1, MAX_COUNT), normal.rise),
        fall=section.take("fall", whole(1, MAX_COUNT), normal.fall),
    )
    if section.data.get("expect_status") == []:
        section.blame("expect_status", "is empty", "write at least one, such as 200")
    if section.data.get("type", None if entry.findings.partial else normal.type) in ("tcp", "tls"):
        for key in ("path", "expect_status"):
            if key in section:
                section.blame(
                    key, f"means nothing to a check of type {check.type}", 'add type = "http", or take it away'
                )
    return check


def _check_type(value: Any) -> str:
    if text(value) not in CHECK_TYPES:
        raise ValueError(f"{value!r} is no type of check; write one of {', '.join(CHECK_TYPES)}")
    return str(value)


def _http_path(value: Any) -> str:
    if not _HTTP_PATH.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a path; write one such as /healthz, with %20 for a space")
    return str(value)


def _http_host(value: Any) -> str:
    if not _HTTP_HOST.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a host; write one such as www.example.com")
    return str(value)
