"""Visitors in Python, for what wrk and ab do not measure: `python -m tests.bench.visitors WHAT HOST PORT NUMBERS…`.

Each visitor is a new connection that sends one request. A process of its own, since it may have to run in a network
namespace; it prints one line of JSON. Times are from the start of the connection to the first byte of the answer.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
PATIENCE_SECONDS = 30.0
TALK_SECONDS = 0.05  # between the requests of a visitor that stays


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank; `nan` of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


async def visit(host: str, port: int) -> tuple[float, trio.SocketStream]:
    """Milliseconds to the first byte, and the connection."""
    began = trio.current_time()
    stream = await trio.open_tcp_stream(host, port, happy_eyeballs_delay=PATIENCE_SECONDS)
    try:
        await stream.send_all(REQUEST)
        if not await stream.receive_some(4096):
            raise trio.BrokenResourceError("closed without an answer")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return (trio.current_time() - began) * 1000, stream


async def visit_once(host: str, port: int, times: list[float]) -> None:
    """A visitor that is not served leaves no time."""
    with trio.move_on_after(PATIENCE_SECONDS):
        try:
            spent, stream = await visit(host, port)
        except (OSError, trio.BrokenResourceError):
            return
        times.append(spent)
        await trio.aclose_forcefully(stream)


def summary(times: list[float]) -> dict[str, float]:
    return {
        "served": len(times),
        "median_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "slowest_ms": max(times, default=math.nan),
    }


async def once(host: str, port: int) -> dict[str, float]:
    """One visitor; the exit code tells."""
    with trio.fail_after(2):
        spent, stream = await visit(host, port)
    await trio.aclose_forcefully(stream)
    return {"median_ms": spent}


async def burst(host: str, port: int, count: float) -> dict[str, float]:
    """All at once."""
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        for _ in range(int(count)):
            nursery.start_soon(visit_once, host, port, times)
    return summary(times)


async def one_by_one(host: str, port: int, count: float) -> dict[str, float]:
    """Each after the one before, a moment apart."""
    times: list[float] = []
    for _ in range(int(count)):
        await visit_once(host, port, times)
        await trio.sleep(0.01)
    return summary(times)


async def crowd(host: str, port: int, concurrency: float, seconds: float) -> dict[str, float]:
    """So many at a time, each replaced as soon as it has been served; `rate` is visitors per second."""
    times: list[float] = []
    began = trio.current_time()

    async def keep_visiting() -> None:
        while trio.current_time() - began < seconds:
            served = len(times)
            await visit_once(host, port, times)
            if len(times) == served:
                await trio.sleep(0.05)  # a listener that refuses would otherwise be asked without end

    async with trio.open_nursery() as nursery:
        for _ in range(int(concurrency)):
            nursery.start_soon(keep_visiting)
    return {**summary(times), "rate": len(times) / (trio.current_time() - began)}


async def paced(host: str, port: int, rate: float, at_a_time: float, seconds: float) -> dict[str, float]:
    """So many new visitors a second as long as no more than `at_a_time` are inside; `rate` counts the served.

    A system that is too slow makes the next ones come later, which its `rate` tells; times begin when one comes.
    """
    times: list[float] = []
    ends: list[float] = []
    room = trio.Semaphore(int(at_a_time))

    async def visit_and_leave() -> None:
        own: list[float] = []
        await visit_once(host, port, own)
        if own:
            times.extend(own)
            ends.append(trio.current_time())
        room.release()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(int(rate * seconds)):
            await trio.sleep_until(began + number / rate)
            await room.acquire()
            if trio.current_time() - began > seconds:
                break
            nursery.start_soon(visit_and_leave)
    span = ends[-1] - ends[0] if len(ends) > 1 else math.inf
    return {**summary(times), "rate": (len(ends) - 1) / span}


async def steady(host: str, port: int, rate: float, seconds: float, talkers: float) -> dict[str, Any]:
    """So many new visitors a second, come what may, beside some that stay and ask all the time.

    Each visit is told as [when it began on the monotonic clock, milliseconds or None if it was not served].
    """
    visits: list[tuple[float, float | None]] = []
    talks: list[list[tuple[float, float | None]]] = []

    async def visit_and_note() -> None:
        began, times = time.monotonic(), list[float]()
        await visit_once(host, port, times)
        visits.append((began, times[0] if times else None))

    async with trio.open_nursery() as nursery:
        for _ in range(int(talkers)):
            talks.append([])
            nursery.start_soon(talk, host, port, trio.current_time() + seconds, talks[-1])
        began = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(began + number / rate)
            nursery.start_soon(visit_and_note)
    return {"visits": visits, "talks": talks}


async def talk(host: str, port: int, until: float, asked: list[tuple[float, float | None]]) -> None:
    """One visitor that stays; the last entry has None if it was cut off."""
    began = time.monotonic()
    try:
        with trio.move_on_after(PATIENCE_SECONDS) as patience:
            spent, stream = await visit(host, port)
        while not patience.cancelled_caught:
            asked.append((began, spent))
            await trio.sleep(TALK_SECONDS)
            if trio.current_time() > until:
                return await trio.aclose_forcefully(stream)
            began = time.monotonic()
            with trio.move_on_after(PATIENCE_SECONDS) as patience:
                await stream.send_all(REQUEST)
                if not await stream.receive_some(4096):
                    break
            spent = (time.monotonic() - began) * 1000
    except (OSError, trio.BrokenResourceError):
        pass
    asked.append((began, None))
    return None


async def arrive(host: str, port: int) -> dict[str, float]:
    """Come as soon as anybody listens there: milliseconds from then to the first byte."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                spent, stream = await visit(host, port)
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.001)
                continue
            await trio.aclose_forcefully(stream)
            return {"median_ms": spent}


def main(argv: Sequence[str]) -> None:
    what, host, port, *numbers = argv
    known: dict[str, Any] = {
        "once": once,
        "burst": burst,
        "one-by-one": one_by_one,
        "crowd": crowd,
        "paced": paced,
        "steady": steady,
        "arrive": arrive,
    }
    print(json.dumps(trio.run(partial(known[what], host, int(port), *map(float, numbers)))))


if __name__ == "__main__":
    main(sys.argv[1:])
