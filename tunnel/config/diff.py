"""What a changed configuration means for a running process: a list of `actions`, or for what only a start can change
a word that says so. Pure; called by a reload.

`diff` and `applied` are two halves: `applied(old, diff(old, new))` is `new`, save what needs a restart and the order of
the proxies, which means nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any, assert_never, overload

from attrs import evolve, fields

from tunnel.config import ClientConfig, Limits, ProxyConfig, ServerConfig
from tunnel.config.actions import (
    Action,
    DropProxy,
    NeedsRestart,
    SetBindRetry,
    SetClients,
    SetDataChannels,
    SetLimits,
    SetLogLevel,
    SetNotices,
    SetProxy,
    SetResolveSeconds,
    SetServers,
    SetTargets,
    SetTls,
    SetToken,
    SetTrust,
    show,
)  # fmt: skip

_CLIENT_AT_START = ("admin", "admin_hosts", "state_dir", "history", "watch")
_PATHS = {"admin": "admin.listen", "admin_hosts": "admin.hosts"}  # of fields whose key is called otherwise
_SERVER_AT_START = ("listen", "proxy_protocol_from", "admin", "admin_hosts", "state_dir", "history", "watch")
_TRUST = {  # the fields of `SetTrust`, and what they are to people
    "pin": "pin", "ca_file": "ca_file", "cert_file": "cert_file", "key_file": "key_file",
    "tls_min_version": "tls.min_version", "via": "proxy", "tls_stamp": "content of ca_file, cert_file or key_file",
}  # fmt: skip
_TLS = ("cert_file", "key_file", "client_ca_file", "tls_min_version")
_NEVER_SHOWN = ("history",)


@overload
def diff(old: ClientConfig, new: ClientConfig) -> tuple[Action, ...]: ...
@overload
def diff(old: ServerConfig, new: ServerConfig) -> tuple[Action, ...]: ...
def diff(old: ClientConfig | ServerConfig, new: ClientConfig | ServerConfig) -> tuple[Action, ...]:
    """What has to be done so that a process that runs with `old` runs with `new`. Nothing for equal ones."""
    if isinstance(old, ClientConfig) and isinstance(new, ClientConfig):
        return (*_client_changes(old, new), *_common(old, new), *_restarts(old, new, _CLIENT_AT_START))
    if isinstance(old, ServerConfig) and isinstance(new, ServerConfig):
        return (*_server_changes(old, new), *_common(old, new), *_restarts(old, new, _SERVER_AT_START))
    raise TypeError("a client's configuration cannot become a server's")


@overload
def applied(config: ClientConfig, actions: Iterable[Action]) -> ClientConfig: ...
@overload
def applied(config: ServerConfig, actions: Iterable[Action]) -> ServerConfig: ...
def applied(config: ClientConfig | ServerConfig, actions: Iterable[Action]) -> ClientConfig | ServerConfig:
    """The configuration of a process that has carried out `actions`; what needs a restart is as it was."""
    for action in actions:
        match action:
            case SetNotices(notices):
                config = evolve(config, notices=notices)
            case SetLimits(limits):
                config = evolve(config, limits=limits)
            case SetLogLevel(level):
                config = evolve(config, log_level=level)
            case _ if isinstance(config, ServerConfig):
                config = _applied_to_server(config, action)
            case _:
                config = _applied_to_client(config, action)
    return config


def _applied_to_server(config: ServerConfig, action: Action) -> ServerConfig:
    match action:
        case SetBindRetry(policy):
            return evolve(config, bind_retry=policy)
        case SetClients(clients):
            return evolve(config, clients=clients)
        case SetTls():
            return evolve(config, **{key: getattr(action, key) for key in _TLS})
        case _:
            return config


def _applied_to_client(config: ClientConfig, action: Action) -> ClientConfig:
    match action:
        case SetServers(servers):
            return evolve(config, servers=servers)
        case SetResolveSeconds(seconds):
            return evolve(config, resolve_seconds=seconds)
        case SetDataChannels(pool):
            return evolve(config, data_channels=pool)
        case SetProxy(proxy):
            others = {one.name: one for one in config.proxies}
            return evolve(config, proxies=tuple({**others, proxy.name: proxy}.values()))
        case SetTargets(name, targets, pool, check):
            return evolve(
                config,
                proxies=tuple(
                    evolve(one, targets=targets, pool=pool, health_check=check) if one.name == name else one
                    for one in config.proxies
                ),
            )
        case DropProxy(name):
            return evolve(config, proxies=tuple(one for one in config.proxies if one.name != name))
        case SetToken(token):
            return evolve(config, token=token)
        case SetTrust():
            return evolve(config, **{key: getattr(action, key) for key in _TRUST})
        case SetBindRetry() | SetClients() | SetTls() | SetNotices() | SetLimits() | SetLogLevel() | NeedsRestart():
            return config
        case _:
            assert_never(action)


def _client_changes(old: ClientConfig, new: ClientConfig) -> Iterator[Action]:
    if old.servers != new.servers:
        yield SetServers(new.servers)
    if old.resolve_seconds != new.resolve_seconds:
        yield SetResolveSeconds(new.resolve_seconds)
    if old.data_channels != new.data_channels:
        yield SetDataChannels(new.data_channels)
    if trust := tuple(shown for key, shown in _TRUST.items() if getattr(old, key) != getattr(new, key)):
        yield SetTrust(**{key: getattr(new, key) for key in _TRUST}, changed=trust)
    if old.token != new.token:
        yield SetToken(new.token)
    before, after = ({proxy.name: proxy for proxy in config.proxies} for config in (old, new))
    for name in before:  # first, for a port that one proxy leaves may be another's now
        if name not in after:
            yield DropProxy(name)
    for name, proxy in after.items():
        if name not in before:
            yield SetProxy(proxy, is_new=True)
        elif _public_part(proxy) != _public_part(before[name]):
            yield SetProxy(proxy)
        elif proxy != before[name]:
            yield SetTargets(name, proxy.targets, proxy.pool, proxy.health_check)


def _public_part(proxy: ProxyConfig) -> tuple[object, ...]:
    """What the server acts on."""
    return proxy.publish, proxy.bind_retry, proxy.when_down, proxy.health_check is not None


def _server_changes(old: ServerConfig, new: ServerConfig) -> Iterator[Action]:
    # `admin_required` is looked at only when the admin address is bound: no difference to a process that runs.
    if old.bind_retry != new.bind_retry:
        yield SetBindRetry(new.bind_retry)
    before, after = ({grant.name: grant for grant in config.clients} for config in (old, new))
    if before != after:
        yield SetClients(
            new.clients,
            new=tuple(name for name in after if name not in before),
            gone=tuple(name for name in before if name not in after),
            other=tuple(name for name, grant in after.items() if before.get(name, grant) != grant),
        )
    if any(getattr(old, key) != getattr(new, key) for key in _TLS):
        yield SetTls(new.cert_file, new.key_file, new.client_ca_file, new.tls_min_version)


def _common(old: ClientConfig | ServerConfig, new: ClientConfig | ServerConfig) -> Iterator[Action]:
    if old.notices != new.notices:
        yield SetNotices(new.notices)
    if old.log_level != new.log_level:
        yield SetLogLevel(new.log_level)
    if old.limits != new.limits:
        pairs = ((one.name, getattr(old.limits, one.name), getattr(new.limits, one.name)) for one in fields(Limits))
        words = (f"{name} is {_limit(now)} ({_limit(before)} before)" for name, before, now in pairs if now != before)
        yield SetLimits(new.limits, tuple(words))


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"


def _restarts(
    old: ClientConfig | ServerConfig, new: ClientConfig | ServerConfig, keys: tuple[str, ...]
) -> Iterator[NeedsRestart]:
    for key in keys:
        yield from _restart(key, getattr(old, key), getattr(new, key))


def _restart(key: str, old: Any, new: Any) -> Iterator[NeedsRestart]:
    if old == new:
        return
    path = _PATHS.get(key, key)
    shown = ("", "") if key in _NEVER_SHOWN else (show(old), show(new))
    yield NeedsRestart(path, *(("", "") if shown[0] == shown[1] else shown))
