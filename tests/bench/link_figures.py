"""What is measured of a system across an emulated link; the shapes are those of `figures`."""

import time

from . import loads
from .figures import Column, Figure, Sizes, Values
from .loads import Target
from .processes import Failed
from .systems import System

NEW_VISITORS = 20
AT_A_TIME = 64
PACE = 600  # new visitors a second
DRAIN_SECONDS = 1.0  # what a stream that was cut off has left on the link is nobody else's
BULK_OMIT_SECONDS = 2  # windows have grown by the third second


def measure_first_byte(system: System, target: Target, sizes: Sizes) -> Values:
    found = loads.visitors(target, "one-by-one", NEW_VISITORS)
    if not found["served"]:
        raise Failed("no visitor was served")
    return {"first_byte_ms": found["median_ms"], "first_byte_slowest_ms": found["slowest_ms"]}


def measure_crowd(system: System, target: Target, sizes: Sizes) -> Values:
    found = loads.visitors(target, "crowd", AT_A_TIME, sizes.seconds, seconds=sizes.seconds)
    if not found["served"]:
        raise Failed("no visitor was served")
    return {"crowd_rate": found["rate"], "crowd_ms": found["median_ms"], "crowd_p99_ms": found["p99_ms"]}


def measure_paced(system: System, target: Target, sizes: Sizes) -> Values:
    found = loads.visitors(target, "paced", PACE, AT_A_TIME, sizes.seconds, seconds=sizes.seconds)
    if not found["served"]:
        raise Failed("no visitor was served")
    return {"paced_rate": found["rate"], "paced_ms": found["median_ms"], "paced_p99_ms": found["p99_ms"]}


def measure_link_bulk(system: System, target: Target, sizes: Sizes) -> Values:
    values: Values = {}
    for way, down in (("up", False), ("down", True)):
        found = loads.iperf(target, down=down, streams=1, seconds=sizes.seconds, omit=BULK_OMIT_SECONDS)
        values[f"link_{way}_mbit"] = found.gbit_per_second * 1000
    return values


def measure_link_small(system: System, target: Target, sizes: Sizes) -> Values:
    alone = loads.wrk(target, connections=8, seconds=sizes.seconds)
    with loads.beside_bulk(target, seconds=sizes.seconds, warm_up=2.0):
        beside = loads.wrk(target, connections=8, seconds=sizes.seconds)
    time.sleep(DRAIN_SECONDS)
    return {
        "link_small_p50_ms": alone.p50_ms,
        "link_small_p99_ms": alone.p99_ms,
        "link_beside_p50_ms": beside.p50_ms,
        "link_beside_p99_ms": beside.p99_ms,
    }


LINK_FIGURES = (
    Figure(
        "first-byte",
        measure_first_byte,
        [Column("first byte of a new visitor, ms: median / slowest", ["first_byte_ms", "first_byte_slowest_ms"], 1)],
    ),
    Figure(
        "paced",
        measure_paced,
        [
            Column(f"of {PACE} new visitors/s, {AT_A_TIME} at a time, served", ["paced_rate"]),
            Column("median / p99 ms", ["paced_ms", "paced_p99_ms"], 1),
        ],
    ),
    Figure(
        "crowd",
        measure_crowd,
        [
            Column(f"new visitors/s, {AT_A_TIME} at a time, no pause", ["crowd_rate"]),
            Column("median / p99 ms", ["crowd_ms", "crowd_p99_ms"], 1),
        ],
    ),
    Figure(
        "bulk",
        measure_link_bulk,
        [Column("one stream up / down, Mbit/s", ["link_up_mbit", "link_down_mbit"])],
        needs="iperf3",
    ),
    Figure(
        "small",
        measure_link_small,
        [
            Column("8 small, p50 / p99 ms: alone", ["link_small_p50_ms", "link_small_p99_ms"]),
            Column("beside bulk", ["link_beside_p50_ms", "link_beside_p99_ms"]),
        ],
        needs="iperf3",
    ),
)
