"""Unit files on disk: what a person changed is told from what we wrote; and what is done with them, in order."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tunnel.errors import TunnelError
from tunnel.service.deeds import put, refuse_changed, take_away, unit_files
from tunnel.service.files import UnitFile, installed
from tunnel.service.plan import Plan
from tunnel.service.systemctl import Systemctl
from tunnel.service.unit import Service


@pytest.fixture
def file(tmp_path: Path) -> UnitFile:
    return UnitFile(tmp_path / "units" / "trio-tunnel-server.service", "[Unit]\n")


def test_what_was_written_is_known_again_and_what_a_person_changed_is_not_ours(file: UnitFile) -> None:
    assert file.standing() == "absent"
    file.write()
    assert file.standing() == "same"
    assert UnitFile(file.path, "[Service]\n").standing() == "other"
    file.path.write_text(file.path.read_text() + "[Service]\n")
    assert file.standing() == "changed"


@pytest.mark.parametrize("content", ["", "[Unit]\n", "# trio-tunnel-unit sha256:" + "0" * 64 + "\n[Unit]\n", "\xff\0"])
def test_what_we_never_wrote_is_a_persons(content: str, file: UnitFile) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(content.encode("latin-1"))
    assert file.standing() == "changed"


def test_a_unit_can_be_read_by_all_and_replaces_the_old_one_whole(file: UnitFile) -> None:
    file.write()
    UnitFile(file.path, "[Service]\n").write()
    assert file.path.read_text().endswith("[Service]\n")
    assert file.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    file.remove()
    file.remove()
    assert file.standing() == "absent"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("")
    with pytest.raises(TunnelError, match="cannot be written"):
        UnitFile(tmp_path / "units" / "x.service", "[Unit]\n").write()


def test_services_of_ours_are_found_by_their_names(tmp_path: Path) -> None:
    for name in (
        "trio-tunnel-client-b.service",
        "trio-tunnel-server.service",
        "trio-tunnel-server.socket",
        "ssh.service",
    ):
        (tmp_path / name).write_text("")
    assert list(installed(tmp_path)) == ["trio-tunnel-client-b", "trio-tunnel-server"]


# What is done


class Asked(Systemctl):
    """Writes down what systemctl is asked; `active` units are."""

    def __init__(self, *, active: Iterable[str] = (), failing: str = "") -> None:
        super().__init__()
        asked: list[str] = []
        object.__setattr__(self, "asked", asked)
        object.__setattr__(self, "active", set(active))
        object.__setattr__(self, "failing", failing)

    asked: list[str]
    active: set[str]
    failing: str

    def run(self, *words: str) -> None:
        self.asked.append(" ".join(words))
        if self.failing and self.failing in self.asked[-1]:
            raise TunnelError("Job failed")

    def is_active(self, unit: str) -> bool:
        return unit in self.active

    def log_of(self, unit: str) -> str:
        return "cannot listen on 0.0.0.0:8443"


SERVICE, SOCKET = "trio-tunnel-server.service", "trio-tunnel-server.socket"


def files_of(folder: Path, *, socket: bool = False, drain_seconds: float = 30.0) -> list[UnitFile]:
    from tunnel.addresses import HostPort

    service = Service(
        "server", "trio-tunnel-server", ("/bin/true",), Path("/etc/x.toml"), state="trio-tunnel",
        sockets=(HostPort("0.0.0.0", 8443),) if socket else (), drain_seconds=drain_seconds,
    )  # fmt: skip
    return unit_files(Plan(service, None), folder)


def test_a_service_is_written_enabled_and_started_the_socket_before_it(tmp_path: Path) -> None:
    systemctl = Asked()
    words = list(put(files_of(tmp_path, socket=True), systemctl, start=True))
    assert systemctl.asked == [
        "daemon-reload",
        f"enable --quiet {SERVICE} {SOCKET}",
        f"start {SOCKET}",
        f"start {SERVICE}",
    ]
    assert words == [
        f"wrote {tmp_path / SERVICE}",
        f"wrote {tmp_path / SOCKET}",
        f"{SERVICE} runs, and starts at every boot",
    ]


def test_installed_again_it_is_left_running_where_nothing_changed(tmp_path: Path) -> None:
    list(put(files_of(tmp_path), None, start=True))
    systemctl = Asked(active=[SERVICE])
    words = list(put(files_of(tmp_path), systemctl, start=True))
    assert not any(asked.startswith("stop") for asked in systemctl.asked)
    assert words == [f"{tmp_path / SERVICE} is as it shall be", f"{SERVICE} runs, and starts at every boot"]


def test_installed_otherwise_it_is_started_again(tmp_path: Path) -> None:
    list(put(files_of(tmp_path), None, start=True))
    systemctl = Asked(active=[SERVICE])
    words = list(put(files_of(tmp_path, drain_seconds=5), systemctl, start=True))
    assert systemctl.asked[2:] == [f"stop {SERVICE}", f"start {SERVICE}"]
    assert words[-1] == f"{SERVICE} was started again, and starts at every boot"


def test_a_socket_that_is_not_wanted_any_more_goes(tmp_path: Path) -> None:
    list(put(files_of(tmp_path, socket=True), None, start=True))
    systemctl = Asked(active=[SERVICE])
    words = list(put(files_of(tmp_path), systemctl, start=True))
    assert systemctl.asked[:2] == [f"disable --now {SOCKET}", f"reset-failed {SOCKET}"]
    assert f"removed {tmp_path / SOCKET}" in words
    assert not (tmp_path / SOCKET).exists()


def test_without_starting_it_is_only_enabled(tmp_path: Path) -> None:
    systemctl = Asked()
    words = list(put(files_of(tmp_path), systemctl, start=False))
    assert systemctl.asked == ["daemon-reload", f"enable --quiet {SERVICE}"]
    assert words[-1] == f"it starts at the next boot, or with: systemctl start {SERVICE}"


def test_one_that_does_not_start_shows_why(tmp_path: Path) -> None:
    with pytest.raises(TunnelError) as caught:
        list(put(files_of(tmp_path), Asked(failing="start"), start=True))
    assert str(caught.value) == f"{SERVICE} does not start; its log ends with:\ncannot listen on 0.0.0.0:8443"


def test_taken_away_nothing_is_left_but_what_is_told(tmp_path: Path) -> None:
    files = files_of(tmp_path, socket=True)
    list(put(files, None, start=True))
    (tmp_path / f"{SERVICE}.d").mkdir()
    systemctl = Asked(failing="reset-failed")  # says that it had not failed
    assert list(take_away(files, systemctl)) == [
        f"removed {tmp_path / SOCKET}",
        f"removed {tmp_path / SERVICE}",
        "kept: the configuration /etc/x.toml",
        "kept: keys, tokens and chosen ports in /var/lib/trio-tunnel",
        f"kept: your changes in {tmp_path / SERVICE}.d",
    ]
    assert [asked for asked in systemctl.asked if "reset" not in asked] == [
        f"disable --now {SOCKET}", f"disable --now {SERVICE}", "daemon-reload",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [f"{SERVICE}.d"]


def test_folders_elsewhere_that_it_wrote_to_are_told(tmp_path: Path) -> None:
    service = Service("server", "x", ("/bin/true",), Path("/etc/x.toml"), user="me", writable=(Path("/srv/a b"),))
    files = [UnitFile(tmp_path / name, text) for name, text in service.texts().items()]
    list(put(files, None, start=True))
    assert list(take_away(files, None))[1:] == [
        "kept: the configuration /etc/x.toml",
        'kept: what it wrote in "/srv/a b"',
    ]


def test_where_one_of_two_was_changed_by_hand_neither_is_touched(tmp_path: Path) -> None:
    files = files_of(tmp_path, socket=True)
    list(put(files, None, start=True))
    refuse_changed(files, "remove it")
    (tmp_path / SOCKET).write_text("[Socket]\n")
    with pytest.raises(TunnelError) as caught:
        refuse_changed(files, "remove it")
    assert str(caught.value) == (
        f"{tmp_path / SOCKET} was changed by hand, or is not of `trio-tunnel service install`; nothing was done; "
        "look at it, and give --force to remove it all the same"
    )
