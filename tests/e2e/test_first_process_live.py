"""As process 1, which a container's program is, where the kernel ignores signals that nobody handles."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 30.0


def test_sigterm_ends_it_at_once_while_it_still_starts(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("only root can start a process 1, with unshare")
    config = tmp_path / "server.toml"
    os.mkfifo(config)  # to read it takes until somebody has written it
    command = [unshare, "--pid", "--fork", "--kill-child", sys.executable, "-m", "tunnel", "serve", "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            writer = opened(config, started)
            os.kill(child_of(started.pid), signal.SIGTERM)
            said, _ = started.communicate(timeout=SECONDS)
        finally:
            started.kill()
        os.close(writer)
    assert (started.returncode, said) == (0, "")


def opened(fifo: Path, reader: "subprocess.Popen[str]") -> int:
    """The writing end of a fifo, as soon as somebody reads it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and reader.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            time.sleep(0.01)
    raise AssertionError(f"the server never read its configuration: {reader.communicate(timeout=1)}")


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
