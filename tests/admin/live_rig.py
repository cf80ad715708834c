"""A source whose looks are counted, readers of its `/events`, and what they were sent when."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import trio
from attrs import Factory, define
from test_dashboard_picture import SINCE, proxy

from tunnel.admin.http import Request
from tunnel.admin.live import Live
from tunnel.snapshot import EventStream, ProxyView, SessionView


class House:
    """A source with one session, whose looks are counted."""

    def __init__(self) -> None:
        self.events = EventStream()
        self.proxies: dict[str, ProxyView] = {"web": proxy()}
        self.looks: list[float] = []
        self.on_look: Callable[[], None] = lambda: None

    def views(self) -> Iterator[SessionView]:
        self.looks.append(trio.current_time())
        self.on_look()
        yield SessionView("home", SINCE, tuple(self.proxies.values()))

    def stats(self) -> dict[str, Any]:
        return {"gate": {"logins": 1}}

    def is_ready(self) -> bool:
        return True

    def why_not_ready(self) -> str:
        return ""


@define
class Reading:
    """What one reader was sent: (seconds, kind, id, data); comments have the kind ``:``."""

    told: list[tuple[float, str, str, Any]] = Factory(list)
    pause: Callable[[], float] = lambda: 0.0
    _rest: bytes = b""

    async def send(self, chunk: bytes) -> None:
        await trio.sleep(self.pause())
        *messages, self._rest = (self._rest + chunk).split(b"\n\n")
        for raw in messages:
            lines = [line.partition(": ") for line in raw.decode().splitlines()]
            fields = {name: value for name, _, value in lines if name != "data"}
            data = "\n".join(value for name, _, value in lines if name == "data")
            kind = fields.get("event", ":" if "" in fields else "retry")
            told = (trio.current_time(), kind, fields.get("id", ""), json.loads(data) if data else None)
            self.told.append(told)

    def of(self, *kinds: str) -> list[Any]:
        return [data for _, kind, _, data in self.told if kind in kinds]

    def times(self, kind: str) -> list[float]:
        return [round(at, 6) for at, other, _, _ in self.told if other == kind]


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.house = House()
        self.live = Live(self.house, role="server", can_write=True)
        self.nursery = nursery
        nursery.start_soon(self.live.run)

    async def read(
        self, query: str = "", reading: Reading | None = None, **headers: str
    ) -> tuple[Reading, trio.CancelScope]:
        reading, scope = reading or Reading(), trio.CancelScope()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.live.route.handler(Request("GET", "/events", query, named, b""))
        assert response.content_type == "text/event-stream"
        assert response.stream is not None
        stream = response.stream

        async def run() -> None:
            with scope:
                await stream(reading.send)

        self.nursery.start_soon(run)
        return reading, scope
