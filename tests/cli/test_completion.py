"""Completion: the scripts as shells take them, where they are put, and the names that are offered, or not in time."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from tunnel.cli import names as completed_names
from tunnel.cli.completion import SHELLS, VARIABLE
from tunnel.cli.main import cli
from tunnel.errors import TunnelError


def run(*words: str, **env: str | None) -> Result:
    return CliRunner().invoke(cli, ["completion", *words], env=env)


def offered(*words: str) -> list[str]:
    """What is offered for the last of the words behind `trio-tunnel`."""
    *before, incomplete = words
    return [item.value for item in ShellComplete(cli, {}, "trio-tunnel", VARIABLE).get_completions(before, incomplete)]


# Scripts


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    script = tmp_path / "script"
    script.write_text(run(shell).output)
    subprocess.run([program, "-n", str(script)], check=True, timeout=30)


@pytest.mark.slow
def test_a_bash_offers_commands_by_it(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "script").write_text(run("bash").output)
    command = tmp_path / "trio-tunnel"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunnel "$@"\n')
    command.chmod(0o700)
    line = 'COMP_WORDS=(trio-tunnel ser); COMP_CWORD=1; _trio_tunnel_completion trio-tunnel; echo "${COMPREPLY[@]}"'
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [bash, "--norc", "-c", f"source {tmp_path / 'script'}; {line}"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["serve", "service"]


def test_without_a_name_it_is_the_shell_in_use() -> None:
    assert run(SHELL="/usr/bin/fish").output == run("fish").output
    unknown = run(SHELL="/bin/tcsh")
    assert unknown.exit_code == 2
    assert "name your shell: trio-tunnel completion bash, zsh or fish" in unknown.output


# Installed


@pytest.mark.parametrize(
    ("shell", "place", "word"),
    [
        ("bash", ".local/share/bash-completion/completions/trio-tunnel", "package bash-completion"),
        ("zsh", ".local/share/zsh/site-functions/_trio-tunnel", "fpath=("),
        ("fish", ".config/fish/completions/trio-tunnel.fish", "it works in new shells"),
    ],
)
def test_it_is_put_where_the_shell_looks_and_what_is_left_to_do_is_told(
    shell: str, place: str, word: str, tmp_path: Path
) -> None:
    none = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"))
    for _ in range(2):  # its own file it replaces
        done = run(shell, "--install", HOME=str(tmp_path), **none)
        assert done.exit_code == 0, done.exception
    assert done.output.startswith(f"wrote {tmp_path / place}\n")
    assert word in done.output
    assert (tmp_path / place).read_text() == run(shell).output.rpartition("\n# To install it")[0]


def test_a_file_of_another_program_stays(tmp_path: Path) -> None:
    path = tmp_path / "fish" / "completions" / "trio-tunnel.fish"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    done = run("fish", "--install", XDG_CONFIG_HOME=str(tmp_path))
    assert isinstance(done.exception, TunnelError)
    assert "is there, and not of this program" in str(done.exception)
    assert path.read_text() == "mine"


# Names


class Admin:
    """An admin address that answers each request with `answer`, or not at all where it is None."""

    def __init__(self, answer: Any) -> None:
        self._answer = None if answer is None else json.dumps(answer).encode()
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.where = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                self._held.append(sock)
                if self._answer is not None:
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._answer) + self._answer)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        for sock in (*self._held, self._sock):
            sock.close()


def session(client: str, *names: str) -> dict[str, Any]:
    return {"client": client, "proxies": [{"name": name} for name in names]}


@pytest.fixture
def admin(request: pytest.FixtureRequest) -> Iterator[Admin]:
    found = Admin(request.param)
    yield found
    found.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer for an answer than a person waits."""
    monkeypatch.setattr(completed_names, "SECONDS", 30.0)


BOTH = {"sessions": [session("home", "web", "ssh"), session("lab", "web", "wiki")]}


@pytest.mark.parametrize("admin", [BOTH], indirect=True)
@pytest.mark.parametrize(
    ("command", "begun", "names"),
    [
        ("retry", "", ["home/web", "lab/web", "ssh", "wiki"]),  # of those with one name, which
        ("retry", "w", ["wiki"]),
        ("retry", "lab/", ["lab/web", "lab/wiki"]),
        ("retry", "x", []),
        ("status", "s", ["ssh"]),
        ("top", "lab/wi", ["lab/wiki"]),
        ("close", "", ["home", "lab"]),
        ("close", "h", ["home"]),
    ],
)
@pytest.mark.usefixtures("patient")
def test_names_that_there_are_just_now_are_offered(command: str, begun: str, names: list[str], admin: Admin) -> None:
    assert offered(command, "--admin", admin.where, begun) == names


HOSTILE = {"sessions": [session("$(id)", "web"), session("home", "a b", "`id`", "ok", "x\n")]}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("admin", [HOSTILE], indirect=True)
def test_no_text_reaches_a_shell_that_is_no_name(admin: Admin) -> None:
    assert offered("retry", "--admin", admin.where, "") == ["ok"]
    assert offered("close", "--admin", admin.where, "") == ["home"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "admin",
    [None, [], {}, {"sessions": 3}, {"sessions": [{"client": 1, "proxies": []}]}, {"sessions": [{}]}],
    indirect=True,
)
def test_where_nobody_answers_or_not_so_nothing_is_offered(admin: Admin) -> None:
    assert offered("retry", "--admin", admin.where, "") == []


def test_where_nobody_listens_nothing_is_offered() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        assert offered("close", "--admin", f"127.0.0.1:{nobody.getsockname()[1]}", "") == []


def test_completing_loads_no_heavy_library() -> None:
    code = "import sys; import tunnel.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"trio", "ssl", "rich", "cryptography", "sqlite3", "httpx2", "prometheus_client", "cattrs"}
    assert not heavy & set(done.stdout.split())
    assert click.__name__ in done.stdout
