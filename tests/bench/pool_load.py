"""The client of the pool's benchmark, a process of its own: `python -m tests.bench.pool_load -h`; prints one JSON line.

It warms a connection to every address, asks each address once a round over the pool, rests, and then asks the same
number of times with a new TLS connection for each request, as many at a time and over the same TLS code. What the
service has counted is asked before and after each part, so handshakes and reuse are its figures, not the pool's.
"""

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import h11
import trio
from attrs import Factory, define, frozen

import tunnel
from tunnel.addresses import HostPort
from tunnel.sockets import dial_tcp, no_delay
from tunnel.tls import TlsStream, client_context

from .certificate import NAME
from .pool_service import MENDABLE, ask_stats, choose_faults, make_addresses
from .processes import resident_kib
from .visitors import percentile

REST_SECONDS = 0.5  # between rounds: what dies idle has died by then
COLD_SECONDS = 2.5  # as long as the pool has
POOL = tunnel.PoolConfig(
    max=8192,
    max_per_address=2,
    fill_rate=10_000.0,
    fill_concurrency=32,
    idle_limit=None,
    probe_interval=5.0,
    open_seconds=1.0,
    validate_seconds=1.0,
    wait_seconds=2.5,
)


class WrongAnswer(Exception):
    """Not a 200."""


class NoAnswer(Exception):
    """The connection ended before the first byte of an answer: a GET may be sent again, on another connection."""


@frozen
class Site:
    port: int
    stats_port: int
    addresses: list[str]
    kinds: dict[str, str]  # address: "dying" or "broken"; the others are healthy

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}/"

    def kind(self, address: str) -> str:
        return self.kinds.get(address, "healthy")


@define
class Tally:
    """One part's requests: milliseconds of those served, by kind of address, and what became of the others."""

    times: dict[str, list[float]] = Factory(lambda: {"healthy": [], "dying": [], "broken": []})
    failed: dict[str, int] = Factory(lambda: {"healthy": 0, "dying": 0, "broken": 0})
    problems: dict[str, int] = Factory(dict)
    sent_again: int = 0

    def to_json(self) -> dict[str, Any]:
        served = self.times["healthy"]
        return {
            "served": {kind: len(times) for kind, times in self.times.items()},
            "failed": self.failed,
            "problems": self.problems,
            "sent_again": self.sent_again,
            **{f"p{percent}_ms": percentile(served, percent) for percent in (50, 95, 99)},
            "slowest_ms": max(served, default=None),
            "slowest_dying_ms": max(self.times["dying"], default=None),
        }


async def get(stream: trio.abc.Stream, path: str) -> None:
    """One request and its whole answer, over a connection that stays open."""
    connection = h11.Connection(h11.CLIENT)
    head = h11.Request(method="GET", target=path, headers=[("Host", NAME)])
    try:
        await stream.send_all(connection.send(head) + connection.send(h11.EndOfMessage()))
        received = await stream.receive_some(65536)
    except trio.BrokenResourceError as exc:
        raise NoAnswer(str(exc)) from exc
    if not received:
        raise NoAnswer("closed")
    status = 0
    while True:
        connection.receive_data(received)
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                if status != 200:
                    raise WrongAnswer(str(status))
                return
        received = await stream.receive_some(65536)


Ask = Callable[[str], Awaitable[None]]


async def ask_all(site: Site, ask: Ask, concurrency: int) -> tuple[Tally, float]:
    """Every address once, so many at a time, or the healthy ones one at a time; the seconds it took."""
    tally = Tally()
    left = iter([address for address in site.addresses if concurrency > 1 or address not in site.kinds])

    async def work() -> None:
        for address in left:
            began = time.perf_counter()
            kind = site.kind(address)
            try:
                await ask_twice(ask, address, tally)
            except (tunnel.TunnelError, OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                note(tally, kind, type(exc).__name__)
            except (WrongAnswer, NoAnswer, h11.ProtocolError) as exc:
                note(tally, kind, f"{type(exc).__name__} {exc}")
            else:
                tally.times[kind].append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(work)
    return tally, time.perf_counter() - began


async def ask_twice(ask: Ask, address: str, tally: Tally) -> None:
    """As any HTTP client does (RFC 9110, 9.2.2): a GET that no byte has answered is sent once more."""
    try:
        await ask(address)
    except NoAnswer:
        tally.sent_again += 1
        await ask(address)


def note(tally: Tally, kind: str, problem: str) -> None:
    tally.failed[kind] += 1
    named = f"{kind}: {problem}"
    tally.problems[named] = tally.problems.get(named, 0) + 1


@asynccontextmanager
async def cold_connection(site: Site, address: str, context: Any) -> AsyncIterator[TlsStream]:
    with trio.fail_after(COLD_SECONDS):
        sock = await dial_tcp(HostPort(address, site.port))
        no_delay(sock)
        stream = TlsStream(sock, context, server_side=False, server_hostname=NAME)
        try:
            await stream.do_handshake()
            yield stream
        finally:
            stream.close()


class Measurement:
    """The parts in their order; `found` is what the report is made from."""

    def __init__(self, site: Site, options: argparse.Namespace) -> None:
        self.site = site
        self.options = options
        self.found: dict[str, Any] = {}

    async def run(self) -> None:
        check = tunnel.http_check("/healthz")
        async with tunnel.open_pool(POOL, ca_file=self.options.certificate, check=check) as pool:
            await self._warm_up(pool)

            async def ask_hot(address: str) -> None:
                async with pool.connect(self.site.url, to=address, owner="bench") as stream:
                    await get(stream, "/")

            await self._part("hot", ask_hot, self.options.rounds, self.options.concurrency)
            await self._part("hot_alone", ask_hot, 1, 1)
            self.found["pool"] = pool.stats()
        context = client_context(ca_file=self.options.certificate, pinned=False)

        async def ask_cold(address: str) -> None:
            async with cold_connection(self.site, address, context) as stream:
                await get(stream, "/")

        await self._part("cold", ask_cold, self.options.rounds, self.options.concurrency)
        await self._part("cold_alone", ask_cold, 1, 1)

    async def _warm_up(self, pool: tunnel.ConnectionPool) -> None:
        gc.collect()
        memory = resident_kib([os.getpid()])
        before = ask_stats(self.site.stats_port)
        began = time.perf_counter()
        done = await pool.warm(self.site.url, to=self.site.addresses)
        seconds = time.perf_counter() - began
        failed = [address for address in self.site.addresses if address in done.failed]
        gc.collect()
        self.found["warm_up"] = {
            "seconds": seconds,
            "opened": done.opened,
            "failed": {
                kind: sum(self.site.kind(address) == kind for address in failed)
                for kind in ("healthy", "dying", "broken")
            },
            "problems": {address: attrs.asdict(done.failed[address]) for address in failed},
            "service": counted_since(before, self.site.stats_port),
            "memory_kib": [memory, resident_kib([os.getpid()])],
        }

    async def _part(self, name: str, ask: Ask, rounds: int, concurrency: int) -> None:
        done = []
        for _ in range(rounds):
            await trio.sleep(REST_SECONDS)
            before = ask_stats(self.site.stats_port)
            tally, seconds = await ask_all(self.site, ask, concurrency)
            counted = counted_since(before, self.site.stats_port)
            done.append({**tally.to_json(), "seconds": seconds, "service": counted})
        self.found[name] = done


def counted_since(before: dict[str, int], port: int) -> dict[str, int]:
    return {name: count - before[name] for name, count in ask_stats(port).items()}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stats-port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--addresses", type=int, default=1631)
    parser.add_argument("--faulty", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    addresses = make_addresses(options.addresses)
    kinds = {
        address: "dying" if fault in MENDABLE else "broken"
        for address, fault in choose_faults(addresses, options.faulty).items()
    }
    measurement = Measurement(Site(options.port, options.stats_port, addresses, kinds), options)
    trio.run(measurement.run)
    print(json.dumps(measurement.found))


if __name__ == "__main__":
    main(sys.argv[1:])
