"""Known sources outlive the process that knew them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from gate_rig import PATIENT, House, grants

from tunnel.addresses import HostPort
from tunnel.config import ServerConfig
from tunnel.server.acquaintances import LOOK_SECONDS, MAX_KEPT, REWRITE_SECONDS, Acquaintances
from tunnel.server.admission import KNOWN_SECONDS
from tunnel.server.app import open_server
from tunnel.server.strangers import Strangers
from tunnel.state import StateDir


class Writes:
    """A state directory that counts."""

    def __init__(self) -> None:
        self.kept: list[dict[str, float]] = []

    def keep_known_sources(self, ages: dict[str, float]) -> None:
        self.kept.append(ages)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path / "state")


async def test_who_is_known_is_written_when_it_changes_and_ages_now_and_then(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(write: Callable[..., None], *args: Any, abandon_on_cancel: bool) -> None:
        write(*args)  # the clock would jump while a thread works

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    strangers, writes = Strangers(), Writes()
    acquaintances = Acquaintances(strangers, writes)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acquaintances.watch)
        await trio.sleep(95)
        assert writes.kept == []  # nobody
        strangers._admission.login("192.0.2.1", trio.current_time())
        await trio.sleep(100)
        assert writes.kept == [{"192.0.2.1": LOOK_SECONDS / 2}]
        await trio.sleep(REWRITE_SECONDS)
        assert writes.kept[1:] == [{"192.0.2.1": LOOK_SECONDS / 2 + REWRITE_SECONDS}]
        await trio.sleep(KNOWN_SECONDS)
        assert writes.kept[-1] == {}  # forgotten, there too
        nursery.cancel_scope.cancel()


async def test_the_next_process_knows_them_for_the_rest_of_their_hour(
    autojump_clock: trio.abc.Clock, state: StateDir
) -> None:
    state.keep_known_sources({"192.0.2.1": 600.0, "192.0.2.2": 3599.5, "192.0.2.3": KNOWN_SECONDS, "192.0.2.4": -5.0})
    strangers = Strangers()
    Acquaintances(strangers, state).recall()
    assert strangers.known() == {"192.0.2.1": 600.0, "192.0.2.2": 3599.5}
    await trio.sleep(KNOWN_SECONDS - 600 - 1)
    assert set(strangers.known()) == {"192.0.2.1"}
    await trio.sleep(1)
    assert strangers.known() == {}


async def test_of_very_many_the_newest_are_kept(state: StateDir) -> None:
    strangers = Strangers()
    strangers.recall({f"10.{number // 60000}.{number // 250}.{number % 250}": number / 10 for number in range(12_000)})
    Acquaintances(strangers, state).write_last()
    ages = state.known_sources()
    assert len(ages) == MAX_KEPT
    assert max(ages.values()) < 1001


@pytest.mark.parametrize("content", ["{", "[]", '{"192.0.2.1": "yesterday"}'])
async def test_a_damaged_file_costs_the_memory_and_is_told_with_its_name(
    state: StateDir, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = state.path / "known.json"
    path.write_text(content)
    path.chmod(0o600)
    strangers = Strangers()
    Acquaintances(strangers, state).recall()
    assert strangers.known() == {}
    assert f"nobody is known from before: {path} is damaged" in caplog.text


async def test_a_full_disk_is_told_once(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    strangers = Strangers()
    strangers.recall({"192.0.2.1": 1.0})
    acquaintances = Acquaintances(strangers, state)
    state.path.joinpath(".known.json.new").mkdir()  # nothing can be written aside
    acquaintances.write_last()
    acquaintances.write_last()
    assert caplog.text.count("who is known is not kept for after a restart") == 1


async def test_a_server_that_starts_again_knows_where_its_clients_came_from(files: Path, tmp_path: Path) -> None:
    config = ServerConfig(
        (HostPort("127.0.0.1", 0),), tmp_path / "state", files / "cert.pem", files / "key.pem", clients=grants(),
        limits=PATIENT,
    )  # fmt: skip
    with trio.fail_after(30):
        async with open_server(config) as server, trio.open_nursery() as nursery, House(server, files, nursery).login():
            pass
        assert set(json.loads((tmp_path / "state" / "known.json").read_text())) == {"127.0.0.1"}
        async with open_server(config) as server:
            assert set(server._gate.strangers.known()) == {"127.0.0.1"}
