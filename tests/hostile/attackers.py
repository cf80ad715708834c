"""The process that attacks: so many connections, of every kind by weight, each from a source address of its own.

    python -m tests.hostile.attackers < plan.json > tally.json

It is nice to the rest of the machine: what the healthy visitor waits for is to be the server, not the attackers' CPU.
"""

import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import Factory, define, frozen

from .assault import Assault, Refused, Target
from .insiders import INSIDE
from .strangers import QUICK, SLOW
from .visitors import VISITS

Attack = Callable[[Assault], Awaitable[None]]
NICENESS = 10
INSIDERS = 6  # with a good token, at a time
LONGEST_SECONDS = 30.0  # for one connection, whatever it does


@frozen
class Plan:
    target: Target
    connections: int
    seconds: float  # at most
    quick_workers: int = 32
    slow_workers: int = 12  # silent ones fill the gate's places: with many more of these the others are not heard
    sources: int = 4000  # addresses in 127/8; none of them is 127.0.0.1, where the healthy ones are
    seed: int = 1
    only: str = ""  # kinds whose name this is found in


@define
class Tally:
    made: Counter[str] = Factory(Counter)
    ends: Counter[str] = Factory(Counter)
    held: dict[str, float] = Factory(lambda: defaultdict(float))  # the longest time a kind was let be, in seconds


class Attackers:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._dice = random.Random(plan.seed)
        self._left = plan.connections
        self._epoch = 0

    async def run(self) -> Tally:
        plan = self.plan
        outside, inside = self._of({**QUICK, **VISITS}), self._of(INSIDE)
        with trio.move_on_after(plan.seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(plan.quick_workers if outside else 0):
                    nursery.start_soon(self._work, outside)
                for number in range(INSIDERS if inside else 0):
                    nursery.start_soon(self._work, inside, plan.target.tokens[number::INSIDERS])
                slow = trio.CancelScope()
                nursery.start_soon(self._work_slowly, slow)
                while len(nursery.child_tasks) > 1:
                    await trio.sleep(0.02)
                slow.cancel(reason="the others have done")
        return self.tally

    def _of(self, kinds: dict[Any, int]) -> dict[Any, int]:
        if not self.plan.only:
            return {attack: weight for attack, weight in kinds.items() if weight}
        return {attack: weight or 1 for attack, weight in kinds.items() if re.search(self.plan.only, attack.__name__)}

    async def _work_slowly(self, scope: trio.CancelScope) -> None:
        kinds = self._of(SLOW)
        with scope:
            async with trio.open_nursery() as nursery:
                for _ in range(self.plan.slow_workers if kinds else 0):
                    nursery.start_soon(self._work, kinds)

    async def _work(self, kinds: dict[Any, int], tokens: tuple[str, ...] = ("",)) -> None:
        while self._left > 0:
            self._left -= 1
            (attack,) = self._dice.choices(list(kinds), list(kinds.values()))
            await self._attack(attack, self._dice.choice(tokens))

    async def _attack(self, attack: Attack, token: str) -> None:
        self._epoch += 1
        dice = random.Random(self._dice.random())
        assault = Assault(self.plan.target, dice, self._source(), token, self._epoch)
        self.tally.made[attack.__name__] += 1
        began = time.monotonic()
        end = "cancelled at the end"
        try:
            with trio.move_on_after(LONGEST_SECONDS) as scope:
                await attack(assault)
            end = "still there" if scope.cancelled_caught else "done"
        except Refused as exc:
            end = str(exc)[:40]
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            end = "cut"
        finally:  # also when the run is over
            self.tally.ends[end] += 1
            held = time.monotonic() - began
            self.tally.held[attack.__name__] = max(self.tally.held[attack.__name__], held)

    def _source(self) -> str:
        number = 256 * 256 + self._dice.randrange(self.plan.sources) * 7
        return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{(number & 255) or 1}"


def main() -> None:
    os.nice(NICENESS)
    told = json.load(sys.stdin)
    target = Target(**{**told.pop("target"), "tokens": tuple(told.pop("tokens"))})
    began = time.monotonic()
    tally = trio.run(Attackers(Plan(target, **told)).run)
    found = {"made": tally.made, "ends": tally.ends, "held": tally.held, "seconds": time.monotonic() - began}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
