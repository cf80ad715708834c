"""systemd itself: whether it runs here, and what it is asked to do. Used by the command `service`."""

import re
import subprocess
from pathlib import Path

from attrs import frozen

from tunnel.errors import TunnelError

RUNNING = Path("/run/systemd/system")  # is there where systemd is the init, sd_booted(3)
LOG_LINES = 8
SECONDS = 180.0  # a start has 90; a stop lets visitors finish


@frozen
class Systemctl:
    """`is_own`: of the user who asks, not of the machine."""

    is_own: bool = False

    @property
    def is_running(self) -> bool:
        return RUNNING.is_dir()

    def line(self, *words: str) -> str:
        """What a person would type."""
        return " ".join(self._words(*words))

    def run(self, *words: str) -> None:
        """`TunnelError` with what systemctl said."""
        done = self._run(*words)
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise TunnelError(f"`{self.line(*words)}` failed: {said}")

    def is_active(self, unit: str) -> bool:
        return self._run("is-active", "--quiet", unit).returncode == 0

    def state(self, unit: str) -> dict[str, str]:
        """How a unit is now."""
        asked = (
            "LoadState",
            "UnitFileState",
            "ActiveState",
            "SubState",
            "StatusText",
            "ActiveEnterTimestamp",
            "NRestarts",
        )
        done = self._run("show", unit, *(f"--property={name}" for name in asked))
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def log_of(self, unit: str) -> str:
        """The last lines of a unit's log."""
        own = ["--user"] if self.is_own else []
        words = ["journalctl", *own, "--no-pager", "--output=cat", f"--lines={LOG_LINES}", f"--unit={unit}"]
        return _run(words).stdout.rstrip() or f"(nothing; see: {self.line('status', unit)})"

    def _words(self, *words: str) -> list[str]:
        return ["systemctl", *(["--user"] if self.is_own else []), *words]

    def _run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return _run(self._words(*words))


def _run(words: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(  # noqa: S603  no shell, and no word of a stranger
            words, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except OSError as exc:
        raise TunnelError(f"{words[0]} cannot be started: {exc.strerror}; install systemd") from exc
    except subprocess.TimeoutExpired as exc:
        raise TunnelError(f"`{' '.join(words)}` has not ended within {SECONDS:.0f} s; see journalctl") from exc


def systemd_version() -> int:
    """Of the systemd on this machine, running or not; 0 where there is none."""
    try:
        done = _run(["systemctl", "--version"])
    except TunnelError:
        return 0
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0
