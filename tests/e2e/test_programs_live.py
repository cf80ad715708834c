"""Programs of others through the tunnel: ssh, iperf3, a WebSocket. B29."""

import getpass
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Pair
from processes import Stage, dial, free_port


def program(name: str, *more: str) -> str:
    """Where it is installed; skips where it is not."""
    found = shutil.which(name) or next((path for path in more if os.access(path, os.X_OK)), None)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def running(stage: Stage, *argv: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ours, ended at the end; what it says goes to `program.log`."""
    with stage.path("program.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def privilege_separation() -> list[str]:
    """sshd as root wants /run/sshd, which a service manager makes: where there is none, give sshd a /run of its own."""
    if os.geteuid() or Path("/run/sshd").is_dir():
        return []
    script = 'mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$0" "$@"'
    prefix = [program("unshare"), "-m", "sh", "-c", script]
    if subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode:
        pytest.skip("sshd as root wants /run/sshd; there is none, and no mount namespace may be made for it")
    return prefix


@pytest.mark.slow
def test_ssh(stage: Stage) -> None:
    sshd, ssh, keygen = program("sshd", "/usr/sbin/sshd"), program("ssh"), program("ssh-keygen")
    prefix = privilege_separation()
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", stage.path(name)], check=True, timeout=10)
    stage.write("authorized", stage.path("user.pub").read_text())
    port = free_port()
    stage.write(
        "sshd_config",
        f"ListenAddress 127.0.0.1:{port}\nHostKey {stage.path('host')}\nAuthorizedKeysFile {stage.path('authorized')}\n"
        f"PidFile {stage.path('sshd.pid')}\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n",
    )
    server = stage.serve()
    with running(stage, *prefix, sshd, "-D", "-e", "-f", stage.path("sshd_config")):
        stage.until(lambda: dial(port).close() or True, "sshd listens")
        client = stage.connect(server, f"ssh=127.0.0.1:0:{port}")
        (public,) = client.wait_healthy("ssh")
        key = stage.path("host.pub").read_text().split(" ", 2)
        stage.write("known", f"[127.0.0.1]:{public} {key[0]} {key[1]}\n")
        options = [f"UserKnownHostsFile={stage.path('known')}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
        options += ["ConnectTimeout=5", "ConnectionAttempts=3", "IdentitiesOnly=yes"]
        words = [ssh, "-F", "/dev/null", "-p", public, "-i", stage.path("user")]
        words += [word for option in options for word in ("-o", option)]
        words += [f"{getpass.getuser()}@127.0.0.1", "cat; echo done"]
        data = os.urandom(3_000_000).hex().encode()
        got = subprocess.run(list(map(str, words)), input=data, capture_output=True, timeout=30)
        why = got.stderr.decode(errors="replace") + stage.path("program.log").read_text() + stage.report()
        assert got.returncode == 0, why
        assert got.stdout == data + b"done\n"


def counted(words: list[str]) -> dict[str, Any] | None:
    """None when iperf3's own server had not finished with the test before."""
    done = subprocess.run(words, capture_output=True, timeout=60)
    result = json.loads(done.stdout)
    return result if done.returncode == 0 and "sum_received" in result["end"] else None


@pytest.mark.slow
def test_iperf3_both_directions(stage: Stage) -> None:
    iperf3 = program("iperf3")
    server, port = stage.serve(), free_port()
    with running(stage, iperf3, "-s", "-p", port, "-B", "127.0.0.1"):
        client = stage.connect(server, f"iperf=127.0.0.1:0:{port}")
        (public,) = client.wait_healthy("iperf")
        for direction in ([], ["-R"]):
            words = [iperf3, "-c", "127.0.0.1", "-p", str(public), "-t", "1", "-J", *direction]
            result = stage.until(lambda words=words: counted(words), "iperf3 has counted")
            rate = result["end"]["sum_received"]["bits_per_second"]
            print(f"iperf3 {' '.join(direction) or '(up)'}: {rate / 1e9:.2f} Gbit/s")
            assert rate > 50e6


@pytest.mark.slow
def test_websocket_echo(pair: Pair) -> None:
    sync_client, sync_server = (
        pytest.importorskip("websockets.sync.client"),
        pytest.importorskip("websockets.sync.server"),
    )
    import threading

    def answer(connection: object) -> None:
        for message in connection:
            connection.send(message)

    with sync_server.serve(answer, "127.0.0.1", 0) as service:
        serving = threading.Thread(target=service.serve_forever, daemon=True)
        serving.start()
        token = pair.stage.run("token", "new", "websocket", "--state-dir", pair.server.state).stdout
        port = service.socket.getsockname()[1]
        client = pair.stage.connect(pair.server, f"ws=127.0.0.1:0:{port}", token=token)
        (public,) = client.wait_healthy("ws")
        with sync_client.connect(f"ws://127.0.0.1:{public}", max_size=None) as connection:
            for message in ("hello", b"\x00\xff" * 10, "x" * 1_000_000):
                connection.send(message)
                assert connection.recv(timeout=10) == message
            assert connection.ping().wait(5)
        assert connection.close_code == 1000
        client.terminate()
        assert client.wait() == 0
        service.shutdown()
        serving.join(5)
