"""Data channels and the control channel are replaced, moved and taken away under visitors who must not notice."""

import hashlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio
from addresses import pool, ready, wait_ready
from processes import (
    LOOPBACK,
    Client,
    Process,
    Server,
    Stage,
    allowed,
    ask_echo,
    dial,
    free_port,
    proxy_toml,
    read_all,
)
from services import Services

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SIZE = 256 * MIB
BLOCK = random.Random(4).randbytes(MIB - 8)
SECONDS = 20.0
AGES = "[data_channels]\nmax_age = 2\nage_jitter = 0.5\n"


def blocks() -> Iterator[bytes]:
    """A file; each MiB has its number, so that none can stand for another."""
    for number in range(SIZE // MIB):
        yield number.to_bytes(8, "big") + BLOCK


@pytest.fixture(scope="module")
def digest() -> str:
    found = hashlib.sha256()
    for block in blocks():
        found.update(block)
    return found.hexdigest()


async def send_file(stream: trio.SocketStream) -> None:
    for block in blocks():
        await stream.send_all(block)
    await stream.send_eof()


def download(port: int, pause: float = 0.0) -> str:
    """Its digest; `pause` seconds after each MiB."""
    found, received = hashlib.sha256(), 0
    with dial(port, seconds=30) as visitor:
        while piece := visitor.recv(MIB):
            found.update(piece)
            received += len(piece)
            if pause:
                time.sleep(pause * len(piece) / MIB)
    assert received == SIZE
    return found.hexdigest()


def upload(port: int, pause: float = 0.0) -> str:
    """The digest of what arrived, as the service tells."""
    with dial(port, seconds=30) as visitor:
        for block in blocks():
            visitor.sendall(block)
            if pause:
                time.sleep(pause)
        visitor.shutdown(socket.SHUT_WR)
        return read_all(visitor).decode()


def again_and_again(transfer: Callable[[int], str], port: int, until: float) -> list[str]:
    found = []
    while time.monotonic() < until:
        found.append(transfer(port))
    return found


def descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def serve_on_three(stage: Stage) -> tuple[Server, list[str]]:
    ports = [free_port() for _ in range(3)]
    more = [word for port in ports[1:] for word in ("--listen", f"{LOOPBACK}:{port}")]
    server = stage.serve(*more, port=ports[0])
    return server, [f"{LOOPBACK}:{port}" for port in ports]


def listed(addresses: list[str]) -> str:
    return f"servers = {json.dumps(addresses)}\n"


class Inside:
    """A visitor of an echoing service who is mostly quiet."""

    def __init__(self, port: int) -> None:
        self.socket = dial(port)
        self.say(b"hello")

    def say(self, word: bytes) -> None:
        self.socket.sendall(word)
        assert self.socket.recv(100) == word


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_channels_of_two_seconds_age_are_replaced_under_transfers_and_idle_visitors(
    stage: Stage, services: Services, echo_port: int, digest: str
) -> None:
    server, addresses = serve_on_three(stage)
    names = {"echo": echo_port, "files": services.add(send_file), "digest": services.add(services.digest)}
    config = listed(addresses) + AGES + "".join(proxy_toml(name, 0, port) for name, port in names.items())
    client: Client = start(stage, server, config)
    echo, files, taken = client.wait_healthy(*names)
    wait_ready(stage, client, *addresses)
    ask_echo(echo)
    before = descriptors(server), descriptors(client)
    idle = [Inside(echo) for _ in range(5)]
    until = time.monotonic() + SECONDS
    pause = SECONDS / (SIZE / MIB)
    with ThreadPoolExecutor() as transfers:
        running = [
            transfers.submit(again_and_again, download, files, until),
            transfers.submit(again_and_again, upload, taken, until),
            transfers.submit(lambda: [download(files, pause)]),
            transfers.submit(lambda: [upload(taken, pause)]),
        ]
        found = [one.result() for one in running]
    assert {one for several in found for one in several} == {digest}

    def moves() -> int:
        return sum("the control channel moved" in line for line in list(client.err))

    # A handshake beside such transfers takes a slow machine longer than an age.
    stage.until(lambda: moves() >= SECONDS / 2 - 2, "the control channel has moved again and again")
    stage.until(lambda: pool(client)["retired"].get("age", 0) >= 20, "so have channels been replaced")
    for visitor in idle:
        visitor.say(b"still here")
        visitor.socket.close()
    retired = pool(client)["retired"]
    print(
        f"{[len(one) for one in found]} transfers of {SIZE // MIB} MiB; retired {retired}; "
        f"control moved {moves()} times"
    )
    assert set(retired) == {"age"}
    stage.until(lambda: retiring(server) == 0, "no channel is left retiring")
    stage.until(
        lambda: descriptors(server) <= before[0] + 6 and descriptors(client) <= before[1] + 6, "descriptors are flat"
    )
    print(f"descriptors before {before}, after {descriptors(server), descriptors(client)}")


def retiring(server: Server) -> int:
    return sum(one["retiring"] for one in server.stats()["connection_pool"]["clients"].values())


def start(stage: Stage, server: Server, config: str) -> Client:
    admin = free_port()
    path = stage.write("client.toml", config)
    client: Client = stage.start(
        "connect", "-c", path, "--pin", server.pin, "--json", "--admin", f"{LOOPBACK}:{admin}", "--state-dir",
        stage.new_path("client-state"), "-v", kind=Client, env={"TRIO_TUNNEL_TOKEN": server.token},
    )  # fmt: skip
    client.admin, client.config = admin, path
    return client


def test_an_address_leaves_and_another_comes_by_reload_and_a_download_does_not_notice(
    stage: Stage, services: Services, echo_port: int, digest: str
) -> None:
    server, addresses = serve_on_three(stage)
    rest = proxy_toml("echo", 0, echo_port) + proxy_toml("files", 0, services.add(send_file))
    client = start(stage, server, listed(addresses[:2]) + rest)
    echo, files = client.wait_healthy("echo", "files")
    wait_ready(stage, client, *addresses[:2])
    lines = len(client.out)
    idle = [Inside(echo) for _ in range(10)]
    with ThreadPoolExecutor() as transfers:
        slow = transfers.submit(download, files, 8 / 256)
        fast = transfers.submit(again_and_again, download, files, time.monotonic() + 6)

        client.config.write_text(listed(addresses[1:2]) + rest)
        began = time.monotonic()
        client.send(signal.SIGHUP)
        client.wait_log(f"the control channel moved from {addresses[0]} to {addresses[1]}")
        moved = time.monotonic() - began
        stage.until(lambda: not ready(client, addresses[0]), "no channel to what was left")
        left = time.monotonic() - began
        for visitor in idle:
            visitor.say(b"still here")

        client.config.write_text(listed(addresses[1:]) + rest)
        began = time.monotonic()
        client.send(signal.SIGHUP)
        wait_ready(stage, client, addresses[2])
        used = time.monotonic() - began
        for visitor in idle:
            visitor.say(b"still here")
            visitor.socket.close()
        assert {slow.result(), *fast.result()} == {digest}
    print(
        f"control moved {moved:.2f} s after SIGHUP, channels had left after {left:.2f} s; a new one used {used:.2f} s"
    )
    assert used < allowed(3)
    assert len(client.out) == lines
    stage.until(lambda: addresses[0] not in pool(client)["addresses"], "what was left is forgotten")
