"""Accidents in small, with real processes: B14, B44, and that the soak runs. The long forms are commands."""

from pathlib import Path

import pytest

from . import house, kills, soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_killed_six_times_under_traffic_service_comes_back_and_no_transfer_lies(tmp_path: Path) -> None:
    with house.open_house(tmp_path) as where:
        found = kills.kill_again_and_again(where, times=6)
        print(kills.render(found))
        assert kills.violations(found) == [], where.stage.report()
    assert [len(found.away[side]) for side in kills.SIDES] == [3, 3]


def test_eight_seconds_of_the_soak_show_no_wrong_byte_and_weigh_both_sides(tmp_path: Path) -> None:
    found = soak.soak(tmp_path, seconds=8)
    print(soak.render(found))
    assert soak.violations(found) == []
    assert {one.side for one in found.samples} == set(soak.SIDES)
    assert set(found.load.counts.done) >= {"small", "bulk_up", "bulk_down", "slow_reader", "half_closer", "leaver"}
    assert found.accidents
