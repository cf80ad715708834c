"""What a changed configuration means for a running process: as little as possible, and never less than all."""

from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.addresses import HostPort, PortRange, Target
from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.config import (
    DATA_CHANNELS,
    HOT_TARGETS,
    ClientConfig,
    ForwardProxy,
    Grant,
    HealthCheck,
    HistoryConfig,
    Limits,
    NoticeConfig,
    PoolConfig,
    ProxyConfig,
    ServerConfig,
)
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
)
from tunnel.config.diff import applied, diff
from tunnel.config.receivers import Webhook

TOKEN = "s3cret-Token"
HERE = HostPort("a.example", 8443)
WEB = ProxyConfig("web", HostPort("0.0.0.0", 8001), (Target("tcp", "127.0.0.1", 80),))
SSH = ProxyConfig("ssh", HostPort("0.0.0.0", 8022), (Target("tcp", "127.0.0.1", 22),))
CLIENT = ClientConfig((HERE,), TOKEN, pin=bytes(32), proxies=(WEB, SSH))
SERVER = ServerConfig(clients=(Grant("home", b"\xaa" * 32),))
CHECK = HealthCheck("http")
OPS = NoticeConfig("ops", Webhook("https://hooks.example/s3cret-Token", b"s3cret-Token", (("X", "s3cret-Token"),)))
PROXY = ForwardProxy("http", HostPort("proxy.example", 3128), "me", "s3cret-Password")
NAS = Target("tls", "nas.local", 443, weight=2)


def web(**changes: Any) -> ClientConfig:
    """The client's configuration with its first proxy changed so."""
    return evolve(CLIENT, proxies=(evolve(WEB, **changes), SSH))


def restart(path: str, old: str, new: str) -> NeedsRestart:
    return NeedsRestart(path, old, new)


def trust(**changes: Any) -> SetTrust:
    """What makes connections go by this, and otherwise by what the client has."""
    usual: dict[str, Any] = {
        "pin": CLIENT.pin, "ca_file": None, "cert_file": None, "key_file": None, "tls_min_version": "1.3", "via": None,
        "tls_stamp": "",
    }  # fmt: skip
    return SetTrust(**{**usual, **changes})


OTHER = HostPort("b.example", 8443)
CLIENT_CHANGES: list[tuple[ClientConfig, list[Action]]] = [
    (CLIENT, []),
    (evolve(CLIENT, proxies=(SSH, WEB)), []),
    (evolve(CLIENT, servers=(HERE, OTHER)), [SetServers((HERE, OTHER))]),
    (evolve(CLIENT, resolve_seconds=5.0), [SetResolveSeconds(5.0)]),
    (evolve(CLIENT, data_channels=PoolConfig(min=3)), [SetDataChannels(PoolConfig(min=3))]),
    (evolve(CLIENT, proxies=(WEB,)), [DropProxy("ssh")]),
    (
        evolve(CLIENT, proxies=(WEB, evolve(SSH, name="shell"))),
        [DropProxy("ssh"), SetProxy(evolve(SSH, name="shell"), is_new=True)],
    ),
    (web(publish=HostPort("::", 8001)), [SetProxy(evolve(WEB, publish=HostPort("::", 8001)))]),
    (web(bind_retry=RetryPolicy()), [SetProxy(evolve(WEB, bind_retry=RetryPolicy()))]),
    (web(when_down="close"), [SetProxy(evolve(WEB, when_down="close"))]),
    (web(health_check=CHECK), [SetProxy(evolve(WEB, health_check=CHECK))]),
    (web(targets=(NAS,)), [SetTargets("web", (NAS,), HOT_TARGETS, None)]),
    (web(pool=DATA_CHANNELS), [SetTargets("web", WEB.targets, DATA_CHANNELS, None)]),
    (web(targets=(NAS,), when_down="close"), [SetProxy(evolve(WEB, targets=(NAS,), when_down="close"))]),
    (evolve(CLIENT, pin=b"\1" * 32), [trust(pin=b"\1" * 32)]),
    (evolve(CLIENT, ca_file=Path("/ca.pem")), [trust(ca_file=Path("/ca.pem"))]),
    (evolve(CLIENT, cert_file=Path("/c.pem")), [trust(cert_file=Path("/c.pem"))]),
    (evolve(CLIENT, key_file=Path("/k.pem")), [trust(key_file=Path("/k.pem"))]),
    (evolve(CLIENT, tls_min_version="1.2"), [trust(tls_min_version="1.2")]),
    (evolve(CLIENT, tls_stamp="of another content"), [trust(tls_stamp="of another content")]),
    (evolve(CLIENT, history=HistoryConfig(enabled=False)), [restart("history", "", "")]),
    (evolve(CLIENT, watch=False), [restart("watch", "True", "False")]),
    (evolve(CLIENT, log_level="debug"), [SetLogLevel("debug")]),
    (evolve(CLIENT, admin=HostPort("::1", 8480)), [restart("admin.listen", "none", "[::1]:8480")]),
    (evolve(CLIENT, admin_hosts=("a.example",)), [restart("admin.hosts", "none", "a.example")]),
    (evolve(CLIENT, state_dir=Path("/s")), [restart("state_dir", "none", "/s")]),
    (evolve(CLIENT, limits=Limits(dial_seconds=3.0)), [SetLimits(Limits(dial_seconds=3.0))]),
    (evolve(CLIENT, token="another"), [SetToken("another")]),
    (evolve(CLIENT, notices=(OPS,)), [SetNotices((OPS,))]),
    (evolve(CLIENT, via=PROXY), [trust(via=PROXY)]),
]


@pytest.mark.parametrize(("new", "actions"), CLIENT_CHANGES)
def test_each_change_of_a_client_is_the_least_action_that_makes_it(new: ClientConfig, actions: list[Action]) -> None:
    assert diff(CLIENT, new) == tuple(actions)


SERVER_CHANGES: list[tuple[ServerConfig, list[Action]]] = [
    (SERVER, []),
    (evolve(SERVER, admin_required=False), []),
    (evolve(SERVER, bind_retry=LinearPolicy()), [SetBindRetry(LinearPolicy())]),
    (evolve(SERVER, listen=(HERE, OTHER)), [restart("listen", "0.0.0.0:8443", "a.example:8443, b.example:8443")]),
    (evolve(SERVER, cert_file=Path("/c")), [SetTls(Path("/c"), None, None, "1.3")]),
    (evolve(SERVER, key_file=Path("/k")), [SetTls(None, Path("/k"), None, "1.3")]),
    (evolve(SERVER, client_ca_file=Path("/ca")), [SetTls(None, None, Path("/ca"), "1.3")]),
    (evolve(SERVER, tls_min_version="1.2"), [SetTls(None, None, None, "1.2")]),
    (evolve(SERVER, proxy_protocol_from=("::1",)), [restart("proxy_protocol_from", "none", "::1")]),
    (evolve(SERVER, state_dir=Path("/s")), [restart("state_dir", "none", "/s")]),
    (evolve(SERVER, admin=HostPort("::1", 1)), [restart("admin.listen", "none", "[::1]:1")]),
    (evolve(SERVER, admin_hosts=("a.example",)), [restart("admin.hosts", "none", "a.example")]),
    (evolve(SERVER, clients=()), [SetClients(())]),
    (evolve(SERVER, clients=(Grant("home", bytes(32)),)), [SetClients((Grant("home", bytes(32)),))]),
    (evolve(SERVER, limits=Limits(max_visitors=9)), [SetLimits(Limits(max_visitors=9))]),
    (evolve(SERVER, history=HistoryConfig(max_rows=5000)), [restart("history", "", "")]),
    (evolve(SERVER, watch=False), [restart("watch", "True", "False")]),
    (evolve(SERVER, log_level="error"), [SetLogLevel("error")]),
    (evolve(SERVER, notices=(OPS,)), [SetNotices((OPS,))]),
]


@pytest.mark.parametrize(("new", "actions"), SERVER_CHANGES)
def test_each_change_of_a_server_is_told_or_done(new: ServerConfig, actions: list[Action]) -> None:
    assert diff(SERVER, new) == tuple(actions)


def test_a_check_that_changes_touches_no_listener_but_one_that_comes_or_goes_is_told_to_the_server() -> None:
    checked, other = web(health_check=CHECK), web(health_check=evolve(CHECK, interval=1.0))
    assert diff(checked, other) == (SetTargets("web", WEB.targets, HOT_TARGETS, evolve(CHECK, interval=1.0)),)
    assert diff(checked, CLIENT) == (SetProxy(WEB),)


def test_proxies_are_closed_before_others_open_for_they_may_take_over_a_port() -> None:
    new = evolve(CLIENT, proxies=(evolve(WEB, name="new"), SSH))
    assert [type(action) for action in diff(CLIENT, new)] == [DropProxy, SetProxy]


def test_what_needs_a_restart_stays_as_it_is_and_is_told_again_the_next_time() -> None:
    new = evolve(CLIENT, watch=False, resolve_seconds=1.0)
    now = applied(CLIENT, diff(CLIENT, new))
    assert (now.watch, now.resolve_seconds) == (True, 1.0)
    assert diff(now, new) == (NeedsRestart("watch", "True", "False"),)


def test_every_field_of_both_configurations_is_looked_at() -> None:
    """A field that is added later must be live, or say that it needs a restart."""
    seen = {"client": {"proxies"}, "server": {"admin_required"}}
    for kind, config, changes in (("client", CLIENT, CLIENT_CHANGES), ("server", SERVER, SERVER_CHANGES)):
        for new, actions in changes:
            if actions:
                seen[kind] |= {
                    one.name
                    for one in attrs.fields(type(config))
                    if getattr(new, one.name) != getattr(config, one.name)
                }
        assert seen[kind] == {one.name for one in attrs.fields(type(config))}


def test_no_secret_is_ever_shown() -> None:
    changed = evolve(CLIENT, token="another-secret", proxies=(), notices=(OPS,))
    shown = [
        *(text for action in diff(CLIENT, changed) for text in (str(action), repr(action))),
        *(text for action in diff(SERVER, ServerConfig()) for text in (str(action), repr(action))),
    ]
    assert len(shown) == 10
    assert not any(secret in text for text in shown for secret in (TOKEN, "another-secret", "aaaa", "xaa"))


def test_what_became_of_each_client_is_said_by_its_name() -> None:
    home, lab, office = (Grant(name, bytes([number]) * 32) for number, name in enumerate(("home", "lab", "office")))
    old, new = evolve(SERVER, clients=(home, lab)), evolve(SERVER, clients=(office, evolve(home, max_proxies=1)))
    assert list(map(str, diff(old, new))) == ["clients: new: office; removed: lab; changed: home"]
    assert diff(old, evolve(old, clients=(lab, home))) == ()


def test_every_action_says_on_one_short_line_what_it_means() -> None:
    targets = tuple(Target("unix", f"/run/{n}\n") for n in range(99))
    of_client = [action for new, _ in CLIENT_CHANGES for action in diff(CLIENT, new)]
    actions = [*of_client, *(action for new, _ in SERVER_CHANGES for action in diff(SERVER, new))]
    lines = [str(action) for action in [*actions, SetTargets("web", targets, HOT_TARGETS, None)]]
    assert all(line.isprintable() and len(line) < 250 for line in lines)
    assert "limits: dial_seconds is 3 (10 before)" in lines
    assert "limits: max_visitors is 9 (none before)" in lines
    assert "watch needs a restart: it has changed (True is in force, False in the file)" in lines
    assert "connections to the server from now on go by another ca_file" in lines
    assert "proxy 'shell' is new: 0.0.0.0:8022" in lines


def test_a_clients_configuration_cannot_become_a_servers() -> None:
    with pytest.raises(TypeError):
        diff(CLIENT, SERVER)  # type: ignore[call-overload]


# Any two configurations

few = st.sampled_from
policies = few([RetryPolicy(), RetryPolicy(max_retries=None), LinearPolicy()])
pools = st.builds(PoolConfig, min=few([0, 3]), max_age=few([None, 60.0]), retry=policies)
targets = st.lists(few([Target("tcp", "::1", 80), NAS, Target("unix", "/run/x")]), min_size=1, max_size=2).map(tuple)
proxies = st.builds(
    ProxyConfig,
    name=few(["a", "b", "c", "d"]),
    publish=few([HERE, OTHER]),
    targets=targets,
    bind_retry=st.none() | policies,
    health_check=few([None, CHECK, HealthCheck()]),
    when_down=few(["keep", "close"]),
    pool=pools,
)
clients = st.builds(
    ClientConfig,
    servers=few([(HERE,), (HERE, OTHER)]),
    token=st.just(TOKEN),
    proxies=st.lists(proxies, max_size=4, unique_by=lambda proxy: proxy.name).map(tuple),
    data_channels=pools,
    resolve_seconds=few([5.0, 60.0]),
)
servers = st.builds(
    ServerConfig,
    listen=few([(HERE,), (HERE, OTHER)]),
    clients=few([(), (Grant("a", bytes(32), allow_ports=(PortRange(1, 2),)),), (Grant("a", bytes(32)),)]),
    bind_retry=policies,
    cert_file=few([None, Path("/c")]),
    client_ca_file=few([None, Path("/ca")]),
    tls_min_version=few(["1.2", "1.3"]),
    limits=few([Limits(), Limits(max_visitors=3)]),
)


def in_order(config: ClientConfig) -> ClientConfig:
    return evolve(config, proxies=tuple(sorted(config.proxies, key=lambda proxy: proxy.name)))


@given(clients, clients)
@settings(max_examples=80, deadline=None)
def test_a_client_that_carries_out_all_actions_is_as_the_new_configuration_says(
    old: ClientConfig, new: ClientConfig
) -> None:
    actions = diff(old, new)
    now = applied(old, actions)
    assert in_order(now) == in_order(new)
    assert diff(now, new) == diff(old, old) == ()
    listeners = [action for action in actions if isinstance(action, SetProxy | DropProxy)]
    touched = {action.name if isinstance(action, DropProxy) else action.proxy.name for action in listeners}
    assert len(touched) == len(listeners)


@given(servers, servers)
@settings(max_examples=40, deadline=None)
def test_a_server_that_carries_out_all_actions_lacks_only_what_needs_a_restart(
    old: ServerConfig, new: ServerConfig
) -> None:
    actions = diff(old, new)
    left = [action for action in actions if isinstance(action, NeedsRestart)]
    assert diff(applied(old, actions), new) == tuple(left)
    live = ("bind_retry", "clients", "cert_file", "client_ca_file", "tls_min_version", "limits")
    assert bool(left) is (evolve(old, **{key: getattr(new, key) for key in live}) != new)
    assert diff(old, old) == ()
