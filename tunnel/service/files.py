"""Unit files on disk, and whether they are still as we wrote them. Used by the command `service`.

Each begins with a mark that has the SHA-256 of the rest: what a person changed is never written over unasked.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from attrs import frozen

from tunnel.errors import TunnelError

SYSTEM_FOLDER = Path("/etc/systemd/system")
MAX_BYTES = 1024 * 1024
MARK = re.compile(r"# trio-tunnel-unit sha256:([0-9a-f]{64})\n")
HEAD = """\
# Written by `trio-tunnel service install`, which writes over it again as long as nobody else has changed it.
# To change something: systemctl edit {unit}
"""
Standing = Literal["absent", "same", "other", "changed"]


def own_folder() -> Path:
    """Where a user's own units are."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".config", "systemd", "user")


@frozen
class UnitFile:
    path: Path
    text: str  # what it shall say, without the mark; empty where it shall not be

    @property
    def whole(self) -> str:
        body = HEAD.format(unit=self.path.name) + self.text
        return f"# trio-tunnel-unit sha256:{hashlib.sha256(body.encode()).hexdigest()}\n{body}"

    def standing(self) -> Standing:
        """What is there now: nothing, just this, another one of ours, or what a person wrote."""
        there = self._read()
        if there is None:
            return "absent"
        if self.text and there == self.whole:
            return "same"
        mark = MARK.match(there)
        is_ours = mark is not None and hashlib.sha256(there[mark.end() :].encode()).hexdigest() == mark[1]
        return "other" if is_ours else "changed"

    def _read(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise TunnelError(f"{self.path} cannot be read: {exc.strerror}; move it away") from exc

    def write(self) -> None:
        """In one step: a crash leaves the old or the new one."""
        aside = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(self.whole)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path)
        except OSError as exc:
            with suppress(OSError):  # the first error is the one to tell
                aside.unlink(missing_ok=True)
            raise TunnelError(f"{self.path} cannot be written: {exc.strerror}; check the folder and the disk") from exc

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as exc:
            raise TunnelError(f"{self.path} cannot be removed: {exc.strerror}; check the folder") from exc


def installed(folder: Path) -> Iterator[str]:
    """The names of all services of ours in a folder, without their suffix."""
    for path in sorted(folder.glob("trio-tunnel-*.service")):
        if UnitFile(path, "").standing() != "absent":
            yield path.stem
