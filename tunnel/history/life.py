"""Whether the process that wrote a record lives: by its number where that means something, which it may not elsewhere.

A process's number is used again, counts only in its container, and not beyond a boot; so all of that is kept with it.
"""

import os
from pathlib import Path

_START_FIELD = 19  # of /proc/PID/stat behind the name: when the process began, in ticks since the boot


def own_life() -> str:
    """This process, for `may_live` to be asked later; empty where the system does not tell."""
    start = _start(os.getpid())
    return f"{_house()} {os.getpid()} {start}" if start else ""


def may_live(life: str) -> bool:
    """False where the process is known to have ended; True where it lives, or nobody here can know."""
    parts = life.split(" ")
    if len(parts) != 3 or parts[0] != _house():
        return True
    return _start(int(parts[1])) == parts[2]


def _house() -> str:
    """The boot and the container in which a process's number stands for it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start(number: int) -> str:
    try:
        told = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except OSError:
        return ""
    fields = told.rpartition(")")[2].split()  # a process may have any name
    return "" if len(fields) <= _START_FIELD or fields[0] in "ZX" else fields[_START_FIELD]
