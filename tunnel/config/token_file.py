"""Takes a token from a file or from the environment, and refuses what is no secret. Used by `config_file` and the CLI.

A token is shown in no message, nor is anything that might be one.
"""

import os
import re
import shlex
import stat
from pathlib import Path

from tunnel.config.credentials import as_passed, credentials_folder
from tunnel.errors import ConfigError, Mistake

MAX_TOKEN_BYTES = 4096  # it travels in an HTTP head of at most 16 KiB; ours have 43 characters
NOT_SHOWN = "(not shown)"
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what an Authorization header can carry
_LIKE_A_TOKEN = re.compile(r"[A-Za-z0-9_+=-]{40,}")


def check_token(text: str, source: str) -> str:
    """The token in `text`, without white space around it; `source` names where it came from.

    Raises ConfigError when there is none (empty never means "no authentication"), or more than one line, or
    characters that no token has.
    """
    token = text.strip()
    if not token:
        problem, remedy = "holds no token", "put the token there that the server printed"
    elif len(token.splitlines()) > 1:
        problem, remedy = "holds more than one line", "leave only the token"
    elif len(token) > MAX_TOKEN_BYTES:
        problem, remedy = f"is longer than any token ({len(token)} characters)", "leave only the token"
    elif not _TOKEN.fullmatch(token):
        problem, remedy = "holds characters that no token has", "copy the token again, as the server printed it"
    else:
        return token
    raise ConfigError(Mistake(source, 0, "", "", problem, remedy))


def read_token_file(path: Path) -> str:
    """The token in a file of one line that only its owner can read, or only this service (a systemd credential).

    Raises ConfigError; its cause is the OSError when the file could not be read at all.
    """
    return check_token(read_secret_line(path), show_file(path))  # any byte over 0x7e is refused there


def read_secret_line(path: Path, *, what: str = "the token") -> str:
    """What stands in a secret's file, byte for byte as Latin-1; raises as `read_token_file`."""
    source, path = show_file(path), as_passed(path)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode  # of what was opened: the name may stand for another file by now
            raw = file.read(MAX_TOKEN_BYTES + 1024)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ConfigError(Mistake(source, 0, "", "", *_why_unread(path, exc, what))) from exc
    if (found := _exposed(path, mode, group=False)) is not None:
        raise ConfigError(Mistake(source, 0, "", "", *found))
    return raw.decode("latin-1")


def exposed(path: Path, *, group: bool = False) -> tuple[str, str] | None:
    """What is wrong with a secret's file that others can read, and the remedy; None where nothing is.

    With `group` its group may: a server's key is often kept so, for several programs that serve one name.
    """
    try:
        return _exposed(path, path.stat().st_mode, group=group)
    except OSError:
        return None  # whoever reads it has the better message


def _exposed(path: Path, mode: int, *, group: bool) -> tuple[str, str] | None:
    group = group or _is_credential(path)
    if os.name != "posix" or not mode & (0o037 if group else 0o077):
        return None
    remedy = f"run: chmod {'640' if group else '600'} {shlex.quote(str(path))}"
    return f"can be read by others (mode {stat.S_IMODE(mode):04o})", remedy


def _is_credential(path: Path) -> bool:
    """Whether it is one of those that systemd passes to this service alone: the group's bit of their mode shows only
    that an ACL names this user."""
    folder = credentials_folder()
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def show_file(path: Path) -> str:
    """The path for a message."""
    return NOT_SHOWN if looks_like_token(path.name) else str(path)


def looks_like_token(text: str) -> bool:
    """True for what might be a secret given where a file's name belongs."""
    return bool(_LIKE_A_TOKEN.fullmatch(text))


def _why_unread(path: Path, exc: Exception, what: str) -> tuple[str, str]:
    if looks_like_token(path.name) and isinstance(exc, FileNotFoundError):
        return "names no file and looks like a token itself", f"write {what} to a file and give the file's name"
    if isinstance(exc, FileNotFoundError):
        return "there is no such file", f"write {what} there, with `umask 077`, or give another file"
    why = exc.strerror if isinstance(exc, OSError) else None
    return f"cannot be read: {why or exc}", "give a file that this user can read"
