"""What a process counts, as values of one moment: read in the event loop, told by whoever has time for it. Pure.

A `Server` and a `Client` make `Meters`; the metrics of the admin address show them. Everything called a total only
grows while the process lives, whatever sessions and proxies come and go.
"""

from collections.abc import Iterator, Mapping
from typing import Self

from attrs import frozen

from tunnel.histogram import Histogram
from tunnel.snapshot import ProxyView


@frozen
class Distribution:
    """A histogram as it was: each upper bound in seconds with the count of all that is not above it."""

    buckets: tuple[tuple[float, int], ...]
    sum: float

    @classmethod
    def of(cls, histogram: Histogram) -> Self:
        return cls(tuple(histogram.buckets()), histogram.sum)


@frozen(kw_only=True)
class RelayMeters:
    """The data path. `read` and `written` are bytes of local sockets: a server's are visitors, a client's targets."""

    visitors: int
    visitors_limit: int | None
    visitors_total: int
    refused: Mapping[str, int]  # total, by reason: never served
    cut: Mapping[str, int]  # total, by reason: served, and not ended cleanly
    read: int
    written: int
    dials: Distribution
    first_bytes: Distribution
    channels: Mapping[str, int]  # by state
    channels_opened: int
    channels_ended: Mapping[str, int]  # total, by how
    turns: int
    errors: int
    buffer_bytes: int
    buffer_limit: int
    paused_listeners: int


@frozen(kw_only=True)
class SessionMeters:
    """One session that is up. `round_trip` is its quickest data channel's, in seconds; None while none is proven."""

    client: str
    since: str
    channels: int
    round_trip: float | None


@frozen(kw_only=True)
class PoolMeters:
    """One pool of connections: `kind` is ``data_channels``, or ``targets`` of a `proxy`. All but three are totals."""

    kind: str
    proxy: str
    states: Mapping[str, int]  # now, by state
    waiting: int  # now
    lent: int  # now
    leases: int
    hits: int
    misses: int
    timeouts: int
    opened: int
    failures: Mapping[str, int]  # by phase and kind
    retired: Mapping[str, int]  # by cause
    quarantines: int


@frozen(kw_only=True)
class BindMeters:
    """Attempts to bind public addresses; all are totals."""

    attempts: int
    retries: int  # those of them that followed a failure
    failures: Mapping[str, int]  # by reason


@frozen(kw_only=True)
class GateMeters:
    """Who came to the server's port; the first three are of now, the others totals."""

    strangers: int
    handshakes: int
    penalised_sources: int
    logins: int
    refusals: Mapping[str, int]  # by reason


@frozen(kw_only=True)
class Meters:
    """All of them. `proxies` (with their client's name) and `pools` are walked once, at leisure: other tasks may run in
    between."""

    role: str  # "server" or "client"
    version: str
    is_ready: bool
    is_draining: bool
    client: str  # our own name at a client, as the server told it; else empty
    clients: frozenset[str] | None  # who may have a session; None at a client
    relay: RelayMeters
    sessions: tuple[SessionMeters, ...]
    proxies: Iterator[tuple[str, ProxyView]]
    pools: Iterator[PoolMeters]
    binds: BindMeters | None  # a server's
    gate: GateMeters | None  # a server's
    certificate_ends: float | None  # seconds since 1970; the server's, at a client as it was seen last
