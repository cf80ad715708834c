"""`trio-tunnel top`: parses, calls, prints."""

import sys
from typing import Any

import click

from tunnel.cli.names import offer_proxies
from tunnel.cli.options import SETTINGS, admin_option, json_option

SORTS = ("rate", "visitors", "new", "total", "state", "name")


@click.command(context_settings=SETTINGS, short_help="Rates and visitors of all proxies, live.")
@click.argument("name", required=False, default="", shell_complete=offer_proxies)
@click.option("--sort", type=click.Choice(SORTS), default="rate", show_default=True)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option(
    "--interval", type=click.FloatRange(0.1), metavar="SECONDS",
    help="Between two looks.  [default: 1, and more where an answer takes long]",
)  # fmt: skip
@click.option("--count", type=click.IntRange(1), metavar="N", help="So many looks, then exit; never on a whole screen.")
@json_option
@admin_option
def top(
    name: str, sort: str, reverse: bool, interval: float | None, count: int | None, as_json: bool, admin: Any
) -> None:
    """Traffic of all proxies of a running server, or of a client that was started with --admin: bytes and new visitors
    a second, visitors inside now, states. With NAME (PROXY, CLIENT or CLIENT/PROXY) only those of it.

    On a terminal it is drawn anew at each look: r, v, w, t, s and n sort by rate, visitors, new visitors, total, state
    and name (the same key again turns it round), q quits. Elsewhere, and with --count, each look is a table of lines.
    With --json each look is a line: {"at", "seconds", …totals, "proxies": […]}, or {"at", "error"} while nothing
    answers.

    \b
    Examples:
      trio-tunnel top --sort visitors
      trio-tunnel top --count 1 --interval 10
      trio-tunnel top --json --count 60 > minute.jsonl
    """
    from functools import partial

    from tunnel.cli.asking import fetch_stats
    from tunnel.cli.rates import Order
    from tunnel.cli.top_run import Sampler, Wanted
    from tunnel.cli.top_run import top as run_top

    wanted = Wanted(order=Order(sort, is_reversed=reverse), interval=interval, count=count, as_json=as_json)
    run_top(Sampler(partial(fetch_stats, admin, name), str(admin)), sys.stdout, wanted)
