"""What has to stand in the units of one service, from its configuration and from who is to run it. Used by the command
`service`."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from attrs import field, frozen

from tunnel.addresses import HostPort, is_ip
from tunnel.config import ClientConfig, ServerConfig
from tunnel.config.credentials import noting
from tunnel.config.file import check_file, load_client, load_server
from tunnel.errors import ConfigError, Mistake, TunnelError
from tunnel.service.access import Eyes, Program
from tunnel.service.unit import HOMES, TEMPORARY, Role, Service, is_below, is_hidden

STATE_HOME = Path("/var/lib")
LOW_PORTS = range(1, 1024)  # what needs a capability to be bound
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}\Z")


@frozen
class Wish:
    """What a person asked for. `low_ports` None: as the configuration needs it."""

    role: Role
    config: Path
    instance: str = ""
    user: str | None = None
    groups: tuple[str, ...] = ()
    socket: bool = False
    low_ports: bool | None = None
    is_own: bool = False

    @property
    def name(self) -> str:
        if self.instance and not _INSTANCE.match(self.instance):
            raise TunnelError(f"--name {self.instance!r:.80} is no name; use letters, digits, dots and dashes")
        return "-".join(filter(None, ("trio-tunnel", self.role, self.instance)))


@frozen
class Plan:
    """A service, and what a person should know of it."""

    service: Service
    state_dir: Path | None  # None: where this user's is by default
    notes: tuple[str, ...] = field(default=())


def make_plan(wish: Wish, program: Program, *, systemd_version: int = 0) -> Plan:
    """`ConfigError` where the configuration has mistakes, `TunnelError` where the service could not do its work."""
    path = Path(os.path.abspath(wish.config))
    name = wish.name
    _check_printable(path, *program.command, *program.folders)  # else a line of the unit would end there
    config, named, warnings = _read(path, wish.role)
    _check_printable(*named)
    notes = [f"warning: {warning}" for warning in warnings]
    if wish.is_own:
        service = Service(
            wish.role, name, program.command, path, sockets=_sockets(config, wish), is_own=True,
            drain_seconds=config.limits.drain_seconds, systemd_version=systemd_version,
        )  # fmt: skip
        return Plan(service, config.state_dir, tuple(notes))
    eyes = Eyes.of(wish.user, wish.groups)
    program.check(eyes)
    unseen = {one for one in (path, *named) if is_hidden(one) or not eyes.can_read(one)}
    if unseen & _pair(config):
        unseen |= _pair(config)  # a copy of the one with a renewed other would be no pair
    credentials = tuple(one for one in (path, *named) if one in unseen)
    notes += _words_of(credentials, path, config)
    state_dir = config.state_dir or STATE_HOME / _state_name(wish)
    sockets = _sockets(config, wish)
    service = Service(
        wish.role,
        name,
        program.command,
        path,
        state=_below_state_home(state_dir),
        user=wish.user,
        groups=wish.groups,
        credentials=credentials,
        seen=(*program.hidden, *_hidden_targets(config)),
        writable=_writable(config, state_dir, wish),
        sockets=sockets,
        low_ports=_needs_low_ports(config, sockets) if wish.low_ports is None else wish.low_ports,
        private_tmp=not any(is_below(target, TEMPORARY) for target in _unix_targets(config)),
        drain_seconds=config.limits.drain_seconds,
        systemd_version=systemd_version,
    )
    return Plan(service, state_dir, tuple(notes))


def _check_printable(*words: object) -> None:
    for word in map(str, words):
        if not word.isprintable():
            raise TunnelError(f"{word!r} has characters that no unit can hold; rename it")


def _read(path: Path, role: Role) -> tuple[ServerConfig | ClientConfig, list[Path], tuple[Mistake, ...]]:
    """What it says, which files it names, and what is doubtful in it."""
    with noting() as noted:
        report = check_file(path, role)
    if report.mistakes:
        raise ConfigError(*report.mistakes)
    config = load_server(path) if role == "server" else load_client(path, need_token=False)
    return config, [one for one in noted if one != path and one.exists()], report.warnings


def _words_of(credentials: tuple[Path, ...], path: Path, config: ServerConfig | ClientConfig) -> list[str]:
    if not credentials:
        return []
    shown = ", ".join(map(str, credentials))
    words = [f"the service's user cannot read {shown}: systemd passes it a copy at each start (LoadCredential=)"]
    if path in credentials:
        words.append(f"a change of {path} therefore counts from the next start on, not from a reload")
        if not is_hidden(path):
            words.append(f"if nothing in it is secret: chmod 644 {shlex.quote(str(path))}, and install it again")
    if _pair(config) & set(credentials):
        words.append(
            "a renewed certificate therefore counts from the next start on; for one without, let a group read the "
            "files, and name it with --group"
        )
    return words


def _pair(config: ServerConfig | ClientConfig) -> set[Path]:
    return {Path(os.path.abspath(one)) for one in (config.cert_file, config.key_file) if one is not None}


# State


def _state_name(wish: Wish) -> str:
    """The first server's is where the commands look for it when root gives them."""
    return "trio-tunnel" if wish.role == "server" and not wish.instance else wish.name


def _below_state_home(path: Path) -> str | None:
    path = Path(os.path.abspath(path))
    return str(path.relative_to(STATE_HOME)) if STATE_HOME in path.parents else None


def _writable(config: ServerConfig | ClientConfig, state_dir: Path, wish: Wish) -> tuple[Path, ...]:
    """Folders outside /var/lib that it writes to; only a named user can own such."""
    history = config.history.file
    wanted = [state_dir] if _below_state_home(state_dir) is None else []
    if history is not None and Path(os.path.abspath(history)).parent != Path(os.path.abspath(state_dir)):
        wanted.append(history.parent)
    if wanted and wish.user is None:
        raise TunnelError(
            f"a user that systemd makes up owns nothing outside {STATE_HOME}, and this one would write to "
            f"{wanted[0]}; leave that out of {wish.config}, or name a user that owns it with --user"
        )
    found = tuple(Path(os.path.abspath(one)) for one in wanted)
    _check_printable(*found)
    for one in found:
        if not one.is_dir():
            make = f"install -d -m 700 -o {wish.user} {shlex.quote(str(one))}"
            raise TunnelError(f"there is no folder {one}, where the service is to write; make it: {make}")
    return found


# Sockets, ports, targets


def _sockets(config: ServerConfig | ClientConfig, wish: Wish) -> tuple[HostPort, ...]:
    if not wish.socket:
        return ()
    if isinstance(config, ClientConfig):
        raise TunnelError("a client listens for nobody; --socket is for servers")
    for where in config.listen:
        if not is_ip(where.host) or "%" in where.host or not where.port:
            raise TunnelError(f"systemd cannot listen at {where}; write a numeric address and a port in {wish.config}")
    return config.listen


def _needs_low_ports(config: ServerConfig | ClientConfig, sockets: tuple[HostPort, ...]) -> bool:
    if isinstance(config, ClientConfig):
        return False
    if not sockets and any(where.port in LOW_PORTS for where in config.listen):
        return True
    ranges = [one for grant in config.clients for one in grant.allow_ports or ()]
    return any(one.first in LOW_PORTS for one in ranges)


def _unix_targets(config: ServerConfig | ClientConfig) -> Iterable[Path]:
    proxies = config.proxies if isinstance(config, ClientConfig) else ()
    return [Path(target.host) for proxy in proxies for target in proxy.targets if target.kind == "unix"]


def _hidden_targets(config: ServerConfig | ClientConfig) -> list[Path]:
    """The folders of sockets that are dialled below a home."""
    return [target.parent for target in _unix_targets(config) if is_below(target, HOMES) and target.parent.is_dir()]
