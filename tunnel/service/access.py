"""What the service's user can read, and what its sandbox hides. Used by `plan`. Looks at the disk, changes nothing."""

import grp
import os
import pwd
import stat
import sys
import sysconfig
from pathlib import Path

from attrs import frozen

from tunnel.errors import TunnelError
from tunnel.service.unit import is_below, is_hidden


@frozen
class Eyes:
    """Who looks: a user (None: one that systemd makes up, and that owns nothing) with its groups."""

    user: int | None = None
    groups: frozenset[int] = frozenset()

    @classmethod
    def of(cls, user: str | None, groups: tuple[str, ...]) -> "Eyes":
        """`TunnelError` for a user or a group that there is not."""
        more = frozenset(_group(name) for name in groups)
        if user is None:
            return cls(None, more)
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            remedy = f"make it (useradd --system {user}), or leave --user out for one that systemd makes up"
            raise TunnelError(f"there is no user {user!r}; {remedy}") from None
        return cls(found.pw_uid, more | frozenset(os.getgrouplist(user, found.pw_gid)))

    def can_read(self, path: Path, *, below: Path = Path("/")) -> bool:
        """Whether a file or a folder can be read, where the folders above `below` are open. ACLs do not count."""
        path = Path(os.path.realpath(path))
        folders = [folder for folder in path.parents if folder == below or below in folder.parents]
        return self._may(path, stat.S_IROTH) and all(self._may(folder, stat.S_IXOTH) for folder in folders)

    def _may(self, path: Path, bit: int) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        if self.user == 0:
            return True
        if stat.S_ISDIR(found.st_mode):
            bit |= stat.S_IXOTH
        if found.st_uid == self.user:
            bit <<= 6
        elif found.st_gid in self.groups:
            bit <<= 3
        return found.st_mode & bit == bit


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise TunnelError(f"there is no group {name!r}; make it: groupadd --system {name}") from None


@frozen
class Program:
    """This very program: the command that starts it, and the folders it consists of."""

    command: tuple[str, ...]
    folders: tuple[Path, ...]

    @classmethod
    def this(cls) -> "Program":
        script = Path(sysconfig.get_path("scripts"), "trio-tunnel")
        command = (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-P", "-m", "tunnel")
        package = Path(__file__).resolve().parents[2]  # elsewhere than the rest where it is being worked on
        python = Path(os.path.realpath(sys.executable)).parent
        folders = dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), python, package))
        return cls(command, tuple(folder for folder in folders if not is_below(folder, _others(folder, folders))))

    @property
    def hidden(self) -> tuple[Path, ...]:
        return tuple(folder for folder in self.folders if is_hidden(folder))

    def check(self, eyes: Eyes) -> None:
        """`TunnelError` if the service's user could not start it."""
        for folder in self.folders:
            if not eyes.can_read(folder, below=folder if is_hidden(folder) else Path("/")):
                raise TunnelError(
                    f"the service's user cannot read {folder}, of which this program consists; "
                    f"install trio-tunnel where everybody can read it, such as in /opt/trio-tunnel, or give --user"
                )


def _others(folder: Path, folders: dict[Path, None]) -> tuple[Path, ...]:
    return tuple(other for other in folders if other != folder)
