"""What `client.toml` and ``--via`` say of a forward proxy: the way out of a network that lets nobody out by himself.

Its password never stands where others read it: not in an argument, nor in a file that others can read.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import evolve

from tunnel.addresses import HostPort, is_ip
from tunnel.config import FORWARD_SCHEMES, ForwardProxy
from tunnel.config.table import Findings, Spot, Table, show_value
from tunnel.config.token_file import exposed, read_secret_line, show_file
from tunnel.config.values import host, path_from, text
from tunnel.errors import ConfigError

AUTH_VARIABLE = "TRIO_TUNNEL_PROXY_AUTH"
ENV = "env"  # as a URL: the one that the environment names
URL_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")  # the first that is set, as for curl
EXCEPTION_VARIABLES = ("NO_PROXY", "no_proxy")
DEFAULT_PORTS = {"http": 3128, "socks5": 1080, "socks5h": 1080}
EXAMPLE = "http://proxy.example:3128 or socks5h://127.0.0.1:1080"
MAX_CREDENTIAL = 255  # bytes of a user's name, or of a password: RFC 1929 has no room for more
_CREDENTIAL = re.compile(r"[\x20-\x7e]+")
_REMEDY = f"put user:password in a file that only you can read, and name it in proxy_auth_file, or in {AUTH_VARIABLE}"


def take_forward_proxy(
    table: Table, base: Path, option: str | None, environ: Mapping[str, str], servers: Iterable[HostPort]
) -> ForwardProxy | None:
    """``proxy`` with ``proxy_auth_file``, or what ``--via`` says instead of ``proxy``; None: no proxy is asked for."""
    findings = table.findings
    url, spot = table.take("proxy", _url, None), table.spot("proxy")
    auth_file, auth_spot = table.take("proxy_auth_file", path_from(base), None), table.spot("proxy_auth_file")
    if option is not None:
        url, spot = option.strip(), Spot("--via", 0, "", show_value(option))
    if "proxy_auth_file" in table and url is None and "proxy" not in table:
        table.blame("proxy_auth_file", "means nothing without a proxy", 'add proxy = "http://HOST:PORT"')
    if url is None:
        return None
    try:
        found = _from_environment(environ, tuple(servers)) if url == ENV else parse_forward_proxy(url)
    except ValueError as exc:
        findings.mistakes.append(spot.wrong(exc))
        return None
    if found is None:
        return None
    if found.password and url != ENV and (told := _in_the_open(spot, option)) is not None:
        findings.blame(spot, *told)
        return None
    return _with_credentials(findings, found, auth_file, auth_spot, environ.get(AUTH_VARIABLE))


def parse_forward_proxy(url: str) -> ForwardProxy:
    """``http://``, ``socks5://`` or ``socks5h://``, then ``[USER[:PASSWORD]@]HOST[:PORT]``. ValueError, which does not
    repeat the text: a password may be in it."""
    if "://" not in url:
        raise ValueError(f"is not the URL of a proxy; write one such as {EXAMPLE}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"is not the URL of a proxy; write one such as {EXAMPLE}") from None
    if parts.scheme == "https":
        raise ValueError(
            "asks for TLS to the proxy itself, which is not spoken here; write http:// where the proxy takes that, too "
            "(the tunnel inside has its own TLS from end to end)"
        )
    if parts.scheme not in FORWARD_SCHEMES:
        raise ValueError(f"is not one of {', '.join(f'{scheme}://' for scheme in FORWARD_SCHEMES)}; write {EXAMPLE}")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise ValueError(f"is not the URL of a proxy; write one such as {EXAMPLE}")
    where = HostPort(host(parts.hostname), port or DEFAULT_PORTS[parts.scheme])
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    _check_credentials(username, password)
    return ForwardProxy(parts.scheme, where, username, password)


def _url(value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError("is a table, not the URL of a proxy to go out by; what you publish stands under [[proxies]]")
    return text(value).strip()


def _in_the_open(spot: Spot, option: str | None) -> tuple[str, str] | None:
    """Why a password must not stand there."""
    if option is not None:
        return "has a password in it, which everybody on this machine could read in the list of processes", _REMEDY
    problem = exposed(Path(spot.file))
    return (
        None if problem is None else (f"has a password in it, and the file {problem[0]}", f"{problem[1]}, or {_REMEDY}")
    )


def _with_credentials(
    findings: Findings, proxy: ForwardProxy, auth_file: Path | None, spot: Spot, variable: str | None
) -> ForwardProxy | None:
    if auth_file is not None:
        if proxy.password:
            findings.blame(spot, "stands beside a password in proxy", "keep one of the two")
            return None
        try:
            written, source = read_secret_line(auth_file, what="user:password"), show_file(auth_file)
        except ConfigError as exc:
            absent = isinstance(exc.__cause__, (FileNotFoundError, PermissionError))
            for mistake in exc.mistakes:
                (findings.doubt if absent else findings.blame)(spot, mistake.problem, mistake.remedy)
            return None
    elif variable is not None and not proxy.password:
        written, source, spot = variable, AUTH_VARIABLE, Spot(AUTH_VARIABLE, 0, "", "")
    else:
        return proxy
    username, colon, password = written.strip("\r\n").partition(":")
    try:
        if not (username and colon and password):
            raise ValueError(f"({source}) is not user:password; write both, with a colon between them")
        if proxy.username and proxy.username != username:
            raise ValueError("names another user than proxy does; keep one of the two")
        _check_credentials(username, password)
    except ValueError as exc:
        findings.mistakes.append(spot.wrong(exc))
        return None
    return evolve(proxy, username=username, password=password)


def _check_credentials(username: str, password: str) -> None:
    for word in (username, password):
        if word and (len(word) > MAX_CREDENTIAL or not _CREDENTIAL.fullmatch(word)):
            raise ValueError(
                f"has a user or password that proxies cannot be sent; use at most {MAX_CREDENTIAL} ASCII characters"
            )
    if ":" in username:
        raise ValueError("has a colon in the user's name; HTTP and SOCKS know none there")
    if password and not username:
        raise ValueError("has a password and no user; write user:password")


def _from_environment(environ: Mapping[str, str], servers: tuple[HostPort, ...]) -> ForwardProxy | None:
    """None where no variable is set, or all servers are exceptions."""
    variable = next((name for name in URL_VARIABLES if environ.get(name)), None)
    if variable is None:
        return None
    exceptions = next((environ[name] for name in EXCEPTION_VARIABLES if environ.get(name)), "")
    apart = [_is_exception(server.host, exceptions) for server in servers]
    if apart and all(apart):
        return None
    if any(apart):
        raise ValueError('sends some servers through the proxy and NO_PROXY others past it; write proxy = "http://…"')
    url = environ[variable]
    try:
        return parse_forward_proxy(url if "://" in url else f"http://{url}")
    except ValueError as exc:
        raise ValueError(f"takes {variable} of the environment, which {exc}") from None


def _is_exception(name: str, exceptions: str) -> bool:
    """As curl reads NO_PROXY: names with all below them, addresses, ``*``; no networks."""
    for word in re.split(r"[,\s]+", exceptions.lower()):
        bare = word.lstrip(".").strip("[]")
        is_name = name.lower() == bare or (not is_ip(name) and name.lower().endswith(f".{bare}"))
        if bare and (bare == "*" or is_name):
            return True
    return False


def forward_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What `load_client` needs of the environment, and nothing else of it."""
    return {name: environ[name] for name in (*URL_VARIABLES, *EXCEPTION_VARIABLES, AUTH_VARIABLE) if name in environ}
