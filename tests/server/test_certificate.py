"""The server's certificate changes on disk: new handshakes get the new one, a pair that is no good changes nothing."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from tunnel.certificates import make_self_signed
from tunnel.config import ServerConfig
from tunnel.errors import ConfigError, TunnelError
from tunnel.server.certificate import LOOK_SECONDS, Certificate, TlsFiles, check_change, find_files
from tunnel.state import StateDir

ONE, OTHER = make_self_signed(["one.example"]), make_self_signed(["other.example"])


async def at_once(function: Callable[..., object], *args: object, **_options: object) -> object:
    return function(*args)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps would, while a thread works."""
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    found = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    write(found, *ONE)
    return found


def write(files: TlsFiles, cert: bytes | None = None, key: bytes | None = None, *, mode: int = 0o600) -> None:
    """Put each aside and in place, as whoever renews certificates does."""
    for path, content in ((files.cert_file, cert), (files.key_file, key)):
        if content is not None:
            aside = path.with_suffix(".new")
            aside.write_bytes(content)
            aside.chmod(mode)
            aside.replace(path)


@pytest.mark.usefixtures("inline")
async def test_a_new_pair_is_taken_over_once_it_has_stood_still_for_a_while(
    files: TlsFiles, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    certificate = Certificate(files)
    first = certificate.context
    nursery.start_soon(certificate.watch)
    await trio.sleep(0.5 * LOOK_SECONDS)
    write(files, *OTHER)
    await trio.sleep(LOOK_SECONDS)
    assert certificate.context is first
    await trio.sleep(LOOK_SECONDS)
    assert certificate.context is not first
    assert f"new connections get the certificate that {files.cert_file} holds now, good until 20" in caplog.text
    second = certificate.context
    await trio.sleep(10 * LOOK_SECONDS)
    assert certificate.context is second
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("inline")
async def test_between_certificate_and_key_nothing_is_taken_over(
    files: TlsFiles, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    certificate = Certificate(files)
    first = certificate.context
    nursery.start_soon(certificate.watch)
    await trio.sleep(0.9 * LOOK_SECONDS)
    write(files, OTHER[0])
    await trio.sleep(0.2 * LOOK_SECONDS)  # a look between the two
    write(files, key=OTHER[1])
    await trio.sleep(2 * LOOK_SECONDS)
    assert certificate.context is not first
    assert "ERROR" not in caplog.text
    nursery.cancel_scope.cancel()


BAD = {
    "of two pairs": (lambda files: write(files, OTHER[0]), "they do not belong together, or one is damaged"),
    "no certificate": (lambda files: write(files, b"", OTHER[1]), "holds no certificate; put one there in PEM form"),
    "cut short": (lambda files: write(files, OTHER[0][:-60], OTHER[1]), "holds no certificate"),
    "gone": (lambda files: files.key_file.unlink(), "key.pem cannot be read: No such file or directory"),
    "open to all": (
        lambda files: write(files, *OTHER, mode=0o644),
        "can be read by others (mode 0644); run: chmod 640",
    ),
}


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("what", BAD)
async def test_a_pair_that_is_no_good_changes_nothing_and_is_told_once_until_it_is_mended(
    files: TlsFiles, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery, autojump_clock: trio.abc.Clock, what: str
) -> None:
    damage, problem = BAD[what]
    certificate = Certificate(files)
    first = certificate.context
    nursery.start_soon(certificate.watch)
    damage(files)
    await trio.sleep(20 * LOOK_SECONDS)
    assert certificate.context is first
    assert caplog.text.count("the certificate was not changed, new connections get the old one: ") == 1
    assert problem in caplog.text
    write(files, *OTHER)
    await trio.sleep(3 * LOOK_SECONDS)
    assert certificate.context is not first
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("inline")
async def test_who_says_that_the_files_are_whole_need_not_wait(
    files: TlsFiles, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    certificate = Certificate(files)
    first = certificate.context
    nursery.start_soon(certificate.watch)
    await trio.testing.wait_all_tasks_blocked()
    write(files, *OTHER)
    certificate.look_now()
    await trio.testing.wait_all_tasks_blocked()
    assert (certificate.context is not first, trio.current_time()) == (True, 0.0)
    nursery.cancel_scope.cancel()


def test_a_reload_tries_the_pair_it_names_before_anything_changes(tmp_path: Path, files: TlsFiles) -> None:
    running = ServerConfig(cert_file=files.cert_file, key_file=files.key_file)
    check_change(running, running)
    other = TlsFiles(tmp_path / "other.pem", tmp_path / "other.key")
    write(other, *OTHER)
    wanted = evolve(running, cert_file=other.cert_file, key_file=other.key_file)
    check_change(running, wanted)
    with pytest.raises(ConfigError) as caught:
        check_change(running, evolve(wanted, key_file=files.key_file))
    (mistake,) = caught.value.mistakes
    assert str(mistake) == (
        f"tls: the certificate {other.cert_file} cannot be used with the key {files.key_file}: "
        "they do not belong together, or one is damaged; put both there as they were issued"
    )
    with pytest.raises(ConfigError, match=r"cannot be used as client_ca_file: .*; put the CA's certificate there, PEM"):
        check_change(running, evolve(running, client_ca_file=files.key_file))


def test_without_a_pair_of_its_own_a_server_uses_that_of_its_state_and_leaves_its_key_to_itself(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    files = find_files(ServerConfig(), state)
    assert (files.cert_file, files.key_file) == (state.path / "server.crt", state.path / "server.key")
    assert Certificate(files).files == files
    with pytest.raises(TunnelError, match="needs a state directory, or cert_file and key_file"):
        find_files(ServerConfig(), None)


def test_a_stamp_tells_files_apart_that_differ_in_their_mode_alone(files: TlsFiles) -> None:
    before = files.stamp()
    files.key_file.chmod(0o640)
    assert files.stamp() != before


@pytest.mark.usefixtures("inline")
async def test_it_is_known_when_the_one_in_force_ends(
    files: TlsFiles, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    ends = {ONE[0]: datetime(2030, 1, 1, tzinfo=UTC), OTHER[0]: datetime(2040, 1, 1, tzinfo=UTC)}
    monkeypatch.setattr("tunnel.server.certificate.expiry_of_file", lambda path: ends[path.read_bytes()])
    certificate = Certificate(files)
    assert certificate.not_after == ends[ONE[0]]
    nursery.start_soon(certificate.watch)
    write(files, *OTHER)
    await trio.sleep(3 * LOOK_SECONDS)
    assert certificate.not_after == ends[OTHER[0]]
    write(files, *ONE)
    certificate.use(files)  # by a reload
    assert certificate.not_after == ends[ONE[0]]
    nursery.cancel_scope.cancel()


def test_one_whose_end_cannot_be_read_serves_all_the_same(
    files: TlsFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(path: Path) -> datetime:
        raise TunnelError(f"certificate {path} is damaged: a time of its own; name another")

    monkeypatch.setattr("tunnel.server.certificate.expiry_of_file", unreadable)
    assert Certificate(files).not_after is None
    assert "nobody can say when the certificate ends" in caplog.text
