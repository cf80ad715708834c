"""The wall clock is set forward and back under real processes: nothing waits, ends or is refused by it. B45."""

from glob import glob
from pathlib import Path

import pytest
from processes import LOOPBACK, Server, Stage, ask_echo, dial, held_port, read_exactly

LIBRARY = next(iter(glob("/usr/lib/*/faketime/libfaketime.so.1")), "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY, reason="libfaketime is not installed (Debian: faketime)"),
]


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """A file; what is written there is by how far both processes' wall clocks are wrong."""
    path = tmp_path / "clock"
    path.write_text("+0\n")
    return path


def faked(clock: Path) -> dict[str, str]:
    names = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    monotonic = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # by the library's version
    return {"LD_PRELOAD": LIBRARY, **names, **monotonic}


def days(side: Server) -> set[str]:
    """Those on which it has logged something, as it sees it."""
    return {line[:10] for line in list(side.err)}


def test_a_day_forward_and_two_back_end_nothing_and_hold_up_no_retry(stage: Stage, echo_port: int, clock: Path) -> None:
    env = faked(clock)
    server = stage.serve("-v", env=env)
    with held_port() as taken:
        port = taken.getsockname()[1]
        proxies = [f"echo={LOOPBACK}:0:{echo_port}", f"late={LOOPBACK}:{port}:{echo_port}"]
        client = stage.connect(server, *proxies, env=env)
        (public,) = client.wait_healthy("echo")
        inside = dial(public)
        inside.sendall(b"before")
        assert read_exactly(inside, 6) == b"before"
        for seen, jump in enumerate(("+1d", "-1d", "+0"), 2):
            clock.write_text(f"{jump}\n")
            stage.run_retry("late", server.admin, server.state)  # its wait starts afresh, and its log line has the date
            stage.until(lambda seen=seen: len(days(server)) >= min(seen, 3), f"the log shows the jump by {jump}")
            inside.sendall(jump.encode())
            assert read_exactly(inside, len(jump)) == jump.encode()
            ask_echo(public)
        before = len(client.statuses)
        client.wait_status("late", reason="addr_in_use", attempt=2, start=before - 1)  # after 2 s, as if nothing were
    client.wait_healthy("late")
    inside.close()
    log = "\n".join(server.err)
    assert log.count("connected") == 1
    assert "silent" not in log
    assert "disconnected" not in log
