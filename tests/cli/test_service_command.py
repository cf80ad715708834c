"""`trio-tunnel service`, as typed; units go to a folder of the test's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tunnel.cli.main import cli
from tunnel.errors import TunnelError

SERVICE = "trio-tunnel-server.service"


@pytest.fixture(autouse=True)
def _open_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever this checkout is, services may read it."""
    monkeypatch.setattr("tunnel.service.access.Eyes.can_read", lambda *_, **__: True)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    return tmp_path / "units"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("[limits]\ndrain_seconds = 5\n")
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["service", *map(str, words)])


def said(result: Result) -> str:
    """The error's text."""
    assert isinstance(result.exception, TunnelError), result.output
    return str(result.exception)


def test_what_is_installed_can_be_shown_and_taken_away_again(units: Path, config: Path) -> None:
    done = run("install", "server", "-c", config, "--unit-dir", units, "--socket", "--name", "lab")
    assert done.exit_code == 0, done.exception
    written = {path.name: path.read_text() for path in units.iterdir()}
    assert sorted(written) == ["trio-tunnel-server-lab.service", "trio-tunnel-server-lab.socket"]
    assert "TimeoutStopSec=20\n" in written["trio-tunnel-server-lab.service"]
    assert (
        "to start it, where systemd runs: systemctl daemon-reload && "
        "systemctl enable --now trio-tunnel-server-lab.socket trio-tunnel-server-lab.service\n" in done.output
    )
    shown = run("show", "server", "-c", config, "--unit-dir", units, "--socket", "--name", "lab").output
    assert all(text in shown for text in written.values())
    assert f"# {units / 'trio-tunnel-server-lab.socket'}: installed, just so\n" in shown
    other = run("show", "server", "-c", config, "--unit-dir", units, "--name", "lab").output
    assert "trio-tunnel-server-lab.service: installed, as of another time or of other options\n" in other
    gone = run("uninstall", "server", "--unit-dir", units, "--name", "lab")
    assert gone.exit_code == 0
    assert f"kept: the configuration {config}\n" in gone.output
    assert list(units.iterdir()) == []
    assert "services of trio-tunnel there: none" in said(run("uninstall", "server", "--unit-dir", units))


def test_printing_writes_nothing_and_is_what_would_be_written(units: Path, config: Path) -> None:
    printed = run("install", "server", "-c", config, "--unit-dir", units, "--print").output
    assert not units.exists()
    run("install", "server", "-c", config, "--unit-dir", units)
    assert printed.strip() == (units / SERVICE).read_text().strip()


def test_a_unit_that_was_changed_by_hand_stays_unless_forced(units: Path, config: Path) -> None:
    run("install", "server", "-c", config, "--unit-dir", units)
    ours = (units / SERVICE).read_text()
    (units / SERVICE).write_text(ours + "Nice=5\n")
    again = run("install", "server", "-c", config, "--unit-dir", units)
    assert "was changed by hand" in said(again)
    assert "was changed by hand" in said(run("uninstall", "server", "--unit-dir", units))
    assert (units / SERVICE).read_text() == ours + "Nice=5\n"
    assert run("install", "server", "-c", config, "--unit-dir", units, "--force").exit_code == 0
    assert (units / SERVICE).read_text() == ours


def test_without_a_configuration_it_says_how_to_write_one(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    start = f"there is no configuration {path}; name it with -c, or write one: "
    assert said(run("show", "client", "-c", path)) == f"{start}trio-tunnel init client -o {path}"
    deeper = tmp_path / "a" / "none.toml"
    assert f": mkdir -p {deeper.parent} && trio-tunnel init" in said(run("show", "client", "-c", deeper))


def test_units_of_the_machine_need_root_and_the_line_to_type_is_told(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["trio-tunnel", "service", "install", "server", "-c", "my server.toml"])
    text = said(run("install", "server", "-c", config))
    assert text.startswith(
        "the units of the machine are root's; run: sudo trio-tunnel service install server -c 'my server.toml'\n"
    )


def test_ones_own_units_are_in_ones_own_folder(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("tunnel.service.systemctl.RUNNING", tmp_path / "none")
    done = run("install", "server", "-c", config, "--user-unit")
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "config" / "systemd" / "user" / SERVICE).exists()
    assert "systemctl --user enable --now trio-tunnel-server.service" in done.output
    assert "loginctl enable-linger" in done.output
    assert "runs as yourself" in run("install", "server", "--user-unit", "--user", "root").output


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze; install systemd")
def test_systemd_takes_what_is_written_for_this_very_program(units: Path, config: Path) -> None:
    run("install", "server", "-c", config, "--unit-dir", units, "--socket")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units.iterdir()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "trio-tunnel" in line]) == (0, [])
