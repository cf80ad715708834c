"""What a unit says, as text. Pure; `plan` finds what goes into it, `files` writes it.

The service can do what a tunnel does and nothing else: it owns its state directory, sees no home, no device, no other
process and none of the rest of the disk but to read, has no capability (one, where it publishes ports below 1024), and
is given the files that it could not read otherwise. `systemd-analyze security` says how much that is.
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from attrs import frozen

from tunnel.addresses import HostPort
from tunnel.config.credentials import credential_name

Role = Literal["server", "client"]
WATCHDOG_SECONDS = 60  # a loop that stood still for so long does not come back; a machine that swaps does
START_SECONDS = 90  # the first start makes a key; a full disk or a slow one takes its time
RESTART_SECONDS = 2
MAX_RESTART_SECONDS = 60
STOP_MARGIN_SECONDS = 15  # after the visitors' time is up: goodbyes, the log, the interpreter's end
DESCRIPTORS = 524_288  # what systemd allows a service at most; each visitor takes one
BACKLOG = 4096
STEPS_SINCE = 254  # the version of systemd that knows RestartSteps=
_PLAIN_WORD = re.compile(r"(?:[A-Za-z0-9_./:=@,+-]|%%|\$\$)+")
_PROGRAM = re.compile(r"[^\"'\\$=;\x00-\x1f]+")

HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome= takes away
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  what PrivateTmp= does

Line = tuple[str, str]


def is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(folder in (path, *path.parents) for folder in folders)


def is_hidden(path: Path) -> bool:
    """Whether the sandbox shows nothing of it unless asked to."""
    return is_below(path, HOMES + TEMPORARY)


@frozen
class Service:
    """All that is written into the units of one service. `user` None: systemd makes one up (DynamicUser=).

    `credentials` are the files to be passed, `seen` hidden folders that it needs to read, `writable` folders beside its
    `state` (the name of a folder in /var/lib; None: it writes to none there). Of a user's own (`is_own`) service
    nothing is sandboxed that would need root.
    """

    role: Role
    name: str  # of the units, without their suffix
    command: tuple[str, ...]
    config: Path
    state: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    credentials: tuple[Path, ...] = ()
    seen: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    sockets: tuple[HostPort, ...] = ()
    low_ports: bool = False
    private_tmp: bool = True
    drain_seconds: float = 30.0
    systemd_version: int = 0  # 0: unknown, and then as old as is supported
    is_own: bool = False

    @property
    def unit(self) -> str:
        return f"{self.name}.service"

    @property
    def socket_unit(self) -> str:
        return f"{self.name}.socket"

    def texts(self) -> dict[str, str]:
        """Each unit's name and what it says, without the mark of `files`."""
        sections = {self.unit: [_unit(self), _service(self), _install(self)]}
        if self.sockets:
            sections[self.socket_unit] = [
                _socket_head(self),
                _socket(self),
                ("Install", [("WantedBy", "sockets.target")]),
            ]
        return {name: "\n".join(map(_section, found)) for name, found in sections.items()}


def _section(section: tuple[str, Iterable[Line]]) -> str:
    title, lines = section
    return "".join([f"[{title}]\n", *(f"\n# {text}\n" if key == "#" else f"{key}={text}\n" for key, text in lines)])


# Its sections: Unit, Install


def _unit(service: Service) -> tuple[str, Iterator[Line]]:
    def lines() -> Iterator[Line]:
        yield "Description", f"trio-tunnel {service.role} ({_escaped(service.config)})"
        if not service.is_own:  # a client waits for its network by itself, a server's addresses may come with it
            target = "network-online.target" if service.role == "server" else "network.target"
            if service.role == "server":
                yield "Wants", target
            yield "After", f"{target} nss-lookup.target"
        if service.sockets:
            yield "Requires", service.socket_unit
            yield "After", service.socket_unit
        yield "StartLimitIntervalSec", "0"  # tried for ever, ever more rarely: what is missing may come back at night

    return "Unit", lines()


def _install(service: Service) -> tuple[str, Iterable[Line]]:
    return "Install", [("WantedBy", "default.target" if service.is_own else "multi-user.target")]


# Service


def _service(service: Service) -> tuple[str, Iterator[Line]]:
    def lines() -> Iterator[Line]:
        yield from _process(service)
        yield from _identity(service)
        yield from _sandbox(service)

    return "Service", lines()


def _process(service: Service) -> Iterator[Line]:
    run = [*service.command, "serve" if service.role == "server" else "connect", "-c", str(service.config)]
    if service.state is not None:
        run += ["--state-dir", f"/var/lib/{service.state}"]
    check = [*service.command, "check", "--as", service.role, str(service.config)]
    yield "Type", "notify"
    yield "NotifyAccess", "main"
    yield "ExecStart", command_line(run)
    if service.config not in service.credentials:  # else it is the start's copy, which no reload changes
        yield "#", "A configuration with mistakes fails `systemctl reload`, says why, and changes nothing."
        yield "ExecReload", command_line(check)
        yield "ExecReload", "/bin/kill -HUP $MAINPID"
    yield "TimeoutStartSec", str(START_SECONDS)
    yield "WatchdogSec", str(WATCHDOG_SECONDS)
    yield "Restart", "always"
    yield "RestartSec", str(RESTART_SECONDS)
    if service.systemd_version >= STEPS_SINCE:
        yield "RestartSteps", "6"
        yield "RestartMaxDelaySec", str(MAX_RESTART_SECONDS)
    yield "RestartPreventExitStatus", "2"  # mistakes of the configuration: trying again mends none
    yield "#", "SIGTERM lets visitors inside finish; the process asks for more time where it needs it."
    yield "KillSignal", "SIGTERM"
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", str(math.ceil(service.drain_seconds) + STOP_MARGIN_SECONDS)
    yield "LimitNOFILE", str(DESCRIPTORS)
    yield "LimitCORE", "0"  # a dump of memory would hold tokens and keys


def _identity(service: Service) -> Iterator[Line]:
    if service.is_own:
        return
    yield "#", "Who it is, and what it owns and is given."
    if service.user is None:
        yield "DynamicUser", "yes"
    else:
        yield "User", service.user
    if service.groups:
        yield "SupplementaryGroups", " ".join(service.groups)
    if service.state is not None:
        yield "StateDirectory", service.state
        yield "StateDirectoryMode", "0700"
    for path in service.credentials:
        yield "LoadCredential", f"{credential_name(path)}:{_escaped(path)}"
    for path in service.writable:
        if is_hidden(path):
            yield "BindPaths", _bound(path)
        else:
            yield "ReadWritePaths", _quoted(path)
    yield "UMask", "0077"


SYSTEM_CALLS = ("@system-service", "~@privileged @resources")
UNPRIVILEGED: tuple[Line, ...] = (  # what needs no root to be set up
    ("NoNewPrivileges", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ("SystemCallArchitectures", "native"),
    *(("SystemCallFilter", calls) for calls in SYSTEM_CALLS),
    ("SystemCallErrorNumber", "EPERM"),
)
PRIVILEGED: tuple[Line, ...] = (
    ("ProtectSystem", "strict"),
    ("PrivateMounts", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
)


def _sandbox(service: Service) -> Iterator[Line]:
    yield "#", "What it cannot do."
    yield from UNPRIVILEGED
    if service.is_own:
        return
    yield from PRIVILEGED
    yield "PrivateTmp", "yes" if service.private_tmp else "no"
    capability = "CAP_NET_BIND_SERVICE" if service.low_ports else ""
    yield "CapabilityBoundingSet", capability
    yield "AmbientCapabilities", capability
    # In a user namespace of its own a capability means nothing outside, where the ports are.
    yield "PrivateUsers", "no" if service.low_ports else "yes"
    # An empty place in which only what it needs is shown, whoever may enter the real one.
    is_needed = any(is_below(path, HOMES) for path in (*service.seen, *service.writable))
    yield "ProtectHome", "tmpfs" if is_needed else "yes"
    for path in service.seen:
        yield "BindReadOnlyPaths", _bound(path)


# Socket


def _socket_head(service: Service) -> tuple[str, Iterable[Line]]:
    return "Unit", [("Description", f"trio-tunnel server, where clients connect ({_escaped(service.config)})")]


def _socket(service: Service) -> tuple[str, Iterator[Line]]:
    def lines() -> Iterator[Line]:
        for where in service.sockets:
            yield "ListenStream", str(where)
        yield "BindIPv6Only", "ipv6-only"
        yield "Backlog", str(BACKLOG)
        yield "FileDescriptorName", "clients"
        yield "FreeBind", "yes"  # an address that comes later is no reason not to start

    return "Socket", lines()


# Quoting, as systemd.syntax(7) and systemd.service(5) have it


def command_line(words: Iterable[str]) -> str:
    """A command that starts just so, whatever is in its words. Of a program's own name systemd takes less than of what
    comes behind it."""
    words = list(words)
    if not _PROGRAM.fullmatch(words[0]):
        words = ["/usr/bin/env", *words]
    return " ".join(_word(word) for word in words)


def _word(word: str) -> str:
    return _in_quotes_if_need_be(_escaped(word).replace("$", "$$"))


def _quoted(path: Path) -> str:
    return _in_quotes_if_need_be(_escaped(path))


def _bound(path: Path) -> str:
    return _quoted(path).replace(":", "\\:")


def _in_quotes_if_need_be(text: str) -> str:
    return text if _PLAIN_WORD.fullmatch(text) else _in_quotes(text)


def _in_quotes(text: str) -> str:
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{inner}"'


def _escaped(text: object) -> str:
    return str(text).replace("%", "%%")
