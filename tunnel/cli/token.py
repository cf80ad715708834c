"""`trio-tunnel token`: parses, calls, prints."""

from pathlib import Path
from typing import Any

import click

from tunnel.cli.options import SETTINGS, admin_address, config_option, json_option, state_option, with_state


@click.group(context_settings=SETTINGS)
def token() -> None:
    """Make, list and revoke the tokens that clients log in with.

    \b
    Examples:
      trio-tunnel token list
      trio-tunnel token new home
    """


@token.command("new", context_settings=SETTINGS, short_help="Make a token for a new client; it is shown once.")
@click.argument("name")
@state_option
def token_new(name: str, state_dir: Path | None) -> None:
    """Make a token for a new client NAME; it is shown once, and kept only as its SHA-256.

    A running server knows it within a second.

    \b
    Example:
      (umask 077; trio-tunnel token new home > home.token)
    """
    from tunnel.state import hash_token

    secret, path = with_state(state_dir, lambda state: (state.new_token(name), state.path))
    try:
        click.echo(secret)
    except OSError:  # nobody has seen it
        with_state(state_dir, lambda state: state.revoke_token(name))
        raise
    click.echo(
        f"the token of client '{name}', shown this once; a server with state directory {path} knows it already, and "
        f"allows it any port. To allow less, write in server.toml:\n"
        f"[[clients]]\n"
        f'name = "{name}"\n'
        f'token_sha256 = "{hash_token(secret).hex()}"\n'
        f'allow_ports = ["8000-8999"]',
        err=True,
    )


@token.command("revoke", context_settings=SETTINGS, short_help="End a client's token for good.")
@click.argument("name")
@config_option
@state_option
def token_revoke(name: str, config: Path | None, state_dir: Path | None) -> None:
    """End the token of client NAME for good, also where an entry of a configuration has it (give -c, if only there).

    A running server ends the client's session within a second.

    \b
    Example:
      trio-tunnel token revoke home -c server.toml
    """
    clients, state_dir = _entries(config, state_dir)
    others = [grant.token_sha256 for grant in clients if grant.name == name]
    with_state(state_dir, lambda state: state.revoke_token(name, others=others), make=config is not None)
    click.echo(f"the token of client '{name}' is revoked; a server that runs ends its session within a second")


@token.command("list", context_settings=SETTINGS, short_help="The clients, what they may do, who is connected.")
@config_option
@state_option
@click.option("--admin", metavar="HOST:PORT", help="Of the server, or off.  [default: 127.0.0.1:8480]")
@json_option
def token_list(config: Path | None, state_dir: Path | None, admin: str | None, as_json: bool) -> None:
    """The clients with a token in the state directory, or an entry in the configuration given with -c: since when,
    what they may do, and whether they are connected, where a running server can be asked.

    \b
    Example:
      trio-tunnel token list -c server.toml
    """
    import json

    from tunnel.cli.token_list import lines, rows

    clients, state_dir = _entries(config, state_dir)
    where = None if admin == "off" else admin_address(admin or "127.0.0.1:8480")
    found = with_state(state_dir, lambda state: rows(state, clients, where), make=config is not None)
    if as_json:
        click.echo(json.dumps([row.to_json() for row in found], indent=2))
    else:
        click.echo("\n".join(lines(found)) if found else "no client has a token; make one: trio-tunnel token new NAME")


def _entries(config: Path | None, state_dir: Path | None) -> tuple[Any, Path | None]:
    """The clients of a server's configuration file, and the state directory that it names where no option does."""
    from tunnel.config.file import load_server

    if config is None:
        return (), state_dir
    loaded = load_server(config)
    return loaded.clients, state_dir or loaded.state_dir
