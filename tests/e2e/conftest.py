"""Fixtures of the whole-process tests. A `stage` is a test's own; a `pair` is shared by a module's gentle tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import Client, Server, Stage
from services import Services, echo, greet_then_echo
from target_services import Named, Trusted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with Services() as services:
        yield services


@pytest.fixture(scope="module")
def echo_port(services: Services) -> int:
    return services.add(echo)


class Pair:
    """A server and a client that publishes the services most tests want; `ports` by proxy name."""

    def __init__(self, stage: Stage, server: Server, client: Client, ports: dict[str, int]) -> None:
        self.stage, self.server, self.client, self.ports = stage, server, client, ports


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, services: Services, echo_port: int) -> Iterator[Pair]:
    targets = {
        "echo": echo_port,
        "greeter": services.add(greet_then_echo),
        "web": services.add(services.http),
        "digest": services.add(services.digest),
        "first_to_end": services.add(services.first_to_end),
        "resets": services.add(services.resets),
        "reports_end": services.add(services.reports_end),
    }
    with Stage(tmp_path_factory.mktemp("pair")) as stage:
        server = stage.serve()
        client = stage.connect(server, *(f"{name}=127.0.0.1:0:{port}" for name, port in targets.items()), admin=True)
        ports = dict(zip(targets, client.wait_healthy(*targets), strict=True))
        yield Pair(stage, server, client, ports)


@pytest.fixture
def named() -> Iterator[Callable[..., Named]]:
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(Named(*words, **more))


@pytest.fixture
def trusted(stage: Stage, services: Services) -> Trusted:
    return Trusted(stage, services, greet_then_echo)
