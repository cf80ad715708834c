"""What runs beside a tunnel in its process, so that people see and steer it. Used by `api` alone.

Each part gets the running server or client as a `Source`, and knows neither sessions nor relay. A part that fails is
mended or left out; it never ends the tunnel.
"""

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import trio

from tunnel.admin.dashboard import dashboard_routes
from tunnel.admin.live import Live
from tunnel.admin.metrics import Metrics
from tunnel.admin.openapi import openapi_route
from tunnel.admin.recent import recent_route
from tunnel.admin.site import AdminSource, bind_admin, serve_admin
from tunnel.attached import Attached
from tunnel.config import ClientConfig, ServerConfig
from tunnel.history.place import history_file
from tunnel.meters import Meters
from tunnel.notices.board import Board
from tunnel.snapshot import EventStream, SessionView, Snapshot
from tunnel.state import StateDir

log = logging.getLogger(__name__)


class Source(Protocol):
    """What a `Server` and a `Client` have in common for whoever looks at them. All is synchronous and quick."""

    events: EventStream
    attached: Attached[Any]

    def snapshot(self) -> Snapshot: ...

    def views(self) -> Iterator[SessionView]: ...

    def stats(self) -> dict[str, Any]: ...

    def meters(self) -> Meters: ...

    def is_ready(self) -> bool: ...

    def why_not_ready(self) -> str: ...

    def retry(self, name: str) -> list[str]: ...

    def close_session(self, client: str) -> list[str]: ...


async def start_beside(side: trio.Nursery, config: ServerConfig | ClientConfig, source: Source) -> None:
    """Start all that `config` asks for in `side`; returns once it can be used. Cancelled with `side`.

    Raises `TunnelError` for what a person asked for and cannot have, such as an admin address that is taken.
    """
    await _start_admin(side, config, source)
    await _start_history(side, config, source)
    await _start_notices(side, config, source)


async def _start_admin(side: trio.Nursery, config: ServerConfig | ClientConfig, source: Source) -> None:
    where = config.admin
    if where is None:
        return
    asked_for = config.admin_required if isinstance(config, ServerConfig) else True
    listeners = await bind_admin(where, asked_for=asked_for)
    for listener in listeners:
        log.info("admin address: http://%s:%d", *listener.socket.getsockname()[:2])
    role = "server" if isinstance(config, ServerConfig) else "client"
    site = AdminSource(
        role, source.views, source.is_ready, source.retry, _admin_token(config), source.stats,
        (where.host, *config.admin_hosts), source.close_session, source.why_not_ready,
    )  # fmt: skip
    live = Live(source, role=role, can_write=bool(site.token))
    side.start_soon(live.run, name="dashboard")
    metrics = Metrics(source, source.attached.figures)
    await side.start(metrics.run, name="metrics")
    more = [*dashboard_routes(), live.route, recent_route(source.events), openapi_route(), metrics.route]
    await side.start(lambda task_status: serve_admin(listeners, source=site, more=more, task_status=task_status))


async def _start_history(side: trio.Nursery, config: ServerConfig | ClientConfig, source: Source) -> None:
    path = history_file(config)
    if path is None:
        return
    from tunnel.history.recorder import Keeping, run_history  # sqlite3 takes memory: only where it is used

    said = config.history
    keeping = Keeping(path=path, own=said.file is None, max_age_days=said.max_age_days, max_rows=said.max_rows)
    await side.start(run_history, source, keeping, name="history")


async def _start_notices(side: trio.Nursery, config: ServerConfig | ClientConfig, source: Source) -> None:
    """Also where there are none: a changed configuration may have some."""
    board = Board(source)
    await side.start(board.run, config.notices, name="notices")
    source.attached.figures["notices"] = board.stats
    source.attached.appliers.append(lambda config: board.apply(config.notices))


def _admin_token(config: ServerConfig | ClientConfig) -> str:
    if config.admin is None or config.state_dir is None:
        return ""  # no writes
    return StateDir.open(config.state_dir).admin_token()
