"""`trio-tunnel healthcheck`: asks the admin address whether a process would serve; for containers, which have no curl.

It is run every few seconds beside what it asks about, so it imports little and needs no Trio.
"""

from typing import TYPE_CHECKING

import click

from tunnel.cli.options import SETTINGS, admin_address
from tunnel.errors import PeerLost, TunnelError
from tunnel.wording import clean

if TYPE_CHECKING:
    from tunnel.addresses import HostPort

ANSWER_SECONDS = 4.0  # for each step of one exchange; under the timeout that the image's HEALTHCHECK has
SHOWN_CHARACTERS = 300  # of an answer


@click.command(context_settings=SETTINGS, short_help="Whether a running process would serve; for containers.")
@click.option("--alive", is_flag=True, help="Ask only whether the process answers at all (/healthz, not /readyz).")
@click.option("--admin", metavar="HOST:PORT", default="127.0.0.1:8480", show_default=True)
def healthcheck(alive: bool, admin: str) -> None:
    """Exit code 0 if the process at the admin address would serve: a server listens, a client's session is up.

    It is what the container image's HEALTHCHECK and the Kubernetes probes run. A client is asked where it was started
    with --admin 127.0.0.1:8480, or has that in its configuration.

    \b
    Examples:
      trio-tunnel healthcheck
      trio-tunnel healthcheck --alive --admin 127.0.0.1:8481
    """
    click.echo(ask_health(admin_address(admin), "/healthz" if alive else "/readyz"))


def ask_health(where: "HostPort", path: str) -> str:
    """What a 200 said there; `TunnelError` for any other answer, `PeerLost` for none. Blocks."""
    import http.client

    connection = http.client.HTTPConnection(where.host, where.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        with connection.getresponse() as answer:  # which keeps the socket until it is closed, or read to its end
            said = clean(answer.read(SHOWN_CHARACTERS).decode("utf-8", "replace").strip())
    except (OSError, http.client.HTTPException) as exc:
        why = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise PeerLost(
            f"no answer from {where} ({why}); is the process running, with its admin address there? "
            f"`connect` has one only with --admin"
        ) from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise TunnelError(f"{where}{path} answered {answer.status}: {said or answer.reason}")
    return said
