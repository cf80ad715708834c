"""What a person and a program are shown: status, JSON lines, check, init, demo, help. B13, B32, B45's unread pipe."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from conftest import Pair
from processes import LOOPBACK, Client, Stage, allowed, ask_echo, dial, echoes, free_port, http_get, read_exactly

STATS = {"role", "version", "sessions", "connection_pool", "notices"}
SESSION = {"client", "since", "proxies"}
PROXY = {
    "name", "status", "reason", "error_message", "retry_after_seconds", "attempt", "max_retries", "publish_addr",
    "publish_port", "target", "visitors", "visitors_total", "bytes_in", "bytes_out", "since",
}  # fmt: skip
UPDATE = {
    "proxy_name", "status", "error_message", "retry_after_seconds", "seq", "reason", "attempt", "max_retries",
    "publish_addr", "publish_port", "since",
}  # fmt: skip
COMMANDS: list[Sequence[str]] = [
    [], ["serve"], ["connect"], ["demo"], ["status"], ["retry"], ["check"], ["init"], ["token"], ["token", "new"],
    ["token", "list"], ["token", "revoke"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "client"])
def test_status_json_has_the_documented_keys_and_no_others(pair: Pair, role: str) -> None:
    side = pair.server if role == "server" else pair.client
    shown = json.loads(pair.stage.run("status", "--json", "--admin", f"127.0.0.1:{side.admin}").stdout)
    assert set(shown) == STATS | ({"gate"} if role == "server" else {"connection"})
    assert shown["role"] == role
    for session in shown["sessions"]:
        assert set(session) == SESSION
        assert session["client"] == "default"
        for proxy in session["proxies"]:
            assert set(proxy) - {"refused"} == PROXY  # `refused` tells visitors who could not be served, by reason
    assert set(side.stats()) >= STATS  # what it is made of
    echo = next(one for one in shown["sessions"][0]["proxies"] if one["name"] == "echo")
    assert (echo["status"], echo["publish_port"], echo["attempt"]) == ("healthy", pair.ports["echo"], 0)


@pytest.mark.slow
def test_status_shows_a_line_for_each_proxy(pair: Pair) -> None:
    lines = pair.stage.run("status", "--admin", f"127.0.0.1:{pair.server.admin}").out
    assert lines[0].split()[:5] == ["CLIENT", "PROXY", "STATE", "PUBLIC", "TARGET"]
    for name, port in pair.ports.items():
        line = next(line for line in lines if f" {name} " in line)
        assert line.split()[:4] == ["default", name, "healthy", f"127.0.0.1:{port}"]


def test_health_and_readiness(pair: Pair) -> None:
    for side in (pair.server, pair.client):
        assert http_get(side.admin, "/healthz") == (200, b"ok\n")
        assert http_get(side.admin, "/readyz") == (200, b"ready\n")
        assert http_get(side.admin, "/nothing")[0] == 404


@pytest.mark.slow
def test_a_client_without_a_session_is_alive_and_not_ready(stage: Stage) -> None:
    port = free_port()
    client = stage.start(
        "connect", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{port}", "--state-dir", stage.path("s"),
        env={"TRIO_TUNNEL_TOKEN": "x" * 40},
    )  # fmt: skip
    client.wait_log("trying on")
    assert http_get(port, "/healthz")[0] == 200
    assert http_get(port, "/readyz")[0] == 503


@pytest.mark.slow
def test_status_where_nothing_listens_says_what_to_do(stage: Stage) -> None:
    message = stage.run("status", "--admin", f"127.0.0.1:{free_port()}", code=1).stderr
    assert "nothing answers" in message
    assert "--admin" in message


@pytest.mark.slow
def test_status_watch_tells_changes_until_ctrl_c(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    watch = stage.start("status", "--watch", "--admin", f"127.0.0.1:{server.admin}")
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}")
    watch.wait_line(r"^default/web: healthy at ")
    client.terminate()
    watch.wait_line(r"^default/web: gone$")
    watch.interrupt()
    assert watch.wait(3) == 0
    assert watch.err == []


@pytest.mark.slow
def test_status_watch_for_programs_tells_changes_as_lines_of_json(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    watch = stage.start("status", "--watch", "--json", "--admin", f"127.0.0.1:{server.admin}")
    watch.wait_line(r'"sessions": \[\]')
    stage.connect(server, f"web=127.0.0.1:0:{echo_port}").wait_healthy("web")
    watch.wait_line(r'"name": "web", "status": "healthy"')
    server.kill()
    watch.wait_line(r'^\{"error": "nothing answers at ')
    watch.interrupt()
    assert watch.wait() == 0
    assert all(isinstance(json.loads(line), dict) for line in watch.out)


@pytest.mark.slow
def test_retry_of_a_name_that_two_clients_have_asks_which(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    other = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    for token in (server.token, other):
        stage.connect(server, f"web=127.0.0.1:0:{echo_port}", token=token).wait_healthy("web")
    common = ["--admin", f"127.0.0.1:{server.admin}", "--state-dir"]
    message = stage.run("retry", "web", *common, server.state, code=1).stderr
    assert "default/web" in message
    assert "lab/web" in message
    stage.run("retry", "lab/web", *common, server.state)
    elsewhere = stage.path("elsewhere")
    assert "no state directory" in stage.run("retry", "lab/web", *common, elsewhere, code=1).stderr
    assert not elsewhere.exists()
    elsewhere.mkdir(0o700)
    wrong = stage.run("retry", "lab/web", *common, elsewhere, code=3).stderr  # another admin token
    assert "admin.token" in wrong


@pytest.mark.slow
def test_json_lines_parse_and_have_exactly_the_documented_keys(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.connect(
        server,
        f"web=127.0.0.1:0:{echo_port}",
        f"busy=127.0.0.1:{echo_port}:{echo_port}",
        f"far=192.0.2.1:1:{echo_port}",
    )
    client.wait_healthy("web")
    client.wait_status("busy", reason="addr_in_use", attempt=1)
    server.kill()
    client.wait_status("web", reason="session_lost")
    for status in client.statuses:
        assert set(status) == UPDATE
        assert status["status"] in ("healthy", "unhealthy", "bind_failed")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", status["since"])
        assert (status["status"] == "healthy") == (status["reason"] is None)
    assert not any(line.startswith("{") for line in client.err)


@pytest.mark.slow
def test_without_a_proxy_connect_stays_and_says_how_to_add_one(stage: Stage) -> None:
    server = stage.serve()
    client = stage.start(
        "connect", server.where, "--pin", server.pin, env={"TRIO_TUNNEL_TOKEN": server.token}, kind=Client
    )
    client.wait_log(r"no proxy is published; add one with -p NAME=PUBLISH:TARGET")
    stage.until(lambda: server.stats()["sessions"], "it is connected")
    client.terminate()
    assert client.wait() == 0


@pytest.mark.slow
def test_plain_lines_tell_each_state(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.shell(f"{server.paste} -p web=127.0.0.1:0:{echo_port} -p busy=127.0.0.1:{echo_port}:{echo_port}")
    client.wait_line(r"^web: healthy at 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+$")
    client.wait_line(
        rf"^busy: unhealthy \(addr_in_use\): Port {echo_port} is already in use by another process; retry 1/10"
    )
    server.kill()
    client.wait_line(r"web: unhealthy \(session_lost\)")


@pytest.mark.slow
def test_on_a_terminal_there_is_a_live_table(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    ours, theirs = pty.openpty()
    env = {**os.environ, "TRIO_TUNNEL_TOKEN": server.token, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    words = [server.where, "--pin", server.pin, "-p", f"web=127.0.0.1:0:{echo_port}"]
    words += ["-p", f"busy=127.0.0.1:{echo_port}:{echo_port}"]
    argv = [sys.executable, "-m", "tunnel", "connect", *words]
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def look() -> bool:
        with suppress(OSError):  # nothing more is there
            while piece := os.read(ours, 65536):
                shown.extend(piece)
        # As a rule the first retry; on a machine that stood still in that very second, a later one.
        return b"healthy" in shown and b"addr_in_use" in shown and bool(re.search(rb"retry \d+/10 in 1 s", shown))

    try:
        stage.until(look, "the table shows both proxies and counts down")
        process.terminate()
        assert process.wait(30) == 0
        look()
        assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back
    finally:
        process.kill()
        process.wait(5)
        os.close(ours)


@pytest.mark.slow
def test_readers_who_stop_reading_do_not_stop_the_tunnel(stage: Stage, echo_port: int) -> None:
    """B45: both processes talk into full pipes that nobody reads, and serve on."""
    first = stage.serve()
    first.terminate()
    assert first.wait() == 0
    admin, public = free_port(), free_port()
    server = stage.start(
        "serve", "--listen", first.where, "--admin", f"127.0.0.1:{admin}", "--state-dir", first.state, "-vv", read=False
    )
    client = stage.start(
        "connect", first.where, "--pin", first.pin, "-vv", "--json", "-p", f"web=127.0.0.1:{public}:{echo_port}",
        "-p", f"busy=127.0.0.1:{echo_port}:{echo_port}", env={"TRIO_TUNNEL_TOKEN": first.token}, read=False,
    )  # fmt: skip
    stage.until(lambda: echoes(public), "the tunnel works")
    for process in (server, client):
        for pipe in (process.popen.stdout, process.popen.stderr):
            fill(pipe)
    for _ in range(100):  # each restart of `busy` is lines in the server's log and on the client's standard output
        stage.run_retry("busy", admin, first.state)
    began = time.monotonic()
    with dial(public) as visitor:
        for _ in range(50):
            visitor.sendall(b"x")
            assert read_exactly(visitor, 1) == b"x"
    assert time.monotonic() - began < allowed(1)
    for process in (client, server):
        began = time.monotonic()
        process.terminate()
        assert process.popen.wait(30) == 0
        print(f"{process.name} ended {time.monotonic() - began:.2f} s after SIGTERM, its words unread")
        process.read_output()


def fill(pipe: IO[bytes]) -> None:
    """Leave no room for a single byte in `pipe`, of which we have the reading end: its other writers block."""
    writing = os.open(f"/proc/self/fd/{pipe.fileno()}", os.O_WRONLY | os.O_NONBLOCK)  # a descriptor of our own
    try:
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(writing, b"-" * size)
    finally:
        os.close(writing)


@pytest.mark.slow
def test_a_closed_standard_output_or_a_reader_who_left_costs_the_view_only(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    ports = free_port(), free_port()
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    without = stage.shell(f"{server.paste} --json -p web=127.0.0.1:{ports[0]}:{echo_port} >&-")
    words = ["connect", server.where, "--pin", server.pin, "--json", "-p", f"web=127.0.0.1:{ports[1]}:{echo_port}"]
    left = stage.start(*words, env={"TRIO_TUNNEL_TOKEN": token}, read=False)
    left.popen.stdout.close()
    for port in ports:
        stage.until(lambda port=port: echoes(port), f"port {port} answers")
    left.terminate()
    assert left.popen.wait(30) == 0
    said = left.popen.stderr.read().decode()
    assert "nothing is shown any more (Broken pipe)" in said
    assert "Traceback" not in said
    assert without.err == []


# check, init


BAD_SERVER = """\
bind_addr = "0.0.0.0"
bind_port = "8443"
bind_prot = 1
[[clients]]
name = "home"
token_sha256 = "abc"
allow_ports = ["9000-8000"]
[[clients]]
name = "home"
token_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[bind_retry]
max_retries = true
"""


@pytest.mark.slow
def test_check_names_six_different_mistakes_with_their_lines(stage: Stage) -> None:
    stage.write("server.toml", BAD_SERVER)
    lines = stage.run("check", "server.toml", code=2).out
    found = {tuple(line.split(": ")[:2]) for line in lines}
    assert found == {
        ("server.toml:2", "bind_port"),
        ("server.toml:3", "bind_prot"),
        ("server.toml:6", "clients[0].token_sha256"),
        ("server.toml:7", "clients[0].allow_ports[0]"),
        ("server.toml:9", "clients[1].name"),
        ("server.toml:12", "bind_retry.max_retries"),
    }
    assert any("bind_port" in line for line in lines if line.startswith("server.toml:3"))  # the suggestion
    served = stage.run("serve", "-c", "server.toml", "--state-dir", stage.path("s"), code=2)
    assert set(lines) <= set(served.err)  # the same words, and nothing was made
    assert not stage.path("s").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "client"])
def test_what_init_writes_check_accepts(stage: Stage, kind: str) -> None:
    stage.run("init", kind, "-o", f"{kind}.toml")
    assert "good" in stage.run("check", f"{kind}.toml").stdout
    assert stage.path(f"{kind}.toml").read_text().rstrip("\n") == stage.run("init", kind).stdout.rstrip("\n")
    stage.run("init", kind, "-o", f"{kind}.toml", code=1)  # never over one that exists


@pytest.mark.slow
def test_a_missing_config_and_a_directory_as_one_are_told_by_name(stage: Stage) -> None:
    for words in (["serve", "-c", "none.toml"], ["connect", "-c", "none.toml"], ["check", "none.toml"]):
        process = stage.run(*words, code=2, env={"TRIO_TUNNEL_TOKEN": "x" * 40})
        assert "none.toml" in process.stderr + process.stdout
        assert "Traceback" not in process.stderr


# demo, help


@pytest.mark.slow
def test_demo_check_tries_it_all_in_under_ten_seconds(stage: Stage) -> None:
    began = time.monotonic()
    process = stage.run("demo", "--check")
    print(f"demo --check: {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < allowed(10)
    assert process.out[-1] == "all of it works"
    assert all(line.startswith("ok  ") for line in process.out[:-1])
    assert process.err == []


@pytest.mark.slow
def test_demo_shows_a_page_and_a_proxy_that_is_retried_and_ends_on_ctrl_c(stage: Stage) -> None:
    process = stage.start("demo")
    port = int(process.wait_line(r"http://127\.0\.0\.1:(\d+)/").group(1))
    assert b"It works" in http_get(port)[1]
    process.wait_line(r"^busy: unhealthy \(addr_in_use\): .*; retry 1/10 in \d+ s")
    process.interrupt()
    assert process.wait(3) == 0
    assert process.err == []


@pytest.mark.slow
def test_every_command_explains_itself(stage: Stage) -> None:
    asked = [stage.start(*command, option) for command in COMMANDS for option in ("-h", "--help")]
    for process in asked:
        assert process.wait() == 0
        assert process.out[0].startswith("Usage: trio-tunnel")
        assert process.err == []
    listed = asked[0].stdout
    for command in COMMANDS[1:9]:
        assert re.search(rf"^  {command[0]} +\S", listed, re.MULTILINE), f"-h does not list {command[0]}"


@pytest.mark.slow
def test_version_and_usage_errors(stage: Stage) -> None:
    assert re.fullmatch(r"trio-tunnel \d+\.\d+\.\d+ \(Python .*\)", stage.run("--version").stdout)
    for words, said in (
        (["conect"], "conect"),
        (["serve", "--lisen", "x"], "--lisen"),
        (["serve", "--listen", "here:there"], "--listen"),
        (["connect", "-p", "web"], "-p"),
        (["connect", f"{LOOPBACK}:1", "--pin", "abc"], "--pin"),
    ):
        process = stage.run(*words, code=2, env={"TRIO_TUNNEL_TOKEN": "x" * 40})
        assert said in process.stderr
        assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_logs_in_json_are_json_and_hold_no_secret(stage: Stage, echo_port: int) -> None:
    server = stage.serve("--log-format", "json", "-vv")
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", more=["--log-format", "json", "-vv"])
    ask_echo(*client.wait_healthy("web"))
    for process in (client, server):
        process.terminate()
        assert process.wait() == 0
        assert process.err
        for line in process.err:
            assert isinstance(json.loads(line), dict)
        assert server.token not in process.stderr
        assert (Path(server.state) / "admin.token").read_text().strip() not in process.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("argv", [("init", "server"), ("token", "list"), ("--version",)])
def test_a_full_disk_behind_standard_output_is_told_in_a_line(tmp_path, argv):
    state = ["--state-dir", str(tmp_path)] if argv[0] == "token" else []
    command = [sys.executable, "-m", "tunnel"]
    if state:
        subprocess.run([*command, "token", "new", "home", *state], check=True, capture_output=True)
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*command, *argv, *state], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("trio-tunnel: cannot write to standard output")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_token_that_nobody_could_see_is_not_kept(tmp_path):
    command = [sys.executable, "-m", "tunnel", "token", "new", "home", "--state-dir", str(tmp_path)]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.PIPE).returncode == 1
    assert subprocess.run(command, capture_output=True).returncode == 0
