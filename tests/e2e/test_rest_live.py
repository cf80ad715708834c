"""Who waits costs nothing: idle visitors, readers that do not read, and visitors for whom there is no place yet."""

import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
from processes import Process, Stage, dial, read_exactly
from services import Services, echo

pytestmark = pytest.mark.slow

BOUND = 40
MORE = 5
SECONDS = 3.0
SHARE = 0.04  # of a core; a process at rest takes 0.002 to 0.004, one that spins takes all
TICK = os.sysconf("SC_CLK_TCK")


async def flood(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(bytes(256 * 1024))


async def deaf(stream: trio.SocketStream) -> None:
    """Never reads."""
    await trio.sleep_forever()


def cpu_seconds(process: Process) -> float:
    """User's and system's, so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def used_in(seconds: float, *processes: Process) -> list[float]:
    """What each takes of the processor in that time from now on, in seconds of its own."""
    before = [cpu_seconds(process) for process in processes]
    time.sleep(seconds)
    return [cpu_seconds(process) - was for process, was in zip(processes, before, strict=True)]


def fill(sock: socket.socket) -> None:
    """Send until nothing more is taken for a while."""
    sock.settimeout(0.3)
    with suppress(TimeoutError):
        while True:
            sock.send(bytes(256 * 1024))


def test_who_waits_costs_no_cpu(stage: Stage, services: Services) -> None:
    server = stage.serve(config=f"[limits]\nmax_visitors_per_proxy = {BOUND}\n")
    targets = {"echo": services.add(echo), "flood": services.add(flood), "deaf": services.add(deaf)}
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout.split()[0]
    client = stage.connect(server, *(f"{name}=127.0.0.1:0:{port}" for name, port in targets.items()), token=token)
    echo_port, flood_port, deaf_port = client.wait_healthy(*targets)
    with ExitStack() as visitors:

        def visit(port: int) -> socket.socket:
            return visitors.enter_context(dial(port))

        for _ in range(BOUND):
            visitor = visit(echo_port)
            visitor.sendall(b"x")
            assert read_exactly(visitor, 1) == b"x"
        for _ in range(MORE):
            visit(echo_port).sendall(b"x")  # these wait in the kernel, and their listener is paused
        for ends in (False, True):
            reader = visit(flood_port)
            assert read_exactly(reader, 1) == b"\0"
            if ends:
                reader.shutdown(socket.SHUT_WR)
        fill(visit(deaf_port))
        stage.until(lambda: server.proxies()["echo"]["visitors"] == BOUND, "the proxy is at its bound")
        # Until what the readers were sent is in the kernel; who spins never rests.
        stage.until(lambda: max(used_in(0.5, server, client)) < 0.03, "both rest")
        used = used_in(SECONDS, server, client)
    assert max(used) < SHARE * SECONDS, f"server and client took {used[0]:.2f} and {used[1]:.2f} s of {SECONDS:g} s"
