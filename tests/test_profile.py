"""SIGUSR2: what a dump holds, who may read it, and what happens without --profile-dir or without the signal."""

import json
import logging
import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel import profile as profile_module
from tunnel.errors import TunnelError
from tunnel.profile import MAX_TASKS, Profile, relay_figures, task_lines, write_dump
from tunnel.relay import Engine


class Heard(logging.Handler):
    """What the profile has logged; it does so in the event loop."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        self._more = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self._more.set()
        self._more = trio.Event()

    async def wait(self, count: int = 1) -> list[str]:
        """So many messages, as soon as there are."""
        with trio.fail_after(30):
            while len(self.messages) < count:
                await self._more.wait()
        return self.messages

    async def wait_dump(self) -> Path:
        (message,) = await self.wait()
        return dump_named_by(message)


def dump_named_by(message: str) -> Path:
    assert message.startswith("wrote the dump ")
    return Path(message.removeprefix("wrote the dump "))


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    level = profile_module.log.level
    profile_module.log.setLevel(logging.INFO)
    profile_module.log.addHandler(handler)
    yield handler
    profile_module.log.removeHandler(handler)
    profile_module.log.setLevel(level)


def section(text: str, title: str) -> str:
    found = re.search(rf"^== {title}.*? ==\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, text
    return found.group(1)


async def test_a_signal_writes_a_dump_that_only_this_user_may_read(
    tmp_path: Path, nursery: trio.Nursery, heard: Heard
) -> None:
    profile = Profile("server", tmp_path / "dumps")
    profile.sections = lambda: {"relay": {"streams": 3}, "odd": Path("/x")}
    await nursery.start(profile.watch)
    signal.raise_signal(signal.SIGUSR2)
    dump = await heard.wait_dump()
    assert dump.parent == tmp_path / "dumps"
    assert re.fullmatch(rf"trio-tunnel-server-\d{{8}}T\d{{6}}\.\d{{3}}Z-{os.getpid()}\.txt", dump.name)
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert stat.S_IMODE(dump.parent.stat().st_mode) == 0o700
    assert os.listdir(dump.parent) == [dump.name]
    text = dump.read_text()
    assert text.startswith("trio-tunnel ")
    process = json.loads(section(text, "process"))
    assert process["open_descriptors"] > 3
    assert process["resident_bytes"] > 1_000_000
    assert set(process["gc"]) == {"count", "frozen", "generations"}
    figures = json.loads(section(text, "figures"))
    assert figures["relay"] == {"streams": 3}
    assert figures["odd"] == "/x"
    assert figures["trio"]["tasks"] > 3


async def test_a_dump_shows_the_tree_of_tasks_and_where_each_stands_but_no_variables(
    tmp_path: Path, nursery: trio.Nursery, heard: Heard
) -> None:
    async def waits_for_a_visitor() -> None:
        secret = "a password in a variable"
        await trio.sleep_forever()
        print(secret)

    async def parent() -> None:
        async with trio.open_nursery() as children:
            children.start_soon(waits_for_a_visitor, name="proxy web\x1b[2J")

    nursery.start_soon(parent, name="session home")
    profile = Profile("client", tmp_path)
    await nursery.start(profile.watch, name="dumps")
    await wait_all_tasks_blocked()
    signal.raise_signal(signal.SIGUSR2)
    text = (await heard.wait_dump()).read_text()
    tasks = section(text, "tasks").splitlines()
    outer = next(index for index, line in enumerate(tasks) if line.strip() == "session home")
    inner = next(index for index, line in enumerate(tasks) if line.strip() == r"proxy web\x1b[2J")
    depth = [len(tasks[index]) - len(tasks[index].lstrip()) for index in (outer, inner)]
    assert depth[1] == depth[0] + 2
    assert any("waits_for_a_visitor" in line and "tests/test_profile.py:" in line for line in tasks[inner:])
    assert "a password in a variable" not in text
    assert any(line.strip() == "dumps" for line in tasks)


async def test_what_looks_like_a_token_is_cut_from_a_dump(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.txt", ["head", "Authorization: Bearer tt_0123456789abcdef0123456789abcdef"])
    assert "0123456789abcdef" not in (tmp_path / "dump.txt").read_text()


async def test_steps_are_timed_only_where_dumps_are_wanted(tmp_path: Path) -> None:
    assert Profile("server", None).instruments == []
    profile = Profile("server", tmp_path)
    (steps,) = profile.instruments
    assert steps is profile.steps


async def test_a_dump_names_the_slowest_steps(tmp_path: Path, nursery: trio.Nursery, heard: Heard) -> None:
    profile = Profile("server", tmp_path)
    for instrument in profile.instruments:
        trio.lowlevel.add_instrument(instrument)
    nursery.start_soon(trio.sleep_forever, name="data channel 7")
    await nursery.start(profile.watch)
    signal.raise_signal(signal.SIGUSR2)
    text = (await heard.wait_dump()).read_text()
    for instrument in profile.instruments:
        trio.lowlevel.remove_instrument(instrument)
    assert re.search(r"^ +\d+\.\d{3}  \d{4}-\S+Z  data channel 7$", section(text, "slowest steps"), re.MULTILINE)
    assert re.search(r"^ +\d+\.\d +1 +\d+\.\d{3}  data channel$", section(text, "steps by"), re.MULTILINE)


async def test_signals_during_a_dump_are_answered_with_one_more(
    tmp_path: Path, nursery: trio.Nursery, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    go_on = threading.Event()

    def write(path: Path, lines: list[str]) -> None:
        begun.append(path)
        assert go_on.wait(10)

    monkeypatch.setattr(profile_module, "write_dump", write)
    await nursery.start(Profile("server", tmp_path).watch)
    for _ in range(3):
        signal.raise_signal(signal.SIGUSR2)
        await wait_all_tasks_blocked()
        assert len(begun) <= 1
    go_on.set()
    await heard.wait(2)
    await wait_all_tasks_blocked()
    assert len(begun) == 2


async def test_without_a_directory_the_signal_costs_one_line_and_not_the_process(
    nursery: trio.Nursery, heard: Heard
) -> None:
    await nursery.start(Profile("server", None).watch)
    signal.raise_signal(signal.SIGUSR2)
    assert await heard.wait() == ["SIGUSR2 asks for a dump; start with --profile-dir DIR to have it written there"]


async def test_a_dump_that_cannot_be_written_is_told_and_leaves_nothing(
    tmp_path: Path, nursery: trio.Nursery, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    await nursery.start(Profile("server", tmp_path).watch)
    signal.raise_signal(signal.SIGUSR2)
    (message,) = await heard.wait()
    assert re.fullmatch(rf"the dump {tmp_path}/\S+\.txt cannot be written: No space left on device", message)
    assert os.listdir(tmp_path) == []


async def test_sections_that_fail_cost_only_themselves(tmp_path: Path, nursery: trio.Nursery, heard: Heard) -> None:
    def sections() -> dict[str, Any]:
        raise RuntimeError("a bug")

    profile = Profile("server", tmp_path)
    profile.sections = sections
    await nursery.start(profile.watch)
    signal.raise_signal(signal.SIGUSR2)
    failed, wrote = await heard.wait(2)
    assert failed == "a dump's sections failed"
    text = dump_named_by(wrote).read_text()
    assert json.loads(section(text, "figures"))["sections"] == "failed: RuntimeError"
    assert "== tasks" in text


async def test_more_tasks_than_are_shown_are_counted(nursery: trio.Nursery) -> None:
    for _ in range(30):
        nursery.start_soon(trio.sleep_forever, name="visitor")
    await wait_all_tasks_blocked()
    lines = list(task_lines(trio.lowlevel.current_root_task(), limit=20))
    assert sum(line.strip() == "visitor" for line in lines) <= 20
    assert re.fullmatch(r"… \d+ more, and their children", lines[-1])
    assert "more, and" not in list(task_lines(trio.lowlevel.current_root_task(), limit=MAX_TASKS))[-1]


def test_a_system_without_the_signal_says_so_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match="this system has none; leave it out"):
        Profile("server", tmp_path, number=None)


async def test_a_system_without_the_signal_runs_without_the_option(nursery: trio.Nursery) -> None:
    await nursery.start(Profile("server", None, number=None).watch)


def test_a_directory_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TunnelError, match=r"^--profile-dir \S+/file/dumps cannot be made: Not a directory; make it"):
        Profile("server", tmp_path / "file" / "dumps")


def test_a_directory_that_is_not_ours_to_write_to_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(TunnelError, match="is not ours to write to"):
        Profile("server", tmp_path)


async def test_a_relay_is_told_in_numbers() -> None:
    engine = Engine()
    try:
        with engine.attach():
            assert relay_figures(engine) == {
                "sessions": 1, "channels": 0, "streams": 0, "max_streams": None, "turns": 0, "errors": 0,
                "budget_free": 256 * 1024 * 1024, "paused_listeners": 0,
            }  # fmt: skip
    finally:
        engine.close()
