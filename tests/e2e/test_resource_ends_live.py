"""What runs out: descriptors, buffers, the disk under the state and the log. New visitors wait, those inside do not
notice, and when there is room again nobody has to be told. B39, B45."""

import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from processes import LOOPBACK, Process, Server, Stage, ask_echo, dial, echoes, http_get, read_exactly
from vitals import descriptors_of

TICKS = os.sysconf("SC_CLK_TCK")
FEW = 256  # descriptors
MANY = 400  # visitors
NO_HISTORY = "[history]\nenabled = false\n"  # which gives up its room when it cannot be written
LAZY = 0.15  # of a core, at most: what waits must not spin

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="figures of processes are read from /proc"),
]


def limited(what: str) -> list[str]:
    """A prefix: the command under a limit of the shell's."""
    return ["sh", "-c", f'ulimit {what}; exec "$@"', "sh"]


def once_served(stage: Stage) -> Server:
    """A server that has made its state, and ended."""
    server = stage.serve()
    server.terminate()
    assert server.wait() == 0
    return server


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_share(*processes: Process, seconds: float = 1.0) -> float:
    """Of one core, from now on."""
    began, before = time.monotonic(), sum(map(cpu_seconds, processes))
    time.sleep(seconds)
    return (sum(map(cpu_seconds, processes)) - before) / (time.monotonic() - began)


class Crowd:
    """Visitors who have said a byte and wait for the echo of it."""

    def __init__(self, port: int, many: int) -> None:
        self._socks: list[socket.socket] = []
        for _ in range(many):
            sock = dial(port)
            sock.setblocking(False)
            sock.send(b"x")
            self._socks.append(sock)
        self.inside: list[socket.socket] = []
        self.ended = 0

    def look(self) -> int:
        """Hear everybody; how many were answered so far."""
        for sock in list(self._socks):
            with suppress(BlockingIOError):
                self._socks.remove(sock) if self._hear(sock) else None
        return len(self.inside)

    def _hear(self, sock: socket.socket) -> bool:
        try:
            answered = sock.recv(1) == b"x"
        except ConnectionResetError:
            answered = False
        if answered:
            self.inside.append(sock)
        else:
            self.ended += 1
            sock.close()
        return True

    @property
    def waiting(self) -> int:
        return len(self._socks)

    def assert_well(self) -> None:
        """Those inside go on."""
        for sock in self.inside:
            sock.setblocking(True)
            sock.settimeout(5)
            sock.sendall(b"still")
            assert read_exactly(sock, 5) == b"still"
            sock.setblocking(False)

    def leave(self) -> None:
        for sock in self.inside:
            sock.close()
        self.inside.clear()

    def close(self) -> None:
        self.leave()
        for sock in self._socks:
            sock.close()


@pytest.fixture
def crowd() -> Iterator[Callable[[int, int], Crowd]]:
    with ExitStack() as stack:

        def gather(port: int, many: int) -> Crowd:
            found = Crowd(port, many)
            stack.callback(found.close)
            return found

        yield gather


def steady(stage: Stage, crowd: Crowd, what: str, *, at_least: int) -> int:
    """How many are inside once that has not changed for half a second, and for all the looks that belong to it: a
    machine that stood still for so long has let nobody in."""
    seen = [(-1, time.monotonic())]
    looks = 0

    def settled() -> bool:
        nonlocal looks
        looks += 1
        if crowd.look() != seen[0][0]:
            seen[0], looks = (len(crowd.inside), time.monotonic()), 0
        return seen[0][0] >= at_least and looks > 20 and time.monotonic() - seen[0][1] > 0.5

    stage.until(settled, what, 20)
    return len(crowd.inside)


Gather = Callable[[int, int], Crowd]


@pytest.mark.parametrize("how", ["by the bound", "by accept itself"])
def test_a_server_of_256_descriptors_lets_the_rest_of_400_visitors_wait(
    stage: Stage, echo_port: int, crowd: Gather, how: str
) -> None:
    """Once by the bound derived from the limit, once with fewer descriptors than it was told, so that they run out."""
    server = stage.serve(prefix=limited(f"-n {FEW}"))
    client = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}")
    (port,) = client.wait_healthy("echo")
    if how == "by accept itself":
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (FEW // 2 - 20, FEW))
    visitors = crowd(port, MANY)
    inside = steady(stage, visitors, "the server is full", at_least=64)
    assert inside + visitors.waiting == MANY  # nobody was sent away
    share = busy_share(server, client)
    print(f"{inside} inside, {visitors.waiting} wait; both processes use {100 * share:.1f} % of a core")
    assert descriptors_of(server.pid) <= FEW
    assert share < LAZY
    visitors.assert_well()
    if how == "by the bound":  # it leaves room for whoever must get in: an operator, a client
        assert http_get(server.admin, "/healthz")[0] == 200
    began = time.monotonic()
    while visitors.waiting:
        visitors.leave()
        stage.until(lambda: visitors.look() or not visitors.waiting, "who waited comes in", 5)
    print(f"all {MANY} were served, the last {time.monotonic() - began:.2f} s after the first ones left")
    assert visitors.ended == 0
    visitors.leave()
    stage.until(lambda: echoes(port), "a new visitor is served")
    stage.until(lambda: http_get(server.admin, "/healthz")[0] == 200, "the admin address answers")
    told = [line for line in server.err if "visitors wait" in line or "pauses" in line]
    assert 1 <= len(told) <= 3, told
    assert any("Too many open files" in line for line in told) is (how == "by accept itself")


def test_a_client_of_256_descriptors_turns_away_whom_it_cannot_serve_and_recovers(
    stage: Stage, echo_port: int, crowd: Gather
) -> None:
    server = stage.serve()
    client = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}", prefix=limited(f"-n {FEW}"))
    (port,) = client.wait_healthy("echo")
    visitors = crowd(port, MANY)
    stage.until(lambda: visitors.look() + visitors.ended == MANY, "everybody is inside or was turned away")
    print(f"{len(visitors.inside)} inside, {visitors.ended} turned away")
    assert 64 <= len(visitors.inside) <= FEW
    visitors.assert_well()
    assert busy_share(server, client) < LAZY
    assert server.proxies()["echo"]["refused"] == {"over_limit": visitors.ended}
    visitors.leave()
    stage.until(lambda: echoes(port), "a new visitor is served")


def test_a_client_with_hundreds_of_proxies_leaves_others_their_descriptors(stage: Stage, echo_port: int) -> None:
    """B41: it has as many as may be, is told why not more, and nobody else notices."""
    server = stage.serve(prefix=limited(f"-n {FEW}"))
    first = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}")
    (port,) = first.wait_healthy("echo")
    greedy = stage.run("token", "new", "greedy", "--state-dir", server.state).stdout
    many = [f"p{number}={LOOPBACK}:0:{echo_port}" for number in range(300)]
    client = stage.connect(server, *many, token=greedy)
    told = [one for one in client.wait_reported(300) if one["reason"] == "out_of_descriptors"]
    assert "raise its limit there (ulimit -n" in told[0]["error_message"]
    healthy = sum(one["status"] == "healthy" for one in server.proxies().values())
    print(f"{healthy} of 300 proxies, {descriptors_of(server.pid)} of {FEW} descriptors")
    assert 16 <= healthy < FEW // 4
    ask_echo(port)
    other = stage.connect(
        server, f"x={LOOPBACK}:0:{echo_port}",
        token=stage.run("token", "new", "other", "--state-dir", server.state).stdout,
    )  # fmt: skip
    ask_echo(other.wait_healthy("x")[0])


def test_at_the_end_of_the_buffers_new_visitors_wait_and_those_inside_keep_their_speed(
    stage: Stage, echo_port: int, crowd: Gather
) -> None:
    """A budget of 1 MiB is sixteen first windows."""
    first = once_served(stage)
    server = stage.serve(state=first.state, config=f"[limits]\nbuffer_budget = {1024 * 1024}\n")
    client = stage.connect(first, f"echo={LOOPBACK}:0:{echo_port}", where=server.where)
    (port,) = client.wait_healthy("echo")
    visitors = crowd(port, 40)
    assert steady(stage, visitors, "the budget is used up", at_least=16) == 16
    assert (visitors.waiting, visitors.ended) == (24, 0)
    one = visitors.inside[0]
    one.setblocking(True)
    one.settimeout(10)
    word, began = os.urandom(32 * 1024), time.monotonic()
    for _ in range(100):
        one.sendall(word)
        assert read_exactly(one, len(word)) == word
    print(f"3.2 MB there and back beside 24 who wait in {time.monotonic() - began:.2f} s")
    assert busy_share(server, client) < LAZY
    one.setblocking(False)
    while visitors.waiting:
        visitors.leave()
        stage.until(lambda: visitors.look() or not visitors.waiting, "who waited comes in", 5)
    visitors.leave()
    ask_echo(port)


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small file system is for root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(disk: Path) -> Path:
    """Not a byte is left; deleting what is returned makes room again."""
    path = disk / "ballast"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def test_a_full_disk_under_the_state_costs_what_is_new_and_nothing_else(
    disk: Path, stage: Stage, echo_port: int
) -> None:
    state = disk / "state"
    first = stage.serve(state=state)
    first.terminate()
    assert first.wait() == 0
    server = stage.serve(state=state, config=NO_HISTORY)
    ballast = fill_up(disk)
    client = stage.connect(
        first, f"echo={LOOPBACK}:0:{echo_port}", where=server.where
    )  # the port that is chosen cannot be kept
    (port,) = client.wait_healthy("echo")
    ask_echo(port)
    server.wait_log("was not kept")
    told = stage.run("token", "new", "another", "--state-dir", state, code=1).stderr
    assert "No space left on device" in told
    assert told.count("\n") == 0, told
    server.kill()
    again = stage.serve(state=state, port=server.port, config=NO_HISTORY)  # all it had is still to be read
    stage.until(lambda: echoes(client.wait_healthy("echo", start=len(client.out) - 1)[0]), "service is back")
    assert again.stderr.count("Traceback") == 0
    ballast.unlink()
    stage.run("token", "new", "another", "--state-dir", state)


def test_a_first_start_on_a_full_disk_says_so_and_leaves_nothing_half_written(disk: Path, stage: Stage) -> None:
    ballast = fill_up(disk)
    state = disk / "state"
    told = stage.run("serve", "--listen", f"{LOOPBACK}:0", "--admin", "off", "--state-dir", state, code=1)
    assert "No space left on device" in told.stderr
    assert "Traceback" not in told.stderr
    ballast.unlink()
    server = stage.serve(state=state)
    assert server.token


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_on_a_full_disk_stops_nobody(stage: Stage, echo_port: int) -> None:
    full = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
    server = stage.serve("-vv", prefix=full)
    client = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}", more=["-vv"], prefix=full)
    (port,) = client.wait_healthy("echo")
    for _ in range(50):
        ask_echo(port)
    share = busy_share(server, client)
    for process in (client, server):
        process.terminate()
        assert process.wait(5) == 0
    assert share < LAZY
