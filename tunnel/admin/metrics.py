"""`/metrics`: the figures of a server or client as text for Prometheus, in the format that the scraper asks for.

The relay shares its thread with this. A thread of our own would not spare it: the interpreter lock goes back and forth
5 ms at a time, and whoever moves bytes waits at each system call (measured: 17 ms beside 18,000 series). So figures
are read, and text is made, in slices of well under a millisecond, between which everything else has its turn.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio
from attrs import evolve

from tunnel.admin.counts import EventCounts
from tunnel.admin.families import Scrape, families
from tunnel.admin.family import Family
from tunnel.admin.http import Request, Response
from tunnel.admin.lateness import Lateness
from tunnel.admin.site import Route
from tunnel.meters import Distribution, Meters, PoolMeters
from tunnel.snapshot import EventStream, ProxyView

if TYPE_CHECKING:  # at run time with the first scrape: 1.4 MiB of memory that a process nobody scrapes does without
    from prometheus_client import Metric, ProcessCollector

MAX_PROXIES = 10_000  # told one by one; each has eight series of some 100 bytes
# What the library imports in turn, and it: 12 ms in all, in steps of at most 6. A thread would import it, too, and keep
# 0.7 MiB more for having memory of its own.
LIBRARY = ("http.server", "urllib.request", "wsgiref.simple_server", "prometheus_client")
SLICE = 64  # samples, 0.3 ms of them; or proxies looked at, 0.5 ms

log = logging.getLogger(__name__)

T = TypeVar("T")
Encoder = Callable[["_Part"], bytes]


class MeteredSource(Protocol):
    events: EventStream

    def meters(self) -> Meters: ...


class Metrics:
    """One a process. `run` it to have the figures that somebody must keep.

    `attached` gives those of what runs beside the tunnel, and may get more of them at any time.
    """

    def __init__(self, source: MeteredSource, attached: Mapping[str, Callable[[], Any]] = MappingProxyType({})) -> None:
        self.route = Route("GET", "/metrics", self._answer)
        self._source = source
        self._attached = attached
        self._counts = EventCounts()
        self._lateness = Lateness()
        self._answering = trio.Lock()  # one at a time: who scrapes too often waits, and nobody else does

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        with self._counts.follow(self._source.events):
            task_status.started()
            await self._lateness.run()

    async def _answer(self, request: Request) -> Response:
        async with self._answering:
            await _load_library()
            about_process = await trio.to_thread.run_sync(_look_at_process, abandon_on_cancel=True)
            encode, content_type = _choose_encoder(request.headers.get("accept", ""))
            ours = families(await take(self._source, self._counts, self._lateness, attached=self._attached))
            return Response(200, await render(chain(ours, about_process), encode), content_type)


async def take(
    source: MeteredSource,
    counts: EventCounts,
    lateness: Lateness,
    *,
    attached: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
) -> Scrape:
    """The figures of now, those of many proxies over several passes of the event loop."""
    meters = source.meters()
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
        lateness=Distribution.of(lateness.seconds),
        notices=attached["notices"]() if "notices" in attached else {},
    )


async def render(found: Iterable[Family], encode: Encoder) -> bytes:
    """The text, byte for byte what the encoder would make of all in one go."""
    end = encode(_Part())  # OpenMetrics ends with a line that says so
    pieces: list[bytes] = []
    done = 0
    for family in found:
        head = encode(_Part(evolve(family, samples=()))).removesuffix(end)
        pieces.append(head)
        samples = iter(family.samples)
        while some := list(islice(samples, SLICE)):
            pieces.append(encode(_Part(evolve(family, samples=some))).removesuffix(end)[len(head) :])
            done += len(some)
            if done >= SLICE:
                done = 0
                await trio.lowlevel.checkpoint()
    return b"".join([*pieces, end])


class _Part:
    """A family, or a slice of one, as the library wants to be given metrics."""

    def __init__(self, family: Family | None = None) -> None:
        self._family = family

    def collect(self) -> "Iterator[Metric]":
        if self._family is None:
            return
        from prometheus_client import Metric

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


async def _load_library() -> None:
    for name in LIBRARY:
        import_module(name)
        await trio.lowlevel.checkpoint()


def _choose_encoder(accept: str) -> tuple[Encoder, str]:
    """The best format of those a scraper accepts, and its media type."""
    from prometheus_client.exposition import choose_encoder

    return choose_encoder(accept)  # type: ignore[return-value, unused-ignore]  # all it asks of a `_Part` is `collect`


def _look_at_process() -> list[Family]:
    """Resident memory, descriptors, processor time; nothing where there is no /proc. In a thread: with 100,000
    descriptors, counting them takes a while."""
    try:
        return [_family_of(metric) for metric in _process_collector().collect()]
    except Exception as exc:  # such as a limit that is no number; ours are worth having all the same
        log.debug("no metrics of the process: %r", exc)
        return []


@cache
def _process_collector() -> "ProcessCollector":
    from prometheus_client import ProcessCollector

    return ProcessCollector(registry=None)


def _family_of(metric: "Metric") -> Family:
    start = len(metric.name)
    samples = [(sample.name[start:], sample.labels, sample.value) for sample in metric.samples]
    return Family(metric.name, metric.type, metric.documentation, samples)  # type: ignore[arg-type]
