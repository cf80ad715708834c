"""What a client counts, see `tunnel.meters`."""

from collections.abc import Iterator, Mapping
from typing import Any

from tunnel.client.board import Board
from tunnel.client.session import ClientSession
from tunnel.client.targets import ProxyRoute
from tunnel.meters import Meters, PoolMeters, SessionMeters
from tunnel.pool import Pool
from tunnel.pool.statistics import read_meters as read_pool
from tunnel.relay import Engine
from tunnel.relay.ledger import read_meters as read_relay
from tunnel.snapshot import ProxyView
from tunnel.version import __version__


def client_meters(
    engine: Engine,
    session: ClientSession | None,
    *,
    name: str,
    since: str,
    routes: Mapping[str, ProxyRoute],
    board: Board,
    is_ready: bool,
    is_draining: bool,
    certificate_ends: float | None,
) -> Meters:
    """As of now, but for proxies and pools, each looked at when its turn comes. `session`: the one that is up."""
    return Meters(
        role="client",
        version=__version__,
        is_ready=is_ready,
        is_draining=is_draining,
        client=name,
        clients=None,
        relay=read_relay(engine),
        sessions=() if session is None else (_session_meters(session, name, since),),
        proxies=_proxies(name, dict(routes), board),
        pools=_pools(session, dict(routes)),
        binds=None,
        gate=None,
        certificate_ends=certificate_ends,
    )


def _session_meters(session: ClientSession, name: str, since: str) -> SessionMeters:
    channels = session.relay.channels
    trips = (channel.round_trip for channel in channels if channel.is_proven)
    return SessionMeters(client=name, since=since, channels=len(channels), round_trip=min(trips, default=None))


def _proxies(name: str, routes: dict[str, ProxyRoute], board: Board) -> Iterator[tuple[str, ProxyView]]:
    for proxy, route in routes.items():
        if proxy in board.statuses:  # else it was taken back meanwhile
            yield name, board.view(proxy, route)


def _pools(session: ClientSession | None, routes: dict[str, ProxyRoute]) -> Iterator[PoolMeters]:
    if session is not None and session.channels is not None:
        yield _pool(session.channels.pool, "data_channels", "")
    for proxy, route in routes.items():
        if route.pool is not None:
            yield _pool(route.pool, "targets", proxy)


def _pool(pool: Pool[Any, Any], kind: str, proxy: str) -> PoolMeters:
    return read_pool(pool.rules, kind=kind, proxy=proxy)
