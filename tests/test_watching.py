"""Changed files are noticed, whole, whatever way they change; and nothing is asked for twice (B35)."""

import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import watchfiles

from tunnel import watching
from tunnel.config.credentials import as_passed
from tunnel.watching import Reading, Watch, folders


class House:
    """A configuration of one file, and of those that it names, one in each line; `told` is what each asking read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "server.toml"
        self.path.write_text("one\n")
        self.reading = Reading(self.load)
        self.reading()
        self.told: list[str] = []

    def load(self) -> str:
        text = as_passed(self.path).read_text()
        if "broken" in text:
            raise ValueError(text)
        return "".join([text, *(as_passed(Path(line)).read_text() for line in text.split("\n") if line[:1] == "/")])

    def request(self) -> None:
        try:
            self.told.append(self.reading())
        except (ValueError, OSError) as exc:
            self.told.append(f"{type(exc).__name__}")

    async def until(self, *told: str) -> None:
        with trio.fail_after(30):
            while len(self.told) < len(told):
                await trio.sleep(0.005)
        await trio.sleep(0.1)  # a few looks more
        assert self.told == list(told)


@asynccontextmanager
async def watched(house: House, **more: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watch(lambda: house.reading.files, house.request, **more).run)
        await trio.sleep(0.05)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Where the kernel tells of nothing, and looks are frequent."""

    def watch(*_: Any, **__: Any) -> Any:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watchfiles, "watch", watch)
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watching, "SETTLE_SECONDS", 0.02)
    folder = tmp_path / "etc"
    folder.mkdir()
    return House(folder)


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def rename_over(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def as_vim_does(path: Path, text: str) -> None:
    (path.parent / "4913").touch()
    (path.parent / "4913").unlink()
    path.rename(path.with_name("server.toml~"))
    path.write_text(text)
    path.with_name("server.toml~").unlink()


def with_its_old_time(path: Path, text: str) -> None:
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("change", [rewrite, rename_over, as_vim_does, with_its_old_time])
async def test_a_file_that_changed_is_read_once(house: House, change: Callable[[Path, str], None]) -> None:
    async with watched(house):
        change(house.path, "two\n")
        await house.until("two\n")
        change(house.path, "six\n")
        await house.until("two\n", "six\n")


@pytest.mark.slow
async def test_what_changed_before_the_watch_began_is_noticed_too(house: House) -> None:
    house.path.write_text("early\n")
    async with watched(house):
        await house.until("early\n")


@pytest.mark.slow
async def test_a_file_that_is_being_written_is_read_when_it_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SETTLE_SECONDS", 0.3)
    whole = "".join(f"{n}\n" for n in range(20))
    async with watched(house):
        with house.path.open("w") as file:
            for line in whole.splitlines(keepends=True):
                file.write(line)
                file.flush()
                await trio.sleep(0.005)
        with trio.fail_after(30):
            while whole not in house.told:
                await trio.sleep(0.005)
    assert len(house.told) < 5  # one, unless the machine stood still in between


@pytest.mark.slow
async def test_links_that_are_swapped_as_kubernetes_does_are_another_file(tmp_path: Path, house: House) -> None:
    mount = tmp_path / "mount"
    for version in ("2026_1", "2026_2"):
        (mount / f"..{version}").mkdir(parents=True)
        (mount / f"..{version}" / "server.toml").write_text(version)
    (mount / "..data").symlink_to("..2026_1")
    (mount / "server.toml").symlink_to("..data/server.toml")
    house.path = mount / "server.toml"
    house.reading()
    async with watched(house):
        (mount / "..data_tmp").symlink_to("..2026_2")
        (mount / "..data_tmp").rename(mount / "..data")
        shutil.rmtree(mount / "..2026_1")
        await house.until("2026_2")


@pytest.mark.slow
async def test_a_directory_that_goes_and_comes_back_is_told_each_once(house: House) -> None:
    folder = house.path.parent
    async with watched(house):
        folder.rename(folder.with_name("away"))
        await house.until("FileNotFoundError")
        folder.with_name("away").rename(folder)
        await house.until("FileNotFoundError", "one\n")
        house.path.write_text("two\n")
        await house.until("FileNotFoundError", "one\n", "two\n")


@pytest.mark.slow
async def test_a_bad_file_is_read_once_and_again_when_it_was_mended(house: House) -> None:
    async with watched(house):
        house.path.write_text("broken\n")
        await house.until("ValueError")
        house.path.write_text("well\n")
        await house.until("ValueError", "well\n")


@pytest.mark.slow
async def test_the_files_that_a_configuration_names_are_watched_from_then_on(tmp_path: Path, house: House) -> None:
    token = tmp_path / "home.token"
    token.write_text("old")
    async with watched(house):
        house.path.write_text(f"{token}\n")
        await house.until(f"{token}\nold")
        token.write_text("new")
        await house.until(f"{token}\nold", f"{token}\nnew")
        house.path.write_text("none\n")
        await house.until(f"{token}\nold", f"{token}\nnew", "none\n")
        token.write_text("newer")
        await house.until(f"{token}\nold", f"{token}\nnew", "none\n")


@pytest.mark.slow
async def test_what_somebody_else_watches_is_left_to_them(tmp_path: Path, house: House) -> None:
    key = tmp_path / "key.pem"
    key.write_text("old")
    house.path.write_text(f"{key}\n")
    house.reading()
    async with watched(house, but=lambda: (key,)):
        key.write_text("new")
        await house.until()
        house.path.write_text(f"{key}\n\n")
        await house.until(f"{key}\n\nnew")


@pytest.mark.slow
async def test_what_was_read_for_another_reason_is_not_asked_for_again(house: House) -> None:
    async with watched(house):
        house.path.write_text("two\n")
        house.reading()  # SIGHUP
        await house.until()


@pytest.mark.slow
async def test_that_the_kernel_tells_of_nothing_is_said_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunnel.watching")
    async with watched(house):
        house.path.write_text("two\n")
        await house.until("two\n")
    assert [record.getMessage() for record in caplog.records] == [
        "changed files are looked for every 0.02 s, as the kernel tells of none: [Errno 28] inotify watch limit reached"
    ]


@pytest.mark.slow
async def test_the_kernel_s_word_makes_us_look_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 600.0)
    house = House(tmp_path)
    async with watched(house):
        with trio.fail_after(30):
            while not is_watched(tmp_path):
                await trio.sleep(0.01)
        rename_over(house.path, "two\n")
        await house.until("two\n")


def is_watched(folder: Path) -> bool:
    """By an inotify of this process."""
    wanted = f" ino:{folder.stat().st_ino:x} "
    for descriptor in Path("/proc/self/fdinfo").iterdir():
        with suppress(OSError):  # it is closed by now
            if any(line.startswith("inotify ") and wanted in line for line in descriptor.read_text().splitlines()):
                return True
    return False


def test_a_reading_stands_by_how_the_files_were_before_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("1")

    def load() -> str:
        found = as_passed(first).read_text() + as_passed(second).read_text()
        if found == "11":
            second.write_text("changed while it was read")
        return found

    reading = Reading(load)
    assert reading() == "11"
    assert reading.files[first] == watching.stamps([first])[first]
    assert reading.files[second] != watching.stamps([second])[second]
    reading.then(str.upper)
    assert reading() == "1CHANGED WHILE IT WAS READ"
    assert reading.files == watching.stamps([first, second])


def test_a_pipe_is_read_once_and_stands_as_it_did(tmp_path: Path) -> None:
    """As of ``--token-file <(…)``: there is nothing in it to be read a second time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, b"once")
    reading = Reading(lambda: as_passed(pipe) and os.read(writer, 9))
    assert reading() == b"once"
    os.write(writer, b"more")
    assert reading.files == watching.stamps([pipe])
    os.close(writer)


def test_a_reading_that_fails_knows_its_files_too(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    reading = Reading(lambda: as_passed(missing).read_text())
    with pytest.raises(FileNotFoundError):
        reading()
    assert reading.files == {missing: None}


def test_all_directories_count_in_which_a_name_can_become_another_s(tmp_path: Path) -> None:
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    (real / "file").touch()
    (links / "way").symlink_to(real)
    (links / "name").symlink_to("way/file")
    assert set(folders([links / "name"])) == {tmp_path, links, real, links / "way"}
    assert set(folders([tmp_path / "gone" / "deep" / "file"])) == {tmp_path}
    (links / "loop").symlink_to("loop")
    assert links in folders([links / "loop"])
