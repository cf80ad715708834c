"""The files that `trio-tunnel init` writes. Lines that begin with ``#`` and no space are settings with their defaults,
or examples, to be uncommented; `check` accepts the text as it is."""

from typing import Literal


def init_text(kind: Literal["server", "client"]) -> str:
    """A config file to begin with, explained."""
    return _SERVER if kind == "server" else _CLIENT


_SERVER = """\
# trio-tunnel server: trio-tunnel serve -c server.toml
# After a change: trio-tunnel check server.toml
# Relative paths start at the directory of this file. Times are in seconds.

bind_addr = "0.0.0.0"  # where clients connect to; "::" for IPv6
bind_port = 8443
# Instead, for several addresses: listen = ["0.0.0.0:8443", "[::]:8443"]

# Certificate, key and admin token made by the server itself live here.
#state_dir = "/var/lib/trio-tunnel"

# Without a certificate of your own the server makes one, and clients trust it by its pin.
#[tls]
#cert_file = "cert.pem"
#key_file = "key.pem"

# One entry for each client. `trio-tunnel token new home` prints the token, once, and what to put here.
#[[clients]]
#name = "home"
#token_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
#allow_ports = ["8000-8999", "9443"]  # without it, none
#allow_addrs = ["0.0.0.0"]  # public addresses it may use; without it, any
#allow_names = ["web", "ssh"]  # names its proxies may have; without it, any
#max_proxies = 1000
#max_visitors = 500  # at the same time; without it, what the server's own limits leave

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

# The token, alone in a file that only you can read: (umask 077; cat > home.token)
# Without this line it is taken from the environment, TRIO_TUNNEL_TOKEN.
token_file = "home.token"

# Whom to trust: the server's pin, as `trio-tunnel serve` prints it, or a CA's certificate. With both, both must hold;
# with neither, the system's CAs decide.
#pin = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
#ca_file = "ca.pem"

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
#[proxies.pool]
#max = 64
#max_per_address = 64
#min_per_address = 0
#fill_rate = 50  # opened ahead of need, a second
#fill_concurrency = 16  # at a time
#max_age = 300  # then replaced, the new one first; or "never"
#age_jitter = 0.1
#idle_limit = 50  # those beyond `min` are closed when unused for so long; or "never"
#probe_interval = 5  # unused ones are looked at again; or "never"
#open_seconds = 10
#validate_seconds = 5
#wait_seconds = 10  # for a visitor's connection, retries among it
#[proxies.pool.quarantine]  # of a target that failed, before one connection tries it again
#type = "exponential"  # or "linear", with step and max_retries
#initial_delay = 1
#factor = 2
#max_delay = 30
#max_retries = "forever"
#jitter = 0.2
#[proxies.pool.retry]  # within one visitor's wait, before its first byte
#type = "linear"
#step = 0.05
#max_retries = 3

# Connections kept open to the server for visitors' bytes. data_channels = 2 at the top is short for min.
#[data_channels]
#min = 2
#min_per_address = 1
#max = 16
#max_per_address = 8
#fill_rate = 10
#fill_concurrency = 4
#max_age = 3600  # seconds, then replaced, the new one first; or "never"
#age_jitter = 0.1
#idle_limit = 300  # or "never"
#probe_interval = 15  # or "never"
#open_seconds = 10
#validate_seconds = 5
#wait_seconds = 10
#choice = "least_load"  # or "round_robin"
#[data_channels.quarantine]  # of an address that failed, as above
#initial_delay = 1
#max_delay = 30
#[data_channels.retry]
#max_retries = 3

# Where `trio-tunnel status` asks, at the client; also /stats, /healthz and /readyz. None unless asked for.
#[admin]
#listen = "127.0.0.1:8480"

#[limits]
#dial_seconds = 10  # to a target
#drain_seconds = 30
"""
