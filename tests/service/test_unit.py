"""What units say: the sandbox as systemd's own tools judge it, words that start just so, and what each wish adds."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from tunnel.addresses import HostPort
from tunnel.config.credentials import credential_name
from tunnel.service.unit import STEPS_SINCE, Service, command_line

ANALYZE = shutil.which("systemd-analyze")
TOKEN = Path("/etc/trio-tunnel/home.token")
SERVER = Service(
    "server", "trio-tunnel-server", ("/bin/true",), Path("/etc/trio-tunnel/server.toml"), state="trio-tunnel"
)
CLIENT = Service(
    "client", "trio-tunnel-client", ("/bin/true",), Path("/etc/trio-tunnel/client.toml"), state="trio-tunnel-client",
    credentials=(TOKEN,),
)  # fmt: skip
HERE = (HostPort("0.0.0.0", 8443), HostPort("::", 8443))


def keys(text: str) -> dict[str, list[str]]:
    """The values of each key of a unit."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def service_keys(service: Service) -> dict[str, list[str]]:
    return keys(service.texts()[service.unit])


# As systemd judges it

FORMS = {
    "server": SERVER,
    "client": CLIENT,
    "named": evolve(SERVER, user="daemon", groups=("adm", "daemon"), writable=(Path("/srv/a b"),), state=None),
    "socket": evolve(SERVER, sockets=HERE),
    "ports": evolve(SERVER, low_ports=True),
    "homes": evolve(CLIENT, seen=(Path("/home/me/x:y"), Path("/tmp/venv")), private_tmp=False),
}


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze; install systemd")
def test_systemd_finds_no_mistake_in_any_form(tmp_path: Path) -> None:
    command = tmp_path / 'a "b" $HOME %n' / "trio-tunnel"
    command.parent.mkdir()
    shutil.copy("/bin/true", command)
    for name, form in FORMS.items():
        odd = evolve(form, name=f"trio-tunnel-{name}", command=(str(command),), config=Path("/etc/a b/%c$x.toml"))
        for unit, text in odd.texts().items():
            (tmp_path / unit).write_text(text)
    units = sorted(tmp_path.glob("trio-tunnel-*"))
    assert len(units) == len(FORMS) + 1
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "trio-tunnel-" in line]  # it also looks at the machine's own
    assert (done.returncode, said) == (0, [])


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze; install systemd")
@pytest.mark.parametrize("name", FORMS)
def test_systemd_calls_the_exposure_of_every_form_less_than_two_of_ten(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    (tmp_path / form.unit).write_text(form.texts()[form.unit])
    command = [str(ANALYZE), "security", "--offline=true", "--threshold=20", str(tmp_path / form.unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found is not None
    assert 0.5 < float(found[1]) < 2.0


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze; install systemd")
def test_systemd_finds_no_mistake_in_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for unit, text in evolve(SERVER, is_own=True, state=None, sockets=HERE).texts().items():
        (tmp_path / unit).write_text(text)
    command = [str(ANALYZE), "--user", "verify", "--man=no", *sorted(tmp_path.glob("trio-tunnel-*"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "trio-tunnel-" in line]) == (0, [])


# What it says


def test_it_tells_systemd_how_it_is_and_is_watched_and_never_given_up() -> None:
    found = service_keys(SERVER)
    assert (found["Type"], found["NotifyAccess"], found["WatchdogSec"]) == (["notify"], ["main"], ["60"])
    assert (found["Restart"], found["StartLimitIntervalSec"]) == (["always"], ["0"])
    assert found["RestartPreventExitStatus"] == ["2"]  # a configuration with mistakes


@pytest.mark.parametrize(("seconds", "timeout"), [(30.0, "45"), (0.0, "15"), (3600.5, "3616")])
def test_the_end_has_time_for_the_drain(seconds: float, timeout: str) -> None:
    assert service_keys(evolve(SERVER, drain_seconds=seconds))["TimeoutStopSec"] == [timeout]


def test_what_an_old_systemd_does_not_know_is_not_written() -> None:
    assert "RestartSteps" not in service_keys(SERVER)
    assert "RestartSteps" not in service_keys(evolve(SERVER, systemd_version=STEPS_SINCE - 1))
    assert service_keys(evolve(SERVER, systemd_version=STEPS_SINCE))["RestartMaxDelaySec"] == ["60"]


def test_a_reload_is_checked_first() -> None:
    assert service_keys(CLIENT)["ExecReload"] == [
        "/bin/true check --as client /etc/trio-tunnel/client.toml",
        "/bin/kill -HUP $MAINPID",
    ]


def test_a_configuration_that_is_passed_is_the_starts_and_there_is_no_reload() -> None:
    passed = evolve(CLIENT, credentials=(CLIENT.config, TOKEN))
    assert "ExecReload" not in service_keys(passed)


def test_secrets_are_passed_by_file_and_stand_in_no_unit() -> None:
    found = service_keys(CLIENT)
    assert found["LoadCredential"] == [f"{credential_name(TOKEN)}:{TOKEN}"]
    assert "Environment" not in found
    assert found["LimitCORE"] == ["0"]
    assert found["UMask"] == ["0077"]


def test_by_default_it_is_a_user_that_systemd_makes_up_without_any_capability() -> None:
    found = service_keys(SERVER)
    assert (found["DynamicUser"], found["StateDirectory"]) == (["yes"], ["trio-tunnel"])
    assert (found["CapabilityBoundingSet"], found["AmbientCapabilities"], found["PrivateUsers"]) == (
        [""],
        [""],
        ["yes"],
    )
    assert "User" not in found


def test_low_ports_take_one_capability_that_counts_outside() -> None:
    found = service_keys(evolve(SERVER, low_ports=True))
    bind = ["CAP_NET_BIND_SERVICE"]
    assert (found["CapabilityBoundingSet"], found["AmbientCapabilities"], found["PrivateUsers"]) == (bind, bind, ["no"])


def test_a_named_user_owns_what_it_owns() -> None:
    found = service_keys(FORMS["named"])
    assert (found["User"], found["SupplementaryGroups"]) == (["daemon"], ["adm daemon"])
    assert found["ReadWritePaths"] == ['"/srv/a b"']
    assert "--state-dir" not in found["ExecStart"][0]
    assert "DynamicUser" not in found


@pytest.mark.parametrize(
    ("seen", "home"), [((), "yes"), (("/tmp/venv",), "yes"), (("/root/.local/pipx", "/tmp/v"), "tmpfs")]
)
def test_of_homes_only_what_it_needs_is_shown(seen: tuple[str, ...], home: str) -> None:
    found = service_keys(evolve(SERVER, seen=tuple(map(Path, seen))))
    assert found["ProtectHome"] == [home]
    assert found.get("BindReadOnlyPaths", []) == list(seen)


def test_a_folder_below_a_home_that_it_writes_to_is_shown_too() -> None:
    found = service_keys(evolve(SERVER, user="me", writable=(Path("/home/me/state"), Path("/srv/x"))))
    assert (found["BindPaths"], found["ReadWritePaths"]) == (["/home/me/state"], ["/srv/x"])
    assert found["ProtectHome"] == ["tmpfs"]


def test_a_socket_unit_listens_at_each_address_for_its_own_ip_version() -> None:
    form = FORMS["socket"]
    found = keys(form.texts()["trio-tunnel-server.socket"])
    assert found["ListenStream"] == ["0.0.0.0:8443", "[::]:8443"]
    assert found["BindIPv6Only"] == ["ipv6-only"]
    assert service_keys(form)["Requires"] == ["trio-tunnel-server.socket"]


def test_a_users_own_has_nothing_that_would_need_root() -> None:
    found = service_keys(evolve(SERVER, is_own=True, state=None))
    assert found["WantedBy"] == ["default.target"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert not found.keys() & {
        "DynamicUser",
        "ProtectSystem",
        "PrivateDevices",
        "CapabilityBoundingSet",
        "Wants",
        "UMask",
    }


# Quoting


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/x", "/usr/bin/x"),
        ("a b", '"a b"'),
        ("50%", "50%%"),
        ("$HOME", "$$HOME"),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("it's", '"it\'s"'),
        ("ü", '"ü"'),
        (";", '";"'),
        ("", '""'),
    ],
)
def test_a_word_of_a_command_reaches_the_program_as_it_is(word: str, written: str) -> None:
    assert command_line(["run", word]) == f"run {written}"


@pytest.mark.parametrize(
    ("program", "written"),
    [
        ("/home/me/a b%/trio-tunnel", '"/home/me/a b%%/trio-tunnel" x'),
        ("/srv/$x/trio-tunnel", "/usr/bin/env /srv/$$x/trio-tunnel x"),
        ("/srv/it's/trio-tunnel", '/usr/bin/env "/srv/it\'s/trio-tunnel" x'),
    ],
)
def test_a_program_wherever_it_is_can_be_started(program: str, written: str) -> None:
    assert command_line([program, "x"]) == written
