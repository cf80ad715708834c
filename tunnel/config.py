"""What a server and a client are told to be: frozen values, the same for files, options and the Python API.

`config_file` reads them from TOML. Nothing here touches the disk.
"""

from pathlib import Path

from attrs import field, frozen

from tunnel.addresses import DEFAULT_PORT, HostPort, PortRange, Target
from tunnel.backoff import RetryPolicy

DEFAULT_ADMIN = HostPort("127.0.0.1", 8480)


@frozen
class Limits:
    """Bounds of one process (design §8); seconds and bytes. `max_visitors` None: derived from the descriptor limit."""

    max_visitors: int | None = None
    max_visitors_per_proxy: int | None = None
    buffer_budget: int = 256 * 1024 * 1024
    handshake_seconds: float = 10.0
    head_seconds: float = 5.0
    login_seconds: float = 10.0
    ticket_seconds: float = 10.0
    channel_wait_seconds: float = 10.0  # a visitor waits this long for a data channel
    dial_seconds: float = 10.0  # to a target
    half_closed_seconds: float = 900.0  # half-closed and silent
    drain_seconds: float = 30.0
    heartbeat_seconds: float = 10.0  # two misses and the peer is gone


@frozen
class Grant:
    """One client identity at a server, and what its token allows. `token_sha256` is 32 bytes.

    Empty `allow_ports` allows no port; None allows any, which only tokens made by `serve` itself and `token new` have.
    """

    name: str
    token_sha256: bytes = field(repr=False)
    allow_ports: tuple[PortRange, ...] | None = ()
    allow_addrs: tuple[str, ...] | None = None
    allow_names: tuple[str, ...] | None = None
    max_proxies: int = 1000
    max_visitors: int | None = None


@frozen
class ServerConfig:
    """`trio-tunnel serve`. Without `cert_file` and `key_file` a self-signed pair is kept in `state_dir`."""

    bind: HostPort = HostPort("0.0.0.0", DEFAULT_PORT)  # noqa: S104  a public server listens to all
    state_dir: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    clients: tuple[Grant, ...] = ()
    bind_retry: RetryPolicy = RetryPolicy()
    admin: HostPort | None = None
    admin_required: bool = True  # False: the default address, which nobody asked for; taken, it costs a warning only
    limits: Limits = Limits()


@frozen
class HealthCheck:
    """How a client asks whether a target answers: `type` is ``tcp``, ``tls`` or ``http`` (GET `path`, any of
    `expect_status`). Times in seconds; `rise`/`fall` are results in a row that change the verdict."""

    type: str = "tcp"
    path: str = "/"
    expect_status: tuple[int, ...] = (200, 201, 202, 203, 204, 205, 206, 301, 302, 303, 304, 307, 308)
    host: str | None = None
    interval: float = 5.0
    timeout: float = 3.0
    rise: int = 1
    fall: int = 2


@frozen
class ProxyConfig:
    """One published service: name, public address, and the targets only this client knows (the first that answers)."""

    name: str
    publish: HostPort
    targets: tuple[Target, ...]
    bind_retry: RetryPolicy | None = None
    health_check: HealthCheck | None = None


@frozen
class ClientConfig:
    """`trio-tunnel connect`. Trust is `pin` (32 bytes), `ca_file`, both (then both must hold), or the system's CAs."""

    server: HostPort
    token: str = field(repr=False)
    pin: bytes | None = None
    ca_file: Path | None = None
    proxies: tuple[ProxyConfig, ...] = ()
    admin: HostPort | None = None
    state_dir: Path | None = None
    data_channels: int = 2
    limits: Limits = Limits()
