"""What a figure must be read with: the machine and the versions of all that took part."""

import os
import platform
import re
import ssl
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio

from .processes import ROOT, cpu_seconds

WATCH_SECONDS = 1.0
INIT = 1  # the ancestor of all

VERSIONS = {
    "nginx": ("nginx", "-v"),
    "wrk": ("wrk", "-v"),
    "ab": ("ab", "-V"),
    "iperf3": ("iperf3", "--version"),
    "OpenSSL of the system": ("openssl", "version"),
}


def describe_machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # then the architecture must do
    kernel = f"{platform.system()} {platform.release()}"
    with suppress(OSError):  # decides what is sent before the first acknowledgements, and after a loss
        kernel += f", TCP {Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()}"
    return {"cpu": model, "cores": str(len(os.sched_getaffinity(0))), "kernel": kernel}


def describe_versions() -> dict[str, str]:
    found = {
        "Python": platform.python_version(),
        "Trio": trio.__version__,
        "OpenSSL in Python": first_version(ssl.OPENSSL_VERSION),
    }
    for name, command in VERSIONS.items():
        if shown := ask_version(command):
            found[name] = shown
    return found


def busy_percent() -> float:
    """How much of the CPU other processes use just now: figures taken beside them are theirs as much as ours."""
    before = cpu_seconds([INIT])
    time.sleep(WATCH_SECONDS)
    used = cpu_seconds([INIT]) - before
    return 100 * used / WATCH_SECONDS / len(os.sched_getaffinity(0))


def ask_version(command: Sequence[str]) -> str:
    """Empty if the program is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return ""
    return first_version(done.stdout + done.stderr)


def first_version(text: str) -> str:
    """Not a time of day, which some programs print before it."""
    found = re.search(r"(?<![\w:./-])[\w/]*\d+\.\d[\w.+~-]*", text)
    return found.group() if found else "?"
