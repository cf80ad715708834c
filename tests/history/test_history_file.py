"""The file: what a recorder writes and a report reads, through kills, full disks, damage, clocks and company. B45."""

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from history_rig import NOON, House, event, status, taken

from tunnel.errors import TunnelError
from tunnel.history import recorder as recorder_module
from tunnel.history import store as store_module
from tunnel.history.life import may_live, own_life
from tunnel.history.recorder import Calendar
from tunnel.history.report import Moment, Report, Wanted, read_moments, read_report
from tunnel.history.store import Run, Store

HOUR = 3600.0
DAY = 86_400.0


def read(house: House, *, back: float = 7 * DAY, name: str = "", ahead: float = 0.0) -> Report:
    until = house.wall + ahead
    return read_report(house.path, Wanted(until - back, until, "", name))


def moments(house: House) -> list[Moment]:
    return list(read_moments(house.path, Wanted(house.wall - 7 * DAY, house.wall)))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_was_told_is_read_again_with_its_figures_while_the_process_runs(house: House) -> None:
    house.tell(event(0, "session.started", peer="192.0.2.1"), taken(0, 1))
    house.pass_by(2)
    house.tell(taken(2, 2))
    house.pass_by(4)
    house.tell(status(6))
    house.pass_by(94)
    assert house.recorder.step()
    (web,) = read(house).proxies
    found = web.figures
    assert (web.client, web.name, web.addr, web.port, web.status, web.is_now) == (
        "home", "web", "0.0.0.0", 8001, "healthy", True
    )  # fmt: skip
    assert found.healthy == pytest.approx(94)
    assert found.uptime == pytest.approx(0.94)
    assert (found.outages, found.retries, found.binds) == (1, 2, 1)
    assert found.bind_success_rate == 1 / 3
    assert found.recoveries.median == pytest.approx(6)
    assert found.last[0].message == "port 8001 is taken"
    assert found.last[0].began == pytest.approx(NOON)
    (session,) = read(house).sessions
    assert (session.client, session.peer, session.end, session.seconds) == ("home", "192.0.2.1", "", pytest.approx(100))


def test_a_process_that_was_killed_is_known_up_to_its_last_sign_of_life(house: House) -> None:
    house.tell(event(0, "session.started"), status(0))
    house.recorder.step()
    house.pass_by(30)
    house.recorder.step()  # nothing new: a sign of life
    house.pass_by(HOUR)  # killed in between, and never heard of again
    (web,), (session,) = (report := read(house)).proxies, report.sessions
    assert (web.figures.healthy, web.is_now, web.figures.outages) == (pytest.approx(30), False, 0)
    assert (session.end, session.seconds) == ("unknown", pytest.approx(30))
    assert [(run.end, run.ended - run.began) for run in report.runs] == [("lost", pytest.approx(30))]
    assert [moment.kind for moment in moments(house)] == [
        "server.started", "session.started", "proxy.healthy", "server.lost"
    ]  # fmt: skip


def test_the_next_process_goes_on_in_the_same_file_and_the_gap_is_nobody_s_uptime(house: House) -> None:
    house.tell(status(0))
    house.recorder.step()
    house.pass_by(30)
    house.recorder.step()
    house.pass_by(970)
    house.begin()
    house.tell(status(1000))
    house.pass_by(100)
    house.recorder.step()
    (web,) = read(house).proxies
    assert (web.figures.recorded, web.figures.uptime, web.figures.binds) == (pytest.approx(130), 1.0, 2)
    assert len(read(house).runs) == 2


def test_a_wall_clock_that_jumps_lengthens_nothing_and_what_was_is_placed_by_its_newest_word(house: House) -> None:
    house.tell(status(0))
    house.recorder.step()
    house.pass_by(50)
    house.offset += 30 * DAY  # somebody set it right
    house.tell(status(50, "web", "unhealthy", "target_down"))
    house.pass_by(50)
    house.tell(status(100))
    house.pass_by(100)
    house.recorder.step()
    (web,) = read(house).proxies
    assert (web.figures.published, web.figures.healthy) == (pytest.approx(200), pytest.approx(150))
    assert web.figures.last[0].seconds == pytest.approx(50)
    assert web.figures.last[0].began == pytest.approx(house.wall - 150)


def test_a_full_disk_is_told_once_costs_nothing_and_ends_by_itself(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.tell(status(0))
    assert house.recorder.step()
    pages = house.recorder._store._db.execute("PRAGMA page_count").fetchone()[0]
    really = Store.__init__

    def small(self: Store, path: Path) -> None:
        really(self, path)
        self._db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "__init__", small)
        house.recorder._close()
        for n in range(1, 400):
            house.pass_by(10)
            word = ("unhealthy", "target_down") if n % 2 else ("healthy",)
            house.tell(status(n * 10, "web", *word, error_message="x" * 200))
            if n % 20 == 0:
                house.recorder.step()
        assert not house.recorder.step()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "database or disk is full; the tunnel goes on" in caplog.text
    assert house.recorder.step()
    assert "is kept again" in caplog.records[-1].getMessage()
    assert "nothing was lost" in caplog.records[-1].getMessage()
    (web,) = read(house).proxies
    assert (web.figures.outages, web.figures.published) == (200, pytest.approx(3990))


def test_what_a_disk_cannot_take_for_too_long_is_lost_from_the_oldest_on_and_counted(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 10)
    house.path.mkdir()  # nothing can be written there
    for n in range(100):
        house.tell(status(n, "web", *(("unhealthy", "target_down") if n % 2 else ("healthy",))))
        house.pass_by(1)
    assert not house.recorder.step()
    house.path.rmdir()
    assert house.recorder.step()
    assert "90 changes were lost" in caplog.records[-1].getMessage()
    report = read(house)
    assert (report.lost, report.proxies[0].figures.recorded) == (90, pytest.approx(10))


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_moved_aside_with_a_word_and_a_new_one_has_all_that_lasts(
    house: House, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    house.tell(event(0, "session.started"), status(0))
    house.path.write_bytes(content)
    assert not house.recorder.step()
    assert house.path.with_name("history.sqlite.damaged").read_bytes() == content
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    house.pass_by(60)
    assert house.recorder.step()
    report = read(house)
    assert (report.proxies[0].figures.healthy, report.sessions[0].seconds) == (pytest.approx(60), pytest.approx(60))


def test_one_that_is_damaged_while_it_is_written_to_is_no_end_either(house: House) -> None:
    house.tell(status(0))
    house.recorder.step()
    house.recorder._close()
    house.path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    house.tell(status(5, "web", "unhealthy", "target_down"))
    while not house.recorder.step():
        pass
    assert [proxy.status for proxy in read(house).proxies] == ["unhealthy"]


def test_a_file_that_was_named_and_is_no_history_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, own=False)
    house.path.write_text("precious " * 100)
    assert not house.recorder.step()
    assert house.path.read_text() == "precious " * 100
    house.path.unlink()
    with sqlite3.connect(house.path) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    assert not house.recorder.step()
    with pytest.raises(TunnelError, match="is the database of another program"):
        read(house)
    with sqlite3.connect(house.path) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    other.close()
    assert len(caplog.records) == 1


def test_a_file_of_a_newer_version_is_neither_written_nor_misread(house: House) -> None:
    house.recorder.step()
    with sqlite3.connect(house.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    house.recorder._close()
    assert not house.recorder.step()
    with pytest.raises(TunnelError, match="was made by a newer trio-tunnel"):
        read(house)


def test_a_file_and_its_directory_that_are_taken_away_are_made_anew(tmp_path: Path) -> None:
    house = House(tmp_path / "state")
    house.tell(status(0))
    assert house.recorder.step()  # the directory is made
    for path in house.path.parent.iterdir():
        path.unlink()
    house.path.parent.rmdir()
    house.pass_by(10)
    assert house.recorder.step()
    assert read(house).proxies[0].figures.healthy == pytest.approx(10)


def test_two_processes_on_one_file_neither_wait_for_each_other_nor_mix(tmp_path: Path) -> None:
    server, client = House(tmp_path), House(tmp_path, "client")
    for n in range(50):
        server.tell(status(n, "web", *(("unhealthy", "target_down") if n % 2 else ("healthy",))))
        client.tell(status(n))
        server.pass_by(1)
        client.pass_by(1)
        assert server.recorder.step()
        assert client.recorder.step()
    report = read(server)
    assert [(one.role, one.name, one.figures.outages) for one in report.proxies] == [
        ("client", "web", 0), ("server", "web", 25)
    ]  # fmt: skip


def test_a_file_that_another_program_holds_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.01)
    house.recorder.step()
    house.recorder._close()
    house.tell(status(0))
    holder = sqlite3.connect(house.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert not house.recorder.step()
    holder.execute("COMMIT")
    holder.close()
    assert house.recorder.step()
    assert len(read(house).proxies) == 1


def test_more_than_the_queue_holds_is_dropped_counted_and_made_up_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_QUEUED", 10)
    looks = []

    def look() -> object:
        looks.append(1)
        return house.nothing

    for n in range(30):
        house.recorder.offer(status(n), look)  # type: ignore[arg-type]
    assert house.recorder.step()
    house.recorder.offer(status(40), look)  # type: ignore[arg-type]
    assert house.recorder.step()
    assert (len(looks), read(house).lost) == (1, 20)
    assert read(house).proxies[0].status == "away"  # by the snapshot, which has none


def rows(house: House) -> int:
    with closing(sqlite3.connect(house.path)) as db:
        (count,) = db.execute("SELECT count(*) FROM spans").fetchone()
    return int(count)


def test_rows_are_bounded_and_what_lasts_is_never_pruned(tmp_path: Path) -> None:
    house = House(tmp_path, max_rows=1000)
    house.tell(status(0, "steady"))
    for n in range(3000):
        house.tell(status(n, "web", *(("unhealthy", "target_down") if n % 2 else ("healthy",))))
        house.pass_by(1)
    house.recorder.step()
    assert rows(house) == 950
    newest = {one.name: one.figures for one in read(house).proxies}
    assert newest["steady"].healthy == pytest.approx(3000)
    assert newest["web"].last[0].began == pytest.approx(house.wall - 1, abs=2)


def test_rows_are_bounded_however_fast_a_client_publishes_and_withdraws(tmp_path: Path) -> None:
    house = House(tmp_path, max_rows=1000)
    seen = []
    for second in range(5):
        for n in range(4000):
            house.tell(status(second, f"p{n}"), event(second, "proxy.removed", proxy=f"p{n}"))
        house.pass_by(1)
        house.recorder.step()
        seen.append(rows(house))
    assert max(seen) <= 1000


def test_rows_are_deleted_by_age_once_the_wall_clock_can_be_believed(tmp_path: Path) -> None:
    house = House(tmp_path, max_age_days=1.0)
    house.tell(status(0, "steady"), status(0, "web"), status(0, "web", "unhealthy", "target_down"), status(0, "web"))
    house.recorder.step()
    house.pass_by(2 * DAY)
    house.offset += 5 * DAY  # and then a jump
    house.recorder.step()
    assert rows(house) == 4
    house.pass_by(700)
    house.recorder.step()
    assert rows(house) == 2  # what lasts
    assert {one.name for one in read(house, back=30 * DAY).proxies} == {"steady", "web"}


def test_the_runs_of_long_ago_go_with_all_that_was_in_them(tmp_path: Path) -> None:
    old = House(tmp_path)
    old.tell(event(0, "session.started"), status(0))
    old.recorder.step()
    old.recorder._close()
    house = House(tmp_path, max_age_days=1.0)
    house.pass_by(3 * DAY)
    house.begin()
    for _ in range(4):
        house.recorder.step()
        house.pass_by(700)
    assert (rows(house), len(read(house, back=30 * DAY).runs)) == (0, 1)


def test_a_calendar_is_steady_after_a_while_without_a_jump() -> None:
    calendar = Calendar(1e9)
    calendar.look(599, 1e9 + 599)
    assert not calendar.is_steady(599)
    calendar.look(600, 1e9 + 630)  # half a minute is a correction
    assert calendar.is_steady(600)
    calendar.look(700, 2e9)
    assert not calendar.is_steady(1299)
    assert calendar.is_steady(1300)


def test_only_its_owner_can_read_the_file(house: House) -> None:
    house.recorder.step()
    assert {path.stat().st_mode & 0o777 for path in house.path.parent.iterdir()} == {0o600}


def test_a_reader_needs_no_writer_changes_nothing_and_is_in_no_writer_s_way(house: House) -> None:
    house.tell(status(0))
    house.recorder.step()
    house.recorder.stop()
    house.recorder.run()
    assert [path.name for path in house.path.parent.iterdir()] == ["history.sqlite"]
    before = house.path.read_bytes()
    reading = read_moments(house.path, Wanted(house.wall - DAY, house.wall))
    assert next(reading).kind == "server.started"
    assert house.path.read_bytes() == before
    after = House(house.path.parent)
    assert after.recorder.step()
    assert [moment.kind for moment in reading] == ["proxy.healthy", "server.stopped"]
    assert [run.end for run in read(house).runs] == ["stopped", "running"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_who_may_only_read_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    house = House(folder)
    house.tell(status(0))
    house.recorder.stop()
    house.recorder.run()
    house.path.chmod(0o644)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    code = (
        "import os, sys; from pathlib import Path; from tunnel.history.report import Wanted, read_report\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(len(read_report(Path(sys.argv[1]), Wanted(0, 1e11)).proxies))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(house.path)], capture_output=True, text=True, cwd="/")
    assert done.stdout == "1\n", done.stderr


def test_what_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match=r"there is no history in .*; name the state directory"):
        read_report(tmp_path / "history.sqlite", Wanted(0, 1))
    (tmp_path / "torn").write_bytes(b"no database at all" * 100)
    with pytest.raises(TunnelError, match="cannot be read: file is not a database"):
        read_report(tmp_path / "torn", Wanted(0, 1))


def test_two_that_make_the_file_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 60.0)  # however slow the disk
    path, failures = tmp_path / "history.sqlite", []
    gate = threading.Barrier(4)

    def make() -> None:
        gate.wait()
        try:
            store = Store(path)
            store.write(Run("server", "1", 0.0), (), ())
            store.close()
        except sqlite3.Error as exc:
            failures.append(exc)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(read_report(path, Wanted(-1, 10)).runs) == 4


def test_a_process_lives_as_long_as_its_number_is_its_own() -> None:
    mine = own_life()
    assert may_live(mine)
    house, number, start = mine.split(" ")
    assert not may_live(f"{house} {number} {int(start) + 1}")  # its number is another one's by now
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    life = f"{house} {child.pid} {Path(f'/proc/{child.pid}/stat').read_text().split()[21]}"
    assert may_live(life)
    child.communicate()
    assert not may_live(life)
    assert may_live(life.replace(house, "another-container"))  # who could know
    assert may_live("")


def test_a_process_that_was_killed_a_moment_ago_is_not_taken_for_a_living_one(house: House) -> None:
    home, number, start = own_life().split(" ")
    house.recorder._run.life = f"{home} {number} {int(start) + 1}"
    house.tell(status(0))
    house.pass_by(5)
    house.recorder.step()
    house.pass_by(3)
    assert [run.end for run in read(house).runs] == ["lost"]
    assert read(house).proxies[0].figures.healthy == pytest.approx(5)
