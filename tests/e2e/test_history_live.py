"""History of real processes: killed, out of room, and asked while they run and when they do not. B44, B45."""

import json
import resource
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from processes import LOOPBACK, Client, Server, Stage, ask_echo, free_port

ROOM = 4096  # bytes that a file may have: less than a database needs


def history(stage: Stage, state: Path, *words: str) -> dict[str, Any]:
    return json.loads(stage.run("history", "--state-dir", state, "--json", *words).stdout)


def spans(side: Server | Client) -> list[tuple[str, str, str]]:
    """(client, proxy, status) as they stand in the file; nothing while there is none."""
    try:
        with closing(sqlite3.connect(f"file:{side.state / 'history.sqlite'}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT client, proxy, status FROM spans ORDER BY run, n").fetchall()
    except sqlite3.Error:
        return []
    return found


@pytest.mark.slow
def test_kill_9_of_both_sides_loses_nothing_that_was_a_second_old(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client: Client = stage.connect(server, f"web={LOOPBACK}:0:{echo_port}", admin=True)
    client.wait_healthy("web")
    server.until(lambda: len(spans(server)) == 1, "the proxy is in the file")
    server.until(lambda: ("default", "web", "healthy") in spans(client), "and in the client's own")
    client.kill()
    server.until(lambda: len(spans(server)) == 2, "its end is in the file")
    server.kill()
    (web,) = history(stage, server.state)["proxies"]  # while nobody runs
    assert (web["status"], web["is_now"], web["outages"], web["binds"]) == ("away", False, 1, 1)

    (ours,) = history(stage, client.state)["proxies"]
    assert (ours["role"], ours["client"], ours["name"], ours["status"]) == ("client", "default", "web", "healthy")

    again = stage.serve(state=server.state, port=server.port)
    again.token, again.pin = server.token, server.pin
    client = stage.connect(again, f"web={LOOPBACK}:0:{echo_port}")
    (port,) = client.wait_healthy("web")
    ask_echo(port)
    again.until(lambda: len(spans(again)) == 3, "the next process goes on in it")
    found = history(stage, server.state, "web")
    (web,) = found["proxies"]
    assert (web["status"], web["is_now"], web["binds"], web["bind_success_rate"]) == ("healthy", True, 2, 1.0)
    assert [process["end"] for process in found["processes"]] == ["lost", "running"]
    assert [session["end"] for session in found["sessions"]] == ["lost", ""]
    again.terminate()
    assert again.wait() == 0
    assert [process["end"] for process in history(stage, server.state)["processes"]] == ["lost", "stopped"]


@pytest.mark.slow
def test_without_room_the_tunnel_goes_on_and_the_history_comes_back_with_the_room(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    server.until(lambda: (server.state / "history.sqlite-wal").exists(), "the file is there")
    unlimited = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    client: Client = stage.connect(server, f"web={LOOPBACK}:{free_port()}:{echo_port}")
    (port,) = client.wait_healthy("web")
    server.wait_log("the history cannot be kept in .*; the tunnel goes on")
    for _ in range(20):
        ask_echo(port)
    assert spans(server) == []
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)
    server.wait_log("the history is kept again in .*; nothing was lost")
    assert spans(server) == [("default", "web", "healthy")]
    assert server.stderr.count("the history cannot be kept") == 1
