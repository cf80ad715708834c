"""What is to be done in a running process whose configuration has changed: one value for each kind of change, with the
words in which it is told. Made by `diff`; carried out by `Client.apply` and `Server.apply`. Pure.
"""

from pathlib import Path
from typing import Any

from attrs import field, frozen

from tunnel.addresses import HostPort, Target
from tunnel.backoff import Policy
from tunnel.config import ForwardProxy, Grant, HealthCheck, Limits, NoticeConfig, PoolConfig, ProxyConfig

MAX_SHOWN = 100  # characters of a value in a message


def show(value: Any) -> str:
    """A value as people know it, on one line."""
    if isinstance(value, tuple):
        text = ", ".join(map(show, value)) or "none"
    elif isinstance(value, bytes):
        text = f"sha256:{value.hex()}"
    else:
        text = "none" if value is None else str(value)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


# Of a client


@frozen
class SetServers:
    """Other addresses of the server; a session on one that is missing moves to another."""

    servers: tuple[HostPort, ...]

    def __str__(self) -> str:
        return f"the server's addresses are {show(self.servers)}"


@frozen
class SetResolveSeconds:
    seconds: float

    def __str__(self) -> str:
        return f"names are looked up every {self.seconds:g} s"


@frozen
class SetDataChannels:
    pool: PoolConfig

    def __str__(self) -> str:
        return f"data channels: {self.pool.min} to {self.pool.max}, at most {self.pool.max_per_address} an address"


@frozen
class SetProxy:
    """A proxy that is new, or changed in what the server knows of it: its listener may start afresh."""

    proxy: ProxyConfig
    is_new: bool = field(default=False, eq=False)  # for the message only

    def __str__(self) -> str:
        return f"proxy '{self.proxy.name}' is {'new' if self.is_new else 'changed'}: {self.proxy.publish}"


@frozen
class SetTargets:
    """What a proxy has behind it: never touches its listener, nor streams that have their target."""

    name: str
    targets: tuple[Target, ...]
    pool: PoolConfig
    health_check: HealthCheck | None

    def __str__(self) -> str:
        return f"proxy '{self.name}' keeps its listener; its targets are {show(self.targets)}"


@frozen
class DropProxy:
    name: str

    def __str__(self) -> str:
        return f"proxy '{self.name}' is closed; visitors inside may finish"


@frozen
class SetToken:
    """A client's new session begins with it at once: who changes a token is about to revoke the old one."""

    token: str = field(repr=False)

    def __str__(self) -> str:
        return "the token is another one: a new session begins with it, at once"


@frozen
class SetTrust:
    """Whom a client takes for its server, what it shows of itself, and through whom it goes out: for connections that
    are opened from now on; those there are stay. `tls_stamp` changes with what the files hold."""

    pin: bytes | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    tls_min_version: str
    via: ForwardProxy | None
    tls_stamp: str
    changed: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        return f"connections to the server from now on go by another {', '.join(self.changed)}"


# Of a server


@frozen
class SetBindRetry:
    """Of a server, for proxies that bring none of their own."""

    policy: Policy

    def __str__(self) -> str:
        retries = "for ever" if self.policy.max_retries is None else f"{self.policy.max_retries} retries"
        return f"bind retry: {retries}, from the next one on"


@frozen
class SetClients:
    """Who may log in at a server, and what for; sessions under way are held to it. The names are for the message."""

    clients: tuple[Grant, ...]
    new: tuple[str, ...] = field(default=(), eq=False)
    gone: tuple[str, ...] = field(default=(), eq=False)
    other: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        said = [("new", self.new), ("removed", self.gone), ("changed", self.other)]
        return "clients: " + "; ".join(f"{word}: {show(names)}" for word, names in said if names)


@frozen
class SetTls:
    """A server's certificate, whom it asks for one, and the least version: for connections from now on. Where another
    CA's certificates are asked for, the sessions end, and come back with one."""

    cert_file: Path | None
    key_file: Path | None
    client_ca_file: Path | None
    tls_min_version: str

    def __str__(self) -> str:
        asked = "" if self.client_ca_file is None else f", and clients need one of {self.client_ca_file}"
        shown = "the one in the state directory" if self.cert_file is None else str(self.cert_file)
        return f"TLS {self.tls_min_version} at least; the certificate is {shown}{asked}"


# Of either


@frozen
class SetNotices:
    """Whom to tell what, on either side; receivers that stay so keep what they have been told."""

    notices: tuple[NoticeConfig, ...]

    def __str__(self) -> str:
        return f"notices go to {show(tuple(notice.name for notice in self.notices))}"


@frozen
class SetLimits:
    """All of ``[limits]``. `changed` says in words which differ; a session keeps the heartbeat it began with."""

    limits: Limits
    changed: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        return f"limits: {'; '.join(self.changed)}"


@frozen
class SetLogLevel:
    """None: as without one."""

    level: str | None

    def __str__(self) -> str:
        return f"log level: {self.level or 'info'}"


@frozen
class NeedsRestart:
    """A change that waits for a restart: the key path, and both values as people may see them (empty: a secret)."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        values = f" ({self.old} is in force, {self.new} in the file)" if self.old or self.new else ""
        return f"{self.path} needs a restart: it has changed{values}"


ClientAction = (
    SetServers | SetResolveSeconds | SetDataChannels | SetProxy | SetTargets | DropProxy | SetToken | SetTrust
)
ServerAction = SetBindRetry | SetClients | SetTls
Action = ClientAction | ServerAction | SetNotices | SetLimits | SetLogLevel | NeedsRestart
