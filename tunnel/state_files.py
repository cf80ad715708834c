"""Files of a directory that is this user's alone, whatever they mean.

Each file is replaced as a whole (written aside, synced, renamed), under a lock on the directory, so that a crash leaves
the old or the new one and two processes lose nothing of each other's. All errors are TunnelError with a remedy.
"""

import fcntl
import json
import os
import pwd
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunnel.errors import TunnelError

MAX_FILE_BYTES = 8 * 1024 * 1024  # three times what `state.MAX_TOKENS` of the longest names take
LOCK_SECONDS = 5.0  # others hold it for one write, which takes milliseconds


def make_private(path: Path, *, for_owner: bool = False) -> int:
    """Makes the directory if need be; refuses one that others may write or that belongs to another user.

    Returns whose it is. `for_owner`: root may act for that user, as for a service whose user systemd made up.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except FileExistsError:
        raise TunnelError(f"state directory {path} is not a directory; name another with --state-dir") from None
    except OSError as exc:
        raise TunnelError(
            f"state directory {path} cannot be made: {exc.strerror}; make it, or name another with --state-dir"
        ) from exc
    if found.st_uid != os.geteuid() and not (for_owner and os.geteuid() == 0):
        raise TunnelError(
            f"state directory {path} belongs to user {_user(found.st_uid)}, and this is {_user(os.geteuid())}; "
            f"run as {_user(found.st_uid)}, or name another directory with --state-dir"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TunnelError(f"other users may write in state directory {path}; run: chmod 700 {path}")
    return found.st_uid


def file_stamp(path: Path) -> object:
    """Which file stands at a path now, and as of when; None for none. Costs one system call."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


class StateFiles:
    """The files of one directory, which are `owner`'s (None: whose this process is). Safe to use from several threads
    and processes."""

    def __init__(self, path: Path, owner: int | None = None) -> None:
        self.path = path
        self._owner = os.geteuid() if owner is None else owner

    @property
    def _no_links(self) -> int:
        """Root reads nothing that another user's directory only points to."""
        return 0 if self._owner == os.geteuid() else os.O_NOFOLLOW

    def stamp(self, name: str) -> object:
        """Changes when the file is replaced, comes or goes."""
        return file_stamp(self.path / name)

    def read_json(self, name: str, remedy: str) -> dict[str, Any]:
        content = self.read(name)
        if content is None:
            return {}
        try:
            body = json.loads(content, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as exc:
            raise self.damaged(name, str(exc), remedy) from exc
        if not isinstance(body, dict):
            raise self.damaged(name, "it is not a JSON object", remedy)
        return body

    def write_json(self, name: str, body: dict[str, Any]) -> None:
        self.write(name, json.dumps(body, indent=1).encode("ascii") + b"\n")

    def read(self, name: str) -> bytes | None:
        """The file's content, None if there is none. Refuses one that is not ours alone."""
        path = self.path / name
        try:
            # A FIFO must not make us wait.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | self._no_links)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise TunnelError(f"{path} cannot be read: {exc.strerror}; run as the user it belongs to") from exc
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise TunnelError(f"{path} is not a file; move it away")
            others = 0o022 if name.endswith(".crt") else 0o077  # a certificate is no secret
            if found.st_uid != self._owner or found.st_mode & others:
                what = "write" if others == 0o022 else "read or write"
                raise TunnelError(
                    f"other users may {what} {path}; make sure that nobody did, then run: "
                    f"chown {_user(self._owner)} {path} && chmod 600 {path}"
                )
            try:
                content = file.read(MAX_FILE_BYTES + 1)
            except OSError as exc:
                raise TunnelError(f"{path} cannot be read: {exc.strerror}; check the disk") from exc
        if len(content) > MAX_FILE_BYTES:
            raise TunnelError(f"{path} has more than {MAX_FILE_BYTES} bytes; put back a copy of it, or move it away")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Replaces the file. Only under the lock: the name of the file written aside is always the same."""
        aside = self.path / f".{name}.new"
        try:
            aside.unlink(missing_ok=True)  # from a process that was killed while it wrote
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                if self._owner != os.geteuid():
                    os.fchown(file.fileno(), self._owner, -1)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path / name)
            self._sync_directory()
        except OSError as exc:
            with suppress(OSError):  # the first error is the one to tell
                aside.unlink(missing_ok=True)
            raise TunnelError(
                f"{self.path / name} cannot be written: {exc.strerror}; check that the disk has room and is writable"
            ) from exc

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in reading, changing and writing, among threads and processes. The kernel frees it if we die."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise TunnelError(f"state directory {self.path} cannot be opened: {exc.strerror}; start again") from exc
        try:
            self._take_lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TunnelError(
                        f"another process holds state directory {self.path}; end it (`fuser -v {self.path}`), try again"
                    ) from None
                time.sleep(0.01)
            except OSError:
                return None  # a file system without locks: replacing whole files still keeps each of them readable

    def damaged(self, name: str, problem: str, remedy: str) -> TunnelError:
        return TunnelError(f"{self.path / name} is damaged: {problem}; {remedy}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a key stands twice")
    return body


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's number without a name
        return str(uid)
