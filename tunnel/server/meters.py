"""What a server counts, see `tunnel.meters`."""

from collections.abc import Iterable, Iterator

from tunnel.config import Grant
from tunnel.meters import BindMeters, GateMeters, Meters, SessionMeters
from tunnel.relay import Engine
from tunnel.relay.ledger import read_meters
from tunnel.server.certificate import Certificate
from tunnel.server.gate import Gate
from tunnel.server.registry import BindFigures
from tunnel.server.session import Session
from tunnel.snapshot import ProxyView
from tunnel.version import __version__


def server_meters(
    gate: Gate,
    engine: Engine,
    *,
    grants: Iterable[Grant],
    binds: BindFigures,
    certificate: Certificate,
    is_ready: bool,
) -> Meters:
    """As of now, but for the proxies: each of the sessions' of now is looked at when its turn comes."""
    sessions = gate.sessions
    ends = certificate.not_after
    return Meters(
        role="server",
        version=__version__,
        is_ready=is_ready,
        is_draining=gate.is_draining,
        client="",
        clients=frozenset(grant.name for grant in grants),
        relay=read_meters(engine),
        sessions=tuple(map(_session_meters, sessions)),
        proxies=_proxies(sessions),
        pools=iter(()),  # its clients keep them
        binds=BindMeters(attempts=binds.attempts, retries=binds.retries, failures=dict(binds.failures)),
        gate=_gate_meters(gate),
        certificate_ends=None if ends is None else ends.timestamp(),
    )


def _session_meters(session: Session) -> SessionMeters:
    channels = session.relay.channels
    return SessionMeters(
        client=session.client,
        since=session.since,
        channels=len(channels),
        round_trip=min((channel.round_trip for channel in channels if channel.is_proven), default=None),
    )


def _proxies(sessions: Iterable[Session]) -> Iterator[tuple[str, ProxyView]]:
    for session in sessions:
        for proxy in tuple(session.proxies.values()):
            yield session.client, proxy.view()


def _gate_meters(gate: Gate) -> GateMeters:
    figures = gate.stats()
    return GateMeters(
        strangers=figures["strangers"],
        handshakes=figures["handshakes"],
        penalised_sources=figures["penalised_sources"],
        logins=figures["logins"],
        refusals=figures["refusals"],
    )
