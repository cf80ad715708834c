"""What `serve` says at its start: which addresses the line to paste names, and who can log in."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attrs import evolve

from tunnel.addresses import HostPort, parse_host_port
from tunnel.certificates import make_self_signed
from tunnel.cli import introduction
from tunnel.config import Grant, ServerConfig
from tunnel.errors import TunnelError
from tunnel.state import StateDir

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


# What `announce` says


def _announced(config: ServerConfig, state: Path, *, introduce: bool) -> None:
    certificate = state / "server.crt"
    certificate.write_bytes(make_self_signed(())[0])
    server = SimpleNamespace(cert_file=certificate, addresses=(HostPort("127.0.0.1", 8443),))
    introduction.announce(cast("Any", server), config, introduce=introduce, public_host=None)


def test_a_server_that_nobody_can_log_in_to_says_how_somebody_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(state_dir=tmp_path)
    word = f"no client can log in yet; make a token: trio-tunnel token new NAME --state-dir {tmp_path}"
    _announced(config, tmp_path, introduce=False)
    assert caplog.messages == [word]
    _announced(evolve(config, clients=(Grant("lab", b"x" * 32),)), tmp_path, introduce=False)
    StateDir.open(tmp_path).new_token("home")
    _announced(config, tmp_path, introduce=False)
    assert caplog.messages == [word]


def test_later_the_line_to_paste_names_no_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StateDir.open(tmp_path).new_token("home")
    _announced(ServerConfig(state_dir=tmp_path), tmp_path, introduce=True)
    _, comment, _ = capsys.readouterr().out.splitlines()
    assert comment == f"# with a client's token; to make one: trio-tunnel token new NAME --state-dir {tmp_path}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_ends_a_start_only_where_a_token_would_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, state = ServerConfig(state_dir=tmp_path), StateDir.open(tmp_path)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(TunnelError, match="cannot write to standard output"):
            _announced(config, tmp_path, introduce=True)
        assert state.grants() == ()
        state.new_token("home")
        monkeypatch.setattr("sys.stdout", full)
        _announced(config, tmp_path, introduce=True)
        with pytest.raises(OSError, match="No space left"):
            full.close()
    assert caplog.messages == [
        "cannot write to standard output (No space left on device); give it somewhere to go; serving all the same"
    ]


def test_all_of_it_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw(io.RawIOBase):
        """Standard output as with PYTHONUNBUFFERED: each write is a system call."""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data).decode())
            return len(data)

    written: list[str] = []
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(cast("Any", Raw()), write_through=True))
    _announced(ServerConfig(state_dir=tmp_path), tmp_path, introduce=True)
    (only,) = written
    first, last = only.splitlines()
    assert first.startswith("TRIO_TUNNEL_TOKEN=")
    assert last == "listening on 127.0.0.1:8443"
