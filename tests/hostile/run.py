"""One run: the healthy alone, then beside the attack, then what is left when it is over."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from processes import LOOPBACK, Late
from vitals import Vitals, Watch, weigh

from .assault import Target
from .healthy import Caller, Figures, LastingVisitor, Newcomer, new_visitor
from .house import House

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 20.0  # after the attack: what it left must be gone by then


@frozen
class Options:
    connections: int
    seconds: float  # at most, of the attack
    alone_seconds: float  # of the healthy without it
    seed: int = 1
    only: str = ""  # a regular expression, for the names of the attacks


@frozen
class Found:
    """What a run found. Figures of the healthy `alone` and `beside` the attack, in one order."""

    alone: tuple[Figures, ...]
    beside: tuple[Figures, ...]
    knocks: list[int]  # of each newcomer beside the attack
    before: Vitals
    after: Vitals
    peak_mib: float
    peak_descriptors: int
    client_mib: tuple[float, float]
    strangers_lines: int  # logged by the server during the attack, of those without a token
    clients_lines: int  # and of those with one
    wordiest: list[tuple[str, int]]  # which lines, with * for what differs
    gate: dict[str, int]  # the server's own count of why connections came to nothing
    made: dict[str, int]
    ends: dict[str, int]
    held: dict[str, float]
    seconds: float  # of the attack
    ended: list[str]  # processes that did

    @property
    def connections(self) -> int:
        return sum(self.made.values())


def run(house: House, options: Options) -> Found:
    lasting, newcomer = LastingVisitor(house.echo), Newcomer(house.server.port, house.guest)
    try:
        with healthy(house, lasting, newcomer) as alone:
            time.sleep(options.alone_seconds)
        newcomer.knocks.clear()
        before, client_before = weigh(house.server, house.dumps), weigh(house.client)
        logged = len(house.server.err)
        with Watch(house.server) as watch, healthy(house, lasting, newcomer) as beside:
            tally = attack(house, options)
        after = settled(house, before)
        lines = house.server.err[logged:]
        clients = [line for line in lines if re.search(r" client=(guest|mallory)", line)]
        ended = [process.name for process in (house.server, house.client) if process.popen.poll() is not None]
        return Found(
            alone=tuple(caller.figures for caller in alone),
            beside=tuple(caller.figures for caller in beside),
            knocks=newcomer.knocks,
            before=before,
            after=after,
            peak_mib=watch.peak_mib,
            peak_descriptors=watch.peak_descriptors,
            client_mib=(client_before.resident_mib, weigh(house.client).resident_mib),
            strangers_lines=len(lines) - len(clients),
            clients_lines=len(clients),
            wordiest=Counter(map(_gist, lines)).most_common(6),
            ended=ended,
            gate=house.server.stats().get("gate", {}),
            **tally,
        )
    finally:
        lasting.close()


def _gist(line: str) -> str:
    """A log line without its time, its fields, and what differs from one to the next."""
    words = line.split(maxsplit=1)[-1]
    return re.sub(r"'[^']*'|[0-9a-f.:]*\d[0-9a-f.:]*", "*", re.sub(r" \w+=.*", "", words))[:70]


@contextmanager
def healthy(house: House, lasting: LastingVisitor, newcomer: Newcomer) -> Iterator[list[Caller]]:
    callers = [new_visitor(house.web), lasting.caller(), newcomer.caller()]
    with ExitStack() as stack:
        for caller in callers:
            stack.enter_context(caller)
        yield callers


def attack(house: House, options: Options) -> dict[str, Any]:
    """Send it all from another process; what that counted."""
    target = asdict(Target(LOOPBACK, house.server.port, house.web))
    plan = {
        "target": target, "tokens": house.mallories, "connections": options.connections, "seconds": options.seconds,
        "seed": options.seed, "only": options.only,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.attackers"], input=json.dumps(plan), capture_output=True, text=True,
        cwd=ROOT, timeout=options.seconds + 60,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"the attackers failed: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout))


def settled(house: House, before: Vitals) -> Vitals:
    """The server's weight once tasks and descriptors are as before, or when it has had time enough."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            now = weigh(house.server, house.dumps)
        except (AssertionError, OSError) as exc:
            raise Late(f"the server does not answer after the attack: {exc}\n{house.stage.report()}") from exc
        is_as_before = now.descriptors <= before.descriptors and (now.tasks or 0) <= (before.tasks or 0)
        if is_as_before or time.monotonic() > deadline:
            return now
        time.sleep(0.2)
