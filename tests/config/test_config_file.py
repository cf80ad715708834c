"""Config files: every mistake in one go, with its place; every documented key accepted; no empty secret (B4, B13)."""

import os
import re
import tomllib
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck as Health
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.addresses import HostPort, PortRange, Target
from tunnel.backoff import LinearPolicy, Policy, RetryPolicy
from tunnel.certificates import make_self_signed
from tunnel.config import DATA_CHANNELS, ClientConfig, Grant, HealthCheck, Limits, ProxyConfig, ServerConfig
from tunnel.config.file import (
    CLIENT_KEYS,
    SERVER_KEYS,
    CheckReport,
    ClientOptions,
    check_file,
    load_client,
    load_server,
    tell_kind,
)
from tunnel.config.sections import take_policy
from tunnel.config.table import Findings
from tunnel.config.targets import CHECK_TYPES
from tunnel.config.templates import init_text
from tunnel.errors import ConfigError, Mistake

DIGEST = "ab" * 32
PIN = "sha256:" + "0f" * 32
TOKEN = "s3cret-Token_of-43-characters-0123456789abcd"
SERVER = 'server = "tunnel.example.com"\n'
PROXY = '[[proxies]]\nname = "web"\npublish_port = 8001\ntarget = "8080"\n'
CLIENT = f'[[clients]]\nname = "home"\ntoken_sha256 = "{DIGEST}"\n'


@cache
def made_pair(host: str) -> tuple[bytes, bytes]:
    return make_self_signed([host])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificate, key = made_pair("tunnel.example.com")
    other = made_pair("other.example.com")[1]
    made = {"cert.pem": certificate, "key.pem": key, "ca.pem": certificate, "other.pem": other}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    for name in ("key.pem", "other.pem"):
        (tmp_path / name).chmod(0o600)
    secrets = {"proxy.auth": "me:s3cret-Password\n", "ops.secret": "s3cret-" * 4, "mail.password": "s3cret",
               "ops.headers": "Authorization: Bearer s3cret\n"}  # fmt: skip
    for name, text in secrets.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(text)
    return write_token(tmp_path, TOKEN + "\n").parent


def write_token(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "home.token"
    path.touch(0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, kind: Any = None) -> list[tuple[int, str, str]]:
    """Line, key path and problem of all that is wrong."""
    return [(found.line, found.path, found.problem) for found in check_file(write(folder, text), kind).mistakes]


def error_of(call: Any, *args: Any, **options: Any) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as caught:
        call(*args, **options)
    return caught.value.mistakes


# What is accepted

FULL_SERVER = f"""
bind_addr = "::1"
bind_port = 9443
proxy_protocol_from = ["10.0.0.0/8", "192.0.2.7", "2001:DB8::/32"]
state_dir = "state"
[tls]
cert_file = "cert.pem"
key_file = "key.pem"
client_ca_file = "ca.pem"
min_version = "1.2"
[[clients]]
name = "home"
token_sha256 = "{DIGEST.upper()}"
allow_ports = ["8000-8999", "9443"]
allow_addrs = ["0.0.0.0", "::"]
allow_names = ["web", "ssh"]
max_proxies = 10
max_visitors = 20
max_visitor_rate = 0.5
[[clients]]
name = "lab"
token_sha256 = "{"00" * 32}"
[bind_retry]
initial_delay = 1
factor = 1.5
max_delay = 9
max_retries = 0
jitter = 0.5
[admin]
listen = "127.0.0.1:9000"
hosts = ["tunnel.internal", "server"]
[limits]
drain_seconds = 0
buffer_budget = 1048576
"""

FULL_CLIENT = f"""
server = "tunnel.example.com:9443"
token_file = "home.token"
pin = "{PIN}"
ca_file = "ca.pem"
cert_file = "cert.pem"
key_file = "key.pem"
state_dir = "state"
data_channels = 3
[[proxies]]
name = "web"
publish_addr = "127.0.0.1"
publish_port = 8001
targets = ["tls://[::1]:8080", "unix:/run/web"]
[proxies.bind_retry]
max_retries = 3
[proxies.health_check]
type = "http"
path = "/healthz?deep=1"
expect_status = [200, 204]
host = "www.example.com"
interval = 1
timeout = 0.5
rise = 2
fall = 3
[[proxies]]
name = "ssh"
publish_port = 0
target = "22"
[admin]
listen = "127.0.0.1"
hosts = ["client"]
[limits]
dial_seconds = 4.5
[tls]
min_version = "1.2"
"""


def test_a_server_file_with_every_key_gives_just_that(folder: Path) -> None:
    home = Grant(
        "home",
        bytes.fromhex(DIGEST),
        allow_ports=(PortRange(8000, 8999), PortRange(9443, 9443)),
        allow_addrs=("0.0.0.0", "::"),
        allow_names=("web", "ssh"),
        max_proxies=10,
        max_visitors=20,
        max_visitor_rate=0.5,
    )
    assert load_server(write(folder, FULL_SERVER)) == ServerConfig(
        listen=(HostPort("::1", 9443),),
        proxy_protocol_from=("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"),
        state_dir=folder / "state",
        cert_file=folder / "cert.pem",
        key_file=folder / "key.pem",
        clients=(home, Grant("lab", bytes(32))),
        bind_retry=RetryPolicy(initial_delay=1, factor=1.5, max_delay=9, max_retries=0, jitter=0.5),
        admin=HostPort("127.0.0.1", 9000),
        admin_hosts=("tunnel.internal", "server"),
        limits=Limits(drain_seconds=0, buffer_budget=1048576),
        client_ca_file=folder / "ca.pem",
        tls_min_version="1.2",
    )


def test_a_client_file_with_every_key_gives_just_that(folder: Path) -> None:
    check = HealthCheck("http", "/healthz?deep=1", (200, 204), "www.example.com", 1, 0.5, 2, 3)
    targets = (Target("tls", "::1", 8080), Target("unix", "/run/web"))
    assert load_client(write(folder, FULL_CLIENT)) == ClientConfig(
        servers=(HostPort("tunnel.example.com", 9443),),
        token=TOKEN,
        pin=b"\x0f" * 32,
        ca_file=folder / "ca.pem",
        proxies=(
            ProxyConfig("web", HostPort("127.0.0.1", 8001), targets, RetryPolicy(max_retries=3), check),
            ProxyConfig("ssh", HostPort("0.0.0.0", 0), (Target("tcp", "127.0.0.1", 22),)),
        ),
        admin=HostPort("127.0.0.1", 8480),
        admin_hosts=("client",),
        state_dir=folder / "state",
        data_channels=attrs.evolve(DATA_CHANNELS, min=3),
        limits=Limits(dial_seconds=4.5),
        cert_file=folder / "cert.pem",
        key_file=folder / "key.pem",
        tls_min_version="1.2",
    )


def test_an_empty_server_file_means_the_defaults_and_an_admin_page_nobody_insists_on(folder: Path) -> None:
    default = ServerConfig(admin=HostPort("127.0.0.1", 8480), admin_required=False)
    assert load_server(write(folder, "")) == load_server(None) == default


def test_every_limit_can_be_set_in_a_file(folder: Path) -> None:
    lines = [f"{limit.name} = {2**21}" for limit in attrs.fields(Limits) if not limit.name.endswith("_seconds")]
    lines += [f"{limit.name} = 77" for limit in attrs.fields(Limits) if limit.name.endswith("_seconds")]
    limits = load_server(write(folder, "[limits]\n" + "\n".join(lines))).limits
    assert set(attrs.astuple(limits)) == {2**21, 77}


@pytest.mark.parametrize("kind", CHECK_TYPES)
def test_every_type_of_health_check_is_accepted(folder: Path, kind: str) -> None:
    assert mistakes(folder, SERVER + PROXY + f'[proxies.health_check]\ntype = "{kind}"') == []


@pytest.mark.parametrize("kind", ["server", "client"])
def test_what_init_writes_has_no_mistake(folder: Path, kind: Any) -> None:
    assert check_file(write(folder, init_text(kind))) == CheckReport(kind, (), ())


@pytest.mark.parametrize("kind", ["server", "client"])
def test_every_example_in_what_init_writes_can_be_uncommented(folder: Path, kind: Any) -> None:
    text = re.sub(r"^#(?=[\[a-z])", "", init_text(kind), flags=re.MULTILINE)
    assert check_file(write(folder, text)) == CheckReport(kind, (), ())
    assert not re.search(r"^#\S", text, re.MULTILINE)
    shown = set(tomllib.loads(text))
    keys = SERVER_KEYS if kind == "server" else CLIENT_KEYS
    assert shown >= {"notices", *keys} - {"servers", "listen"}  # one or the other


@pytest.mark.parametrize("text", ["\ufeffbind_port = 1", "bind_port = 1\r\n[limits]\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder: Path, text: str) -> None:
    assert load_server(write(folder, text)).listen[0].port == 1


def test_a_file_of_tls_alone_is_a_servers_where_it_names_a_certificate(folder: Path) -> None:
    text = '[tls]\ncert_file = "cert.pem"\nkey_file = "key.pem"\n'
    assert check_file(write(folder, text)) == CheckReport("server", (), ())
    assert load_client(write(folder, '[tls]\nmin_version = "1.2"'), ClientOptions(("a",), token=TOKEN))


@pytest.mark.parametrize(
    ("mode", "is_good"), [(0o600, True), (0o400, True), (0o640, True), (0o660, False), (0o604, False)]
)
def test_a_servers_key_may_be_read_by_its_group_and_a_clients_by_nobody(folder: Path, mode: int, is_good: bool) -> None:
    (folder / "key.pem").chmod(mode)
    pair = 'cert_file = "cert.pem"\nkey_file = "key.pem"\n'
    assert bool(check_file(write(folder, "[tls]\n" + pair)).mistakes) is not is_good
    assert bool(check_file(write(folder, SERVER + pair)).mistakes) is (mode & 0o077 > 0)


def test_a_clients_pair_of_the_options_goes_over_that_of_the_file(folder: Path) -> None:
    path = write(folder, SERVER + 'cert_file = "ca.pem"\nkey_file = "key.pem"\n')
    cert, key = folder / "cert.pem", folder / "key.pem"
    config = load_client(path, ClientOptions(token=TOKEN, cert_file=cert, key_file=key))
    assert (config.cert_file, config.key_file) == (cert, key)
    key.chmod(0o644)
    wrong = error_of(load_client, None, ClientOptions(("a",), token=TOKEN, cert_file=cert, key_file=key))
    (mistake,) = wrong  # of a long path the message shows the beginning, the remedy all of it
    assert str(mistake).startswith("--key-file: /")
    assert str(mistake).endswith(f": can be read by others (mode 0644); run: chmod 600 {key}")
    alone = error_of(load_client, None, ClientOptions(("a",), token=TOKEN, cert_file=cert))
    assert [mistake.path for mistake in alone] == ["--key-file"]


# What is refused

SEVEN = f"""bind_prot = 8443
bind_port = "8443"
[tls]
cert_file = "cert.pem"
[[clients]]
name = "home"
token_sha256 = "{DIGEST}"
allow_ports = ["8000-8999", "99999"]
[[clients]]
name = "home"
max_proxies = true
"""


def test_a_file_with_seven_different_mistakes_tells_all_of_them_with_their_lines(folder: Path) -> None:
    path = write(folder, SEVEN)
    assert [str(mistake) for mistake in check_file(path).mistakes] == [
        f"{path}:1: bind_prot: 8443: is not a key here; did you mean bind_port?",
        f'{path}:2: bind_port: "8443": is a text, not a whole number; write 8443, without quotes',
        f"{path}:4: tls.key_file: is missing; "
        "add key_file, or take cert_file away and the server makes a certificate itself",
        f'{path}:8: clients[0].allow_ports[1]: "99999": is not a port; write a number from 1 to 65535',
        f"{path}:9: clients[1].token_sha256: is missing; add the line that `trio-tunnel token new NAME` prints",
        f'{path}:10: clients[1].name: "home": is the name at clients[0].name (line 6) too; '
        "give each client a name of its own",
        f"{path}:11: clients[1].max_proxies: true: is true or false, not a whole number; write a number from 1 to 1000",
    ]


SERVER_MISTAKES = [
    ('bind_addr = "300.1.1.1"', 1, "bind_addr", "is not a host"),
    ('bind_addr = "1.1.1.1:80"', 1, "bind_addr", "is not a host"),
    ("bind_addr = 1", 1, "bind_addr", "is a number, not a text"),
    ('bind_addr = " "', 1, "bind_addr", "is blank or has control characters"),
    ("bind_port = 65536", 1, "bind_port", "is out of range"),
    ("bind_port = -1", 1, "bind_port", "is out of range"),
    ("bind_port = true", 1, "bind_port", "is true or false, not a whole number"),
    ("bind_port = 1.0", 1, "bind_port", "is a number, not a whole number"),
    ("bind_port = 1979-05-27", 1, "bind_port", "is a date or time, not a whole number"),
    ('listen = ["0.0.0.0", "[::]:8443", "127.0.0.1:0", "127.0.0.1:0"]', None, None, None),
    ("listen = []", 1, "listen", "has 0 members"),
    (f"listen = {[f's{n}' for n in range(17)]}", 1, "listen", "has 17 members"),
    ('listen = "0.0.0.0:8443"', 1, "listen", "is a text, not a list"),
    ('listen = ["::"]', 1, "listen[0]", "is not an address"),
    ('listen = ["0.0.0.0", "0.0.0.0:8443"]', 1, "listen[1]", "is the address at listen[0] (line 1) too"),
    ('bind_addr = "::1"\nlisten = ["[::]"]', 1, "bind_addr", "stands beside listen"),
    ('listen = ["[::]"]\nbind_port = 1', 2, "bind_port", "stands beside listen"),
    ("proxy_protocol_from = []", None, None, None),
    ('proxy_protocol_from = "10.0.0.0/8"', 1, "proxy_protocol_from", "is a text, not a list"),
    ('proxy_protocol_from = ["::1", "lb"]', 1, "proxy_protocol_from[1]", "is not an address or a CIDR"),
    ('proxy_protocol_from = ["10.1.2.3/8"]', 1, "proxy_protocol_from[0]", "is an address within 10.0.0.0/8"),
    ('proxy_protocol_from = ["::1", "0.0.0.0/0"]', 1, "proxy_protocol_from[1]", "is everybody, who could then claim"),
    ('proxy_protocol_from = ["::/0"]', 1, "proxy_protocol_from[0]", "is everybody, who could then claim any address"),
    ("proxy_protocol_from = [10]", 1, "proxy_protocol_from[0]", "is a number, not a text"),
    ('state_dir = "cert.pem"', 1, "state_dir", "is not a directory"),
    ('state_dir = "a\\u0000b"', 1, "state_dir", "is blank or has control characters"),
    ("tls = 1", 1, "tls", "is a number, not a table"),
    ('[tls]\nmin_version = "1.2"\nkey_file = "key.pem"', 3, "tls.cert_file", "is missing"),
    ('tls = { cert_file = "no.pem", key_file = "key.pem" }', 1, "tls.cert_file", "names no file"),
    ('[tls]\ncert_file = "cert.pem"\nkey_file = "."', 3, "tls.key_file", "does not name a file"),
    ('[tls]\ncert_file = "cert.pem"\nkey_file = "ca.pem"', 3, "tls.key_file", "can be read by others (mode 0644)"),
    ('[tls]\nkey_file = "other.pem"\ncert_file = "cert.pem"', 2, "tls.key_file", "the certificate "),
    ('[tls]\nclient_ca_file = "key.pem"', 2, "tls.client_ca_file", "holds no certificate that can be used"),
    ('[tls]\nclient_ca_file = "no.pem"', 2, "tls.client_ca_file", "names no file"),
    ('[tls]\nmin_version = "1.1"', 2, "tls.min_version", "is no TLS version"),
    ("[tls]\nmin_version = 1.3", 2, "tls.min_version", "is a number, not a text"),
    *(
        (CLIENT.replace(DIGEST, sha256(nothing).hexdigest()), 3, "clients[0].token_sha256", "is the SHA-256 of nothing")
        for nothing in (b"", b"\n")
    ),
    (CLIENT + "max_visitor_rate = 0", 4, "clients[0].max_visitor_rate", "is out of range"),
    (CLIENT + 'max_visitor_rate = "5"', 4, "clients[0].max_visitor_rate", "is a text, not a number"),
    ("clients = 3", 1, "clients", "is a number, not a list"),
    ("clients = [3]", 1, "clients[0]", "is a number, not a table"),
    (CLIENT.replace("[[", "[").replace("]]", "]"), 1, "clients", "stands once, but is a list of tables"),
    (f'[[clients]]\ntoken_sha256 = "{DIGEST}"', 1, "clients[0].name", "is missing"),
    (CLIENT.replace("home", "-x"), 2, "clients[0].name", "is not a name"),
    (CLIENT.replace("ab", "a"), 3, "clients[0].token_sha256", "is no SHA-256 (32 characters)"),
    (CLIENT + 'allow_ports = "8000"', 4, "clients[0].allow_ports", "is a text, not a list"),
    (CLIENT + "allow_ports = [\n8000]", 5, "clients[0].allow_ports[0]", "is a number, not a text"),
    (CLIENT + 'allow_ports = ["9-8"]', 4, "clients[0].allow_ports[0]", "runs backwards"),
    (CLIENT + 'allow_addrs = ["localhost"]', 4, "clients[0].allow_addrs[0]", "is not an IP address"),
    (CLIENT + 'allow_names = ["a b"]', 4, "clients[0].allow_names[0]", "is not a name"),
    (CLIENT + "max_proxies = 1001", 4, "clients[0].max_proxies", "is out of range"),
    (CLIENT + "max_visitors = 0", 4, "clients[0].max_visitors", "is out of range"),
    (CLIENT + CLIENT.replace("home", "b"), 6, "clients[1].token_sha256", "is the token at clients[0].token_sha256"),
    ("[bind_retry]\ninitial_delay = 0", 2, "bind_retry.initial_delay", "is out of range"),
    ("[bind_retry]\ninitial_delay = nan", 2, "bind_retry.initial_delay", "is out of range"),
    ("[bind_retry]\nfactor = 0.5", 2, "bind_retry.factor", "is out of range"),
    ("[bind_retry]\nmax_delay = inf", 2, "bind_retry.max_delay", "is out of range"),
    ("[bind_retry]\nmax_retries = -1", 2, "bind_retry.max_retries", "is out of range"),
    ("[bind_retry]\njitter = 1.1", 2, "bind_retry.jitter", "is out of range"),
    ("[bind_retry]\njitter = false", 2, "bind_retry.jitter", "is true or false, not a number"),
    ("[bind_retry]\ninitial_delay = 8\nmax_delay = 4", 2, "bind_retry.initial_delay", "is longer than max_delay (4 s)"),
    ("[bind_retry]\ninitial_delay = 61", 2, "bind_retry.initial_delay", "is longer than max_delay (60 s by default)"),
    ('[bind_retry]\nmax_retries = "forever"', None, None, None),
    ('[bind_retry]\nmax_retries = "never"', 2, "bind_retry.max_retries", "is a text, not a whole number"),
    ('[bind_retry]\ntype = "linear"\nstep = 0.5\nmax_retries = 3', None, None, None),
    ('[bind_retry]\ntype = "cubic"\nstep = 1', 2, "bind_retry.type", "is no type of policy"),
    ("[bind_retry]\ntype = 1", 2, "bind_retry.type", "is a number, not a text"),
    ('[bind_retry]\ntype = "linear"\nstep = 0', 3, "bind_retry.step", "is out of range"),
    ('[bind_retry]\ntype = "linear"\nfactor = "x"', 3, "bind_retry.factor", "means nothing to a policy of type linear"),
    ("[bind_retry]\nstep = 1", 2, "bind_retry.step", "means nothing to a policy of type exponential"),
    ('[bind_retry]\ntype = "linear"\nsteps = 1', 3, "bind_retry.steps", "is not a key here"),
    ('[admin]\nlisten = "on"', None, None, None),  # a host name, as good as any
    ('[admin]\nlisten = "8480"', 2, "admin.listen", "is not a host"),
    ('[admin]\nhosts = ["a", "a:80"]', 2, "admin.hosts[1]", "is not a host"),
    ("[admin]\nlisten = false", 2, "admin.listen", "is true or false, not a text"),
    ("[limits]\ndial_seconds = 0", 2, "limits.dial_seconds", "is out of range"),
    ("[limits]\nbuffer_budget = 1", 2, "limits.buffer_budget", "is out of range"),
    ("[limits]\nmax_visitor = 1", 2, "limits.max_visitor", "is not a key here"),
    ('"x\\u001b[2J" = 1', 1, '"x\\u001b[2J"', "is not a key here"),
]


POLICIES: list[tuple[str, Policy, Policy]] = [
    ("", RetryPolicy(), RetryPolicy()),
    ('type = "exponential"', RetryPolicy(), RetryPolicy()),
    ('max_retries = "forever"', RetryPolicy(), RetryPolicy(max_retries=None)),
    ('type = "linear"', RetryPolicy(), LinearPolicy()),
    ('type = "linear"\nstep = 2.5\nmax_retries = 9', RetryPolicy(), LinearPolicy(2.5, 9)),
    ('type = "linear"\nmax_retries = "forever"', RetryPolicy(), LinearPolicy(1.0, None)),
    ("step = 2", LinearPolicy(0.05, 3), LinearPolicy(2, 3)),
    ('type = "exponential"\nfactor = 3', LinearPolicy(0.05, 3), RetryPolicy(factor=3)),
    ("factor = 3", RetryPolicy(1, 2, 30, None, 0.2), RetryPolicy(1, 3, 30, None, 0.2)),
]


@pytest.mark.parametrize(("text", "default", "policy"), POLICIES)
def test_a_policy_has_a_type_and_what_is_not_written_is_as_usual(
    folder: Path, text: str, default: Policy, policy: Policy
) -> None:
    findings = Findings()
    root = findings.root(write(folder, f"[retry]\n{text}\n"))
    assert take_policy(root, "retry", default) == policy
    findings.finish()


def test_where_there_is_no_section_there_is_no_policy(folder: Path) -> None:
    assert take_policy(Findings().root(write(folder, "")), "retry", RetryPolicy()) is None


def test_each_key_that_means_nothing_to_the_type_has_a_remedy(folder: Path) -> None:
    path = write(folder, '[bind_retry]\ntype = "linear"\nfactor = 2\njitter = 0\n')
    assert [str(mistake) for mistake in check_file(path, "server").mistakes] == [
        f"{path}:{line}: bind_retry.{key}: {value}: means nothing to a policy of type linear; "
        'take it away, or write type = "exponential"'
        for line, key, value in ((3, "factor", 2), (4, "jitter", 0))
    ]


def test_where_the_line_of_the_type_is_no_toml_its_keys_are_not_blamed(folder: Path) -> None:
    found = mistakes(folder, "[bind_retry]\ntype = linear\nstep = 1\n", "server")
    assert [line for line, _, _ in found] == [2]


@pytest.mark.parametrize(("text", "line", "path", "problem"), SERVER_MISTAKES)
def test_each_mistake_of_a_server_file_is_told(folder: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(folder, text, "server"), line, path, problem)


CLIENT_MISTAKES = [
    ("", 0, "server", "is missing"),
    ('server = "a:b"', 1, "server", "'b' is not a port"),
    ("server = 8443", 1, "server", "is a number, not a text"),
    ('server = "::1"', 1, "server", "is not an address"),
    ('servers = ["a"]', None, None, None),
    ("servers = []", 1, "servers", "has 0 members"),
    ('servers = ["a", "b"]', None, None, None),
    (f"servers = {[f's{n}' for n in range(17)]}", 1, "servers", "has 17 members"),
    ('servers = ["a",\n"b", "a:8443"]', 2, "servers[2]", "is the address at servers[0] (line 1) too"),
    ('servers = ["a b"]', 1, "servers[0]", "is not an address"),
    ('servers = "a"', 1, "servers", "is a text, not a list"),
    (SERVER + 'servers = ["b"]', 2, "servers", "stands beside server"),
    (SERVER + "resolve_seconds = 0.5", 2, "resolve_seconds", "is out of range"),
    (SERVER + "token_file = 1", 2, "token_file", "is a number, not a text"),
    (SERVER + 'pin = "sha256:00"', 2, "pin", "is not a pin"),
    (SERVER + 'ca_file = "no.pem"', 2, "ca_file", "names no file"),
    (SERVER + 'cert_file = "cert.pem"', 2, "key_file", "is missing"),
    (SERVER + 'key_file = "key.pem"', 2, "cert_file", "is missing"),
    (SERVER + 'cert_file = "cert.pem"\nkey_file = "other.pem"', 3, "key_file", "the certificate "),
    (SERVER + 'ca_file = "other.pem"', 2, "ca_file", "holds no certificate that can be used"),
    (SERVER + 'cert_file = "cert.pem"\nkey_file = "ca.pem"', 3, "key_file", "can be read by others (mode 0644)"),
    (SERVER + '[tls]\ncert_file = "cert.pem"', 3, "tls.cert_file", "is not a key here"),
    (SERVER + "data_channels = 0", 2, "data_channels", "is out of range"),
    (SERVER + PROXY.replace("[[", "[").replace("]]", "]"), 2, "proxies", "stands once, but is a list of tables"),
    (SERVER + PROXY.replace('name = "web"\n', ""), 2, "proxies[0].name", "is missing"),
    (SERVER + PROXY.replace("publish_port = 8001\n", ""), 2, "proxies[0].publish_port", "is missing"),
    (SERVER + PROXY.replace('target = "8080"', ""), 2, "proxies[0].target", "is missing"),
    (SERVER + PROXY.replace("8001", "70000"), 4, "proxies[0].publish_port", "is out of range"),
    (SERVER + PROXY.replace('"8080"', "8080"), 5, "proxies[0].target", "is a number, not a text"),
    (SERVER + PROXY.replace('"8080"', '"http://a"'), 5, "proxies[0].target", "'http' is not a kind of target"),
    (SERVER + PROXY.replace('"8080"', '"unix:run"'), 5, "proxies[0].target", "is not a target"),
    (SERVER + PROXY.replace('"8080"', '"300.1.1.1:1"'), 5, "proxies[0].target", "'300.1.1.1' is not a host"),
    (SERVER + PROXY + 'publish_addr = "localhost"', 6, "proxies[0].publish_addr", "is not an IP address"),
    (SERVER + PROXY + 'targets = ["1"]', 6, "proxies[0].targets", "stands beside target"),
    (SERVER + PROXY.replace('target = "8080"', "targets = []"), 5, "proxies[0].targets", "is empty"),
    (SERVER + PROXY.replace('target = "8080"', 'targets = ["1", "x"]'), 5, "proxies[0].targets[1]", "has no port"),
    (SERVER + PROXY + f'pin = "{PIN}"', 6, "proxies[0].pin", "is not a key here"),
    (SERVER + PROXY + PROXY.replace("8001", "8002"), 7, "proxies[1].name", "is the name at proxies[0].name (line 3)"),
    (SERVER + PROXY + "[proxies.bind_retry]\nfactor = 0", 7, "proxies[0].bind_retry.factor", "is out of range"),
    (SERVER + PROXY + "health_check = 1", 6, "proxies[0].health_check", "is a number, not a table"),
    *(
        (
            SERVER + PROXY + f"[proxies.health_check]\n{lines}",
            7 + lines.count("\n"),
            f"proxies[0].health_check.{key}",
            why,
        )
        for lines, key, why in [
            ('type = "htp"', "type", "is no type of check"),
            ('path = "/"', "path", "means nothing to a check of type tcp"),
            ('type = "http"\npath = "healthz"', "path", "is not a path"),
            ('type = "http"\npath = "/a b"', "path", "is not a path"),
            ('type = "http"\nexpect_status = []', "expect_status", "is empty"),
            ('type = "http"\nexpect_status = [99]', "expect_status[0]", "is out of range"),
            ('host = "a b"', "host", "is not a host"),
            ("interval = 0", "interval", "is out of range"),
            ('timeout = "3"', "timeout", "is a text, not a number"),
            ("rise = 0", "rise", "is out of range"),
            ("fall = 1.5", "fall", "is a number, not a whole number"),
        ]
    ),
]


@pytest.mark.parametrize(("text", "line", "path", "problem"), CLIENT_MISTAKES)
def test_each_mistake_of_a_client_file_is_told(folder: Path, text: str, line: Any, path: Any, problem: Any) -> None:
    check_one(mistakes(folder, text, "client"), line, path, problem)


def check_one(found: list[tuple[int, str, str]], line: int | None, path: str | None, problem: str | None) -> None:
    if problem is None:
        assert found == []
        return
    assert [place[:2] for place in found] == [(line, path)]
    assert found[0][2].startswith(problem)


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("0.0.0.0:8001", "0.0.0.0:8001", True),
        ("0.0.0.0:8001", "127.0.0.1:8001", True),
        ("127.0.0.1:8001", "0.0.0.0:8001", True),
        ("127.0.0.1:8001", "127.0.0.2:8001", False),
        ("0.0.0.0:8001", "0.0.0.0:8002", False),
        ("0.0.0.0:0", "0.0.0.0:0", False),
        ("0.0.0.0:8001", ":::8001", False),
        (":::8001", "::1:8001", True),
        ("::1:8001", "0:0:0:0:0:0:0:1:8001", True),
        ("::1:8001", "127.0.0.1:8001", False),
    ],
)
def test_two_proxies_cannot_publish_what_overlaps(folder: Path, first: str, second: str, clash: bool) -> None:
    text = SERVER
    for name, where in (("a", first), ("b", second)):
        addr, _, port = where.rpartition(":")
        text += f'[[proxies]]\nname = "{name}"\npublish_addr = "{addr}"\npublish_port = {port}\ntarget = "1"\n'
    found = check_file(write(folder, text)).mistakes
    assert [(mistake.line, mistake.path) for mistake in found] == ([(10, "proxies[1].publish_port")] if clash else [])
    assert all("proxies[0].publish_port (line 5)" in mistake.problem for mistake in found)


def test_a_wrong_type_hides_no_mistake_elsewhere(folder: Path) -> None:
    text = "data_channels = []\n" + PROXY.replace("8001", '"x"') + PROXY + PROXY.replace('"web"', "7")
    assert mistakes(folder, text) == [
        (0, "server", "is missing"),
        (1, "data_channels", "is a list, not a whole number"),
        (4, "proxies[0].publish_port", "is a text, not a whole number"),
        (7, "proxies[1].name", "is the name at proxies[0].name (line 3) too"),
        (11, "proxies[2].name", "is a number, not a text"),
        (
            12,
            "proxies[2].publish_port",
            "publishes 0.0.0.0:8001, which proxies[1].publish_port (line 8) has with 0.0.0.0:8001",
        ),
    ]


@pytest.mark.parametrize("key", ["servers", "listen"])
def test_a_wrong_address_does_not_hide_one_that_stands_twice_nor_shift_its_place(folder: Path, key: str) -> None:
    assert mistakes(folder, f'{key} = [1,\n"a",\n"b", "a:8443"]') == [
        (1, f"{key}[0]", "is a number, not a text"),
        (3, f"{key}[3]", f"is the address at {key}[1] (line 2) too"),
    ]


def test_several_addresses_are_read_in_their_order(folder: Path) -> None:
    client = load_client(write(folder, 'servers = ["b", "[::1]:1"]\nresolve_seconds = 5'), ClientOptions(token=TOKEN))
    assert (client.servers, client.resolve_seconds) == ((HostPort("b", 8443), HostPort("::1", 1)), 5.0)
    server = load_server(write(folder, 'listen = ["0.0.0.0", "[::]:0"]'))
    assert server.listen == (HostPort("0.0.0.0", 8443), HostPort("::", 0))


def test_more_proxies_than_a_client_may_have_are_told_at_once_and_fast(folder: Path) -> None:
    text = SERVER + "".join(PROXY.replace("web", f"p{n}").replace("8001", str(n)) for n in range(1, 1002))
    assert mistakes(folder, text) == [(2, "proxies", "has 1001 members")]


SYNTAX = [
    ("bind_port = 1\nb = = 2\n", 2),
    ('bind_port = 1\nb = "x\n', 2),
    ("bind_port = 1\nbind_port = 2\n", 2),
    ("bind_port = 1\n[x\n", 2),
    ('bind_port = 1\nb = """\n\n', 2),
    ("bind_port = 1\nb = " + "[" * 5000, 0),
    ("a = " + "9" * 5000, 0),
]


@pytest.mark.parametrize(("text", "line"), SYNTAX, ids=range(len(SYNTAX)))
def test_what_is_not_toml_is_told_with_its_line(folder: Path, text: str, line: int) -> None:
    ((found, _, problem),) = mistakes(folder, text)
    assert (found, problem[:11]) == (line, "is not TOML")


def test_a_bad_line_hides_neither_the_next_one_nor_what_is_wrong_elsewhere(folder: Path) -> None:
    text = (
        f"data_channels = 0\n{PROXY}name = 'again'\n[proxies.bind_retry]\nmax_delay = = 90\ninitial_delay = 80\n{PROXY}"
    )
    assert [(line, path) for line, path, _ in mistakes(folder, text)] == [
        (1, "data_channels"),
        (6, ""),
        (8, ""),
        (11, "proxies[1].name"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        SERVER + PROXY + "publish_addr = = 1\n" + PROXY.replace("web", "b"),
        SERVER + "[[proxies]]\nname = web\n",
        SERVER + PROXY + "[proxies.health_check]\ntype = http\npath = '/'\n",
        SERVER + PROXY + "[proxies.bind_retry]\nmax_delay = 90x\ninitial_delay = 80\n",
        "pin = 1x\n[limits]\n",
        "tls = 1x\nproxies = []\n",
        "token_file = home\n" + SERVER,
    ],
)
def test_a_line_left_out_raises_no_false_alarm(folder: Path, text: str) -> None:
    path = write(folder, text)
    for found in (check_file(path).mistakes, error_of(load_client, path, ClientOptions(token=""))):
        assert [mistake.problem[:11] for mistake in found] == ["is not TOML"]


@pytest.mark.parametrize(
    "text", ["a = [1,\nbind_port = 0\nx = 1\n", "[tls] x\nbind_prot = 1\n", "a = = [\n1,\n2,\n]\n"]
)
def test_where_a_syntax_error_runs_on_only_it_is_told(folder: Path, text: str) -> None:
    ((_, _, problem),) = mistakes(folder, text)
    assert problem.startswith("is not TOML")


def test_what_is_not_utf_8_is_told_with_its_line(folder: Path) -> None:
    (folder / "config.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    (mistake,) = check_file(folder / "config.toml").mistakes
    assert (mistake.line, mistake.problem) == (2, "is not UTF-8")


@pytest.mark.parametrize("name", ["none.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_mistake(folder: Path, name: str) -> None:
    (mistake,) = check_file(folder / name).mistakes
    assert mistake.problem.startswith("cannot be read: ")


def test_a_huge_file_is_refused_unread(folder: Path) -> None:
    assert mistakes(folder, "#" * (5 * 1024 * 1024))[0][2].startswith("is over")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["bind_port"], "server"),
        (["clients", "limits"], "server"),
        (["server"], "client"),
        (["proxies", "admin"], "client"),
        (["bind_prot"], "server"),
        (["proxys"], "client"),
        (["pin", "proxies", "clients"], "client"),
        ([], None),
        (["admin", "limits", "state_dir"], None),
        (["server", "bind_port"], None),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_keys(keys: list[str], kind: str | None) -> None:
    assert tell_kind(keys) == kind


def test_a_file_that_does_not_tell_its_kind_asks_for_it(folder: Path) -> None:
    report = check_file(write(folder, "[admin]"))
    assert (report.kind, [mistake.remedy for mistake in report.mistakes]) == (
        None,
        ["use --as server or --as client"],
    )
    assert check_file(write(folder, "[admin]"), "server") == CheckReport("server", (), ())


def test_a_file_is_read_only_once_so_that_it_may_be_a_pipe() -> None:
    read, write_end = os.pipe()
    os.write(write_end, b"bind_port = 0\nbind_addr = 0")
    os.close(write_end)
    report = check_file(Path(f"/dev/fd/{read}"))
    os.close(read)
    assert (report.kind, [mistake.path for mistake in report.mistakes]) == ("server", ["bind_addr"])


def test_the_other_sides_file_is_one_mistake(folder: Path) -> None:
    (mistake,) = error_of(load_server, write(folder, SERVER + PROXY))
    assert mistake.problem == "is the file of a client, not of a server"
    (mistake,) = error_of(load_client, write(folder, CLIENT))
    assert mistake.problem == "is the file of a server, not of a client"


@given(st.text(alphabet="abpin=[]{}\"'#\n ,1-.", max_size=50))
@example("[[proxies]]\n[[proxies.name]]")
@example("clients = { a = [[]] }")
@settings(max_examples=60, deadline=None, suppress_health_check=[Health.function_scoped_fixture])
def test_only_mistakes_come_of_random_text(tmp_path: Path, text: str) -> None:
    for kind in ("server", "client", None):
        assert isinstance(check_file(write(tmp_path, text), kind), CheckReport)  # type: ignore[arg-type]


VALUES = ["1", "-1", "true", '""', '"x"', '"8080"', "nan", "[]", "[1]", "[{}]", "{}", "{ name = 1 }", "1979-05-27"]
KEYS = sorted({*SERVER_KEYS, *CLIENT_KEYS, "admin", "limits", "state_dir", "oops"})


@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
@settings(max_examples=80, deadline=None, suppress_health_check=[Health.function_scoped_fixture])
def test_whatever_a_key_holds_each_mistake_has_its_line(tmp_path: Path, document: dict[str, str]) -> None:
    path = write(tmp_path, "".join(f"{key} = {value}\n" for key, value in document.items()))
    order = list(document)
    for kind in ("server", "client"):
        for mistake in check_file(path, kind).mistakes:  # type: ignore[arg-type]
            top = re.split(r"[.\[]", mistake.path)[0]
            if mistake.problem not in ("is missing",) and top:
                assert mistake.line == order.index(top) + 1
