"""Files that systemd passes to this service alone, whoever may read them elsewhere (LoadCredential=). Used by whatever
opens a file that a configuration names, and by `service` to learn which those are.

A configuration names its files as ever: ``token_file = "home.token"``. The unit passes those that the service's user
cannot read, each under a name made of its path, and here that one is found again:

    /etc/trio-tunnel/home.token  ─ LoadCredential= ─▶  $CREDENTIALS_DIRECTORY/home.token-1f0b7f3c
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

VARIABLE = "CREDENTIALS_DIRECTORY"
DIGITS = 8  # hexadecimal, of the path's SHA-256: enough to tell the files of one unit apart
MAX_STEM = 100  # characters of the file's own name; systemd takes 255 in all
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")  # a colon ends a credential's name, a percent sign begins something else
_noted: ContextVar[dict[Path, object] | None] = ContextVar("noted", default=None)


def credentials_folder() -> Path | None:
    """Where systemd puts what it passes to this process; None where it passes nothing."""
    folder = os.environ.get(VARIABLE, "")
    return Path(folder) if os.path.isabs(folder) else None


def credential_name(path: Path) -> str:
    """The name under which a file is passed. Links are not followed: the service may not see where they lead."""
    whole = os.path.abspath(path)
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:DIGITS]
    return f"{_UNSAFE.sub('_', os.path.basename(whole)).lstrip('.')[:MAX_STEM] or 'file'}-{digest}"


def as_passed(path: Path) -> Path:
    """Where to read what stands at `path`: what systemd passed in its stead, or there."""
    if (noted := _noted.get()) is not None:
        whole = Path(os.path.abspath(path))
        noted.setdefault(whole, standing(whole))
    folder = credentials_folder()
    if folder is None:
        return path
    passed = folder / credential_name(path)
    return passed if os.path.isfile(passed) else path


def standing(path: Path) -> object:
    """How the file stands there, links followed: by which it is, its size and its times; None for none. What is no
    file, such as a pipe that can be read once, always stands the same."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return stat.S_IFMT(found.st_mode)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def noting() -> Iterator[dict[Path, object]]:
    """All files that are asked for in the body, in that order, each as it stood before it was opened."""
    noted: dict[Path, object] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)
