"""A stand-in for a running server or client at a real admin address, in a Trio run of its own thread.

What it shows is plain attributes, changed from the test's thread between two looks.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from attrs import evolve

from tunnel.addresses import HostPort
from tunnel.admin.dashboard import dashboard_routes
from tunnel.admin.live import Live
from tunnel.admin.site import AdminSource, bind_admin, serve_admin
from tunnel.snapshot import EventStream, ProxyView, SessionView, utc_now

TOKEN = "the-admin-token-of-the-puppet"
START_SECONDS = 30.0
HANG_SECONDS = 100.0  # at most
T = TypeVar("T")


def proxy(name: str, **changes: Any) -> ProxyView:
    values: dict[str, Any] = {
        "name": name, "status": "healthy", "reason": None, "error_message": None, "retry_after_seconds": None,
        "attempt": 1, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001, "target": "127.0.0.1:8080",
        "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "since": utc_now(), "refused": {},
    }  # fmt: skip
    return ProxyView(**{**values, **changes})


class Puppet:
    """The `Source` of one admin address. `retried` and `closed` are what the page asked for."""

    def __init__(self, role: str = "server") -> None:
        self.role = role
        self.events = EventStream()
        self.sessions: dict[str, dict[str, ProxyView]] = {}
        self.since: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.ready = True
        self.retried: list[str] = []
        self.closed: list[str] = []
        self.looks = 0
        self.port = 0
        self._retry_at: dict[tuple[str, str], float] = {}
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] = lambda: None

    # What it shows

    def put(self, client: str, *views: ProxyView) -> None:
        self.since.setdefault(client, utc_now())
        self.sessions[client] = {**self.sessions.get(client, {}), **{view.name: view for view in views}}

    def change(self, client: str, name: str, **changes: Any) -> None:
        self.put(client, evolve(self.sessions[client][name], **changes))

    def retry_in(self, client: str, name: str, seconds: float, **changes: Any) -> None:
        """Unhealthy from now on, with the next try so far away; the seconds left are counted at each look."""
        self._retry_at[client, name] = time.monotonic() + seconds
        self.change(client, name, status="unhealthy", **changes)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """While the body runs it does nothing at all, as a process that is stopped."""
        over = threading.Event()
        self._token.run_sync_soon(over.wait, HANG_SECONDS)
        try:
            yield
        finally:
            over.set()

    def publish_later(self, kind: str, **words: Any) -> None:
        """Before `start`."""
        self.events.publish(kind, **words)

    def publish(self, kind: str, **words: Any) -> None:
        """In the puppet's own thread, as in a real one."""
        trio.from_thread.run_sync(lambda: self.events.publish(kind, **words), trio_token=self._token)

    # What is asked

    def views(self) -> Iterator[SessionView]:
        self.looks += 1
        for client, proxies in list(self.sessions.items()):
            yield SessionView(client, self.since[client], tuple(self._view(client, each) for each in proxies.values()))

    def _view(self, client: str, view: ProxyView) -> ProxyView:
        retry_at = self._retry_at.get((client, view.name))
        if retry_at is None or view.status != "unhealthy":
            return view
        return evolve(view, retry_after_seconds=max(0, math.ceil(retry_at - time.monotonic())))

    def stats(self) -> dict[str, Any]:
        return self.extra

    def is_ready(self) -> bool:
        return self.ready

    def why_not_ready(self) -> str:
        return "" if self.ready else "it does not listen"

    def retry(self, name: str) -> list[str]:
        client, _, bare = name.rpartition("/")
        if bare not in self.sessions.get(client, {}):
            raise LookupError(f"no proxy is named {name!r}")
        self.retried.append(name)
        return [name]

    def close(self, client: str) -> list[str]:
        del self.sessions[client]
        self.closed.append(client)
        return [client]

    # Where

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Serve, at the same port again after a `stop`."""
        started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, started), daemon=True)
        self._thread.start()
        assert started.wait(START_SECONDS), "the puppet did not start"

    def stop(self) -> None:
        if self._thread is not None:
            trio.from_thread.run_sync(self._stop, trio_token=self._token)
            self._thread.join(START_SECONDS)
            self._thread = None

    async def _serve(self, started: threading.Event) -> None:
        listeners = await bind_admin(HostPort("127.0.0.1", self.port), asked_for=True)
        self.port = listeners[0].socket.getsockname()[1]
        live = Live(self, role=self.role, can_write=True)
        site = AdminSource(
            self.role, self.views, self.is_ready, self.retry, TOKEN, extra_stats=self.stats, close=self.close
        )
        async with trio.open_nursery() as nursery:
            self._token, self._stop = trio.lowlevel.current_trio_token(), nursery.cancel_scope.cancel
            nursery.start_soon(live.run)
            await nursery.start(_serve_site, listeners, site, live)
            started.set()


async def _serve_site(
    listeners: list[trio.SocketListener], site: AdminSource, live: Live, task_status: trio.TaskStatus[None]
) -> None:
    await serve_admin(listeners, source=site, more=[*dashboard_routes(), live.route], task_status=task_status)
