"""Several addresses of one server, and what fails of them, with real processes and a forwarder before each address."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from addresses import Forwarder, Visitors, pool, ready, wait_ready
from processes import LOOPBACK, Client, Server, Stage, allowed, ask_echo, can_listen, dial, free_port, held_port

from tunnel.config import DATA_CHANNELS

pytestmark = pytest.mark.slow
EACH = DATA_CHANNELS.min_per_address  # channels that an address has, when nobody needs more


class Rig:
    """A server behind three forwarders, and a client that knows those; the control channel is at `at_control`."""

    def __init__(self, stage: Stage, forwarders: list[Forwarder], echo_port: int) -> None:
        self.stage, self.forwarders = stage, forwarders
        self.server: Server
        self.client: Client
        self.public = 0

    @property
    def addresses(self) -> list[str]:
        return [forwarder.where for forwarder in self.forwarders]

    def begin(self, server: Server, client: Client) -> None:
        self.server, self.client = server, client
        (self.public,) = client.wait_healthy("echo")
        wait_ready(self.stage, client, *self.addresses)

    def busiest(self, visitors: Visitors) -> Forwarder:
        """Of those that the control channel does not go to, the one that carries most of what visitors send."""
        others = self.forwarders[1:]
        before = [forwarder.count()[2] for forwarder in others]
        start = len(visitors.visits)
        self.stage.until(lambda: len(visitors.visits) > start + 200, "200 visits")
        carried = [forwarder.count()[2] - past for forwarder, past in zip(others, before, strict=True)]
        return others[carried.index(max(carried))]


@pytest.fixture
def rig(stage: Stage, echo_port: int) -> Iterator[Rig]:
    server = stage.serve()
    with ExitStack() as stack:
        forwarders = [stack.enter_context(Forwarder(server.port)) for _ in range(3)]
        first, *others = (forwarder.where for forwarder in forwarders)
        rig = Rig(stage, forwarders, echo_port)
        client = stage.connect(
            server, f"echo={LOOPBACK}:0:{echo_port}", where=first, more=[*others, "-v"], admin=True
        )  # fmt: skip
        rig.begin(server, client)
        yield rig


@pytest.mark.skipif(not can_listen(free_port(), "127.0.0.3"), reason="127.0.0.3 is no address of this host")
def test_every_address_that_the_server_listens_on_has_a_channel_a_second_after_the_start(
    stage: Stage, echo_port: int
) -> None:
    port = free_port()
    others = [f"127.0.0.{number}:{port}" for number in (2, 3)]
    server = stage.serve("--listen", others[0], "--listen", others[1], port=port)
    client = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}", more=others, admin=True)
    client.wait_healthy("echo")
    took = wait_ready(stage, client, server.where, *others, seconds=2)
    print(f"three addresses: {took:.3f} s after being healthy")
    status = stage.run("status", "--json", "--admin", f"{LOOPBACK}:{client.admin}")
    assert all(where in status.stdout for where in (server.where, *others))


def still_echoes(visitor: socket.socket, seconds: float) -> bool:
    visitor.settimeout(seconds)
    try:
        visitor.sendall(b"still here?")
        return visitor.recv(100) == b"still here?"
    except OSError:
        return False


def die(victim: Forwarder, way: str) -> None:
    match way:
        case "killed":
            victim.kill()
        case "silent":
            victim.process.send_signal(signal.SIGSTOP)
        case "resets":
            victim.tell("reset")


def come_back(victim: Forwarder, way: str) -> None:
    match way:
        case "killed":
            victim.start()
        case "silent":
            victim.process.send_signal(signal.SIGCONT)
        case "resets":
            victim.tell("well")


@pytest.mark.parametrize("way", ["killed", "silent", "resets"])
def test_one_address_dies_and_new_visitors_do_not_wait_nor_do_those_inside_on_the_others(rig: Rig, way: str) -> None:
    with ExitStack() as stack, Visitors(rig.public) as visitors:
        victim = rig.busiest(visitors)
        inside = [stack.enter_context(dial(rig.public)) for _ in range(30)]
        assert all(still_echoes(visitor, 10) for visitor in inside)
        died = time.monotonic()
        die(victim, way)
        rig.stage.until(lambda: time.monotonic() > died + 2.5 and len(visitors.visits), "visits after it")
        alive = sum(still_echoes(visitor, 0.5) for visitor in inside)
        back = time.monotonic()
        come_back(victim, way)
        rig.stage.until(lambda: ready(rig.client, victim.where), "a channel there again, by itself", 20)
        returned = time.monotonic() - back
    late = visitors.late(died)
    last = max((visit.began - died for visit in late), default=0.0)
    print(
        f"{way}: of {len(visitors.visits)} visits {len(late)} begun after it were late or failed, the last "
        f"{last:.2f} s after it; {alive} of 30 inside live; used again {returned:.2f} s after its return"
    )
    assert last < allowed(1.5), "new visitors wait a second at most; the rest is for a busy machine"
    assert len(late) < 60
    assert alive >= 15, "those of the other addresses, two of three"


def test_all_data_channels_die_while_the_control_channel_lives(rig: Rig) -> None:
    """B18, when they were just opened, and when they had lasted for a while."""
    client, control = rig.client, rig.forwarders[0]
    lines, waits = len(client.out), []
    for age in (0.0, 5.5):
        wait_ready(rig.stage, client, *rig.addresses)
        rig.stage.until(lambda least=age: youngest(client) > least, "they are that old")
        for forwarder in rig.forwarders:
            assert forwarder.tell("cut 1" if forwarder is control else "cut 0") != "cut 0"
        began = time.monotonic()
        ask_echo(rig.public)
        waits.append(time.monotonic() - began)
    print(f"all data channels cut, young and older: the next visitor was served after {waits} s")
    assert max(waits) < allowed(1)
    assert len(client.out) == lines, "no status changed: the session lived"
    assert control.tell("cut 0") != "cut 0"


def youngest(client: Client) -> float:
    """Seconds, of the oldest channel of each address the least."""
    return min(address["oldest_seconds"] for address in pool(client)["addresses"].values())


def test_the_control_channels_address_dies_and_the_client_is_back_by_another(rig: Rig) -> None:
    lines = len(rig.client.out)
    began = time.monotonic()
    rig.forwarders[0].kill()
    rig.client.wait_healthy("echo", start=lines)
    back = time.monotonic() - began
    ask_echo(rig.public)
    print(f"the control channel's address was killed: healthy again after {back:.3f} s")
    wait_ready(rig.stage, rig.client, *rig.addresses[1:])


def test_the_control_channels_address_falls_silent(stage: Stage, echo_port: int) -> None:
    server = stage.serve(config="[limits]\nheartbeat_seconds = 1\n")
    with Forwarder(server.port) as first, Forwarder(server.port) as second:
        token = stage.run("token", "new", "home", "--state-dir", server.state)
        client = stage.connect(
            server, f"echo={LOOPBACK}:{free_port()}:{echo_port}", where=first.where, more=[second.where, "-v"],
            token=token.stdout.split()[0],
        )  # fmt: skip
        (public,) = client.wait_healthy("echo")
        lines, began = len(client.out), time.monotonic()
        first.process.send_signal(signal.SIGSTOP)
        client.wait_healthy("echo", start=lines, seconds=20)
        back = time.monotonic() - began
        ask_echo(public)
        print(f"the control channel's address fell silent: healthy again after {back:.3f} s (heartbeat 1 s)")


def test_addresses_that_are_strangers_mute_or_not_to_be_trusted_leave_the_others_alone(
    stage: Stage, echo_port: int
) -> None:
    server, other = stage.serve(), stage.serve()
    state = stage.new_path("state")
    state.mkdir(mode=0o700)
    for name in ("server.crt", "server.key"):
        shutil.copy(server.state / name, state / name)
    stranger = stage.serve(state=state)
    assert stranger.pin == server.pin != other.pin
    with held_port() as mute:
        mute_at = f"{LOOPBACK}:{mute.getsockname()[1]}"
        began = time.monotonic()
        client = stage.connect(
            server, f"echo={LOOPBACK}:0:{echo_port}",
            where=stranger.where, more=[other.where, mute_at, server.where, "-v"], admin=True,
        )  # fmt: skip
        (public,) = client.wait_healthy("echo")
        took = time.monotonic() - began
        for _ in range(10):
            ask_echo(public)
        wrong = stranger.where, other.where
        stage.until(lambda: all(failures(client, where) >= 3 for where in wrong), "quarantine of the wrong ones", 15)
        lines, told = len(client.out), len(stranger.err)
        ask_echo(public)
        refused = pool(client)["failures"]
        print(f"a stranger, a wrong key and a mute one first: healthy after {took:.2f} s; log {len(client.err)} lines")
    assert set(refused) >= {"handshake.refused_by_peer", "handshake.certificate"}
    assert took < allowed(5)
    stage.until(lambda: ready(client, server.where) == EACH, "the server's own has its channels")
    assert len(client.err) < 20
    assert told < 6
    assert lines == len(client.out)
    assert len(re.findall("connected", server.stderr)) == 1


def failures(client: Client, where: str) -> int:
    return int(pool(client)["addresses"][where]["failures"])


def test_a_server_that_was_stopped_for_20_seconds_meets_no_storm_when_it_goes_on(stage: Stage, echo_port: int) -> None:
    first, second = free_port(), free_port()
    server = stage.serve("--listen", f"{LOOPBACK}:{second}", port=first)
    addresses = server.where, f"{LOOPBACK}:{second}"
    client = stage.connect(server, f"echo={LOOPBACK}:0:{echo_port}", more=[addresses[1], "-v"], admin=True)
    (public,) = client.wait_healthy("echo")
    stage.until(lambda: all(ready(client, where) == EACH for where in addresses), "all channels")
    channels = len(addresses) * EACH
    lines = len(client.out)
    server.send(signal.SIGSTOP)
    time.sleep(20)  # the time is what is tested
    went_on = time.monotonic()
    server.send(signal.SIGCONT)
    stage.until(lambda: len(client.out) == lines or client.statuses[-1]["status"] == "healthy", "healthy", 15)
    ask_echo(public)
    back = time.monotonic() - went_on
    wait_ready(stage, client, *addresses)
    stage.until(lambda: sum(ready(client, where) for where in addresses) >= channels, "as many channels as before")
    now = pool(client)
    print(
        f"stopped for 20 s: the first visitor was served {back:.2f} s after it went on; {channels} channels before, "
        f"{sum(ready(client, where) for where in addresses)} after, {now['handshakes']} handshakes, {now['failures']}"
    )
    assert now["handshakes"] <= 3 * channels  # each once anew, and one or the other that came too late for its deadline
    assert len(client.err) < 20
    assert len(server.err) < 40


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give the client a hosts file of its own")
@pytest.mark.skipif(not can_listen(free_port(), "::1"), reason="this host has no IPv6")
def test_both_families_of_a_name_are_used(stage: Stage, echo_port: int) -> None:
    hosts = stage.write("hosts", f"{LOOPBACK} both.test\n::1 both.test\n")
    with_hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
    port = free_port()
    server = stage.serve("--listen", f"[::1]:{port}", port=port)
    client = stage.connect(
        server, f"echo={LOOPBACK}:0:{echo_port}", where=f"both.test:{port}", admin=True, prefix=with_hosts
    )
    client.wait_healthy("echo")
    took = wait_ready(stage, client, f"127.0.0.1:{port} (both.test)", f"[::1]:{port} (both.test)", seconds=3)
    print(f"both families of a name: {took:.3f} s after being healthy")
