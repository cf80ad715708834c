"""What goes into a service's units: who reads what, which files are passed, where state is, which ports it needs."""

import json
import os
import sys
from pathlib import Path

import pytest

from tunnel.addresses import HostPort
from tunnel.certificates import make_self_signed
from tunnel.config.token_file import read_token_file
from tunnel.errors import ConfigError, TunnelError
from tunnel.service import access, unit
from tunnel.service.access import Eyes, Program
from tunnel.service.plan import Plan, Wish, make_plan

DIGEST = "ab" * 32
PROGRAM = Program(("/opt/trio-tunnel/bin/trio-tunnel",), (Path("/"),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /etc/trio-tunnel: seen by services, and each file by whom its mode says."""
    monkeypatch.setattr(unit, "TEMPORARY", ())
    monkeypatch.setattr(Eyes, "can_read", lambda eyes, path, below=Path("/"): eyes._may(path, 0o4))
    return tmp_path


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def plan_of(folder: Path, text: str, role: str = "server", **more: object) -> Plan:
    path = write(folder / f"{role}.toml", text)
    return make_plan(Wish(role, path, **more), PROGRAM)  # type: ignore[arg-type]


CLIENT = 'server = "tunnel.example.com"\ntoken_file = "home.token"\n'


# Files that are passed


def test_a_token_that_only_root_can_read_is_passed_and_nothing_else(folder: Path) -> None:
    write(folder / "home.token", "t" * 43, 0o600)
    plan = plan_of(folder, CLIENT, "client")
    assert plan.service.credentials == (folder / "home.token",)
    (note,) = plan.notes
    assert note == (
        f"the service's user cannot read {folder / 'home.token'}: "
        "systemd passes it a copy at each start (LoadCredential=)"
    )


def test_a_pair_whose_key_only_root_can_read_is_passed_whole_with_a_word_on_renewals(folder: Path) -> None:
    certificate, key = (made.decode() for made in make_self_signed(["localhost"]))
    write(folder / "server.crt", certificate)
    write(folder / "server.key", key, 0o600)
    plan = plan_of(folder, '[tls]\ncert_file = "server.crt"\nkey_file = "server.key"\n')
    assert plan.service.credentials == (folder / "server.crt", folder / "server.key")
    assert "a renewed certificate therefore counts from the next start on" in plan.notes[1]


def test_a_configuration_that_only_root_can_read_is_passed_with_a_word_on_reloads(folder: Path) -> None:
    path = write(folder / "server.toml", "", 0o600)
    plan = make_plan(Wish("server", path), PROGRAM)
    assert plan.service.credentials == (path,)
    assert plan.notes[1:] == (
        f"a change of {path} therefore counts from the next start on, not from a reload",
        f"if nothing in it is secret: chmod 644 {path}, and install it again",
    )


def test_what_a_home_holds_is_passed_whoever_may_read_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "HOMES", (folder,))
    assert plan_of(folder, "").service.credentials == (folder / "server.toml",)


def test_a_named_user_that_can_read_them_is_passed_nothing(folder: Path) -> None:
    write(folder / "home.token", "t" * 43, 0o600)
    me = access.pwd.getpwuid(os.geteuid()).pw_name
    plan = plan_of(folder, CLIENT, "client", user=me)
    assert (plan.service.user, plan.service.credentials, plan.notes) == (me, (), ())


def test_mistakes_of_the_configuration_come_first(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.toml:1: oops: 1: is not a key here"):
        plan_of(folder, "oops = 1\n")


def test_a_token_that_is_missing_so_far_is_a_warning(folder: Path) -> None:
    plan = plan_of(folder, CLIENT, "client")
    assert plan.service.credentials == ()
    assert plan.notes[0].startswith(f"warning: {folder / 'client.toml'}:2: token_file:")


# State


@pytest.mark.parametrize(
    ("role", "instance", "name", "state"),
    [
        ("server", "", "trio-tunnel-server", "trio-tunnel"),
        ("server", "lab", "trio-tunnel-server-lab", "trio-tunnel-server-lab"),
        ("client", "", "trio-tunnel-client", "trio-tunnel-client"),
        ("client", "lab", "trio-tunnel-client-lab", "trio-tunnel-client-lab"),
    ],
)
def test_each_service_has_a_name_and_a_state_directory_of_its_own(
    role: str, instance: str, name: str, state: str, folder: Path
) -> None:
    write(folder / "home.token", "t" * 43, 0o600)
    plan = plan_of(folder, "" if role == "server" else CLIENT, role, instance=instance)
    assert (plan.service.name, plan.service.state, plan.state_dir) == (name, state, Path("/var/lib", state))


def test_a_state_directory_of_the_configuration_is_kept(folder: Path) -> None:
    assert plan_of(folder, 'state_dir = "/var/lib/tunnels/one"\n').service.state == "tunnels/one"
    me = access.pwd.getpwuid(os.geteuid()).pw_name
    with pytest.raises(TunnelError) as caught:
        plan_of(folder, 'state_dir = "state"\n', user=me)
    assert str(caught.value) == (
        f"there is no folder {folder / 'state'}, where the service is to write; "
        f"make it: install -d -m 700 -o {me} {folder / 'state'}"
    )
    (folder / "state").mkdir()
    service = plan_of(folder, 'state_dir = "state"\n', user=me).service
    assert (service.state, service.writable) == (None, (folder / "state",))


@pytest.mark.parametrize("text", ['state_dir = "/srv/tunnel"\n', '[history]\nfile = "/srv/history.sqlite"\n'])
def test_a_made_up_user_that_would_have_to_write_elsewhere_is_refused(text: str, folder: Path) -> None:
    with pytest.raises(TunnelError, match="owns nothing outside /var/lib, and this one would write to /srv"):
        plan_of(folder, text)


@pytest.mark.parametrize("instance", ["../x", "a b", "-x", "x\n", "x" * 32, "ü"])
def test_an_instance_whose_name_is_none_is_refused(instance: str, folder: Path) -> None:
    with pytest.raises(TunnelError, match="is no name"):
        plan_of(folder, "", instance=instance)


@pytest.mark.parametrize("name", ["a\nUser=root\nb", "a\tb", "a\x7fb"])
def test_a_path_that_would_end_a_line_of_the_unit_is_refused(name: str, folder: Path) -> None:
    path = write(folder / f"{name}.toml", "")
    with pytest.raises(TunnelError, match="has characters that no unit can hold"):
        make_plan(Wish("server", path), PROGRAM)
    write(folder / name, "t" * 43, 0o600)
    text = 'server = "tunnel.example.com"\ntoken_file = ' + json.dumps(name).replace("\x7f", "\\u007f") + "\n"
    with pytest.raises((TunnelError, ConfigError)):
        plan_of(folder, text, "client")


# Ports, sockets, targets


@pytest.mark.parametrize(
    ("text", "socket", "needed"),
    [
        ("", False, False),
        ("bind_port = 443\n", False, True),
        ("bind_port = 443\n", True, False),
        (f'[[clients]]\nname = "a"\ntoken_sha256 = "{DIGEST}"\nallow_ports = ["80-90"]\n', True, True),
        (f'[[clients]]\nname = "a"\ntoken_sha256 = "{DIGEST}"\nallow_ports = ["8000"]\n', False, False),
    ],
)
def test_the_capability_for_low_ports_is_there_where_they_are_bound(
    text: str, socket: bool, needed: bool, folder: Path
) -> None:
    assert plan_of(folder, text, socket=socket).service.low_ports is needed
    assert plan_of(folder, text, socket=socket, low_ports=not needed).service.low_ports is not needed


def test_systemd_listens_where_the_server_would(folder: Path) -> None:
    service = plan_of(folder, 'listen = ["0.0.0.0", "[::]:8443"]\n', socket=True).service
    assert service.sockets == (HostPort("0.0.0.0", 8443), HostPort("::", 8443))


@pytest.mark.parametrize("text", ['bind_addr = "localhost"\n', "bind_port = 0\n"])
def test_where_systemd_cannot_listen_is_refused(text: str, folder: Path) -> None:
    with pytest.raises(TunnelError, match="write a numeric address and a port"):
        plan_of(folder, text, socket=True)


def test_a_client_has_no_socket(folder: Path) -> None:
    write(folder / "home.token", "t" * 43, 0o600)
    with pytest.raises(TunnelError, match="a client listens for nobody"):
        plan_of(folder, CLIENT, "client", socket=True)


def test_sockets_of_targets_that_a_sandbox_would_hide_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.service.plan.HOMES", (folder,))
    monkeypatch.setattr("tunnel.service.plan.TEMPORARY", (Path("/var/tmp"),))
    write(folder / "home.token", "t" * 43, 0o600)
    proxy = '[[proxies]]\nname = "{}"\npublish_port = {}\ntarget = "unix:{}"\n'
    text = CLIENT + proxy.format("a", 1, folder / "web.sock") + proxy.format("b", 2, "/run/x.sock")
    service = plan_of(folder, text, "client").service
    assert (service.seen, service.private_tmp) == ((folder,), True)
    assert not plan_of(folder, text + proxy.format("c", 3, "/var/tmp/x.sock"), "client").service.private_tmp


def test_a_users_own_service_is_passed_nothing(folder: Path) -> None:
    write(folder / "home.token", "t" * 43, 0o600)
    service = plan_of(folder, CLIENT, "client", is_own=True).service
    assert (service.is_own, service.credentials, service.state, service.seen) == (True, (), None, ())
    assert read_token_file(folder / "home.token")


# Who can read what


@pytest.mark.parametrize(
    ("mode", "eyes", "can"),
    [
        (0o644, Eyes(), True),
        (0o640, Eyes(), False),
        (0o640, Eyes(None, frozenset({0})), os.getegid() == 0),
        (0o600, Eyes(os.geteuid()), True),
        (0o044, Eyes(1234), True),
        (0o004, Eyes(1234, frozenset({os.getegid()})), False),
    ],
)
def test_a_mode_says_who_may_read(mode: int, eyes: Eyes, can: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "file", "", mode)
    assert eyes.can_read(path, below=tmp_path.parent / "other") is can


def test_a_closed_folder_above_hides_what_is_in_it_but_for_links_that_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "open").mkdir(0o755)
    hidden, seen = write(tmp_path / "closed" / "a", ""), write(tmp_path / "open" / "b", "")
    tmp_path.chmod(0o755)
    nobody = Eyes()
    assert not nobody.can_read(hidden, below=tmp_path)
    assert nobody.can_read(seen, below=tmp_path)
    (tmp_path / "closed" / "link").symlink_to(seen)
    assert nobody.can_read(tmp_path / "closed" / "link", below=tmp_path)  # what counts is where it leads
    assert not nobody.can_read(tmp_path / "none", below=tmp_path)


def test_a_user_or_a_group_that_there_is_not_is_refused_with_the_command_that_makes_it() -> None:
    with pytest.raises(TunnelError, match="useradd --system nobody-such"):
        Eyes.of("nobody-such", ())
    with pytest.raises(TunnelError, match="groupadd --system no-such"):
        Eyes.of(None, ("no-such",))


# This program


def test_this_program_is_started_by_the_whole_path_of_its_command() -> None:
    program = Program.this()
    assert os.path.isabs(program.command[0])
    assert program.command[0].endswith("trio-tunnel") or program.command == (sys.executable, "-P", "-m", "tunnel")
    assert any(Path(sys.prefix).is_relative_to(folder) for folder in program.folders)


def test_a_program_below_a_home_is_shown_to_the_sandbox_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "HOMES", (tmp_path,))
    monkeypatch.setattr(unit, "TEMPORARY", ())
    tmp_path.chmod(0o700)
    (tmp_path / "venv").mkdir(0o755)
    program = Program(("x",), (tmp_path / "venv", Path("/usr")))
    assert program.hidden == (tmp_path / "venv",)
    program.check(Eyes())  # the home is closed, but not in the sandbox
    (tmp_path / "venv").chmod(0o700)
    with pytest.raises(TunnelError, match=r"cannot read .*venv, of which this program consists"):
        program.check(Eyes())
