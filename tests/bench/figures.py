"""What is measured of a system on loopback. A figure's `measure` returns named values, which its `columns` show."""

import time
from collections.abc import Callable, Sequence

from attrs import frozen

from . import loads
from .loads import Target
from .processes import Failed, cpu_seconds, resident_kib
from .systems import System

SETTLE_SECONDS = 0.5
BURST_VISITORS = 200
Values = dict[str, float]


@frozen
class Sizes:
    """How long and how much."""

    seconds: float = 3.0
    idle_visitors: int = 1000
    idle_sessions: int = 200


@frozen
class Column:
    """One column of the table: the values named in `keys`, joined by slashes."""

    head: str
    keys: Sequence[str]
    digits: int = 0
    total: int = 0  # shown behind a count of something that must all succeed


@frozen
class Figure:
    """`cold` ones start the system afresh, so they never see what an earlier load left behind.

    `systems` names those it is measured for; empty, all.
    """

    name: str
    measure: Callable[[System, Target, Sizes], Values]
    columns: Sequence[Column]
    cold: bool = False
    needs: str = ""  # a program beside wrk, without which the figure is skipped by name
    systems: Sequence[str] = ()


class CpuMeter:
    """CPU seconds that a system's processes have used since the meter was made."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._before = cpu_seconds(system.pids())

    def seconds(self) -> float:
        return cpu_seconds(self._system.pids()) - self._before


def measure_rest(system: System, target: Target, sizes: Sizes) -> Values:
    """Memory before the first load, then a burst of visitors, all at once, right away."""
    sizes_mib = [resident_kib([pid]) / 1024 for pid in system.pids()]
    values = {"rest_mib": sum(sizes_mib), "rest_largest_mib": max(sizes_mib)} if sizes_mib else {}
    found = loads.visitors(target, "burst", BURST_VISITORS)
    if not found["served"]:
        raise Failed("nobody in the burst was served")
    values |= {"burst_served": found["served"], "burst_ms": found["median_ms"], "burst_slowest_ms": found["slowest_ms"]}
    return values


def measure_idle(system: System, target: Target, sizes: Sizes) -> Values:
    if not system.pids():
        return {}
    with loads.IdleVisitors(target, 20) as first:
        first.ask()  # what the first visitors make a system load is no idle visitor's cost
    time.sleep(SETTLE_SECONDS)
    before = resident_kib(system.pids())
    with loads.IdleVisitors(target, sizes.idle_visitors) as visitors:
        time.sleep(SETTLE_SECONDS)
        silent = resident_kib(system.pids())
        visitors.ask()
        time.sleep(SETTLE_SECONDS)
        served = resident_kib(system.pids())
    count = sizes.idle_visitors
    return {"idle_kib": (silent - before) / count, "idle_served_kib": (served - before) / count}


def measure_requests(system: System, target: Target, sizes: Sizes) -> Values:
    meter = CpuMeter(system)
    found = loads.wrk(target, connections=64, seconds=sizes.seconds)
    values = {"requests_64": found.rate, "p50_64_ms": found.p50_ms, "p99_64_ms": found.p99_ms}
    if system.pids():
        values["cpu_us_per_request"] = meter.seconds() * 1e6 / found.count
    return values


def measure_single(system: System, target: Target, sizes: Sizes) -> Values:
    found = loads.wrk(target, connections=1, seconds=sizes.seconds)
    return {"requests_1": found.rate, "p50_1_ms": found.p50_ms, "p99_1_ms": found.p99_ms}


def measure_connections(system: System, target: Target, sizes: Sizes) -> Values:
    return {"new_connections": loads.ab(target, concurrency=16, seconds=sizes.seconds)}


def measure_bulk(system: System, target: Target, sizes: Sizes) -> Values:
    meter = CpuMeter(system)
    up = loads.iperf(target, down=False, streams=1, seconds=sizes.seconds)
    down = loads.iperf(target, down=True, streams=1, seconds=sizes.seconds)
    values = {"bulk_up": up.gbit_per_second, "bulk_down": down.gbit_per_second}
    if system.pids():
        values["cpu_ms_per_mb"] = meter.seconds() * 1e3 / (up.megabytes + down.megabytes)
    return values


def measure_bulk_8(system: System, target: Target, sizes: Sizes) -> Values:
    up = loads.iperf(target, down=False, streams=8, seconds=sizes.seconds)
    down = loads.iperf(target, down=True, streams=8, seconds=sizes.seconds)
    return {"bulk_up_8": up.gbit_per_second, "bulk_down_8": down.gbit_per_second}


def measure_small(system: System, target: Target, sizes: Sizes) -> Values:
    alone = loads.wrk(target, connections=8, seconds=sizes.seconds)
    with loads.beside_bulk(target, seconds=sizes.seconds):
        beside = loads.wrk(target, connections=8, seconds=sizes.seconds)
    return {"small_alone_ms": alone.p99_ms, "small_beside_ms": beside.p99_ms}


FIGURES = (
    Figure(
        "idle",
        measure_idle,
        [Column("KiB per idle visitor: silent / after a request", ["idle_kib", "idle_served_kib"], 1)],
        cold=True,
    ),
    Figure(
        "rest",
        measure_rest,
        [
            Column("MiB at rest: all / largest", ["rest_mib", "rest_largest_mib"]),
            Column("cold burst served", ["burst_served"], total=BURST_VISITORS),
            Column("its first bytes, ms: median / slowest", ["burst_ms", "burst_slowest_ms"]),
        ],
        cold=True,
    ),
    Figure(
        "requests",
        measure_requests,
        [
            Column("req/s, 64 conn.", ["requests_64"]),
            Column("p50 / p99 ms", ["p50_64_ms", "p99_64_ms"], 2),
            Column("CPU µs/req", ["cpu_us_per_request"], 1),
        ],
    ),
    Figure(
        "single",
        measure_single,
        [Column("req/s, 1 conn.", ["requests_1"]), Column("p50 / p99 ms", ["p50_1_ms", "p99_1_ms"], 3)],
    ),
    Figure("connections", measure_connections, [Column("new conn/s", ["new_connections"])], needs="ab"),
    Figure(
        "bulk",
        measure_bulk,
        [
            Column("Gbit/s up / down, 1 stream", ["bulk_up", "bulk_down"], 2),
            Column("CPU ms/MB", ["cpu_ms_per_mb"], 2),
        ],
        needs="iperf3",
    ),
    Figure(
        "bulk8",
        measure_bulk_8,
        [Column("Gbit/s up / down, 8 streams", ["bulk_up_8", "bulk_down_8"], 2)],
        needs="iperf3",
    ),
    Figure(
        "small",
        measure_small,
        [Column("p99 ms of 8 small: alone / beside bulk", ["small_alone_ms", "small_beside_ms"], 2)],
        needs="iperf3",
    ),
)
QUICK = ("rest", "requests", "connections", "bulk", "idle-things")
