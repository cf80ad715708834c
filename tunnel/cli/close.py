"""`trio-tunnel close`: parses, calls, prints."""

from pathlib import Path
from typing import Any

import click

from tunnel.cli.names import offer_clients
from tunnel.cli.options import SETTINGS, admin_option, admin_token, json_option, state_option


@click.command(context_settings=SETTINGS, short_help="Close a client's session; it comes back.")
@click.argument("client", shell_complete=offer_clients)
@json_option
@admin_option
@state_option
def close(client: str, as_json: bool, admin: Any, state_dir: Path | None) -> None:
    """Close the session of CLIENT: at once, its visitors with it. The client is told why, and comes back, the first
    time without delay; to keep it away, revoke its token: `trio-tunnel token revoke CLIENT`.

    Asked of a client (with the --admin it was started with), it drops its session and connects again at once; one that
    has no session tries again now instead of waiting on.

    The state directory is that of the process asked: its admin token lies there. With --json the answer is
    {"closed": [CLIENT]}, an empty list where a client had no session.

    \b
    Example:
      trio-tunnel close home --state-dir /var/lib/trio-tunnel
    """
    import json

    from tunnel.cli.asking import request_close

    closed = request_close(admin, client, admin_token(state_dir))
    if as_json:
        click.echo(json.dumps({"closed": closed}))
        return
    click.echo(
        "".join(f"{name}: the session has ended; the client comes back\n" for name in closed)
        or f"{client}: there is no session now; the client tries again at once\n",
        nl=False,
    )
