"""A tunnel under mixed load and accidents for as long as is asked, and whether it grows meanwhile. B46.

Every accident leaves both processes alive, so that what they weigh can be followed from beginning to end.
"""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from addresses import Forwarder
from attrs import define, field, frozen
from processes import LOOPBACK, Client, Server, Stage, free_port
from services import Services, echo
from tables import table
from vitals import Vitals, weigh

from .load import BULK_BYTES, Load
from .transfers import Tally, download_service, upload_service
from .trend import Trend, trend

ACCIDENT_SECONDS = (8.0, 25.0)  # from one to the next
STOPPED_SECONDS = 0.7  # SIGSTOP: shorter than any silence that counts
SAMPLES = 600  # of a whole run, at most one a second
MIN_JUDGED_SECONDS = 300.0  # a shorter run is all warming up: it shows that everything works, and no trend
ALLOWED = {"resident_mib": 6.0, "descriptors": 12.0, "tasks": 12.0}  # growth over a run that is not called a leak
SIDES = ("server", "client")


@frozen
class Sample:
    at: float  # seconds since the load began
    side: str
    vitals: Vitals


@define
class Found:
    load: Load
    seconds: float
    samples: list[Sample] = field(factory=list)
    accidents: dict[str, int] = field(factory=dict)
    ended: list[str] = field(factory=list)

    def series(self, side: str, figure: str) -> list[tuple[float, float]]:
        return [(one.at, float(getattr(one.vitals, figure))) for one in self.samples if one.side == side]

    def trends(self) -> dict[tuple[str, str], Trend]:
        return {(side, figure): trend(self.series(side, figure)) for side in SIDES for figure in ALLOWED}

    def csv(self) -> str:
        rows = [
            f"{one.at:.1f},{one.side},{one.vitals.resident_mib:.2f},{one.vitals.descriptors},{one.vitals.tasks}"
            for one in self.samples
        ]
        return "\n".join(["seconds,side,resident_mib,descriptors,tasks", *rows, ""])


@define(eq=False)
class House:
    server: Server
    client: Client
    forwarder: Forwarder
    ports: dict[str, int]
    dumps: dict[str, Path]


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """The client reaches the server through a forwarder that can cut."""
    with Stage(folder) as stage, Services() as services:
        dumps = {side: stage.path(f"dumps-{side}") for side in SIDES}
        server = stage.serve("--profile-dir", dumps["server"])
        with Forwarder(server.port) as forwarder:
            handlers = {"echo": echo, "up": upload_service(Tally()), "down": download_service}
            ports = {name: free_port() for name in handlers}
            proxies = [f"{name}={LOOPBACK}:{ports[name]}:{services.add(handler)}" for name, handler in handlers.items()]
            more = ["--profile-dir", dumps["client"]]
            client = stage.connect(server, *proxies, where=forwarder.where, more=more)
            client.wait_healthy(*handlers)
            yield House(server, client, forwarder, ports, dumps)


def soak(folder: Path, *, seconds: float) -> Found:
    with open_house(folder) as house:
        return trio.run(_soak, house, seconds)


async def _soak(house: House, seconds: float) -> Found:
    is_short = seconds < MIN_JUDGED_SECONDS  # accidents come too often then for anything that takes long
    found = Found(Load(house.ports, slow_bytes=BULK_BYTES // 16 if is_short else BULK_BYTES), seconds)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.load.run)
            nursery.start_soon(_accidents, house, found)
            nursery.start_soon(_sample, house, found, max(1.0, seconds / SAMPLES))
    for process in (house.server, house.client):
        if process.popen.poll() is not None:
            found.ended.append(process.report())
    return found


async def _sample(house: House, found: Found, every: float) -> None:
    began = trio.current_time()
    while True:
        await trio.sleep(every)
        for side, process in zip(SIDES, (house.server, house.client), strict=True):
            vitals = await trio.to_thread.run_sync(weigh, process, house.dumps[side])
            found.samples.append(Sample(trio.current_time() - began, side, vitals))


# Accidents


async def _accidents(house: House, found: Found) -> None:
    dice = random.Random(7)
    kinds = {
        "all connections cut": partial(_cut, house, found, 0),
        "data channels cut": partial(_cut, house, found, 1),  # the oldest connection is the control channel
        "server stopped for a moment": partial(_stop, house.server),
        "client stopped for a moment": partial(_stop, house.client),
    }
    longest = min(ACCIDENT_SECONDS[1], found.seconds / 4)
    while True:
        await trio.sleep(dice.uniform(min(ACCIDENT_SECONDS[0], longest), longest))
        name = dice.choice(list(kinds))
        await kinds[name]()
        found.accidents[name] = found.accidents.get(name, 0) + 1


async def _cut(house: House, found: Found, spared: int) -> None:
    found.load.counts.broken_at = trio.current_time()
    await trio.to_thread.run_sync(house.forwarder.tell, f"cut {spared}")
    found.load.counts.broken_at = trio.current_time()


async def _stop(process: Server | Client) -> None:
    process.send(signal.SIGSTOP)
    await trio.sleep(STOPPED_SECONDS)
    process.send(signal.SIGCONT)


# What came of it


def violations(found: Found) -> list[str]:
    counts = found.load.counts
    wrong = [f"ended: {report}" for report in found.ended] + counts.wrong[:20]
    if len(counts.wrong) > 20:
        wrong.append(f"… and {len(counts.wrong) - 20} more")
    if found.seconds >= MIN_JUDGED_SECONDS:
        wrong += [
            f"{side} {figure} grows: {one.first:.1f} to {one.last:.1f}, {one.per_hour:+.2f} an hour"
            for (side, figure), one in found.trends().items()
            if one.grows(ALLOWED[figure])
        ]
    return wrong


def render(found: Found) -> str:
    counts = found.load.counts
    rows = [
        (f"{side} {figure.replace('_', ' ')}", f"{one.first:.1f}", f"{one.last:.1f}", f"{one.per_hour:+.2f}",
         f"{one.growth:+.2f}", f"{ALLOWED[figure]:.0f}", f"{one.sureness:.1f}")
        for (side, figure), one in found.trends().items()
    ]  # fmt: skip
    judged = "" if found.seconds >= MIN_JUDGED_SECONDS else " (too short a run to judge by)"
    return "\n".join([
        f"{found.seconds:.0f} s; visits: {', '.join(f'{many} {name}' for name, many in counts.done.items())}",
        f"accidents: {', '.join(f'{many} × {name}' for name, many in found.accidents.items()) or 'none'}; "
        f"{counts.forgiven} visits ended by an error right after one",
        "",
        table(("trend" + judged, "first", "last", "an hour", "in all", "allowed", "deviations"), rows),
    ])  # fmt: skip
