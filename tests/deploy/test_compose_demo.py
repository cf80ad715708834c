"""The Compose demo works, where a Docker engine answers; `python -m tests.deploy.compose` is the same by hand."""

import pytest

from .compose import prepare, run
from .engine import NoEngine

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_compose_demo_starts_recovers_restarts_and_stops() -> None:
    try:
        demo = prepare()
    except NoEngine as exc:
        pytest.skip(str(exc))
    run(demo)
