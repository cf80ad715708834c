"""The attack in small, with real processes: the healthy lose nothing, nothing is left of the hostile. B37, B38, B41."""

from pathlib import Path

import pytest

from .house import open_house
from .insiders import CONTROL, DATA_CHANNEL
from .report import render, violations
from .run import Options, run
from .strangers import QUICK, SLOW
from .visitors import VISITS


@pytest.mark.e2e
@pytest.mark.slow
def test_five_hundred_hostile_connections_cost_the_healthy_nothing(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        found = run(house, Options(connections=500, seconds=30, alone_seconds=0.5))
        print(render(found))
        assert violations(found) == [], house.server.report()
    assert found.connections == 500
    assert len(found.made) > 0.8 * len({**QUICK, **SLOW, **VISITS, **CONTROL, **DATA_CHANNEL})
