"""`trio-tunnel events`: parses, calls, prints."""

import sys
from typing import Any

import click

from tunnel.cli.names import offer_proxies
from tunnel.cli.options import SETTINGS, admin_option, json_option
from tunnel.snapshot import KINDS

GROUPS = tuple(dict.fromkeys(kind.partition(".")[0] for kind in KINDS))


@click.command(context_settings=SETTINGS, short_help="What happened lately, and what happens now.")
@click.argument("name", required=False, default="", shell_complete=offer_proxies)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens now, until Ctrl-C.")
@click.option("-n", "--last", type=click.IntRange(0), metavar="N", default=20, show_default=True, help="Of those kept.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*GROUPS, *KINDS]),
    metavar="KIND",
    help="Only these; repeatable.",
)
@json_option
@admin_option
def events(name: str, follow: bool, last: int, kinds: tuple[str, ...], as_json: bool, admin: Any) -> None:
    """The last events of a running server or client, oldest first: states of proxies, sessions, configuration. With
    NAME (PROXY, CLIENT or CLIENT/PROXY) only those of it.

    A process keeps its last 500. With --follow its restarts are survived: that it is gone, or another one now, is told
    on standard error. With --json each event is a line {"id", "kind", "at", "client", "proxy", "fields"}.

    \b
    KIND is one of
      proxy        proxy.status proxy.removed
      session      session.started session.ended (at a server)
                   session.connecting session.connected session.lost (at a client)
      config       config.reloaded config.refused
      certificate  certificate.loaded certificate.expiring

    \b
    Examples:
      trio-tunnel events --follow
      trio-tunnel events home/web --kind proxy -n 100
      trio-tunnel events --follow --json --kind session | jq .fields
    """
    from tunnel.cli.events_print import Printer, show_events

    show_events(admin, Printer(sys.stdout, as_json=as_json), kinds=kinds, name=name, last=last, follow=follow)
