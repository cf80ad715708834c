"""Real `trio-tunnel` processes for the tests: started, read, asked and ended here, and nothing else is touched.

Every wait has a deadline; one that passes shows what all processes of the test have said.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from attrs import define, field
from ports import free_port

from tunnel.certificates import certificate_pin_of_file, pin_text

LOOPBACK = "127.0.0.1"
TAIL = 40  # lines of each stream that a failure shows
T = TypeVar("T")


def allowed(seconds: float) -> float:
    """What a bound of so many seconds is on this machine just now. What is promised is promised of an idle machine with
    two cores; one that is slower, or busy with other things, gets as much more time, and one that stood still lately
    gets that back."""
    factor = slowness()
    lately = time.monotonic() - LATELY_SECONDS
    return seconds * factor + sum(late for until, late in list(_stalls) if until > lately)


def slowness() -> float:
    """How many times as long as on an idle machine a loop takes just now; 1 at least."""
    began = time.monotonic()
    for _ in range(10):
        sum(number & 3 for number in range(IDLE_LOOP))
    return max(1.0, (time.monotonic() - began) / IDLE_LOOP_SECONDS)


def _watch_for_stalls() -> None:
    """A virtual machine that its host does not run stands still with all that is in it, and so does this thread."""
    while True:
        began = time.monotonic()
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        if (late := now - began - TICK_SECONDS) > STALL_SECONDS:
            _stalls.append((now, late))


@define(eq=False)
class Patience:
    """A deadline as `allowed` has it, which is looked at when the time is up."""

    seconds: float
    _began: float = field(factory=time.monotonic)

    def left(self) -> float:
        passed = time.monotonic() - self._began
        return self.seconds - passed if passed < self.seconds else allowed(self.seconds) - passed


class Late(AssertionError):
    """Something did not happen in time."""


IDLE_LOOP, IDLE_LOOP_SECONDS = 100_000, 0.03  # what ten of so many steps take on an idle machine of 2024
TICK_SECONDS = 0.1
STALL_SECONDS = 0.25  # so late no thread wakes on a machine that is only busy
LATELY_SECONDS = 30.0  # the longest of the bounds that are looked at when they are over
_stalls: deque[tuple[float, float]] = deque(maxlen=100)  # until when the machine stood still, and for how long
_watcher = threading.Thread(target=_watch_for_stalls, name="stalls", daemon=True)  # for as long as anybody tests


@contextmanager
def held_port(port: int = 0, host: str = LOOPBACK) -> Iterator[socket.socket]:
    """A listening socket that stands for another process; close it to free the port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port or free_port()))
        sock.listen()
        yield sock


def can_listen(port: int, host: str = LOOPBACK) -> bool:
    """Whether nobody listens there."""
    try:
        probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        return False
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
        return True


def dial(port: int, *, host: str = LOOPBACK, seconds: float = 30.0) -> socket.socket:
    return socket.create_connection((host, port), timeout=seconds)


def read_all(sock: socket.socket) -> bytes:
    """Until the other side's FIN."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the connection ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


def ask_echo(port: int, word: bytes = b"hello", *, host: str = LOOPBACK) -> None:
    """One visit to an echoing service, from the first byte to both FINs."""
    with dial(port, host=host) as visitor:
        visitor.sendall(word)
        visitor.shutdown(socket.SHUT_WR)
        answer = read_all(visitor)
    assert answer == word, f"sent {word!r}, got {answer!r}"


def echoes(port: int, *, host: str = LOOPBACK) -> bool:
    try:
        ask_echo(port, host=host)
    except (OSError, AssertionError):
        return False
    return True


def resident_kib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()).group(1))


def http_get(port: int, path: str = "/", *, host: str = LOOPBACK) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def proxy_toml(name: str, port: int, target: int, more: str = "", addr: str = LOOPBACK) -> str:
    return (
        f'[[proxies]]\nname = "{name}"\npublish_addr = "{addr}"\npublish_port = {port}\n'
        f'target = "127.0.0.1:{target}"\n{more}'
    )


class Process:
    """One process. `out` and `err` are its lines so far; they grow while it runs."""

    def __init__(
        self,
        stage: "Stage",
        name: str,
        argv: Sequence[str],
        *,
        env: dict[str, str],
        read: bool = True,
        stdin: bool = False,
    ) -> None:
        self.stage = stage
        self.name = name
        self.out: list[str] = []
        self.err: list[str] = []
        self._new = threading.Condition()
        self.popen = subprocess.Popen(
            argv, cwd=stage.folder, env=env, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        if read:
            self.read_output()

    def read_output(self) -> None:
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            with self._new:
                lines.append(line.decode(errors="replace").rstrip("\n"))
                self._new.notify_all()
        with self._new:
            self._new.notify_all()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stdout(self) -> str:
        return "\n".join(self.out)

    @property
    def stderr(self) -> str:
        return "\n".join(self.err)

    def until(self, look: Callable[[], T | None], what: str, seconds: float = 30.0) -> T:
        """What `look` returns, as soon as that is true; asked again with each line that the process writes."""
        patience = Patience(seconds)
        with self._new:
            while not (found := look()):
                left = patience.left()
                over = self.popen.poll() is not None and not any(reader.is_alive() for reader in self._readers)
                if left <= 0 or over:
                    if found := look():
                        break
                    why = f"{self.name} exited with {self.popen.returncode}" if over else f"{seconds:g} s passed"
                    raise Late(f"{what}: {why}\n{self.stage.report()}")
                self._new.wait(min(left, 0.1))
        return found

    def wait_line(self, pattern: str, *, seconds: float = 30.0, start: int = 0, err: bool = False) -> re.Match[str]:
        """The first line from `start` on that matches."""
        lines = self.err if err else self.out
        return self.until(
            lambda: next((match for line in lines[start:] if (match := re.search(pattern, line))), None),
            f"{self.name} writes {pattern!r}",
            seconds,
        )

    def wait_log(self, pattern: str, *, seconds: float = 30.0, start: int = 0) -> re.Match[str]:
        return self.wait_line(pattern, seconds=seconds, start=start, err=True)

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code; all that was written has been read by then."""
        try:
            code = self.popen.wait(max(seconds, allowed(seconds)))
        except subprocess.TimeoutExpired:
            raise Late(f"{self.name} does not end within {seconds:g} s\n{self.stage.report()}") from None
        self._join()
        return code

    def _join(self) -> None:
        for reader in self._readers:
            if reader.ident is not None:
                reader.join(5)

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def interrupt(self) -> None:
        self.send(signal.SIGINT)

    def kill(self) -> None:
        """As `kill -9`, and wait for it."""
        self.popen.kill()
        self.popen.wait(10)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.kill()
        self._join()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()

    def report(self) -> str:
        code = self.popen.poll()
        state = "running" if code is None else f"exit {code}"
        parts = [f"--- {self.name} ({state})"]
        for title, lines in (("stdout", self.out), ("stderr", self.err)):
            parts += [f"  {title}:", *(f"    {line}" for line in lines[-TAIL:])]
        return "\n".join(parts)


class Server(Process):
    """`trio-tunnel serve` that listens. `port` is where; `paste` the line it printed for clients, if any."""

    state: Path
    config: Path  # the file given with -c, if any
    admin: int
    port = 0
    paste = ""
    token = ""
    pin = ""

    def wait_listening(self, seconds: float = 30.0) -> "Server":
        self.port = int(self.wait_line(r"^listening on \S+:(\d+)$", seconds=seconds).group(1))
        self.paste = next((line for line in self.out if "trio-tunnel connect" in line), "")
        if found := re.search(r"TRIO_TUNNEL_TOKEN=(\S+)", self.paste):
            self.token = found.group(1)
        if found := re.search(r"--pin (\S+)", self.paste):
            self.pin = found.group(1)
        return self

    @property
    def where(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def stats(self) -> dict[str, Any]:
        return json.loads(http_get(self.admin, "/stats")[1])

    def proxies(self) -> dict[str, dict[str, Any]]:
        """By name, as `status --json` shows them."""
        return {proxy["name"]: proxy for session in self.stats()["sessions"] for proxy in session["proxies"]}


class Client(Process):
    """`trio-tunnel connect --json`."""

    state: Path
    config: Path
    admin = 0

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.out)]

    def wait_status(self, proxy: str, *, seconds: float = 30.0, start: int = 0, **wanted: Any) -> dict[str, Any]:
        """The first status of `proxy`, from line `start` on, whose fields are as wanted."""
        return self.until(
            lambda: next(
                (
                    status
                    for status in self.statuses[start:]
                    if status["proxy_name"] == proxy and all(status[key] == value for key, value in wanted.items())
                ),
                None,
            ),
            f"proxy {proxy!r} is {wanted}",
            seconds,
        )

    def wait_healthy(self, *names: str, seconds: float = 30.0, start: int = 0) -> list[int]:
        """The public ports of the proxies named, once they are healthy."""
        deadline = time.monotonic() + seconds
        ports = []
        for name in names:
            left = max(0.0, deadline - time.monotonic())
            ports.append(self.wait_status(name, seconds=left, start=start, status="healthy")["publish_port"])
        return ports

    def wait_reported(self, count: int) -> list[dict[str, Any]]:
        """The newest status of each proxy, once the server has said something final or lasting of so many."""

        def look() -> list[dict[str, Any]] | None:
            newest = {status["proxy_name"]: status for status in self.statuses}
            told = [status for status in newest.values() if status["reason"] not in ("connecting", "pending")]
            return told if len(told) >= count else None

        return self.until(look, f"{count} proxies are told of")

    def stats(self) -> dict[str, Any]:
        return json.loads(http_get(self.admin, "/stats")[1])

    def proxies(self) -> dict[str, dict[str, Any]]:
        return {proxy["name"]: proxy for session in self.stats()["sessions"] for proxy in session["proxies"]}


class Stage:
    """The processes of one test, and a folder for their files. Leaving it ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._names = 0

    def __enter__(self) -> "Stage":
        if not _watcher.is_alive():
            _watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            process.end()

    def report(self) -> str:
        return "\n".join(process.report() for process in self.processes)

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str, *, mode: int = 0o600) -> Path:
        path = self.path(name)
        path.write_text(text)
        path.chmod(mode)
        return path

    def new_path(self, stem: str) -> Path:
        self._names += 1
        return self.folder / f"{stem}{self._names}"

    def _env(self, more: dict[str, str] | None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRIO_TUNNEL", "XDG_", "SSL_"))}
        return {**kept, "HOME": str(self.folder), "TERM": "dumb", **(more or {})}

    def start(
        self,
        *argv: object,
        kind: type[Any] = Process,
        name: str = "",
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        read: bool = True,
    ) -> Any:
        """Start `trio-tunnel ARGV`."""
        words = [*prefix, sys.executable, "-m", "tunnel", *map(str, argv)]
        process = kind(self, name or f"trio-tunnel {argv[0]}", words, env=self._env(env), read=read)
        self.processes.append(process)
        return process

    def run(self, *argv: object, code: int = 0, seconds: float = 30.0, env: dict[str, str] | None = None) -> Process:
        """A command that ends by itself, with this exit code."""
        process = self.start(*argv, env=env)
        found = process.wait(seconds)
        assert found == code, f"exit {found}, not {code}\n{process.report()}"
        return process

    def run_retry(self, name: str, admin: int, state: Path) -> None:
        """What `trio-tunnel retry` asks for, without a process for it."""
        connection = http.client.HTTPConnection(LOOPBACK, admin, timeout=5)
        token = (state / "admin.token").read_text().strip()
        try:
            connection.request("POST", "/retry", json.dumps({"name": name}), {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
        finally:
            connection.close()

    def watch(self, name: str, argv: Sequence[object], *, stdin: bool = False) -> Process:
        """Start any other program; with `stdin` it has one, which ends with this process."""
        process = Process(self, name, [str(word) for word in argv], env=self._env(None), stdin=stdin)
        self.processes.append(process)
        return process

    def shell(self, line: str, *, kind: type[Any] = Process) -> Any:
        """Start a line in a POSIX shell that finds `trio-tunnel` in its PATH."""
        folder = self.path("bin")
        folder.mkdir(exist_ok=True)
        command = folder / "trio-tunnel"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunnel "$@"\n')
        command.chmod(0o700)
        env = self._env({"PATH": f"{folder}:{os.environ['PATH']}"})
        process = kind(self, "sh", [shutil.which("sh") or "/bin/sh", "-c", f"exec env {line}"], env=env)
        self.processes.append(process)
        return process

    def serve(
        self,
        *more: object,
        state: Path | None = None,
        config: str = "",
        port: int = 0,
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> Server:
        """A server that listens, with an admin address of its own."""
        state = state or self.new_path("state")
        path = self.path(f"{state.name}.toml")
        admin = free_port()
        words: list[object] = ["--listen", f"{LOOPBACK}:{port}", "--admin", f"{LOOPBACK}:{admin}", "--state-dir", state]
        if config:
            words += ["-c", self.write(path.name, config)]
        server = self.start("serve", *words, *more, kind=Server, prefix=prefix, env=env)
        server.state, server.admin, server.config = state, admin, path
        server.wait_listening()
        if not server.pin and (state / "server.crt").exists():  # with a config nothing is printed of it
            server.pin = pin_text(certificate_pin_of_file(state / "server.crt"))
        return server

    def connect(
        self,
        server: Server,
        *proxies: str,
        more: Sequence[object] = (),
        token: str = "",
        pin: str = "",
        config: str = "",
        admin: bool = False,
        env: dict[str, str] | None = None,
        where: str = "",
        prefix: Sequence[str] = (),
    ) -> Client:
        """A client with `--json`; `proxies` as for -p."""
        words: list[object] = [where or server.where, "--pin", pin or server.pin, "--json"]
        for proxy in proxies:
            words += ["-p", proxy]
        path = self.path(f"{self.new_path('client').name}.toml")
        if config:
            words += ["-c", self.write(path.name, config)]
        port, state = free_port() if admin else 0, self.new_path("client-state")
        if port:
            words += ["--admin", f"{LOOPBACK}:{port}", "--state-dir", state]
        env = {"TRIO_TUNNEL_TOKEN": token or server.token, **(env or {})}
        client = self.start("connect", *words, *more, kind=Client, env=env, prefix=prefix)
        client.admin, client.state, client.config = port, state, path
        return client

    def until(self, look: Callable[[], T | None], what: str, seconds: float = 30.0) -> T:
        """What `look` returns once that is true; asked every 10 ms. For what no process writes a line of."""
        patience = Patience(seconds)
        while True:
            with suppress(OSError, http.client.HTTPException):
                if found := look():
                    return found
            if patience.left() <= 0:
                raise Late(f"{what}: {seconds:g} s passed\n{self.report()}")
            time.sleep(0.01)
