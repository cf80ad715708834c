"""The recorder's thread beside a living Trio: fed as events are published, it ends with its last word written."""

import sqlite3
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from history_rig import House, event, update

from tunnel.errors import TunnelError
from tunnel.history import recorder as recorder_module
from tunnel.history.recorder import Keeping, run_history
from tunnel.history.report import Wanted, read_report
from tunnel.history.store import Store
from tunnel.snapshot import EventStream, ProxyView, SessionView, Snapshot


class Tunnel:
    """What a recorder sees of a server."""

    def __init__(self) -> None:
        self.events = EventStream()
        view = ProxyView("early", "healthy", None, None, None, 0, None, "0.0.0.0", 1, "", 0, 0, 0, 0, "")
        self.sessions: tuple[SessionView, ...] = (SessionView("home", "", (view,)),)

    def snapshot(self) -> Snapshot:
        return Snapshot("server", "1", self.sessions)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


async def test_what_was_there_before_and_what_came_until_the_end_is_in_the_file(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "STOP_SECONDS", 60.0)  # a slow disk is another test's
    tunnel, path = Tunnel(), tmp_path / "history.sqlite"
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as side:
            await side.start(partial(run_history, tunnel, Keeping(path=path)), name="history")
            tunnel.events.publish("session.started", client="home", peer="192.0.2.1")
            tunnel.events.publish("proxy.status", client="home", proxy="web", update=update())
            assert "history" in threads()
            scope.cancel(reason="the process ends")
    report = read_report(path, Wanted(0, 1e11))
    assert [one.name for one in report.proxies] == ["early", "web"]
    assert [(run.end, one.end) for run, one in zip(report.runs, report.sessions, strict=True)] == [
        ("stopped", "stopped")
    ]
    assert "history" not in threads()


@pytest.mark.slow
async def test_the_thread_writes_by_itself_soon_after_something_happened(tmp_path: Path, nursery: trio.Nursery) -> None:
    tunnel, path = Tunnel(), tmp_path / "history.sqlite"
    await nursery.start(partial(run_history, tunnel, Keeping(path=path)))
    tunnel.events.publish("proxy.status", client="home", proxy="web", update=update())

    def names() -> list[str]:
        with suppress(TunnelError):  # it is not there yet, or empty
            return [one.name for one in read_report(path, Wanted(0, 1e11)).proxies]
        return []

    with trio.fail_after(20):
        while names() != ["early", "web"]:
            await trio.sleep(0.05)
    nursery.cancel_scope.cancel()


async def test_a_disk_that_hangs_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    released = threading.Event()
    monkeypatch.setattr(recorder_module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(Store, "_prepare", lambda self: released.wait(60))
    async with trio.open_nursery() as side:
        await side.start(partial(run_history, Tunnel(), Keeping(path=tmp_path / "history.sqlite")))
        side.cancel_scope.cancel()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "history":
            thread.join(10)


def test_no_error_of_a_disk_ends_the_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path)
    for failure in (
        sqlite3.OperationalError("disk I/O error"), OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"), sqlite3.DatabaseError("malformed"),
    ):  # fmt: skip

        def fail(self: Store, path: Path, failure: Exception = failure) -> None:
            raise failure

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "__init__", fail)
            house.tell(event(0, "session.started"))
            assert not house.recorder.step()
    assert house.recorder.step()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert len(read_report(house.path, Wanted(0, 1e11)).sessions) == 4
