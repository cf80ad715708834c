"""`token list` and `token revoke`: what is said of each client, and that no secret is."""

import json
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner, Result

from tunnel import Grant, HostPort, hash_token
from tunnel.addresses import PortRange
from tunnel.cli import token_list
from tunnel.cli.main import cli
from tunnel.errors import PeerLost, TunnelError
from tunnel.state import StateDir, find_grant

ADMIN = HostPort("127.0.0.1", 8480)
LAB = Grant("lab", hash_token("secret"), (PortRange(8000, 8999), PortRange(1, 1)), ("0.0.0.0",), (), 10, 20, 0.5)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path / "state")


def run(state: StateDir, *words: str) -> Result:
    return CliRunner().invoke(cli, ["token", *words, "--state-dir", str(state.path)])


def answer(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    def fetch(where: HostPort) -> object:
        assert where == ADMIN
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(token_list, "fetch_stats", fetch)


def test_each_client_is_told_with_its_source_its_allowance_and_its_session(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.new_token("home")
    made = state.made()["home"][:10]
    answer(monkeypatch, {"role": "server", "sessions": [{"client": "home", "since": "2026-01-02T03:04:05.678Z"}]})
    state.revoke_token("old", others=[b"\1" * 32])
    clients = (LAB, Grant("old", b"\1" * 32))
    assert token_list.lines(token_list.rows(state, clients, ADMIN)) == [
        "CLIENT  TOKEN            CONNECTED                       ALLOWS",
        f"home    made {made}  since 2026-01-02T03:04:05.678Z  ports any; 1000 proxies",
        "lab     in the file      no                              ports 8000-8999, 1; addresses 0.0.0.0; names none; "
        "10 proxies; 20 visitors; 0.5 new ones a second",
        "old     revoked          no                              ports none; 1000 proxies",
    ]


@pytest.mark.parametrize("found", [PeerLost("nobody"), {"role": "client", "sessions": []}])
def test_without_a_server_to_ask_nobody_knows_who_is_connected(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, found: object
) -> None:
    answer(monkeypatch, found)
    (row,) = token_list.rows(state, (LAB,), ADMIN)
    assert row.connected is None
    assert token_list.lines([row])[1].startswith("lab     in the file  unknown    ports")


def test_an_entry_that_bounds_a_token_made_here_is_one_client(state: StateDir) -> None:
    token = state.new_token("lab")
    rows = token_list.rows(state, (evolve(LAB, token_sha256=hash_token(token)),), None)
    assert [(row.name, row.entry, row.allow_ports, bool(row.made)) for row in rows] == [
        ("lab", True, ["8000-8999", "1"], True)
    ]


def test_the_list_for_programs_says_the_same_and_no_secret(state: StateDir) -> None:
    token = run(state, "new", "home").stdout.strip()
    result = run(state, "list", "--admin", "off", "--json")
    (row,) = json.loads(result.stdout)
    assert (row["name"], row["allow_ports"], row["revoked"], row["connected"]) == ("home", None, False, None)
    assert token not in result.output
    assert hash_token(token).hex() not in result.output
    assert run(state, "list", "--admin", "off").stdout.splitlines()[1].startswith("home    made 20")


def test_no_client_at_all_has_a_hint(state: StateDir) -> None:
    assert run(state, "list").stdout == "no client has a token; make one: trio-tunnel token new NAME\n"


def test_a_client_that_only_a_file_knows_is_revoked_with_that_file(state: StateDir, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    digest = hash_token("secret").hex()
    config.write_text(f'state_dir = "state"\n[[clients]]\nname = "lab"\ntoken_sha256 = "{digest}"\n')
    without = run(state, "revoke", "lab")
    assert isinstance(without.exception, TunnelError)
    assert "one that has only an entry in a configuration file needs that file named with -c" in str(without.exception)
    done = CliRunner().invoke(cli, ["token", "revoke", "lab", "-c", str(config)])  # the directory is the file's
    assert done.stdout == (
        "the token of client 'lab' is revoked; a server that runs ends its session within a second\n"
    )
    assert state.revoked() == {hash_token("secret")}
    listed = CliRunner().invoke(cli, ["token", "list", "-c", str(config), "--admin", "off"])
    assert listed.stdout.splitlines()[1].startswith("lab     revoked")


def test_a_token_that_nobody_saw_is_revoked(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def echo(text: str, **_options: object) -> None:
        seen.append(text)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("click.echo", echo)
    assert isinstance(run(state, "new", "lab").exception, OSError)
    assert find_grant(state.grants(), seen[0]) is None
    assert state.revoked() == {hash_token(seen[0])}
