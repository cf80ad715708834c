"""Peers that fall silent with every socket open, and come back: B15, B18, B20, with the default heartbeats.

What takes half a minute of waiting is waited for together, in one test.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from addresses import Forwarder, Visitors, wait_ready
from attrs import define, field
from processes import LOOPBACK, Client, Server, Stage, allowed, can_listen, dial, echoes, free_port, read_exactly

from tunnel.sockets import RETRANSMIT_MS, TCP_RTO_MAX_MS, tunnel_options

pytestmark = pytest.mark.slow

NOTICED_SECONDS = 30.0  # B15; 26 after the last word, which may be 10 s old when the silence begins
FREE_SECONDS = 31.0
BACK_SECONDS = 5.0
# At least so long are they silent. B20 has a minute:
# LONG_SILENCE=60 python -m pytest -o faulthandler_timeout=90 tests/e2e/test_dead_peers_live.py
SILENT_SECONDS = float(os.environ.get("LONG_SILENCE", "0"))
CUT_SECONDS = 7.0  # the kernel tries after 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s, unless it is told not to wait so long


@define
class Rig:
    """A tunnel whose way between client and server is a forwarder."""

    name: str
    server: Server
    forwarder: Forwarder
    client: Client
    public: int
    down_at: float | None = None
    free_at: float | None = None
    back: float | None = None
    _lines: int = field(default=0)

    def fall_silent(self, how: Callable[[], object]) -> None:
        self._lines = len(self.client.out)
        how()

    def look(self, began: float) -> None:
        now = time.monotonic() - began
        if self.down_at is None and any(one["reason"] == "session_lost" for one in self.client.statuses[self._lines :]):
            self.down_at = now
        if self.free_at is None and can_listen(self.public):
            self.free_at = now


@pytest.fixture
def make(stage: Stage, echo_port: int) -> Iterator[Callable[[str], Rig]]:
    with ExitStack() as stack:

        def make(name: str) -> Rig:
            server = stage.serve()
            forwarder = stack.enter_context(Forwarder(server.port))
            public = free_port()
            proxy = f"echo={LOOPBACK}:{public}:{echo_port}"
            client = stage.connect(server, proxy, where=forwarder.where, admin=True)
            client.wait_healthy("echo")
            wait_ready(stage, client, forwarder.where)
            return Rig(name, server, forwarder, client, public)

        yield make


def time_back(stage: Stage, rig: Rig, heal: Callable[[], object]) -> None:
    healed = time.monotonic()
    heal()
    stage.until(lambda: echoes(rig.public), f"{rig.name}: service is back", 10)
    rig.back = time.monotonic() - healed


@pytest.mark.timeout(120 + int(SILENT_SECONDS))
def test_silence_is_noticed_on_both_sides_in_30_seconds_and_service_is_back_in_5(
    stage: Stage, make: Callable[[str], Rig]
) -> None:
    """B15 and B20 in 35 s: a cut path, a stopped server, a stopped client."""
    cut, server, client = make("path cut"), make("server stopped"), make("client stopped")
    rigs = [cut, server, client]
    with ExitStack() as stack:
        inside = {rig.name: stack.enter_context(dial(rig.public)) for rig in rigs}
        for visitor in inside.values():
            visitor.sendall(b"x")
            assert read_exactly(visitor, 1) == b"x"
        began = time.monotonic()
        cut.fall_silent(lambda: cut.forwarder.tell("mute 0"))
        server.fall_silent(lambda: server.server.send(signal.SIGSTOP))
        client.fall_silent(lambda: client.client.send(signal.SIGSTOP))

        def noticed() -> bool:
            for rig in rigs:
                rig.look(began)
            is_over = time.monotonic() > began + SILENT_SECONDS
            return is_over and None not in (cut.down_at, cut.free_at, server.down_at, client.free_at)

        stage.until(noticed, "all have noticed", FREE_SECONDS + SILENT_SECONDS)
        time_back(stage, cut, lambda: cut.forwarder.tell("well"))
        time_back(stage, server, lambda: server.server.send(signal.SIGCONT))
        time_back(stage, client, lambda: client.client.send(signal.SIGCONT))
    for rig in rigs:
        print(f"{rig.name}: client down {rig.down_at}, port free {rig.free_at}, back {rig.back:.2f} s after it healed")
    for rig in (cut, server):
        assert rig.down_at is not None
        assert rig.down_at < allowed(NOTICED_SECONDS)
    for rig in (cut, client):
        assert rig.free_at is not None
        assert rig.free_at < allowed(FREE_SECONDS)
    assert all(rig.back is not None and rig.back < allowed(BACK_SECONDS) for rig in rigs)
    for rig in rigs:
        (session,) = rig.server.stats()["sessions"]
        assert [proxy["status"] for proxy in session["proxies"]] == ["healthy"]
    assert "Traceback" not in stage.report()


def test_data_channels_that_fall_silent_alone_are_replaced(stage: Stage, make: Callable[[str], Rig]) -> None:
    """B18, the hard way: nothing ends, the control channel lives, and visitors go on coming."""
    rig = make("data channels silent")
    lines = len(rig.client.out)
    with Visitors(rig.public, per_second=10) as visitors:
        stage.until(lambda: len(visitors.visits) > 5, "visits")
        silent = time.monotonic()
        rig.forwarder.tell("freeze 1")  # the oldest is the control channel
        stage.until(lambda: time.monotonic() > silent + 4, "4 s")
    late = visitors.late(silent - 1)
    last = max(visit.began for visit in late) - silent
    print(f"{len(late)} of {len(visitors.visits)} visits late or failed, the last one begun {last:.2f} s after")
    assert 0 < last < allowed(3)
    assert len(rig.client.out) == lines, "no status changed: the session lived"


# Over a link that loses every packet: only that shows what the kernels do


@contextmanager
def emulated_link() -> Iterator[tuple[Callable[[str], None], list[str], list[str]]]:
    """`blackhole("on")`, and what to put before a command to run it at either end."""
    name = f"dead{os.getpid()}"
    netlab = [sys.executable, Path(__file__).parents[1] / "netlab.py"]
    process = subprocess.Popen([*netlab, "up", "--name", name, "--rtt", "20"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def blackhole(state: str) -> None:
            words = [*netlab, "set", "--name", name, "--blackhole", state]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

        yield blackhole, ["ip", "netns", "exec", f"{name}-a"], ["ip", "netns", "exec", f"{name}-b"]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def kernel_bounds_retransmissions() -> bool:
    with socket.socket() as probe:
        tunnel_options(probe)
        try:
            return probe.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) == RETRANSMIT_MS
        except OSError:
            return False


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and ip (iproute2)"
)
@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="the emulated link needs /dev/net/tun")
@pytest.mark.skipif(not kernel_bounds_retransmissions(), reason="this kernel is older than Linux 6.15")
def test_a_cut_too_short_to_be_noticed_costs_nobody_his_connection_and_5_seconds_at_most(stage: Stage) -> None:
    """B15 from the other end. Left alone, the kernels would try again only as long after as the cut lasted."""
    script = Path(__file__).with_name("steady_visitor.py")
    with emulated_link() as (blackhole, near, far):
        port, target, public = free_port(), free_port(), free_port()
        service = stage.watch("service", [*far, sys.executable, script, LOOPBACK, target, "serve"])
        service.wait_line("ready")
        server = stage.serve("--listen", f"10.77.0.1:{port}", prefix=near)
        client = stage.connect(server, f"echo=10.77.0.1:{public}:{target}", where=f"10.77.0.1:{port}", prefix=far)
        client.wait_healthy("echo")
        visitor = stage.watch("visitor", [*near, sys.executable, script, "10.77.0.1", public])
        stage.until(lambda: len(visitor.out) > 10, "answers")
        blackhole("on")
        cut = time.monotonic()
        stage.until(lambda: time.monotonic() > cut + CUT_SECONDS, "the cut is over", CUT_SECONDS + 5)
        blackhole("off")
        healed = time.monotonic()
        answered = len(visitor.out)
        stage.until(lambda: len(visitor.out) > answered + 10, "answers again", 15)
        back = float(visitor.out[answered]) - healed
        print(f"cut for {healed - cut:.1f} s: the visitor inside was answered again {back:.2f} s after")
        assert back < allowed(BACK_SECONDS)
        assert [status["status"] for status in client.statuses][-1] == "healthy"
        assert len(client.statuses) == 2, "neither side noticed"
