"""What `client.toml` and the options of `connect` say, as far as a `ClientConfig`. Called by `config_file`.

Proxies of the file and of ``-p`` become claims first, whole or not, so that the rules across proxies see all of them.
"""

from ipaddress import ip_address
from typing import Any

from attrs import frozen

from tunnel.addresses import HostPort, parse_proxy_option
from tunnel.config import ProxyConfig
from tunnel.config.pools import take_target_pool
from tunnel.config.sections import blame_repeats, take_addresses, take_bind_retry
from tunnel.config.table import Findings, Spot, Table, show_value
from tunnel.config.targets import take_health_check, take_targets
from tunnel.config.values import host, host_port, name, one_of, publish_addr, whole
from tunnel.messages import MAX_PROXIES

MAX_SERVERS = 16  # addresses of one server: each is kept connected, each look-up may find several more
WHEN_DOWN = ("keep", "close")
_ANY = "0.0.0.0"  # noqa: S104  what is published is meant to be reached


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
    targets, retry, check = take_targets(entry), take_bind_retry(entry), take_health_check(entry)
    when_down, pool = _take_when_down(entry), take_target_pool(entry)
    proxy = None
    if proxy_name is not None and publish is not None:
        proxy = ProxyConfig(proxy_name, publish, targets, retry, check, when_down, pool)
    return Claim(entry.spot("name"), proxy_name, entry.spot("publish_port"), publish, proxy)


def _take_when_down(entry: Table) -> str:
    found = entry.take("when_down", one_of(WHEN_DOWN, "answer to a target that is down"), "keep")
    if "when_down" in entry and "health_check" not in entry and not entry.findings.partial:
        problem = "means nothing without a health check, which tells what is down"
        entry.blame("when_down", problem, "add [proxies.health_check], or take it away")
    return found
