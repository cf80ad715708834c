"""Reads `server.toml` and `client.toml`, with the options given beside them, into the values of `config`.

All or nothing: either a config, or one ConfigError with every mistake, each with file, line, key path, value and
remedy. Called by the CLI (serve, connect, check) and by a reload; only reads the disk. `server_file` and `client_file`
know the keys.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from attrs import evolve, field, frozen

from tunnel.addresses import HostPort, parse_pin
from tunnel.config import ClientConfig, ProxyConfig, ServerConfig
from tunnel.config.client_file import MAX_SERVERS, Claim, check_claims, claim_option, take_proxies, take_servers
from tunnel.config.forward import take_forward_proxy
from tunnel.config.history import take_history
from tunnel.config.notices import take_notices
from tunnel.config.pools import take_data_channels
from tunnel.config.sections import (
    blame_repeats,
    content_stamp,
    take_admin,
    take_ca_file,
    take_limits,
    take_min_version,
    take_pair,
    take_process,
    take_state_dir,
)
from tunnel.config.server_file import MAX_LISTEN, read_server
from tunnel.config.table import Findings, Spot, Table, show_value
from tunnel.config.token_file import check_token, read_token_file, show_file
from tunnel.config.toml_lines import KeyPath, Place
from tunnel.config.values import DAY, Reader, admin_listen, host_port, number, path_from, text
from tunnel.errors import ConfigError, Mistake

Kind = Literal["server", "client"]
TOKEN_VARIABLE = "TRIO_TUNNEL_TOKEN"  # noqa: S105  the name of a variable
# These tell the kind of a file.
SERVER_KEYS = ("bind_addr", "bind_port", "listen", "proxy_protocol_from", "clients", "bind_retry")
CLIENT_KEYS = (
    "server", "servers", "resolve_seconds", "token_file", "pin", "ca_file", "cert_file", "key_file", "data_channels",
    "proxies", "proxy", "proxy_auth_file",
)  # fmt: skip
SHARED_KEYS = ("tls", "state_dir", "admin", "limits", "history", "watch", "log_level", "notices")
_NO_SERVER = HostPort("", 0)  # stands in where there is none, which is a mistake: no caller sees it
T = TypeVar("T")


@frozen
class ServerOptions:
    """What `serve` was told on the command line, as typed; None and () say nothing, all else goes over the file.

    `listen` replaces all addresses of the file.
    """

    listen: tuple[str, ...] = ()
    admin: str | None = None
    state_dir: Path | None = None


@frozen
class ClientOptions:
    """What `connect` was told on the command line, as typed; None and () say nothing, all else goes over the file.

    `servers` replace those of the file, a ``-p`` its proxy of that name. `token` is the text of TRIO_TUNNEL_TOKEN, and
    counts only where no token file is named; blank is not None: it is refused.
    """

    servers: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    token_file: Path | None = None
    pin: str | None = None
    admin: str | None = None
    token: str | None = field(default=None, repr=False)
    cert_file: Path | None = None
    key_file: Path | None = None
    via: str | None = field(default=None, repr=False)
    environ: Mapping[str, str] = field(factory=dict, repr=False)  # what `forward_variables` takes of it


@frozen
class CheckReport:
    """What `check` found; `kind` is None where the file does not tell it. Warnings do not make a file unusable."""

    kind: Kind | None
    mistakes: tuple[Mistake, ...]
    warnings: tuple[Mistake, ...]


def load_server(path: Path | None, options: ServerOptions | None = None) -> ServerConfig:
    """A server's file (None: no file, all by default) with the options over it; ConfigError with every mistake.

    Where nobody said anything of it, `admin` is the default address, and not `admin_required`.
    """
    options = options or ServerOptions()
    findings = Findings()
    listen = _addresses(findings, "--listen", options.listen, host_port(zero=True), at_most=MAX_LISTEN)
    admin = _option(findings, "--admin", options.admin, admin_listen)
    config = read_server(_open(findings, path, "server"), _base(path))
    findings.finish()
    config = evolve(config, listen=listen or config.listen, state_dir=options.state_dir or config.state_dir)
    return config if options.admin is None else evolve(config, admin=admin, admin_required=True)


def load_client(path: Path | None, options: ClientOptions | None = None, *, need_token: bool = True) -> ClientConfig:
    """A client's file (None: no file) with the options over it; ConfigError with every mistake.

    The token is that of ``--token-file``, else of the file's `token_file`, else of TRIO_TUNNEL_TOKEN. Without
    `need_token` none is read, and it is empty: such a config cannot log in, only be looked at.
    """
    findings = Findings()
    said = _understand(findings, options or ClientOptions())
    config = _read_client(_open(findings, path, "client"), _base(path), said, need_token=need_token)
    findings.finish()
    return evolve(config, tls_stamp=content_stamp((config.ca_file, config.cert_file, config.key_file)))


def check_file(path: Path, kind: Kind | None = None) -> CheckReport:
    """Every mistake of a file, of the kind its keys tell where none is given. Needs no network and no token."""
    findings = Findings(lenient=True)
    try:
        table = findings.root(path)
        kind = kind or _kind_of(table)
        _refuse_other_kind(table, kind)
        if kind == "server":
            read_server(table, path.parent)
        else:
            _read_client(table, path.parent, _understand(findings, ClientOptions()), need_token=False)
        findings.finish()
    except ConfigError as exc:
        return CheckReport(kind, exc.mistakes, tuple(findings.warnings))
    return CheckReport(kind, (), tuple(findings.warnings))


def tell_kind(keys: Iterable[str]) -> Kind | None:
    """Whose file it is by its top-level keys, also misspelt ones; None where they do not tell."""
    keys = [key for key in keys if key not in SHARED_KEYS]
    servers, clients = (sum(key in known for key in keys) for known in (SERVER_KEYS, CLIENT_KEYS))
    if servers == clients == 0:
        servers, clients = (
            sum(bool(difflib.get_close_matches(key, known, n=1)) for key in keys)
            for known in (SERVER_KEYS, CLIENT_KEYS)
        )
    if servers == clients:
        return None
    return "server" if servers > clients else "client"


def _kind_of(table: Table) -> Kind:
    kind = tell_kind(table.data)
    if kind is not None:
        return kind
    if isinstance(table.data.get("tls"), dict) and "cert_file" in table.data["tls"]:
        return "server"  # a client has it at the top
    if not table.findings.partial:  # what was left out might have told
        problem = "does not tell whether it is for a server or a client"
        table.findings.blame(table.spot(), problem, "use --as server or --as client")
    raise table.findings.error()


def _open(findings: Findings, path: Path | None, kind: Kind) -> Table:
    if path is None:
        return findings.table({}, (), "", {})
    table = findings.root(path)
    _refuse_other_kind(table, kind)
    return table


def _refuse_other_kind(table: Table, kind: Kind) -> None:
    """A file that is wholly of the other kind is one mistake, not one for each of its keys."""
    ours = SERVER_KEYS if kind == "server" else CLIENT_KEYS
    other = tell_kind(table.data)
    if other in (None, kind) or table.findings.partial or any(key in ours for key in table.data):
        return
    command = "serve" if other == "server" else "connect"
    problem = f"is the file of a {other}, not of a {kind}"
    table.findings.blame(table.spot(), problem, f"use it with `trio-tunnel {command} -c`")
    raise table.findings.error()


def _base(path: Path | None) -> Path:
    return Path() if path is None else path.parent


@frozen
class _Said:
    """The options of a client, understood; None also where one was wrong."""

    options: ClientOptions
    servers: tuple[HostPort, ...]
    pin: bytes | None
    admin: HostPort | None
    claims: list[Claim]


def _understand(findings: Findings, options: ClientOptions) -> _Said:
    servers = _addresses(findings, "SERVER", options.servers, host_port(), at_most=MAX_SERVERS)
    pin = _option(findings, "--pin", options.pin, parse_pin)
    admin = _option(findings, "--admin", options.admin, admin_listen)
    claims = [_option(findings, "-p", option, claim_option) for option in options.proxies]
    return _Said(options, servers, pin, admin, [claim for claim in claims if claim is not None])


def _read_client(table: Table, base: Path, said: _Said, *, need_token: bool) -> ClientConfig:
    """The whole file with the options over it. Worth nothing if `table.findings` has mistakes then."""
    file_servers, file_pin = take_servers(table), table.take("pin", _pin, None)
    file_admin, admin_hosts = take_admin(table, None)
    if not said.options.servers and not ("server" in table or "servers" in table):
        remedy = 'add server = "tunnel.example.com:8443"'
        _missing(table, "server", remedy, Spot("SERVER", 0, "", ""), "give HOST:PORT, or a file with -c")
    cert_file, key_file = _pair(table, base, said.options)
    servers = said.servers or file_servers or (_NO_SERVER,)
    return ClientConfig(
        servers=servers,
        token=_token(table, base, said.options, need_token=need_token),
        pin=said.pin or file_pin,
        ca_file=take_ca_file(table, "ca_file", base),
        proxies=_merge(table.findings, take_proxies(table), said.claims),
        admin=file_admin if said.options.admin is None else said.admin,
        admin_hosts=admin_hosts,
        state_dir=take_state_dir(table, base),
        data_channels=take_data_channels(table),
        resolve_seconds=table.take("resolve_seconds", number(1, DAY), 60.0),
        limits=take_limits(table),
        history=take_history(table, base),
        **take_process(table),
        cert_file=cert_file,
        key_file=key_file,
        tls_min_version=take_min_version(table.table("tls")),
        notices=take_notices(table, base, is_server=False),
        via=take_forward_proxy(table, base, said.options.via, said.options.environ, servers),
    )


def _pair(table: Table, base: Path, options: ClientOptions) -> tuple[Path | None, Path | None]:
    """The client's certificate and its key: those of the options, else those of the file."""
    without = " and the client shows no certificate"
    of_file = take_pair(table, base, without=without)
    said = {"--cert-file": options.cert_file, "--key-file": options.key_file}
    given = {option: str(path) for option, path in said.items() if path is not None}
    if not given:
        return of_file
    places: dict[KeyPath, Place] = {(option,): Place(0, path) for option, path in given.items()}
    of_options = table.findings.table(given, (), "", places)
    return take_pair(of_options, Path(), ("--cert-file", "--key-file"), without=without)


def _merge(findings: Findings, of_file: list[Claim], added: list[Claim]) -> tuple[ProxyConfig, ...]:
    names = {claim.name for claim in added}
    claims = [claim for claim in of_file if claim.name is None or claim.name not in names] + added
    check_claims(claims, findings)
    return tuple(claim.proxy for claim in claims if claim.proxy is not None)


def _token(table: Table, base: Path, options: ClientOptions, *, need_token: bool) -> str:
    path, spot = table.take("token_file", path_from(base), None), table.spot("token_file")
    if options.token_file is not None:
        path, spot = options.token_file, Spot("--token-file", 0, "", show_file(options.token_file))
    if path is not None:
        look = need_token or table.findings.lenient
        return _secret(table.findings, spot, lambda: read_token_file(path)) if look else ""
    if not need_token or "token_file" in table or table.findings.partial:
        return ""
    variable = Spot(TOKEN_VARIABLE, 0, "", "")
    if options.token is not None:
        written = options.token
        return _secret(table.findings, variable, lambda: check_token(written, TOKEN_VARIABLE))
    remedy = f'add token_file = "home.token", or set {TOKEN_VARIABLE}'
    _missing(table, "token_file", remedy, variable, "put the token there, or give a file of it with --token-file")
    return ""


def _secret(findings: Findings, spot: Spot, read: Callable[[], str]) -> str:
    """What `read` returns; its mistakes are told at `spot`."""
    try:
        return read()
    except ConfigError as exc:
        absent = isinstance(exc.__cause__, (FileNotFoundError, PermissionError))
        for mistake in exc.mistakes:
            (findings.doubt if absent else findings.blame)(spot, mistake.problem, mistake.remedy)
    return ""


def _missing(table: Table, key: str, remedy: str, option: Spot, remedy_without_file: str) -> None:
    if table.file:
        table.missing(key, remedy)
    else:
        table.findings.blame(option, "is missing", remedy_without_file)


def _option(findings: Findings, option: str, written: str | None, read: Reader[T]) -> T | None:
    if written is None:
        return None
    try:
        return read(text(written))
    except ValueError as exc:
        findings.mistakes.append(Spot(option, 0, "", show_value(written)).wrong(exc))
        return None


def _addresses(
    findings: Findings, option: str, written: tuple[str, ...], read: Reader[HostPort], *, at_most: int
) -> tuple[HostPort, ...]:
    """Those of an option that may be repeated, each at most once. Port 0 is another one each time."""
    spots = [Spot(option, 0, "", show_value(one)) for one in written]
    found = [_option(findings, option, one, read) for one in written]
    if len(written) > at_most:
        findings.blame(Spot(option, 0, "", ""), f"is there {len(written)} times", f"give at most {at_most}")
    said = [(spot, where if where and where.port else None) for spot, where in zip(spots, found, strict=True)]
    blame_repeats(said, findings.blame, "the address at", "write each once")
    return tuple(where for where in found if where is not None)


def _pin(value: Any) -> bytes:
    return parse_pin(text(value))
