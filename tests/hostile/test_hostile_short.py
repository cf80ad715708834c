"""The attack in small, with real processes: the healthy lose nothing, nothing is left of the hostile. B37, B38, B41."""

from pathlib import Path

import pytest

from .attackers import Attack
from .house import open_house
from .insiders import CONTROL, DATA_CHANNEL
from .report import render, violations
from .run import Options, run
from .strangers import QUICK, SLOW
from .visitors import VISITS


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)  # the attackers are nice, and on a busy machine they take their time
def test_five_hundred_hostile_connections_cost_the_healthy_nothing(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        found = run(house, Options(connections=500, seconds=90, alone_seconds=0.5))
        print(render(found))
        assert violations(found) == [], house.server.report()
    assert found.connections == 500
    # Those with a token take their time: how many of them there were is the machine's to say.
    strangers = names({**QUICK, **VISITS})
    assert len(strangers & set(found.made)) > 0.8 * len(strangers)
    for kinds in (SLOW, {**CONTROL, **DATA_CHANNEL}):
        assert names(kinds) & set(found.made)


def names(kinds: dict[Attack, int]) -> set[str]:
    return {kind.__name__ for kind in kinds}
