"""The files that `trio-tunnel init` writes. Lines that begin with ``#`` and no space are settings with their defaults,
or examples, to be uncommented; `check` accepts the text as it is."""

from typing import Literal

from attrs import fields

from tunnel.backoff import LinearPolicy
from tunnel.config import DATA_CHANNELS, HOT_TARGETS, PoolConfig
from tunnel.config.notice_template import notices_text


def init_text(kind: Literal["server", "client"]) -> str:
    """A config file to begin with, explained."""
    if kind == "server":
        return _SERVER + notices_text(kind)
    targets = _pool_lines("proxies.pool", HOT_TARGETS, left_out=("min", "choice"))
    channels = _pool_lines("data_channels", DATA_CHANNELS)
    text = _CLIENT.replace("<the pool of targets>", targets).replace("<the pool of data channels>", channels)
    return text + notices_text(kind)


_POLICIES = ("quarantine", "retry")
_POOL_NOTES = {
    "min": "ready at any time, in all",
    "fill_rate": "opened ahead of need, a second",
    "fill_concurrency": "at a time",
    "max_age": 'then replaced, the new one first; or "never"',
    "age_jitter": "share of an age, 0 to 1, that chance may take away",
    "idle_limit": 'unused for so long, those beyond `min` are closed; or "never"',
    "probe_interval": 'unused for so long, one is tried; or "never"',
    "open_seconds": "until one is open",
    "validate_seconds": "and found good",
    "wait_seconds": "of a visitor, retries among it",
    "lease_seconds": "or a number: in use for longer, one is logged as leaked",
    "choice": 'or "round_robin"',
    "quarantine": "between tries of one that failed",
    "retry": "within a visitor's wait",
}


def _pool_lines(where: str, pool: PoolConfig, *, left_out: tuple[str, ...] = ()) -> str:
    """A pool's table with all its values, commented out; its policies are tables below it."""
    keys = [key.name for key in fields(PoolConfig) if key.name not in (*left_out, *_POLICIES)]
    lines = [f"#[{where}]", *(_line(key, _show(getattr(pool, key)), _POOL_NOTES.get(key)) for key in keys)]
    for key in _POLICIES:
        policy = getattr(pool, key)
        lines.append(f"#[{where}.{key}]  # {_POOL_NOTES[key]}")
        lines.append(_line("type", '"linear"' if isinstance(policy, LinearPolicy) else '"exponential"', None))
        values = {one.name: getattr(policy, one.name) for one in fields(type(policy))}
        lines += [_line(name, _show(value, none="forever"), None) for name, value in values.items()]
    return "\n".join(lines)


def _line(key: str, value: str, note: str | None) -> str:
    return f"#{key} = {value}" + (f"  # {note}" if note else "")


def _show(value: float | str | None, *, none: str = "never") -> str:
    if value is None or isinstance(value, str):
        return f'"{value or none}"'
    return f"{value:g}"


_SERVER = """\
# trio-tunnel server: trio-tunnel serve -c server.toml
# After a change: trio-tunnel check server.toml
# Relative paths start at the directory of this file. Times are in seconds.

bind_addr = "0.0.0.0"  # where clients connect to; "::" for IPv6
bind_port = 8443
# Instead, for several addresses: listen = ["0.0.0.0:8443", "[::]:8443"]

# Balancers in front of this server, if there are: each of their connections must begin with a PROXY header (version 1
# or 2), and the address in it is whom failed logins are held against. From anybody else the header is refused.
#proxy_protocol_from = ["10.0.0.0/8", "192.0.2.7"]

# This file is read again by itself when it has changed, as by SIGHUP, and so are the files that it names.
#watch = true
#log_level = "info"  # or "debug", "warning", "error"; -v goes over it

# Certificate, key and admin token made by the server itself live here.
#state_dir = "/var/lib/trio-tunnel"

# Without a certificate of your own the server makes one, and clients trust it by its pin. New files take effect by
# themselves within seconds, for connections from then on.
#[tls]
#cert_file = "cert.pem"
#key_file = "key.pem"  # others must not be able to read it
#client_ca_file = "ca.pem"  # then clients need a certificate of this CA, beside their token
#min_version = "1.3"  # or "1.2", where something in between cannot do better

# One entry for each client. `trio-tunnel token new home` prints the token, once, and what to put here. SIGHUP puts
# changes into force: what an entry does not allow any more is closed, the session of one that is gone ends.
#[[clients]]
#name = "home"
#token_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
#allow_ports = ["8000-8999", "9443"]  # without it, none
#allow_addrs = ["0.0.0.0"]  # public addresses it may use; without it, any
#allow_names = ["web", "ssh"]  # names its proxies may have; without it, any
#max_proxies = 1000
#max_visitors = 500  # at the same time; without it, what the server's own limits leave
#max_visitor_rate = 50  # new ones a second, others wait; without it, any

# How a proxy's public port is tried again while somebody else has it: after 2, 4, 8, 16, 32, 60, 60, … seconds.
# With type = "linear", step = 1 and max_retries = 4 instead: after 0, 1, 2, 3 seconds.
[bind_retry]
initial_delay = 2
factor = 2
max_delay = 60
max_retries = 10  # or "forever"
jitter = 0  # share of each wait, 0 to 1, that chance may take away

# Where `trio-tunnel status` asks; also /stats, /healthz and /readyz over HTTP.
[admin]
listen = "127.0.0.1:8480"  # "off" for none
#hosts = ["tunnel.internal"]  # names it may be asked by, beside IP addresses and localhost

# What is kept of each session and proxy, for `trio-tunnel history`: in the state directory, unless said otherwise. A
# change of a status is a row, and a million rows are some 110 MB.
#[history]
#enabled = true
#file = "history.sqlite"
#max_age_days = 90
#max_rows = 1000000

# Bounds of the whole process.
#[limits]
#max_visitors = 10000  # without it, as many as the descriptor limit allows
#max_visitors_per_proxy = 1000  # without it, as many as max_visitors allows
#buffer_budget = 268435456  # bytes
#handshake_seconds = 10
#head_seconds = 5
#login_seconds = 10
#ticket_seconds = 10
#channel_wait_seconds = 10  # a visitor waits this long for a data channel
#half_closed_seconds = 900  # a stream closed on one side, and silent
#drain_seconds = 30  # for those inside, when the server stops
#heartbeat_seconds = 10  # two misses and the client is gone
"""

_CLIENT = """\
# trio-tunnel client: trio-tunnel connect -c client.toml
# After a change: trio-tunnel check client.toml
# Relative paths start at the directory of this file. Times are in seconds.

server = "tunnel.example.com:8443"
# Instead, for several addresses of one server: servers = ["a.example.com:8443", "b.example.com:8443"]
#resolve_seconds = 60  # between look-ups of their names

# This file is read again by itself when it has changed, as by SIGHUP, and so are the files that it names.
#watch = true
#log_level = "info"  # or "debug", "warning", "error"; -v goes over it

# The token, alone in a file that only you can read: (umask 077; cat > home.token)
# Without this line it is taken from the environment, TRIO_TUNNEL_TOKEN.
token_file = "home.token"

# Whom to trust: the server's pin, as `trio-tunnel serve` prints it, or a CA's certificate. With both, both must hold;
# with neither, the system's CAs decide.
#pin = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
#ca_file = "ca.pem"

# What to show a server that wants client certificates. Others must not be able to read the key.
#cert_file = "cert.pem"
#key_file = "key.pem"

# A proxy to go out by, where nobody gets out without: http:// (CONNECT), socks5://, or socks5h:// (which looks names up
# itself); "env" takes the one of HTTPS_PROXY or ALL_PROXY. Its user:password stands in a file that only you can read.
#proxy = "http://proxy.example:3128"
#proxy_auth_file = "proxy.auth"

#state_dir = "/var/lib/trio-tunnel"

# One entry for each service.
[[proxies]]
name = "web"
publish_addr = "0.0.0.0"  # at the server; numeric
publish_port = 8001  # 0: the server chooses, tells, and keeps it for this name
target = "127.0.0.1:8080"  # or "tls://HOST:PORT", "unix:/path"
# Instead, for several; what stands in { } has all these keys, of which only target must be there:
# targets = ["10.0.0.8:8080", { target = "tls://nas.local:443", weight = 3, backup = true,
#   connect_to = "10.0.0.9:443", server_name = "nas.local" }]
#balance = "least_load"  # how one of several is chosen for a visitor; or "round_robin"
#hot = 0  # connections to the targets that are kept ready, unused, for visitors to come
#when_down = "keep"  # the public port, while a health check finds no target up; or "close"

# The service counts as healthy only while its target answers.
#[proxies.health_check]
#type = "http"  # or "tcp", "tls"
#path = "/healthz"
#expect_status = [200, 204]
#host = "www.example.com"
#interval = 5
#timeout = 3
#rise = 1  # good answers in a row until it is up
#fall = 2  # bad ones until it is down
#jitter = 0.1  # share of each interval, 0 to 1, that chance may take away

# How the server tries again while the public port is taken; without it, as the server is set.
#[proxies.bind_retry]
#initial_delay = 2
#factor = 2
#max_delay = 60
#max_retries = 3
#jitter = 0

# The hot connections to targets, in detail; `min` and `choice` stand for hot and balance above.
<the pool of targets>

# Connections kept open to the server for visitors' bytes. data_channels = 2 at the top is short for min.
<the pool of data channels>

# Where `trio-tunnel status` asks, at the client; also /stats, /healthz and /readyz. None unless asked for.
#[admin]
#listen = "127.0.0.1:8480"
#hosts = ["tunnel.internal"]  # names it may be asked by, beside IP addresses and localhost

# What is kept of each proxy, for `trio-tunnel history`: where there is a state directory, unless said otherwise.
#[history]
#enabled = true
#file = "history.sqlite"
#max_age_days = 90
#max_rows = 1000000

#[tls]
#min_version = "1.3"  # or "1.2", where something in between cannot do better

#[limits]
#dial_seconds = 10  # to a target
#drain_seconds = 30
"""
