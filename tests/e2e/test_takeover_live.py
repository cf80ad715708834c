"""Sessions that are cut off and replaced a hundred times, and what they leave at the server: B16."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from addresses import Forwarder
from half_open import HalfOpen
from processes import LOOPBACK, Server, Stage, can_listen, dial, free_port, resident_kib

pytestmark = pytest.mark.slow

ROUNDS = 1, 3, 100
SETTLE_SECONDS = 10.0  # a goodbye that nobody reads and a polite end take a second each


class Figures:
    """Of the server's process: tasks by Trio's own count, descriptors by the kernel's."""

    def __init__(self, stage: Stage, server: Server, dumps: Path) -> None:
        self._stage, self._server, self._dumps = stage, server, dumps

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._server.pid}/fd"))

    def tasks(self) -> int:
        before = set(self._dumps.glob("*.txt"))
        self._server.send(signal.SIGUSR2)
        (dump,) = self._stage.until(lambda: set(self._dumps.glob("*.txt")) - before, "a dump")
        return int(re.search(r'"tasks": (\d+)', dump.read_text()).group(1))

    def now(self) -> tuple[int, int]:
        return self.tasks(), self.descriptors

    def steady(self) -> tuple[int, int]:
        """As soon as they are the same five times in half a second."""
        found: list[tuple[int, int]] = []

        def look() -> bool:
            found.append(self.now())
            time.sleep(0.1)
            return len(found) >= 5 and len(set(found[-5:])) == 1

        self._stage.until(look, "tasks and descriptors stay as they are")
        return found[-1]

    @property
    def kib(self) -> int:
        return resident_kib(self._server.pid)

    def listeners(self, port: int) -> int:
        """Sockets that listen on the port, whoever's."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, lines))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="counts the server's sockets in /proc")
def test_a_hundred_half_open_sessions_one_after_another_leave_one_and_nothing_else(stage: Stage) -> None:
    """Connected, cut off with all sockets open, abandoned; the next one takes over at once."""
    dumps = stage.new_path("dumps")
    server = stage.serve("--profile-dir", dumps)
    public = free_port()
    figures = Figures(stage, server, dumps)
    seen: list[tuple[int, int, int]] = []

    def look() -> None:
        if seen:
            stage.until(lambda: figures.now() == seen[0][:2], "tasks and descriptors as after one", SETTLE_SECONDS)
            seen.append((*seen[0][:2], figures.kib))
        else:  # what a start brings along is over, and what it opens is open
            stage.until((server.state / "history.sqlite-wal").exists, "the history is open")
            seen.append((*figures.steady(), figures.kib))
        (session,) = server.stats()["sessions"]
        assert [proxy["status"] for proxy in session["proxies"]] == ["healthy"]
        assert figures.listeners(public) == 1
        dial(public).close()

    for times in ROUNDS:
        with Forwarder(server.port) as forwarder:
            client = HalfOpen(forwarder, token=server.token, ca_file=server.state / "server.crt", public=public)
            client.run(times, look)
        stage.until(lambda: server.stats()["sessions"] == [], "the last one is gone, too")
        assert can_listen(public)
    print("(tasks, descriptors, KiB) with the last one alive:", dict(zip(ROUNDS, seen, strict=True)))
    gone = "client 'default' disconnected"
    server.until(lambda: server.stderr.count(gone) >= sum(ROUNDS), "the log tells of each")  # a moment later
    assert server.stderr.count(gone) == sum(ROUNDS)
    assert seen[-1][2] < seen[1][2] + 24 * 1024, "dozens at a time say goodbye to nobody; 700 more add half of it"
    assert "Traceback" not in server.stderr


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="counts the server's sockets in /proc")
def test_the_real_client_is_cut_off_three_times_and_takes_its_own_place(stage: Stage, echo_port: int) -> None:
    """With beats three times a second, so that it notices soon; the server is behind the same silence."""
    server = stage.serve(config="[limits]\nheartbeat_seconds = 0.3\n")
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout.split()[0]
    public = free_port()
    with Forwarder(server.port) as forwarder:
        client = stage.connect(server, f"echo={LOOPBACK}:{public}:{echo_port}", where=forwarder.where, token=token)
        client.wait_healthy("echo")
        for _ in range(3):
            lines = len(client.out)
            forwarder.tell("freeze 0")
            client.wait_status("echo", status="unhealthy", reason="session_lost", start=lines, seconds=5)
            client.wait_healthy("echo", start=lines, seconds=5)
            # On a machine that stands still for a second it has lost one more meanwhile.
            stage.until(
                lambda: (
                    [[proxy["name"] for proxy in session["proxies"]] for session in server.stats()["sessions"]]
                    == [["echo"]]
                ),
                "there is one session",
            )
            stage.until(lambda: dial(public).close() or True, "its port is open")
        assert stage.report().count("Traceback") == 0
