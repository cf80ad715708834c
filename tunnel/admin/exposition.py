"""How the figures of a server or client become text for Prometheus: taken, and written by the library, in slices.

The relay shares its thread with this. A thread of our own would not spare it: the interpreter lock goes back and forth
5 ms at a time, and whoever moves bytes waits at each system call (measured: 17 ms beside 18,000 series). So figures
are read, and text is made, in slices of well under a millisecond, between which everything else has its turn.

Imported with the first scrape, see `metrics`.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import trio
from attrs import evolve
from prometheus_client import Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder

from tunnel.admin.counts import EventCounts
from tunnel.admin.families import Scrape
from tunnel.admin.family import Family
from tunnel.meters import Distribution, Meters, PoolMeters
from tunnel.snapshot import ProxyView

MAX_PROXIES = 10_000  # told one by one; each has eight series of some 100 bytes
SLICE = 64  # samples, 0.3 ms of them; or proxies looked at, 0.5 ms

log = logging.getLogger(__name__)

T = TypeVar("T")
Encoder = Callable[["Part"], bytes]


async def take(
    meters: Meters, counts: EventCounts, lateness: Distribution, *, notices: Mapping[str, Mapping[str, Any]]
) -> Scrape:
    """The figures of now, those of many proxies over several passes of the event loop."""
    states: Counter[str] = Counter()
    proxies: list[tuple[str, ProxyView]] = []
    async for row in _at_leisure(meters.proxies):
        states[row[1].status] += 1
        if len(proxies) < MAX_PROXIES:
            proxies.append(row)
    pools: list[PoolMeters] = [pool async for pool in _at_leisure(meters.pools)]
    return Scrape(
        meters=evolve(meters, proxies=iter(()), pools=iter(())),
        proxies=proxies,
        pools=pools,
        states=states,
        untold=states.total() - len(proxies),
        counts=counts,
        lateness=lateness,
        notices=notices,
    )


async def render(found: Iterable[Family], encode: Encoder) -> bytes:
    """The text, byte for byte what the encoder would make of all in one go."""
    end = encode(Part())  # OpenMetrics ends with a line that says so
    pieces: list[bytes] = []
    done = 0
    for family in found:
        head = encode(Part(evolve(family, samples=()))).removesuffix(end)
        pieces.append(head)
        samples = iter(family.samples)
        while some := list(islice(samples, SLICE)):
            pieces.append(encode(Part(evolve(family, samples=some))).removesuffix(end)[len(head) :])
            done += len(some)
            if done >= SLICE:
                done = 0
                await trio.lowlevel.checkpoint()
    return b"".join([*pieces, end])


class Part:
    """A family, or a slice of one, as the library wants to be given metrics."""

    def __init__(self, family: Family | None = None) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        if self._family is None:
            return
        name = self._family.name
        metric = Metric(name, self._family.text, self._family.kind)
        for suffix, labels, value in self._family.samples:
            metric.add_sample(name + suffix, dict(labels), value)
        yield metric


async def _at_leisure(items: Iterator[T]) -> AsyncIterator[T]:
    for number, item in enumerate(items, 1):
        yield item
        if number % SLICE == 0:
            await trio.lowlevel.checkpoint()


def encoder_for(accept: str) -> tuple[Encoder, str]:
    """The best format of those a scraper accepts, and its media type; plain text where what it accepts is nonsense."""
    try:
        return choose_encoder(accept)  # type: ignore[return-value, unused-ignore]  # all it asks of a `Part`: `collect`
    except (ValueError, TypeError):  # of a version that is no number
        return choose_encoder("")  # type: ignore[return-value, unused-ignore]


def look_at_process() -> list[Family]:
    """Resident memory, descriptors, processor time; nothing where there is no /proc. In a thread: with 100,000
    descriptors, counting them takes a while."""
    try:
        return [_family_of(metric) for metric in _process_collector().collect()]
    except Exception as exc:  # such as a limit that is no number; ours are worth having all the same
        log.debug("no metrics of the process: %r", exc)
        return []


@cache
def _process_collector() -> ProcessCollector:
    return ProcessCollector(registry=None)


def _family_of(metric: Metric) -> Family:
    start = len(metric.name)
    samples = [(sample.name[start:], sample.labels, sample.value) for sample in metric.samples]
    return Family(metric.name, metric.type, metric.documentation, samples)  # type: ignore[arg-type]
