"""Installing and taking away the units of a service: what is done, told line by line. Used by the command `service`.

Whoever calls has looked first (`refuse_changed`); where systemd does not run, files are all there is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tunnel.errors import TunnelError
from tunnel.service.files import UnitFile
from tunnel.service.plan import Plan
from tunnel.service.systemctl import Systemctl

FOREIGN = "was changed by hand, or is not of `trio-tunnel service install`"
_CONFIG = re.compile(r"^ExecStart=.* -c (\S+|\"[^\"]*\")", re.MULTILINE)
_STATE = re.compile(r"^StateDirectory=(\S+)$", re.MULTILINE)
_WRITTEN = re.compile(r"^(?:ReadWritePaths|BindPaths)=(.+)$", re.MULTILINE)


def unit_files(plan: Plan, folder: Path) -> list[UnitFile]:
    """Those that are wanted, and the socket's of an earlier time, which is to go (its text is empty)."""
    texts = {plan.service.unit: "", plan.service.socket_unit: "", **plan.service.texts()}
    return [UnitFile(folder / name, text) for name, text in texts.items()]


def refuse_changed(files: Iterable[UnitFile], deed: str) -> None:
    """`TunnelError` if a person wrote one of them, or changed it."""
    changed = [str(file.path) for file in files if file.standing() == "changed"]
    if changed:
        raise TunnelError(
            f"{' and '.join(changed)} {FOREIGN}; nothing was done; look at it, and give --force to {deed} all the same"
        )


def put(files: Sequence[UnitFile], systemctl: Systemctl | None, *, start: bool) -> Iterator[str]:
    """Write what is wanted, take away what is not, and start it (or only enable it), again where it is another now.

    `systemctl` None: only the files."""
    is_other = False
    for file in files:
        standing = file.standing()
        if not file.text and standing == "absent":
            continue
        is_other = is_other or standing != "same"
        if not file.text:
            yield _take_away(file, systemctl)
        elif standing == "same":
            yield f"{file.path} is as it shall be"
        else:
            file.write()
            yield f"wrote {file.path}"
    units = [file.path.name for file in files if file.text]
    if systemctl is not None:
        yield _start(systemctl, units, restart=is_other, start=start)


def _start(systemctl: Systemctl, units: list[str], *, restart: bool, start: bool) -> str:
    systemctl.run("daemon-reload")
    systemctl.run("enable", "--quiet", *units)
    if not start:
        return f"it starts at the next boot, or with: {systemctl.line('start', *units)}"
    runs = any(systemctl.is_active(unit) for unit in units)
    if runs and restart:
        systemctl.run("stop", *units)  # the port changes hands where a socket comes or goes
    for unit in reversed(units):  # the socket first: it is what the service is given
        try:
            systemctl.run("start", unit)
        except TunnelError as exc:
            raise TunnelError(f"{unit} does not start; its log ends with:\n{systemctl.log_of(unit)}") from exc
    return f"{units[0]} {'was started again' if runs and restart else 'runs'}, and starts at every boot"


def lines_to_start(files: Sequence[UnitFile], systemctl: Systemctl, *, start: bool) -> str:
    """What a person types where systemd runs."""
    units = [file.path.name for file in files if file.text]
    enable = ["enable", *(["--now"] if start else []), *reversed(units)]
    return f"{systemctl.line('daemon-reload')} && {systemctl.line(*enable)}"


def take_away(files: Sequence[UnitFile], systemctl: Systemctl | None) -> Iterator[str]:
    """The reverse of `put`; what stays is told."""
    kept = list(_kept(files))
    for file in sorted(files, key=lambda file: file.path.suffix, reverse=True):  # the socket first: it starts the other
        yield _take_away(file, systemctl)
    if systemctl is not None:
        systemctl.run("daemon-reload")
    yield from kept


def _take_away(file: UnitFile, systemctl: Systemctl | None) -> str:
    if systemctl is not None:
        systemctl.run("disable", "--now", file.path.name)
        with suppress(TunnelError):  # it had not failed
            systemctl.run("reset-failed", file.path.name)
    file.remove()
    return f"removed {file.path}"


def _kept(files: Iterable[UnitFile]) -> Iterator[str]:
    for file in files:
        text = file.path.read_text("utf-8", "replace")
        if (config := _CONFIG.search(text)) is not None:
            yield f"kept: the configuration {config[1]}"
        if (state := _STATE.search(text)) is not None:
            yield f"kept: keys, tokens and chosen ports in /var/lib/{state[1]}"
        yield from (f"kept: what it wrote in {path}" for path in _WRITTEN.findall(text))
        if (changes := Path(f"{file.path}.d")).is_dir():
            yield f"kept: your changes in {changes}"
