"""`trio-tunnel status`: parses, calls, prints."""

import sys
from typing import Any

import click

from tunnel.cli.names import offer_proxies
from tunnel.cli.options import SETTINGS, admin_option, json_option
from tunnel.errors import TunnelError


@click.command(context_settings=SETTINGS, short_help="Sessions, proxies and their states.")
@click.argument("name", required=False, default="", shell_complete=offer_proxies)
@json_option
@click.option("--watch", "watching", is_flag=True, help="Keep showing it, until Ctrl-C.")
@admin_option
def status(name: str, as_json: bool, watching: bool, admin: Any) -> None:
    """Sessions, proxies and their states, of a running server, or of a client that was started with --admin. With NAME
    (PROXY, CLIENT or CLIENT/PROXY) only those of it.

    With --watch the table is drawn anew each second on a terminal; elsewhere each change of a state is a line. With
    --watch --json, all of it is one line of JSON, again at each change of a session or a state ({"error": …} while
    nothing answers); how the figures change is in `trio-tunnel top`.

    \b
    Examples:
      trio-tunnel status home/web
      trio-tunnel status --watch
      trio-tunnel status --json --admin 127.0.0.1:8481
    """
    import json
    from functools import partial

    from tunnel.cli.asking import fetch_stats
    from tunnel.cli.status_table import print_status
    from tunnel.cli.watch import watch

    if watching:
        watch(partial(fetch_stats, admin, name), sys.stdout, as_json=as_json)
        return
    stats = fetch_stats(admin, name)
    if name and not stats["sessions"]:
        raise TunnelError(f"no proxy and no client is named {name!r}; `trio-tunnel status` lists the names")
    if as_json:
        click.echo(json.dumps(stats, indent=2))
    else:
        print_status(stats, sys.stdout)
