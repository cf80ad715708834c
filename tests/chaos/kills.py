"""`kill -9` of server and client by turns, at random moments under hashed traffic. B14, B44.

Whoever was killed is started again at once by a supervisor, with the same state; nobody touches the other side. Service
is back when a visitor is answered: that counts from the kill, so it holds the interpreter's start.
"""

import random
import time
from collections import defaultdict

from attrs import define, field
from tables import distribution, table

from .house import House
from .transfers import Tally, Traffic

CALM_SECONDS = (0.1, 1.2)  # between service being back and the next kill
BACK_SECONDS = 20.0  # away for longer, it has not come back by itself
LOOK_SECONDS = 0.005
SIDES = ("server", "client")


@define
class Found:
    tally: Tally
    away: dict[str, list[float]] = field(factory=lambda: defaultdict(list))  # seconds, by who was killed
    lost: list[str] = field(factory=list)  # kills after which service did not come back


def kill_again_and_again(house: House, *, times: int, seed: int = 1) -> Found:
    dice = random.Random(seed)
    found = Found(house.tally)
    with Traffic(house.tally, house.traffic):
        for number in range(times):
            time.sleep(dice.uniform(*CALM_SECONDS))
            side = SIDES[number % 2]
            began = time.monotonic()
            house.kill(side)
            house.restart(side)
            while not house.is_served():
                if time.monotonic() - began > BACK_SECONDS:
                    found.lost.append(f"kill {number + 1}, of the {side}: no service after {BACK_SECONDS:g} s")
                    return found
                time.sleep(LOOK_SECONDS)
            found.away[side].append(time.monotonic() - began)
    house.assert_state_is_readable()
    return found


def violations(found: Found) -> list[str]:
    wrong = [*found.lost, *found.tally.lies]
    if not found.tally.complete:
        wrong.append("no transfer was ever complete")
    return wrong


def render(found: Found) -> str:
    tally = found.tally
    rows = [(f"the {side} killed", *distribution(found.away[side])) for side in SIDES]
    return "\n".join([
        table(("service away, seconds", "times", "median", "p90", "p99", "slowest"), rows),
        "",
        f"transfers: {tally.complete} complete ({tally.moved_bytes / 1e6:.0f} MB), {tally.broken} ended by a visible "
        f"error, {len(tally.lies)} that lied; {tally.refused} visits found nobody listening",
    ])  # fmt: skip
