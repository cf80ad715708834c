"""The loads: wrk, ab, iperf3 and `visitors`, run where visitors are; what they print becomes numbers here."""

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from .processes import Failed, Place, Process, run, tail
from .visitors import REQUEST

GRACE_SECONDS = 60.0  # beyond a load's own duration: a system that answers slowly is slow, not dead
WRK_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('JSON{"count":%d,"micros":%d,"p50":%.1f,"p99":%.1f,"errors":%d}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@frozen
class Requests:
    count: int
    rate: float
    p50_ms: float
    p99_ms: float


@frozen
class Target:
    """What a load needs to know."""

    host: str
    web: int
    bulk: int
    place: Place
    folder: Path


def wrk(target: Target, *, connections: int, seconds: float) -> Requests:
    script = target.folder / "report.lua"
    script.write_text(WRK_SCRIPT)
    whole = max(1, round(seconds))
    options = [f"-c{connections}", f"-d{whole}s", "--timeout", "30s", "-s", str(script)]
    url = f"http://{target.host}:{target.web}/"
    out = run(["wrk", "-t1", *options, url], place=target.place, seconds=whole + GRACE_SECONDS)
    found = json.loads(out.partition("JSON")[2])
    if not found["count"] or found["errors"]:
        raise Failed(f"wrk with {connections} connections: {found['count']} answers, {found['errors']} errors")
    return Requests(found["count"], found["count"] / found["micros"] * 1e6, found["p50"] / 1e3, found["p99"] / 1e3)


def ab(target: Target, *, concurrency: int, seconds: float) -> float:
    """New connections per second, one request each."""
    whole = max(1, round(seconds))
    options = ["-q", "-r", "-s", "30", f"-c{concurrency}", f"-t{whole}", "-n1000000"]
    url = f"http://{target.host}:{target.web}/"
    out = run(["ab", *options, url], place=target.place, seconds=whole + GRACE_SECONDS)
    numbers = {name: float(number) for name, number in re.findall(r"(?m)^([\w -]+): +(\d+(?:\.\d+)?)(?=\s|$)", out)}
    if numbers.get("Failed requests", 0) or not numbers.get("Complete requests"):
        raise Failed(f"ab: {numbers.get('Complete requests')} answers, {numbers.get('Failed requests')} failures")
    return numbers["Requests per second"]


@frozen
class Bulk:
    gbit_per_second: float
    megabytes: float


def _iperf_command(target: Target, *, down: bool, streams: int, seconds: int, omit: int) -> list[str]:
    command = ["iperf3", "-c", target.host, "-p", str(target.bulk), "-J", "-P", str(streams), "-t", str(seconds)]
    return [*command, *(["-R"] if down else []), *(["-O", str(omit)] if omit else [])]


def iperf(target: Target, *, down: bool, streams: int, seconds: float, omit: int = 0) -> Bulk:
    """What the receiving side counted after `omit` seconds. Down is from the service to the visitor."""
    whole = max(1, round(seconds))
    command = _iperf_command(target, down=down, streams=streams, seconds=whole, omit=omit)
    failure: Exception | None = None
    for attempt in range(5):  # an iperf3 server that has just ended a test may refuse the next one
        try:
            out = run(command, place=target.place, seconds=whole + omit + GRACE_SECONDS)
            received = json.loads(out)["end"]["sum_received"]
            return Bulk(received["bits_per_second"] / 1e9, received["bytes"] / 1e6)
        except (Failed, KeyError, ValueError) as exc:
            failure = exc
            time.sleep(0.3 * (attempt + 1))
    raise Failed(f"iperf3 {'down' if down else 'up'}, {streams} streams: {failure}")


@contextmanager
def beside_bulk(target: Target, *, seconds: float, warm_up: float = 0.5) -> Iterator[Process]:
    """While the block lasts, one stream flows from the service to the visitor."""
    command = _iperf_command(target, down=True, streams=1, seconds=round(seconds + warm_up) + 2, omit=0)
    bulk = Process("beside", command, place=target.place, folder=target.folder)
    try:
        time.sleep(warm_up)
        yield bulk
        if "error" in bulk.said():
            raise Failed(f"the stream beside: {tail(bulk.said())}")
    finally:
        bulk.stop()


def visitors(target: Target, what: str, *numbers: float, seconds: float = 0.0) -> dict[str, Any]:
    """What `visitors` measured; see there."""
    argv = [sys.executable, "-m", "tests.bench.visitors", what, target.host, str(target.web), *map(str, numbers)]
    found: dict[str, Any] = json.loads(run(argv, place=target.place, seconds=seconds + GRACE_SECONDS))
    return found


class IdleVisitors:
    """Connections that stay open for the block; on loopback only."""

    def __init__(self, target: Target, count: int) -> None:
        self._target = target
        self._count = count
        self._open: list[socket.socket] = []

    def __enter__(self) -> "IdleVisitors":
        for _ in range(self._count):
            self._open.append(socket.create_connection((self._target.host, self._target.web), timeout=GRACE_SECONDS))
            time.sleep(0.001)  # a flood would measure the listener's backlog
        return self

    def ask(self) -> None:
        """Each has one request answered, one after the other."""
        for visitor in self._open:
            visitor.sendall(REQUEST)
            if not visitor.recv(4096):
                raise Failed("a visitor's connection was closed without an answer")

    def __exit__(self, *exc: object) -> None:
        for visitor in self._open:
            visitor.close()
