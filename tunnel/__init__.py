"""trio-tunnel: a reverse tunnel that tells you, at every moment, whether each service can be reached, and why not.

    async with trio.open_nursery() as nursery:
        await nursery.start(tunnel.serve, tunnel.ServerConfig(state_dir=Path("state")))

    async with tunnel.connect(config) as client:
        async for status in client.follow(): ...

    async with tunnel.open_pool() as pool, pool.connect("https://example.org", to="192.0.2.7") as stream: ...

Everything runs in the caller's nursery and is cancelled with it.
"""

from typing import TYPE_CHECKING, Any

from tunnel.addresses import HostPort, PortRange, Target, parse_pin, parse_target
from tunnel.backoff import LinearPolicy, Policy, RetryBudget, RetryPolicy, exponential, linear
from tunnel.config import ClientConfig, ForwardProxy, Grant, HealthCheck, Limits, PoolConfig, ProxyConfig, ServerConfig
from tunnel.errors import (
    ConfigError,
    LocalProtocolError,
    Mistake,
    PeerLost,
    Refused,
    RemoteProtocolError,
    TunnelError,
)
from tunnel.version import __version__

if TYPE_CHECKING:
    from tunnel.api import Client, Server, connect, hash_token, serve
    from tunnel.faults import Fault
    from tunnel.messages import ProxyStatusUpdate, Reason, Status
    from tunnel.pool import Unavailable
    from tunnel.pool.connections import ConnectionPool, WarmUp, open_pool
    from tunnel.pool.http_check import http_check
    from tunnel.pool.stream import PooledStream

__all__ = [
    "Client",
    "ClientConfig",
    "ConfigError",
    "ConnectionPool",
    "Fault",
    "ForwardProxy",
    "Grant",
    "HealthCheck",
    "HostPort",
    "Limits",
    "LinearPolicy",
    "LocalProtocolError",
    "Mistake",
    "PeerLost",
    "Policy",
    "PoolConfig",
    "PooledStream",
    "PortRange",
    "ProxyConfig",
    "ProxyStatusUpdate",
    "Reason",
    "Refused",
    "RemoteProtocolError",
    "RetryBudget",
    "RetryPolicy",
    "Server",
    "ServerConfig",
    "Status",
    "Target",
    "TunnelError",
    "Unavailable",
    "WarmUp",
    "__version__",
    "connect",
    "exponential",
    "hash_token",
    "http_check",
    "linear",
    "open_pool",
    "parse_pin",
    "parse_target",
    "serve",
]

_LATER = {
    "Client": "api", "Server": "api", "connect": "api", "hash_token": "api", "serve": "api",
    "ProxyStatusUpdate": "messages", "Reason": "messages", "Status": "messages",
    "Fault": "faults",
    "ConnectionPool": "pool.connections", "WarmUp": "pool.connections", "open_pool": "pool.connections",
    "PooledStream": "pool.stream", "Unavailable": "pool.core", "http_check": "pool.http_check",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load what needs Trio or TLS at its first use: `check`, `status` and the pure parts do without them."""
    if name not in _LATER:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tunnel.{_LATER[name]}"), name)
