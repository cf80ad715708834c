"""A terminal that is closed takes along what was started in it, gently; with real pseudo-terminals."""

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import LOOPBACK, Late, Process, Server, Stage, ask_echo, dial, read_exactly

# As a terminal starts its first process: a session of its own, with these descriptors on the terminal.
ON_TERMINAL = """
import os, sys
os.setsid()
opened = os.open(sys.argv[1], os.O_RDWR)
for descriptor in sys.argv[2]:
    os.dup2(opened, int(descriptor))
os.execv(sys.argv[3], sys.argv[3:])
"""
# A shell with one job in the background. Told to end, it sends the job SIGHUP first.
SHELL = """
import os, signal, sys
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(f"job {job}", file=sys.stderr, flush=True)
signal.sigwait([signal.SIGUSR1])
os.kill(job, signal.SIGHUP)
"""
IGNORING = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh"]  # as nohup, whose other doings are not wanted here


class Terminal:
    """Shows what is written to it when it is asked; a thread that reads would hold it open."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        self._name = os.ttyname(self._slave)
        self._shown = b""
        self._is_open = True

    def prefix(self, descriptors: str) -> list[str]:
        """Before a command that shall have its `descriptors` here."""
        return [sys.executable, "-c", ON_TERMINAL, self._name, descriptors]

    def wait_shown(self, pattern: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern.encode(), self._shown):
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Late(f"the terminal shows {pattern!r}, but {self._shown!r}")
            self._shown += os.read(self._master, 65536)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._slave)
            os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def start_client(stage: Stage, server: Server, echo_port: int, *more: str, prefix: list[str]) -> Process:
    """With a table, if it has a terminal to show it on."""
    words = ["connect", server.where, "--pin", server.pin, "-p", f"web={LOOPBACK}:0:{echo_port}", *more]
    return stage.start(*words, prefix=prefix, env={"TRIO_TUNNEL_TOKEN": server.token, "TERM": "xterm"})


def wait_published(stage: Stage, server: Server) -> int:
    """The public port of proxy "web"."""
    stage.until(lambda: server.proxies().get("web", {}).get("status") == "healthy", "proxy 'web' is healthy")
    return server.proxies()["web"]["publish_port"]


@pytest.mark.slow
@pytest.mark.parametrize("descriptors", ["012", "0", "12"])
def test_a_client_whose_terminal_is_closed_drains_and_gives_its_identity_back(
    stage: Stage, terminal: Terminal, echo_port: int, descriptors: str
) -> None:
    server = stage.serve()
    client = start_client(stage, server, echo_port, prefix=terminal.prefix(descriptors))
    public = wait_published(stage, server)
    with dial(public) as visitor:
        visitor.sendall(b"before")
        assert read_exactly(visitor, 6) == b"before"
        terminal.close()
        stage.until(lambda: "web" not in server.proxies(), "the client takes no more visitors")
        visitor.sendall(b"after")
        assert read_exactly(visitor, 5) == b"after"
    assert client.wait() == 0
    if "2" not in descriptors:
        assert "stopping once the visitors inside have finished, as the terminal was closed" in client.stderr
    again = stage.connect(server, f"web={LOOPBACK}:0:{echo_port}")
    ask_echo(*again.wait_healthy("web"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [("", "there is no configuration file to read again"), ("bind_port = 0\n", "read again: nothing to change")],
)
def test_a_server_reads_again_while_its_terminal_is_there_and_stops_without_it(
    stage: Stage, terminal: Terminal, config: str, said: str
) -> None:
    server = stage.serve(config=config, prefix=terminal.prefix("0"))
    server.send(signal.SIGHUP)
    server.wait_log(said)
    terminal.close()
    assert server.wait() == 0
    assert "as the terminal was closed" in server.stderr


@pytest.mark.slow
def test_a_job_whose_shell_ends_before_the_terminal_goes_stops_soon_after_it(
    stage: Stage, terminal: Terminal, echo_port: int
) -> None:
    server = stage.serve()
    shell = start_client(
        stage, server, echo_port, "--json", prefix=[*terminal.prefix("0"), sys.executable, "-c", SHELL]
    )
    job = int(shell.wait_log(r"^job (\d+)$").group(1))
    try:
        wait_published(stage, server)
        shell.send(signal.SIGUSR1)
        shell.wait_log("there is no configuration file to read again")
        terminal.close()
        shell.wait_log("as the terminal was closed")
        stage.until(lambda: not server.proxies(), "the job's session is over")
    finally:
        with suppress(ProcessLookupError):
            os.kill(job, signal.SIGKILL)
    again = stage.connect(server, f"web={LOOPBACK}:0:{echo_port}")
    ask_echo(*again.wait_healthy("web"))


@pytest.mark.slow
def test_with_nohup_neither_the_terminal_nor_sighup_does_anything(
    stage: Stage, terminal: Terminal, echo_port: int
) -> None:
    server = stage.serve()
    client = start_client(stage, server, echo_port, prefix=[*terminal.prefix("0"), *IGNORING])
    public = wait_published(stage, server)
    terminal.close()
    client.send(signal.SIGHUP)
    ask_echo(public)
    client.terminate()
    assert client.wait() == 0
    assert "configuration" not in client.stderr
    assert "terminal" not in client.stderr


@pytest.mark.slow
def test_the_demo_ends_with_its_terminal_and_leaves_no_files(stage: Stage, terminal: Terminal, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"TERM": "xterm", "TMPDIR": str(temporary)}
    demo = stage.start("demo", prefix=terminal.prefix("012"), env=env)
    terminal.wait_shown("(?s)http://127.0.0.1:.*PROXY")  # the table, after all that is only printed
    assert list(temporary.iterdir())
    terminal.close()
    assert demo.wait() == 0
    assert not list(temporary.iterdir())
