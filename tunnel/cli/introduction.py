"""What `serve` prints at its start: where it listens, and the line to paste at a client. Used by `commands`."""

import logging
import shlex
import socket
import sys
from pathlib import Path

from tunnel.addresses import HostPort
from tunnel.api import Server
from tunnel.certificates import certificate_pin_of_file, pin_text
from tunnel.config import ServerConfig
from tunnel.errors import TunnelError
from tunnel.state import StateDir, default_state_dir

NOWHERE = "127.0.0.1", "::1"  # for an IPv4 and an IPv6 wildcard, where there is no default route
FIRST_CLIENT = "default"  # the name of the client whose token the first start makes

log = logging.getLogger(__name__)


def announce(server: Server, config: ServerConfig, *, introduce: bool, public_host: str | None) -> None:
    """Print where the server listens, and with `introduce` the line to paste; at the first start that has a token.

    Raises `TunnelError` where standard output does not take a token that is shown once; it is then nobody's.
    """
    assert config.state_dir is not None
    pin = pin_text(certificate_pin_of_file(server.cert_file))
    # The token is made only now: a start that failed must not use up the one showing.
    token = _first_token(config.state_dir) if introduce else None
    lines = [f"listening on {where}" for where in server.addresses]
    if introduce:
        lines = [*_lines_to_paste(reachable(server.addresses, public_host), pin, token, config.state_dir), *lines]
    else:
        log.info("clients can verify this server by its pin: %s", pin)
        _look_for_clients(config, config.state_dir)
    try:
        _write("".join(f"{line}\n" for line in lines))
    except OSError as exc:
        sys.stdout = None  # or the interpreter tries once more at exit, and complains
        word = f"cannot write to standard output ({exc.strerror}); give it somewhere to go"
        if token is not None:
            StateDir.open(config.state_dir).revoke_token(FIRST_CLIENT)
            raise TunnelError(word) from exc
        log.warning("%s; serving all the same", word)  # what stands there is known, and a full disk is no end


def _write(text: str) -> None:
    """In one piece, which `print` does not, where standard output is unbuffered (PYTHONUNBUFFERED): who reads the first
    line has the others, too."""
    if sys.stdout is not None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _look_for_clients(config: ServerConfig, state_dir: Path) -> None:
    if not config.clients and not StateDir.open(state_dir).grants():
        log.warning("no client can log in yet; make a token: trio-tunnel token new NAME%s", _where_kept(state_dir))


def _first_token(state_dir: Path) -> str | None:
    """A token for the first start with this state; None later."""
    state = StateDir.open(state_dir)
    return None if state.grants() else state.new_token(FIRST_CLIENT)


def _lines_to_paste(addresses: tuple[HostPort, ...], pin: str, token: str | None, state_dir: Path) -> list[str]:
    line = f"trio-tunnel connect {' '.join(shlex.quote(str(where)) for where in addresses)} --pin {pin}"
    if token is not None:
        return [f"TRIO_TUNNEL_TOKEN={token} {line}"]
    return [line, f"# with a client's token; to make one: trio-tunnel token new NAME{_where_kept(state_dir)}"]


def _where_kept(state_dir: Path) -> str:
    return "" if state_dir == default_state_dir() else f" --state-dir {shlex.quote(str(state_dir))}"


def reachable(bound: tuple[HostPort, ...], public_host: str | None) -> tuple[HostPort, ...]:
    """How others may reach what we listen on, each address once. A further wildcard of a family without a way out is
    left out: there would be this host's loopback, where a client has its own."""
    found = {HostPort(public_host or reachable_host(bound[0].host), bound[0].port): None}
    for where in bound[1:]:
        host = public_host or reachable_host(where.host)
        if host == where.host or host not in NOWHERE:
            found[HostPort(host, where.port)] = None
    return tuple(found)


def reachable_host(bound: str) -> str:
    """How others may reach an address we listen on: itself, or for a wildcard the address of the default route."""
    if bound not in ("0.0.0.0", "::"):  # noqa: S104  compared with, not bound
        return bound
    family, somewhere = (socket.AF_INET6, "2001:db8::1") if bound == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))  # documentation addresses; a datagram socket sends nothing by this
            return str(probe.getsockname()[0])
        except OSError:
            return NOWHERE[bound == "::"]
