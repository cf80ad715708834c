"""What a server and a client are told to be: frozen values, the same for files, options and the Python API.

`config_file` reads them from TOML. Nothing here touches the disk.
"""

from pathlib import Path

from attrs import field, frozen

from tunnel.addresses import DEFAULT_PORT, HostPort, PortRange, Target
from tunnel.backoff import LinearPolicy, Policy, RetryPolicy
from tunnel.config.receivers import NoticeConfig as NoticeConfig

DEFAULT_ADMIN = HostPort("127.0.0.1", 8480)
LOG_LEVELS = ("debug", "info", "warning", "error")
TLS_VERSIONS = ("1.3", "1.2")  # the least that is spoken; the first is the default
FORWARD_SCHEMES = ("http", "socks5", "socks5h")


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
class PoolConfig:
    """How many connections a pool keeps ready, where, and for how long. Times in seconds.

    Between `min` and `max` it opens as many as arrivals and the time one takes to open call for. `max` counts those
    the pool has or will have again; one that was lent for good is its user's.
    """

    min: int = 0  # ready at any time, in all
    min_per_address: int = 0
    max: int = 64  # in all
    max_per_address: int = 64
    fill_rate: float = 50.0  # opened ahead of need, a second; a waiting user's own is not counted
    fill_concurrency: int = 16  # being opened ahead of need at a time
    max_age: float | None = 3600.0  # then replaced, the new one first
    age_jitter: float = 0.1  # the share by which an age may be shorter, so that not all end at once
    idle_limit: float | None = 60.0  # unused so long, those beyond `min` are closed
    probe_interval: float | None = 15.0  # unused so long, one is validated again
    open_seconds: float = 10.0  # deadline of a connection: resolve, dial, handshake
    validate_seconds: float = 5.0  # and of its validation
    wait_seconds: float = 10.0  # deadline of a whole request, retries among it
    lease_seconds: float | None = None  # lent for longer, it counts as leaked
    choice: str = "least_load"  # or "round_robin"
    quarantine: Policy = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None, jitter=0.2)
    retry: Policy = LinearPolicy(step=0.05, max_retries=3)  # within one request, before the first byte


# Two to each address, so that bulk streams have a channel of their own there (design §6); an hour is under any
# middlebox's patience with a flow, and moving streams costs nothing.
DATA_CHANNELS = PoolConfig(
    min=2, min_per_address=2, max=32, max_per_address=8, fill_rate=10.0, fill_concurrency=4, idle_limit=300.0
)
# Nothing is dialled ahead unless `hot` says so. Services close idle connections at 60 s and more (nginx 75, Apache 5).
# A visitor whose target refuses is closed in under 100 ms, so a retry comes at once or not at all.
HOT_TARGETS = PoolConfig(
    max=256, max_per_address=256, max_age=50.0, idle_limit=20.0, probe_interval=5.0, retry=LinearPolicy(0.02, 2)
)


@frozen
class HistoryConfig:
    """What is kept of the past (see `history`). `enabled` None: where there is a state directory; `file` None:
    ``history.sqlite`` there. A million rows are some 110 MB; a status change is one."""

    enabled: bool | None = None
    file: Path | None = None
    max_age_days: float = 90.0
    max_rows: int = 1_000_000


@frozen
class Grant:
    """One client identity at a server, and what its token allows. `token_sha256` is 32 bytes.

    Empty `allow_ports` allows no port; None allows any, which only tokens made by `serve` itself and `token new` have.
    `max_visitor_rate` is of new visitors a second, to all its proxies; more wait in the kernel's backlog.
    """

    name: str
    token_sha256: bytes = field(repr=False)
    allow_ports: tuple[PortRange, ...] | None = ()
    allow_addrs: tuple[str, ...] | None = None
    allow_names: tuple[str, ...] | None = None
    max_proxies: int = 1000
    max_visitors: int | None = None
    max_visitor_rate: float | None = None


@frozen
class ServerConfig:
    """`trio-tunnel serve`. Without `cert_file` and `key_file` a self-signed pair is kept in `state_dir`.

    With `client_ca_file` only clients with a certificate of that CA may shake hands, and need their token all the same.
    """

    listen: tuple[HostPort, ...] = (HostPort("0.0.0.0", DEFAULT_PORT),)  # noqa: S104  a public server listens to all
    state_dir: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    clients: tuple[Grant, ...] = ()
    bind_retry: Policy = RetryPolicy()
    admin: HostPort | None = None
    admin_required: bool = True  # False: the default address, which nobody asked for; taken, it costs a warning only
    admin_hosts: tuple[str, ...] = ()  # names by which it may be asked, beside IP addresses and localhost
    limits: Limits = Limits()
    client_ca_file: Path | None = None
    tls_min_version: str = "1.3"  # or "1.2"
    history: HistoryConfig = HistoryConfig()
    watch: bool = True  # changed files are read again by themselves (command line only)
    log_level: str | None = None  # one of LOG_LEVELS; None: info (command line only)
    proxy_protocol_from: tuple[str, ...] = ()  # addresses and CIDRs of balancers, whose PROXY header must come first
    notices: tuple[NoticeConfig, ...] = ()


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
    jitter: float = 0.1  # the share by which an interval may be shorter


@frozen
class ProxyConfig:
    """One published service: name, public address, and the targets only this client knows.

    When no target passes its `health_check`, `when_down` ``keep`` leaves the public port bound (visitors get a quick
    close), ``close`` releases it until one does. `pool` says how many unused connections to the targets are kept hot
    (`min`), how a target is chosen (`choice`), and how a dial is retried.
    """

    name: str
    publish: HostPort
    targets: tuple[Target, ...]
    bind_retry: Policy | None = None
    health_check: HealthCheck | None = None
    when_down: str = "keep"  # or "close"
    pool: PoolConfig = HOT_TARGETS


@frozen
class ForwardProxy:
    """A proxy that the client goes out by: `scheme` is ``http`` (CONNECT), ``socks5`` (the client looks names up) or
    ``socks5h`` (the proxy does, as with ``http``). Its user and password go to it in the clear."""

    scheme: str
    where: HostPort
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def resolves(self) -> bool:
        """Whether it gets names, and looks them up where it is."""
        return self.scheme != "socks5"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.where}"


@frozen
class ClientConfig:
    """`trio-tunnel connect`. Trust is `pin` (32 bytes), `ca_file`, both (then both must hold), or the system's CAs.

    `servers` are the addresses of one server; each name may stand for several, and all are used. `cert_file` and
    `key_file` are for a server that wants client certificates.
    """

    servers: tuple[HostPort, ...]
    token: str = field(repr=False)
    pin: bytes | None = None
    ca_file: Path | None = None
    proxies: tuple[ProxyConfig, ...] = ()
    admin: HostPort | None = None
    admin_hosts: tuple[str, ...] = ()  # names by which it may be asked, beside IP addresses and localhost
    state_dir: Path | None = None
    data_channels: PoolConfig = DATA_CHANNELS
    resolve_seconds: float = 60.0  # between look-ups of the servers' names
    history: HistoryConfig = HistoryConfig()
    watch: bool = True  # changed files are read again by themselves (command line only)
    log_level: str | None = None  # one of LOG_LEVELS; None: info (command line only)
    tls_stamp: str = field(default="", eq=False)  # changes with what the three files hold; for who reads them again
    limits: Limits = Limits()
    cert_file: Path | None = None
    key_file: Path | None = None
    tls_min_version: str = "1.3"  # or "1.2"
    notices: tuple[NoticeConfig, ...] = ()
    via: ForwardProxy | None = None  # whom every connection to the server goes through; targets are dialled directly
