"""Commands that look at running processes and steer them: `close`, `events` and `top`, with real processes. B32."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from conftest import Pair
from processes import Stage, dial, free_port, read_exactly


def admin(process: object) -> list[str]:
    return ["--admin", f"127.0.0.1:{process.admin}"]


@pytest.mark.slow
def test_a_closed_session_says_why_and_is_back_and_the_event_is_told(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", admin=True)
    (public,) = client.wait_healthy("web")
    with dial(public) as visitor:
        visitor.sendall(b"inside")
        assert read_exactly(visitor, 6) == b"inside"
        begun = len(client.out)
        closed = stage.run("close", "default", *admin(server), "--state-dir", server.state)
        assert closed.stdout == "default: the session has ended; the client comes back"
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    client.wait_log("no session: the server's operator closed this session")
    client.wait_healthy("web", start=begun)
    told = stage.run("events", "--kind", "session.ended", *admin(server)).stdout
    assert told.endswith("(closed): the server's operator closed this session")

    begun = len(client.out)
    ours = stage.run("close", "default", "--json", *admin(client), "--state-dir", client.state)
    assert json.loads(ours.stdout) == {"closed": ["default"]}
    client.wait_healthy("web", start=begun)
    nobody = stage.run("close", "lab", *admin(server), "--state-dir", server.state, code=1).stderr
    assert "no client 'lab' is connected, only default" in nobody


@pytest.mark.slow
def test_events_are_followed_across_a_restart_and_none_is_lost_or_told_twice(stage: Stage, echo_port: int) -> None:
    first = stage.serve()
    follow = stage.start("events", "--follow", "--json", *admin(first))
    client = stage.connect(first, f"web=127.0.0.1:0:{echo_port}")
    follow.wait_line('"status": "healthy"')
    seen = len(follow.out)
    first.kill()
    follow.wait_log(f"127.0.0.1:{first.admin} is gone; waiting for it to come back")
    words = ["--listen", first.where, *admin(first), "--state-dir", first.state]
    second = stage.start("serve", *words)
    second.wait_line("^listening")
    follow.wait_log(f"127.0.0.1:{first.admin} is another process now; its events from the first one on")
    follow.wait_line('"status": "healthy"', start=seen)
    client.terminate()
    follow.wait_line('"session.ended"', start=seen)
    follow.interrupt()
    assert follow.wait() == 0
    told = [json.loads(line) for line in follow.out]
    anew = [event["id"] for event in told].index(1, 1)
    ids = [event["id"] for event in told]
    assert ids == [*range(1, anew + 1), *range(1, len(told) - anew + 1)]
    assert {event["kind"] for event in told[anew:]} >= {"session.started", "proxy.status", "session.ended"}


@pytest.mark.slow
def test_top_tells_programs_the_rate_of_what_passes(pair: Pair) -> None:
    top = pair.stage.start("top", "echo", "--json", "--interval", "0.2", *admin(pair.server))
    total = 0
    with dial(pair.ports["echo"]) as visitor:
        while not any(json.loads(line)["in_per_second"] > 0 for line in list(top.out)):
            visitor.sendall(b"x" * 1000)
            total += len(read_exactly(visitor, 1000))
            assert total < 10**9
    top.interrupt()
    assert top.wait() == 0
    lines = [json.loads(line) for line in top.out]
    busy = next(line for line in lines if line["in_per_second"] > 0)
    assert [proxy["name"] for proxy in busy["proxies"]] == ["echo"]
    assert busy["visitors"] == 1
    assert busy["proxies"][0]["in_per_second"] == busy["in_per_second"]


@pytest.mark.slow
def test_top_for_people_without_a_terminal_is_as_many_tables_as_asked_for(pair: Pair) -> None:
    lines = pair.stage.run("top", "--count", "1", "--interval", "0.1", "--sort", "name", *admin(pair.client)).out
    assert lines[2].split()[:3] == ["CLIENT", "PROXY", "STATE"]
    assert [line.split()[1] for line in lines[3:]] == sorted(pair.ports)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "end"), [("top", "q"), ("top", signal.SIGTERM), ("status --watch", signal.SIGTERM)]
)
def test_a_live_table_leaves_the_terminal_as_it_was(pair: Pair, command: str, end: object) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    argv = [sys.executable, "-m", "tunnel", *command.split(), *admin(pair.server)]
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    shown = b""
    try:
        deadline = time.monotonic() + 40
        while b"greeter" not in shown and time.monotonic() < deadline:
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 65536)
        assert b"greeter" in shown
        if end == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGTERM)
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 65536)
        assert process.wait(10) == 0
        while select.select([ours], [], [], 0.0)[0]:
            shown += os.read(ours, 65536)
        assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait(10)
        os.close(theirs)
        os.close(ours)


@pytest.mark.slow
def test_what_looks_at_a_process_that_is_not_there_says_so(stage: Stage) -> None:
    gone = ["--admin", f"127.0.0.1:{free_port()}"]
    for words in (["events"], ["events", "--follow"], ["top"], ["top", "--json"], ["status", "--watch", "--json"]):
        message = stage.run(*words, *gone, code=1).stderr
        assert "nothing answers" in message
        assert "Traceback" not in message
