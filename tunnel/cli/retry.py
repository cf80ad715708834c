"""`trio-tunnel retry`: parses, calls, prints."""

from pathlib import Path
from typing import Any

import click

from tunnel.cli.names import offer_proxies
from tunnel.cli.options import SETTINGS, admin_option, admin_token, json_option, state_option


@click.command(context_settings=SETTINGS, short_help="Start a proxy's bind retry afresh.")
@click.argument("name", shell_complete=offer_proxies)
@json_option
@admin_option
@state_option
def retry(name: str, as_json: bool, admin: Any, state_dir: Path | None) -> None:
    """Start the bind retry of proxy NAME (or CLIENT/NAME) afresh; its siblings are not touched.

    The state directory is that of the process asked: its admin token lies there. With --json the answer is
    {"restarted": [CLIENT/NAME]}, an empty list where there is nothing to retry.

    \b
    Example:
      trio-tunnel retry home/web --state-dir /var/lib/trio-tunnel
    """
    import json

    from tunnel.cli.asking import request_retry

    restarted = request_retry(admin, name, admin_token(state_dir))
    if as_json:
        click.echo(json.dumps({"restarted": restarted}))
        return
    click.echo(
        "".join(f"{one}: starts afresh\n" for one in restarted)
        or f"{name}: nothing to retry; it listens, or waits for its target\n",
        nl=False,
    )
