"""Processes that the benchmark starts, what they cost, and how they are stopped; no other process is touched."""

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4  # of those that test at a time
PORTS = (20_000 + 3000 * WORKER, 22_999 + 3000 * WORKER)  # below the range that kernels choose outgoing ports from
START_SECONDS = 20.0
STOP_SECONDS = 5.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
_given: set[int] = set()


class Failed(Exception):
    """A system or a load did not do what it was started for; the message says what it said."""


@frozen
class Place:
    """Where processes run: the prefix that starts them there, and their address for processes of the other place."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


def free_port() -> int:
    """A port that nobody listens on, and that this run has not given away yet."""
    while True:
        port = random.randint(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            if port not in _given:
                _given.add(port)
                return port


def tail(text: str) -> str:
    """The end of what a process said, on one line."""
    return " ".join(text.split())[-300:]


class Process:
    """One started process; what it writes goes to `log`. `stop` ends it and the children of its process group."""

    def __init__(
        self, name: str, argv: Sequence[str], *, place: Place, folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*place.prefix, *argv],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then stops them in order
            )
        self.pid = self._popen.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, look: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not look():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                ended = self._popen.poll()
                why = f"after {seconds:g} s" if ended is None else f"it exited with {ended}"
                raise Failed(f"{self.name} {what}: not so, {why}: {tail(self.said())}")
            time.sleep(0.01)

    def wait_said(self, pattern: str) -> re.Match[str]:
        self.wait(lambda: re.search(pattern, self.said()) is not None, f"says {pattern!r}")
        found = re.search(pattern, self.said())
        assert found
        return found

    def wait_listening(self, port: int) -> None:
        """Until somebody in the process's network namespace listens on `port`."""
        self.wait(lambda: port in listening_ports(self.pid), f"listens on {port}")

    def stop(self) -> None:
        children = {pid: began(pid) for pid in family([self.pid])[1:]}
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)
                break
        for pid, since in children.items():  # those that left the process group, as the sessions of an sshd do
            if since and began(pid) == since:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def began(pid: int) -> str:
    """When a process started, so that another one with its number is not taken for it; empty if it is gone."""
    try:
        return _stat(pid)[19]
    except OSError:
        return ""


def listening_ports(pid: int) -> set[int]:
    ports = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":  # LISTEN
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _stat(pid: int | str) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pids: Iterable[int]) -> list[int]:
    """The processes named and all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(entry)[1]), []).append(int(entry))
    found = list(pids)
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the processes, their living and their reaped children have used."""
    total = 0
    for pid in family(pids):
        with suppress(OSError):
            total += sum(map(int, _stat(pid)[11:15]))  # utime, stime, cutime, cstime
    return total / TICKS


def resident_kib(pids: Iterable[int]) -> float:
    total = 0
    for pid in family(pids):
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * PAGE_KIB


def run(argv: Sequence[str], *, place: Place, seconds: float) -> str:
    """What a command that ends by itself has written to standard output."""
    with subprocess.Popen(
        [*place.prefix, *argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as popen:
        try:
            out, err = popen.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{argv[0]} did not end within {seconds:g} s") from None
        finally:
            popen.kill()
    if popen.returncode:
        raise Failed(f"{Path(argv[0]).name} exited with {popen.returncode}: {tail(err or out)}")
    return out
