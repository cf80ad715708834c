"""`/metrics`: keeps what must be kept from the start, and answers who scrapes. `exposition` makes the text."""

from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import trio

from tunnel.admin.counts import EventCounts
from tunnel.admin.http import Request, Response
from tunnel.admin.lateness import Lateness
from tunnel.admin.site import Route
from tunnel.meters import Distribution, Meters
from tunnel.snapshot import EventStream

# Imported with the first scrape: a process that nobody scrapes does without 1.8 MiB. What the library imports in turn,
# it, and what needs it: 12 ms in all, in steps of at most 6. A thread's own memory would take 0.7 MiB more.
IMPORTED = ("http.server", "urllib.request", "wsgiref.simple_server", "prometheus_client", "tunnel.admin.exposition")


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
            for name in IMPORTED:
                import_module(name)
                await trio.lowlevel.checkpoint()
            return await self._expose(request.headers.get("accept", ""))

    async def _expose(self, accept: str) -> Response:
        from tunnel.admin import exposition
        from tunnel.admin.families import families

        encode, content_type = exposition.encoder_for(accept)
        about_process = await trio.to_thread.run_sync(exposition.look_at_process, abandon_on_cancel=True)
        notices = self._attached["notices"]() if "notices" in self._attached else {}
        lateness = Distribution.of(self._lateness.seconds)
        ours = await exposition.take(self._source.meters(), self._counts, lateness, notices=notices)
        return Response(200, await exposition.render(chain(families(ours), about_process), encode), content_type)
