"""What several commands take and do: their options, the state directory, an admin address."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tunnel.errors import TunnelError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

config_option = click.option("-c", "--config", type=FILE, help="Configuration file (TOML); see `trio-tunnel init`.")
state_option = click.option(
    "--state-dir",
    type=FOLDER,
    help="Where keys, tokens and chosen ports are kept.  [default: "
    "/var/lib/trio-tunnel for root, else ~/.local/state/trio-tunnel]",
)
verbose_option = click.option("-v", "--verbose", count=True, help="Log more; -vv also what libraries log.")
format_option = click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
watch_option = click.option(
    "--no-watch", "watch", is_flag=True, default=True, flag_value=False, help="Read changed files only at SIGHUP."
)
profile_option = click.option("--profile-dir", type=FOLDER, help="On SIGUSR2, write a dump of tasks and figures there.")
via_option = click.option(
    "--via",
    metavar="URL",
    help="Go out by this proxy: http://, socks5:// or socks5h://HOST:PORT, or env; its user:password in "
    "TRIO_TUNNEL_PROXY_AUTH.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
admin_option = click.option(
    "--admin",
    metavar="HOST:PORT",
    default="127.0.0.1:8480",
    show_default=True,
    callback=lambda _context, _option, text: admin_address(text),
    help="Admin address of the process asked.",
)


def with_state(state_dir: Path | None, act: Callable[[Any], Any], *, make: bool = True) -> Any:
    from tunnel.state import StateDir, default_state_dir

    path = state_dir or default_state_dir()
    if not make and not os.path.lexists(path):
        raise TunnelError(f"there is no state directory {path}; name the server's with --state-dir")
    try:
        return act(StateDir.open(path, for_owner=True))
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc


def admin_address(text: str) -> Any:
    from tunnel.addresses import parse_host_port

    try:
        return parse_host_port(text, default_port=8480)
    except ValueError as exc:
        raise click.UsageError(f"--admin: {exc}") from exc


def admin_token(state_dir: Path | None) -> str:
    """What changes through the admin address need, of the process whose state directory this is."""
    token: str = with_state(state_dir, lambda state: state.admin_token(), make=False)
    return token
