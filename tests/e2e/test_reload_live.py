"""SIGHUP at living processes: what changed is in force, what did not loses not one byte (B35 in part)."""

import hashlib
import random
import signal
import socket
from collections.abc import Iterator

import pytest
import trio
from processes import LOOPBACK, Client, Process, Stage, ask_echo, dial, echoes, free_port, proxy_toml, read_exactly
from services import Services

MIB = 1024 * 1024
SIZE = 64 * MIB  # more than all buffers on the way hold: without a reader the download stands still
BLOCK = random.Random(35).randbytes(MIB - 8)


def blocks() -> Iterator[bytes]:
    """The file to be downloaded; each MiB has its number, so that none can stand for another."""
    for number in range(SIZE // MIB):
        yield number.to_bytes(8, "big") + BLOCK


async def send_file(stream: trio.SocketStream) -> None:
    for block in blocks():
        await stream.send_all(block)
    await stream.send_eof()


def reload(process: Process, wanted: str) -> None:
    """SIGHUP, and wait for the last line of what it comes to."""
    start = len(process.err)
    process.send(signal.SIGHUP)
    process.wait_log(wanted, start=start)


class Download:
    """A visitor who reads as much as he is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._digest = hashlib.sha256()
        self.received = 0

    def read(self, count: int) -> None:
        self._digest.update(read_exactly(self._sock, count))
        self.received += count

    def finish(self) -> None:
        self.read(SIZE - self.received)
        assert self._sock.recv(1) == b""
        assert self._digest.hexdigest() == hashlib.sha256(b"".join(blocks())).hexdigest()


@pytest.mark.slow
def test_a_download_goes_on_to_the_byte_while_targets_checks_and_pools_change(
    stage: Stage, services: Services, echo_port: int
) -> None:
    server = stage.serve()
    files, public, other = services.add(send_file), free_port(), free_port()
    first = proxy_toml("web", public, files)
    client: Client = stage.connect(server, config=first, admin=True)
    path = client.config
    client.wait_healthy("web")
    since = server.proxies()["web"]["since"]
    with dial(public) as visitor:
        download = Download(visitor)
        download.read(MIB)

        # Another target, and pools of other sizes: the listener is not touched, new visitors meet the new service.
        path.write_text("data_channels = 4\n" + proxy_toml("web", public, echo_port, "hot = 2\n"))
        reload(client, "read again: 2 changes")
        ask_echo(public)
        assert server.proxies()["web"]["since"] == since
        download.read(3 * MIB)

        # A health check, and a proxy beside it: the listener stays.
        check = 'when_down = "keep"\n[proxies.health_check]\ninterval = 0.2\n'
        path.write_text(proxy_toml("web", public, echo_port, check) + proxy_toml("more", other, echo_port))
        reload(client, "read again: 3 changes")
        client.wait_healthy("more")
        ask_echo(other)
        ask_echo(public)
        download.read(3 * MIB)

        # A check that fails, by a change of the target alone, and one that passes again.
        broken = proxy_toml("web", public, free_port(), check)
        start = len(client.out)
        path.write_text(broken + proxy_toml("more", other, echo_port))
        reload(client, "read again: 1 change$")
        client.wait_status("web", start=start, reason="target_down")
        start = len(client.out)
        path.write_text(proxy_toml("web", public, echo_port, check) + proxy_toml("more", other, echo_port))
        reload(client, "read again: 1 change$")
        client.wait_healthy("web", start=start)
        ask_echo(public)
        download.read(3 * MIB)

        # Nothing of it is published any more: who is inside may finish.
        path.write_text("")
        reload(client, "proxy 'web' is closed")
        stage.until(lambda: not echoes(public), "the port is closed")
        download.finish()
    assert "needs a restart" not in client.stderr


@pytest.mark.slow
def test_an_invalid_file_changes_nothing_and_says_why(stage: Stage, services: Services, echo_port: int) -> None:
    server = stage.serve()
    files, public = services.add(send_file), free_port()
    good = proxy_toml("web", public, files)
    client: Client = stage.connect(server, config=good, admin=True)
    path = client.config
    client.wait_healthy("web")
    lines = len(client.out)
    with dial(public) as visitor:
        download = Download(visitor)
        download.read(MIB)
        wrong = proxy_toml("web", public, echo_port, 'hot = 999\nbalance = "best"\n') + proxy_toml("half", 1, 1)[:-9]
        path.write_text(wrong)
        reload(client, "the configuration was not changed: 3 mistakes to mend")
        assert f"{path}:6: proxies[0].hot: 999: is out of range; write a whole number from 0 to 256" in client.stderr
        assert f"{path}:7: proxies[0].balance" in client.stderr
        assert f"{path}:12: is not TOML" in client.stderr
        path.unlink()
        reload(client, "the configuration was not changed: 1 mistake to mend")
        assert f"{path}: cannot be read: No such file or directory" in client.stderr
        with dial(public) as another:  # the same service as before
            assert read_exactly(another, MIB) == next(blocks())
        download.finish()
    assert len(client.out) == lines  # no status has changed
    path.write_text(good)
    reload(client, "read again: nothing to change")


@pytest.mark.slow
def test_what_needs_a_restart_says_so_and_no_process_ends_of_sighup(stage: Stage, echo_port: int) -> None:
    server = stage.serve(config="[bind_retry]\nmax_retries = 1\n")
    server.config.write_text(
        '[bind_retry]\nmax_retries = "forever"\n[limits]\nlogin_seconds = 3\n[admin]\nlisten = "127.0.0.1:1"\n'
    )
    reload(server, "read again: 2 changes")
    assert "bind retry: for ever" in server.stderr
    assert "limits: login_seconds is 3 (10 before)" in server.stderr
    server.config.write_text("bind_port = 1\n[history]\nenabled = false\n")
    reload(server, "read again: 2 changes")
    assert "history needs a restart: it has changed" in server.stderr
    assert "admin.listen" not in server.stderr  # --admin goes over the file, now as then
    by_options = stage.serve()
    client = stage.connect(by_options, f"web={LOOPBACK}:0:{echo_port}")
    (public,) = client.wait_healthy("web")
    for process in (by_options, client):
        reload(process, "there is no configuration file to read again; give one with -c")
    ask_echo(public)
