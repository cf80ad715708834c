"""Which addresses the line to paste names, for every way of listening."""

import pytest

from tunnel import introduction
from tunnel.addresses import HostPort, parse_host_port

PUBLIC = {"0.0.0.0": "203.0.113.7", "::": "2001:db8::7"}
LONELY = {"0.0.0.0": "203.0.113.7", "::": "::1"}  # no IPv6 route

CASES = [
    (["0.0.0.0:8443"], None, ["203.0.113.7:8443"]),
    (["127.0.0.1:8443"], None, ["127.0.0.1:8443"]),
    (["0.0.0.0:8443"], "example.com", ["example.com:8443"]),
    (["192.0.2.1:8443", "192.0.2.2:443"], None, ["192.0.2.1:8443", "192.0.2.2:443"]),
    (["0.0.0.0:8443", "[::]:8443"], None, ["203.0.113.7:8443", "[2001:db8::7]:8443"]),
    (["0.0.0.0:8443", "0.0.0.0:443"], None, ["203.0.113.7:8443", "203.0.113.7:443"]),
    (["0.0.0.0:8443", "[::]:8443"], "example.com", ["example.com:8443"]),
    (["192.0.2.1:8443", "192.0.2.2:443", "192.0.2.3:8443"], "example.com", ["example.com:8443", "example.com:443"]),
    (["203.0.113.7:443", "0.0.0.0:443"], None, ["203.0.113.7:443"]),
]


@pytest.mark.parametrize(("bound", "public_host", "named"), CASES)
def test_each_address_is_named_once_as_others_reach_it(
    bound: list[str], public_host: str | None, named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introduction, "reachable_host", lambda host: PUBLIC.get(host, host))
    assert [str(where) for where in introduction.reachable(_parsed(bound), public_host)] == named


def test_a_further_wildcard_that_nobody_could_reach_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introduction, "reachable_host", lambda host: LONELY.get(host, host))
    assert introduction.reachable(_parsed(["0.0.0.0:1", "[::]:1"]), None) == (HostPort("203.0.113.7", 1),)
    assert introduction.reachable(_parsed(["[::]:1"]), None) == (HostPort("::1", 1),)  # better than nothing
    assert len(introduction.reachable(_parsed(["127.0.0.1:1", "[::1]:1"]), None)) == 2  # asked for


def _parsed(bound: list[str]) -> tuple[HostPort, ...]:
    return tuple(map(parse_host_port, bound))
