"""What a proxy of `client.toml` says of its targets and of their health check. Used by `client_file`."""

import re
from typing import Any

from attrs import evolve, frozen

from tunnel.addresses import HostPort, Target, is_ip, parse_host_port, parse_target
from tunnel.config import HealthCheck
from tunnel.config.sections import blame_repeats
from tunnel.config.table import Spot, Table
from tunnel.config.values import DAY, MAX_COUNT, flag, host, number, one_of, text, whole

CHECK_TYPES = ("tcp", "tls", "http")
MAX_WEIGHT = 1000
_EXAMPLE = 'such as "127.0.0.1:8080"'
_HTTP_PATH = re.compile(r"/[\x21-\x7e]*")
_HTTP_HOST = re.compile(r"[\x21-\x7e]+")


@frozen
class _Entry:
    """One of ``targets`` as far as it could be read."""

    spot: Spot
    target: Target


def take_targets(entry: Table) -> tuple[Target, ...]:
    """``target``, or ``targets``: texts, tables, or both mixed."""
    one = entry.take("target", target, None)
    several = _several(entry)
    if "target" in entry and "targets" in entry:
        entry.blame("targets", "stands beside target", "keep one of the two")
    elif "target" not in entry and "targets" not in entry:
        entry.missing("target", 'add target = "127.0.0.1:8080"')
    elif entry.data.get("targets") == []:
        entry.blame("targets", "is empty", f"write at least one, {_EXAMPLE}")
    return tuple(found.target for found in several) if one is None else (one,)


def target(value: Any) -> Target:
    """Reads a TARGET."""
    if type(value) is int:
        raise ValueError(f'is a number, not a text; write "{value}" or "127.0.0.1:{value}"')
    if isinstance(value, list | dict):
        raise ValueError(f"is a {'list' if isinstance(value, list) else 'table'}, not a text; write targets = […]")
    found = parse_target(text(value))
    if found.kind != "unix":
        host(found.host)
    return found


def _several(entry: Table) -> list[_Entry]:
    found = [
        _Entry(entry.spot("targets", index), one) if isinstance(one, Target) else _from_table(one)
        for index, one in entry.mixed("targets", target)
    ]
    entries = [one for one in found if one is not None]
    said = [(one.spot, (one.target.kind, one.target.host, one.target.port, one.target.connect_to)) for one in entries]
    blame_repeats(said, entry.findings.blame, "the target at", "write each once; weight gives one a larger share")
    whole_list = len(found) == len(entry.data.get("targets", ()))
    if entries and whole_list and all(one is not None and one.target.backup for one in found):
        entry.blame("targets", "are all backup", "take backup = true away from at least one")
    return entries


def _from_table(table: Table) -> _Entry | None:
    found = table.need("target", target, 'target = "127.0.0.1:8080"')
    weight = table.take("weight", whole(1, MAX_WEIGHT), 1)
    backup = table.take("backup", flag, False)
    connect_to = table.take("connect_to", _literal, None)
    server_name = table.take("server_name", host, "")
    if found is None:
        return None
    if found.kind == "unix" and "connect_to" in table:
        table.blame("connect_to", "means nothing to a Unix socket", "take it away")
    if found.kind != "tls" and "server_name" in table:
        table.blame("server_name", f"means nothing without TLS to {found}", "take it away, or write tls://HOST:PORT")
    more = evolve(found, weight=weight, backup=backup, connect_to=connect_to, server_name=server_name)
    return _Entry(table.spot("target"), more)


def _literal(value: Any) -> HostPort:
    where = parse_host_port(text(value), default_port=None)
    if not is_ip(where.host):
        raise ValueError(f"{value!r} is not an IP address with a port; write one such as 10.0.0.9:443")
    return where


def take_health_check(entry: Table) -> HealthCheck | None:
    section = entry.table("health_check")
    if section is None:
        return None
    normal = HealthCheck()
    check = HealthCheck(
        type=section.take("type", one_of(CHECK_TYPES, "type of check"), normal.type),
        path=section.take("path", _http_path, normal.path),
        expect_status=section.many("expect_status", whole(100, 599), normal.expect_status),
        host=section.take("host", _http_host, None),
        interval=section.take("interval", number(0, DAY, above=True), normal.interval),
        timeout=section.take("timeout", number(0, DAY, above=True), normal.timeout),
        rise=section.take("rise", whole(1, MAX_COUNT), normal.rise),
        fall=section.take("fall", whole(1, MAX_COUNT), normal.fall),
        jitter=section.take("jitter", number(0, 1), normal.jitter),
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


def _http_path(value: Any) -> str:
    if not _HTTP_PATH.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a path; write one such as /healthz, with %20 for a space")
    return str(value)


def _http_host(value: Any) -> str:
    if not _HTTP_HOST.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a host; write one such as www.example.com")
    return str(value)
