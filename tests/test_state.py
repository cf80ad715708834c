import fcntl
import hashlib
import json
import os
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel import state as state_module
from tunnel import state_files
from tunnel.certificates import certificate_pin_of_file, make_self_signed
from tunnel.config import Grant
from tunnel.errors import TunnelError
from tunnel.state import StateDir, default_state_dir, find_grant, hash_token


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def state(path):
    return StateDir.open(path)


def put(path, content, mode=0o600):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(mode)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def make(key_pem):
    return make_self_signed(["tunnel.example.com"], key_pem=key_pem)


# The directory


def test_the_directory_is_made_with_its_parents_for_us_alone(tmp_path):
    old = os.umask(0)
    try:
        StateDir.open(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert mode_of(tmp_path / "a" / "b") == 0o700


def test_a_directory_reached_by_a_link_is_taken_as_systemd_makes_them(tmp_path, path):
    StateDir.open(path)
    (tmp_path / "link").symlink_to(path)
    assert StateDir.open(tmp_path / "link").grants() == ()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_directory_that_others_may_write_is_refused_with_the_command_that_mends_it(path, mode):
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(TunnelError) as caught:
        StateDir.open(path)
    assert str(caught.value) == f"other users may write in state directory {path}; run: chmod 700 {path}"


def test_a_directory_of_another_user_is_refused_with_both_users_named(path, monkeypatch):
    path.mkdir()
    owner = state_files._user(path.stat().st_uid)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(TunnelError, match=f"belongs to user {owner}, and this is 54321; run as {owner}, or name"):
        StateDir.open(path)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_way_is_named_with_a_remedy(path, below):
    path.write_text("")
    with pytest.raises(TunnelError, match="--state-dir") as caught:
        StateDir.open(path / below if below else path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("uid", "xdg", "expected"),
    [
        (0, "/ignored", "/var/lib/trio-tunnel"),
        (1000, "/xdg", "/xdg/trio-tunnel"),
        (1000, "relative", "/home/lab/.local/state/trio-tunnel"),
        (1000, "", "/home/lab/.local/state/trio-tunnel"),
    ],
)
def test_the_default_directory_follows_the_user(monkeypatch, uid, xdg, expected):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/lab")
    assert default_state_dir() == Path(expected)


# Tokens


def test_a_new_token_is_found_again_after_a_restart_and_only_its_hash_is_kept(path, state):
    token = state.new_token("home")
    assert len(token) == 46
    assert token.startswith("tt_")
    digest = hashlib.sha256(token.encode()).digest()
    grants = StateDir.open(path).grants()
    assert grants == (Grant("home", digest, allow_ports=None, allow_addrs=None, allow_names=None),)
    assert find_grant(grants, token) == grants[0]
    assert token[3:] not in (path / "tokens.json").read_text()
    assert mode_of(path / "tokens.json") == 0o600


def test_tokens_differ_and_each_belongs_to_its_client(state):
    tokens = {name: state.new_token(name) for name in ("a", "b", "c")}
    assert len(set(tokens.values())) == 3
    assert {find_grant(state.grants(), token).name for token in tokens.values()} == {"a", "b", "c"}


def test_a_second_token_for_a_name_is_refused_and_the_first_still_works(state):
    token = state.new_token("home")
    with pytest.raises(TunnelError, match=r"'home' has a token already, made 20.*choose another name, or revoke"):
        state.new_token("home")
    assert find_grant(state.grants(), token)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "é", "a\n"])
def test_a_token_wants_a_proper_name(state, name):
    with pytest.raises(ValueError, match="is not a name"):
        state.new_token(name)


def test_a_revoked_token_is_nobodys_and_its_name_is_free(state):
    kept, revoked = state.new_token("kept"), state.new_token("home")
    state.revoke_token("home")
    assert find_grant(state.grants(), revoked) is None
    assert find_grant(state.grants(), kept)
    assert state.new_token("home") != revoked


def test_revoking_an_unknown_name_tells_the_known_ones(state):
    state.new_token("home")
    with pytest.raises(TunnelError, match=r"no client 'hoem' in .*clients with a token: home"):
        state.revoke_token("hoem")


@pytest.mark.parametrize("token", ["", "tt_", "wrong", "tt_" + "A" * 43, "\udcff", "x" * 16384])
def test_what_is_no_token_finds_nobody(state, token):
    state.new_token("home")
    assert find_grant(state.grants(), token) is None


def test_an_empty_token_is_nobodys_even_where_its_hash_was_configured():
    assert find_grant([Grant("careless", hash_token(""))], "") is None


def test_all_grants_are_compared_so_that_time_tells_nothing(monkeypatch):
    compared = []
    monkeypatch.setattr(state_module.hmac, "compare_digest", lambda x, y: compared.append(x) or x == y)
    grants = [Grant(name, hash_token(name)) for name in ("a", "b", "c")]
    assert find_grant(grants, "a") is grants[0]
    assert len(compared) == 3


def test_the_number_of_tokens_is_bounded(state, monkeypatch):
    monkeypatch.setattr(state_module, "MAX_TOKENS", 2)
    state.new_token("a")
    state.new_token("b")
    with pytest.raises(TunnelError, match="holds 2 tokens; revoke some first"):
        state.new_token("c")


def test_tokens_made_at_the_same_time_are_all_kept(path):
    names = [f"client-{i}" for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: StateDir.open(path).new_token(name), names))
    assert sorted(grant.name for grant in StateDir.open(path).grants()) == sorted(names)


def test_the_admin_token_is_made_once_for_us_alone(path, state):
    token = state.admin_token()
    assert len(token) == 46
    assert StateDir.open(path).admin_token() == token
    assert mode_of(path / "admin.token") == 0o600


@pytest.mark.parametrize("content", [b"", b"\n", b"tt_\n", b"tt_" + b"A" * 43 + b"\nmore", b"\xff" * 46])
def test_a_damaged_admin_token_is_refused_above_all_an_empty_one(path, state, content):
    put(path / "admin.token", content)
    with pytest.raises(TunnelError, match=r"admin\.token is damaged: it holds no token; delete it"):
        state.admin_token()


# Damage


GOOD = {"sha256": "0" * 64, "created": "2026-01-02T03:04:05+00:00"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 512,  # what some file systems leave after a power cut
        b'{"home": ',
        b"[" * 100_000,
        b"[]",
        b'{"home": 1}',
        b'{"home": {}, "home": {}}',
        b"\xff\xfe",
        {"home": {"sha256": "0" * 64}},
        {"home": {**GOOD, "token": "x"}},
        {"home": {**GOOD, "sha256": "0" * 63}},
        {"home": {**GOOD, "sha256": "0" * 64 + "\n"}},
        {"home": {**GOOD, "sha256": 0}},
        {"home": {**GOOD, "created": "yesterday"}},
        {"home": {**GOOD, "created": 5}},
        {"../home": GOOD},
    ],
)
def test_damaged_tokens_are_named_with_a_remedy_and_never_overwritten(path, state, content):
    put(path / "tokens.json", content)
    before = (path / "tokens.json").read_bytes()
    for use in (state.grants, lambda: state.new_token("new"), lambda: state.revoke_token("home")):
        with pytest.raises(TunnelError, match=r"tokens\.json is damaged: .*; put back a copy of it, or move it away"):
            use()
    assert (path / "tokens.json").read_bytes() == before


@settings(deadline=None)  # the disk has its own time
@given(content=st.binary(max_size=60))
def test_garbage_in_a_file_gives_nothing_but_a_tunnel_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("garbage", numbered=True)
    state = StateDir.open(path)
    for name, use in (("tokens.json", state.grants), ("ports.json", lambda: state.port_for("a", "b"))):
        put(path / name, content)
        try:
            use()
        except TunnelError as exc:
            said = str(exc)
        else:
            continue
        assert str(path / name) in said


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_secret_that_others_may_read_or_write_is_refused(path, state, mode):
    put(path / "admin.token", b"tt_" + b"A" * 43 + b"\n", mode)
    with pytest.raises(TunnelError, match=r"other users may read or write .*admin\.token; .*chmod 600"):
        state.admin_token()


def test_a_certificate_that_others_may_read_is_fine(path, state):
    state.certificate(make)
    (path / "server.crt").chmod(0o644)
    assert state.certificate(make)


def test_what_is_not_a_file_is_refused_without_waiting(path, state):
    os.mkfifo(path / "tokens.json", 0o600)
    with pytest.raises(TunnelError, match=r"tokens\.json is not a file"):
        state.grants()


def test_an_endless_file_is_refused(path, state, monkeypatch):
    monkeypatch.setattr(state_files, "MAX_FILE_BYTES", 100)
    put(path / "tokens.json", b" " * 101)
    with pytest.raises(TunnelError, match="more than 100 bytes"):
        state.grants()


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(path, state, monkeypatch):
    token = state.new_token("home")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TunnelError, match=r"tokens\.json cannot be written: No space left on device; check that"):
            state.new_token("other")
    assert find_grant(state.grants(), token)
    assert sorted(os.listdir(path)) == ["tokens.json"]


def test_content_and_directory_are_synced_around_the_rename(state, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_rename(source, sink):
        calls.append("rename")
        replace(source, sink)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    state.new_token("home")
    assert calls == ["file", "rename", "directory"]


def test_what_a_killed_writer_left_behind_is_no_hindrance(path, state):
    put(path / ".tokens.json.new", b'{"home": ')
    token = state.new_token("home")
    assert find_grant(state.grants(), token)
    assert sorted(os.listdir(path)) == ["tokens.json"]


def test_a_held_lock_is_an_error_with_a_remedy_not_a_hang(path, state, monkeypatch):
    monkeypatch.setattr(state_files, "LOCK_SECONDS", 0.0)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(TunnelError, match="another process holds state directory"):
            state.new_token("home")
    finally:
        os.close(descriptor)
    assert state.new_token("home")


# The certificate


def test_the_first_start_makes_a_pair_and_later_ones_keep_it(path, state):
    crt, key = state.certificate(make)
    assert (crt, key) == (path / "server.crt", path / "server.key")
    assert mode_of(crt) == mode_of(key) == 0o600
    before = crt.read_bytes(), key.read_bytes()
    StateDir.open(path).certificate(make)
    assert (crt.read_bytes(), key.read_bytes()) == before


def test_deleting_the_certificate_renews_it_with_the_same_pin(state):
    crt, _ = state.certificate(make)
    pin, before = certificate_pin_of_file(crt), crt.read_bytes()
    crt.unlink()
    state.certificate(make)
    assert certificate_pin_of_file(crt) == pin
    assert crt.read_bytes() != before


def test_a_lost_key_is_said_and_not_silently_replaced(state):
    _, key = state.certificate(make)
    key.unlink()
    with pytest.raises(TunnelError, match=r"server\.key, which belongs to it, is missing; put server\.key back"):
        state.certificate(make)
    assert not key.exists()


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
@pytest.mark.parametrize("content", [b"", b"garbage", "another"])
def test_a_damaged_pair_is_named_with_a_remedy(path, state, name, content):
    state.certificate(make)
    another = dict(zip(["server.crt", "server.key"], make(None), strict=True))
    put(path / name, another[name] if content == "another" else content)
    with pytest.raises(TunnelError, match=r"server\.crt is damaged: it cannot be used with server\.key .*put back"):
        state.certificate(make)


def test_a_damaged_key_alone_is_named_with_a_remedy(path, state):
    put(path / "server.key", b"garbage")
    with pytest.raises(TunnelError, match=r"server\.key is damaged: .*put back a copy of it, or delete it"):
        state.certificate(make)
    assert (path / "server.key").read_bytes() == b"garbage"


def test_the_pair_can_serve(state):
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*state.certificate(make))


# Ports


def test_a_chosen_port_is_known_after_a_restart(path, state):
    assert state.port_for("lab", "ssh") is None
    state.remember_port("lab", "ssh", 40001)
    state.remember_port("lab", "web", 40002)
    state.remember_port("lab", "ssh", 40003)
    again = StateDir.open(path)
    assert [again.port_for("lab", name) for name in ("ssh", "web", "other")] == [40003, 40002, None]
    assert mode_of(path / "ports.json") == 0o600


def test_a_port_that_is_known_already_is_not_written_again(path, state):
    state.remember_port("lab", "ssh", 40001)
    before = (path / "ports.json").stat().st_ino
    state.remember_port("lab", "ssh", 40001)
    assert (path / "ports.json").stat().st_ino == before


def test_past_the_bound_the_oldest_port_is_forgotten(state, monkeypatch):
    monkeypatch.setattr(state_module, "MAX_PORTS", 2)
    for port, name in enumerate(["a", "b", "c"], start=40001):
        state.remember_port(name, "ssh", port)
    assert [state.port_for(name, "ssh") for name in ("a", "b", "c")] == [None, 40002, 40003]


def test_a_client_with_many_names_displaces_only_its_own(state, monkeypatch):
    monkeypatch.setattr(state_module, "MAX_PORTS_PER_CLIENT", 2)
    state.remember_port("lab", "ssh", 40000)
    for port, name in enumerate(["x", "y", "z"], start=40001):
        state.remember_port("greedy", name, port)
    assert [state.port_for("greedy", name) for name in ("x", "y", "z")] == [None, 40002, 40003]
    assert state.port_for("lab", "ssh") == 40000


@pytest.mark.parametrize("port", [0, 65536, -1, "80", 80.0, True, None])
def test_damaged_ports_are_named_with_a_remedy(path, state, port):
    put(path / "ports.json", {"lab/ssh": port})
    with pytest.raises(TunnelError, match=r"ports\.json is damaged: 'lab/ssh' has no port .*; delete it"):
        state.port_for("lab", "ssh")


def test_state_needs_no_event_loop_and_no_cryptography():
    script = "import sys, tunnel.state; print({'trio', 'cryptography', 'ssl', 'tunnel.faults'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout == "set()\n"


# Root for a service whose user systemd made up

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act for another user")


@pytest.fixture
def of_a_service(path):
    """A state directory as DynamicUser= has it."""
    StateDir.open(path).new_token("home")
    for each in (path, *path.iterdir()):
        os.chown(each, 54321, 54321)
    return path


@as_root
def test_root_makes_tokens_for_a_service_and_what_it_writes_is_the_services(of_a_service):
    state = StateDir.open(of_a_service, for_owner=True)
    state.new_token("office")
    state.revoke_token("home")
    state.admin_token()
    assert {grant.name for grant in state.grants()} == {"office"}
    assert {each.name: each.stat().st_uid for each in of_a_service.iterdir()} == {
        "admin.token": 54321, "revoked.json": 54321, "tokens.json": 54321,
    }  # fmt: skip


@as_root
def test_root_reads_nothing_that_a_services_directory_only_points_to(of_a_service, tmp_path):
    elsewhere = tmp_path / "secret"
    elsewhere.write_text("{}")
    elsewhere.chmod(0o600)
    (of_a_service / "tokens.json").unlink()
    (of_a_service / "tokens.json").symlink_to(elsewhere)
    with pytest.raises(TunnelError, match="symbolic links"):
        StateDir.open(of_a_service, for_owner=True).grants()
    (of_a_service / "tokens.json").unlink()
    os.link(elsewhere, of_a_service / "tokens.json")  # root's own, put there by another name
    with pytest.raises(TunnelError, match="other users may read or write"):
        StateDir.open(of_a_service, for_owner=True).grants()


def test_whoever_is_not_root_acts_for_nobody_else(path, monkeypatch):
    path.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(TunnelError, match="belongs to user"):
        StateDir.open(path, for_owner=True)
