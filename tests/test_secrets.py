"""No value that holds a secret shows it: what lands in a log, a traceback or a dump by chance is its repr (B43)."""

import pytest

from tunnel.addresses import HostPort
from tunnel.admin.http import Request
from tunnel.admin.site import AdminSource
from tunnel.client.session import Identity
from tunnel.config import ClientConfig, Grant, ServerConfig
from tunnel.config.actions import SetClients
from tunnel.config.diff import diff
from tunnel.config.file import ClientOptions
from tunnel.config.receivers import Email, Webhook
from tunnel.messages import Tickets, Welcome
from tunnel.upgrade import Head

SECRET = "correct-horse-battery-staple"
DIGEST = SECRET.encode()[:28].ljust(32, b".")
HEADERS = {"authorization": f"Bearer {SECRET}"}
GRANT = Grant("lab", DIGEST)
HOLDERS = [
    ClientConfig((), SECRET),
    ClientOptions(token=SECRET),
    GRANT,
    ServerConfig(clients=(GRANT,)),
    SetClients((GRANT,)),
    diff(ServerConfig(), ServerConfig(clients=(GRANT,))),
    Identity(SECRET, "0" * 32, 1),
    Head("GET", "/control", HEADERS, f"Authorization: Bearer {SECRET}".encode(), b""),
    Request("POST", "/retry", {}, HEADERS, b""),
    AdminSource("server", lambda: iter(()), bool, lambda name: [], SECRET),
    Welcome("s", "lab", (SECRET,), 10.0),
    Tickets((SECRET,)),
    Webhook(f"https://example.com/{SECRET}", SECRET.encode(), (("Authorization", SECRET),)),
    Email(HostPort("smtp.example.com", 587), "a@b", ("c@d",), username="a", password=SECRET),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_what_holds_a_secret_does_not_show_it(holder: object) -> None:
    assert SECRET not in repr(holder) + str(holder)


def test_no_secret_is_given_as_an_argument() -> None:
    """Arguments show in the list of processes: options name files, and the secret itself is read from them."""
    from click import Group

    from tunnel.cli.main import cli

    commands = [cli, *(command for command in cli.commands.values())]
    commands += [
        sub for command in cli.commands.values() if isinstance(command, Group) for sub in command.commands.values()
    ]
    named = {name for command in commands for option in command.params for name in option.opts}
    assert {name for name in named if "token" in name or "key" in name or "passw" in name or "secret" in name} == {
        "--token-file", "--key-file",
    }  # fmt: skip
