"""What is attacked: a server with grants for the healthy and for the attackers, a client, and two small services."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen
from processes import LOOPBACK, Client, Server, Stage, free_port
from services import Services, echo

MALLORIES = 60  # good tokens of attackers: ten for each of those at a time, as a client may log in only so often


@frozen
class House:
    stage: Stage
    server: Server
    client: Client
    web: int  # public ports
    echo: int
    guest: str  # the newcomers' token
    mallories: tuple[str, ...]
    dumps: Path  # the server's --profile-dir


def new_token() -> str:
    return f"tt_{secrets.token_urlsafe(32)}"


def grant(name: str, token: str, ports: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[clients]]\nname = "{name}"\ntoken_sha256 = "{digest}"\nallow_ports = ["{ports}"]\n'


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """Real processes, as a user has them; only the grants are many."""
    web, plain = free_port(), free_port()
    home, guest = new_token(), new_token()
    mallories = tuple(new_token() for _ in range(MALLORIES))
    config = grant("home", home, "1024-65535") + grant("guest", guest, "1-1")
    for number, token in enumerate(mallories):
        config += grant(f"mallory{number}", token, "33000-33999")
    with Stage(folder) as stage, Services() as services:
        dumps = stage.path("dumps")
        server = stage.serve("--profile-dir", dumps, config=config)
        pages, echoes = services.add(services.http), services.add(echo)
        client = stage.connect(server, f"web={LOOPBACK}:{web}:{pages}", f"echo={LOOPBACK}:{plain}:{echoes}", token=home)
        client.wait_healthy("web", "echo")
        yield House(stage, server, client, web, plain, guest, mallories, dumps)
