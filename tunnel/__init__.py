"""trio-tunnel: a reverse tunnel that tells you, at every moment, whether each service can be reached, and why not.

    async with trio.open_nursery() as nursery:
        await nursery.start(tunnel.serve, tunnel.ServerConfig(state_dir=Path("state")))

    async with tunnel.connect(config) as client:
        async for status in client.follow(): ...

Everything runs in the caller's nursery and is cancelled with it.
"""

from typing import TYPE_CHECKING, Any

from tunnel.addresses import HostPort, PortRange, Target, parse_pin, parse_target
from tunnel.backoff import LinearPolicy, Policy, RetryBudget, RetryPolicy, exponential, linear
from tunnel.config import ClientConfig, Grant, HealthCheck, Limits, ProxyConfig, ServerConfig
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
    from tunnel.messages import ProxyStatusUpdate, Reason, Status

__all__ = [
    "Client",
    "ClientConfig",
    "ConfigError",
    "Grant",
    "HealthCheck",
    "HostPort",
    "Limits",
    "LinearPolicy",
    "LocalProtocolError",
    "Mistake",
    "PeerLost",
    "Policy",
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
    "__version__",
    "connect",
    "exponential",
    "hash_token",
    "linear",
    "parse_pin",
    "parse_target",
    "serve",
]

_LATER = {
    "Client": "api", "Server": "api", "connect": "api", "hash_token": "api", "serve": "api",
    "ProxyStatusUpdate": "messages", "Reason": "messages", "Status": "messages",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load what runs on Trio at its first use: `check`, `status` and the pure parts do without it."""
    if name not in _LATER:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tunnel.{_LATER[name]}"), name)
