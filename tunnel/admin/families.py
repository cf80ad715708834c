"""The names of the metrics and what each says: Prometheus' conventions, base units, bounded labels. Pure.

Labels have as many values as the configuration has names (``client``, ``proxy``) or this code has words (``reason``,
``state``, ``how``, …). A proxy's own counters begin anew with its session; those without ``proxy`` only grow while the
process lives.
"""

import platform
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import trio
from attrs import field, frozen

from tunnel.admin.counts import EventCounts
from tunnel.admin.family import Family, Values, counter, counters, gauge, gauges, histogram, info, labelled_counter
from tunnel.messages import Farewell, Reason, Status
from tunnel.meters import BindMeters, Distribution, GateMeters, Meters, PoolMeters, RelayMeters
from tunnel.snapshot import ProxyView

BIND_REASONS = (  # told from the start: what is absent at first has no increase when it comes
    Reason.ADDR_IN_USE, Reason.PERMISSION_DENIED, Reason.ADDR_NOT_AVAILABLE, Reason.OUT_OF_DESCRIPTORS,
    Reason.OUT_OF_MEMORY, Reason.OS_ERROR, Reason.MALFORMED_ADDR, Reason.FAMILY_NOT_SUPPORTED, Reason.NOT_ALLOWED,
)  # fmt: skip
CAUSES = ("age", "idle", "dead", "lost", "used", "removed", "bad")  # why a pool's connection leaves, likewise
ENDS = {"server": (*Farewell, "goodbye", "lost", "closed"), "client": ("lost",)}  # of sessions, likewise


@frozen(kw_only=True)
class Scrape:
    """All that one answer tells. `states` counts all proxies, those not told one by one (`untold`) among them."""

    meters: Meters
    proxies: list[tuple[str, ProxyView]] = field(repr=False)
    pools: list[PoolMeters]
    states: Counter[str]
    untold: int
    counts: EventCounts
    lateness: Distribution
    notices: Mapping[str, Mapping[str, Any]]  # the figures of each, by its name


def families(scrape: Scrape) -> Iterator[Family]:
    """In the order they are told."""
    meters = scrape.meters
    yield from _process(meters, scrape)
    yield from _sessions(meters, scrape.counts)
    yield from _proxies(scrape)
    yield from _visitors(meters)
    yield from _relay(meters.relay)
    yield from _pools(scrape.pools)
    yield from _notices(scrape.notices)
    if meters.binds is not None:
        yield from _binds(meters.binds)
    if meters.gate is not None:
        yield from _gate(meters.gate)


def _process(meters: Meters, scrape: Scrape) -> Iterator[Family]:
    about = {
        "role": meters.role, "version": meters.version, "python": platform.python_version(),
        "trio": trio.__version__, "openssl": ssl.OPENSSL_VERSION,
    }  # fmt: skip
    yield info("build", "What runs here, and on what.", [about])
    yield gauge("ready", "1 if new visitors (a server: clients) would be served, as /readyz says.", meters.is_ready)
    yield gauge("draining", "1 while it stops gracefully.", meters.is_draining)
    if meters.certificate_ends is not None:
        text = "When the server's certificate ends, in seconds since 1970; at a client, of the one it saw last."
        yield gauge("certificate_expiry_timestamp_seconds", text, meters.certificate_ends)
    counts = scrape.counts
    yield counters("config_reloads", "Times the configuration was read again.", "result", counts.reloads)
    yield gauge("config_last_reload_successful", "0 if the last one was refused.", counts.last_reload_worked)
    text = "When the configuration in force was read, in seconds since 1970."
    yield gauge("config_last_reload_success_timestamp_seconds", text, counts.last_load_at)
    text = "How late the event loop wakes a sleeper, asked twice a second."
    yield histogram("event_loop_delay_seconds", text, scrape.lateness)


def _sessions(meters: Meters, counts: EventCounts) -> Iterator[Family]:
    living = {session.client: session for session in meters.sessions}
    seen = (name for name in counts.clients if meters.clients is None or name in meters.clients)
    known = list(dict.fromkeys([*seen, *living])) or ([meters.client] if meters.role == "client" else [])
    yield gauge("sessions", "Sessions that are up.", len(living))
    text = "1 while the client has a session, 0 while one that had any since the start, and may have, has none."
    yield gauges("session_up", text, ((_client(name), name in living) for name in known))
    started = ((_client(name), datetime.fromisoformat(one.since).timestamp()) for name, one in living.items())
    yield gauges("session_start_timestamp_seconds", "When the session began, in seconds since 1970.", started)
    channels = ((_client(name), one.channels) for name, one in living.items())
    yield gauges("session_data_channels", "Data channels of the session.", channels)
    trips = ((_client(name), one.round_trip) for name, one in living.items() if one.round_trip is not None)
    text = "Round trip of the session's quickest data channel, measured by pings."
    yield gauges("session_round_trip_seconds", text, trips)
    yield counter("sessions_started", "Sessions that began.", counts.sessions_started)
    ended = {**dict.fromkeys(map(str, ENDS[meters.role]), 0), **counts.sessions_ended}
    yield counters("sessions_ended", "Sessions that ended.", "reason", ended)


def _proxies(scrape: Scrape) -> Iterator[Family]:
    rows = scrape.proxies
    states = {str(status): scrape.states[status] for status in Status}
    yield gauges("proxies", "Proxies by status.", (({"status": status}, n) for status, n in states.items()))
    yield gauge("proxies_untold", "Proxies too many to be told one by one; they count elsewhere.", scrape.untold)
    changes = (({"status": s, "reason": r}, float(n)) for (s, r), n in sorted(scrape.counts.status_changes.items()))
    text = "Times a proxy's status was told anew, each failed attempt to bind among them."
    yield labelled_counter("status_changes", text, changes)
    yield gauges("proxy_up", "1 if the proxy is healthy.", _each(rows, lambda view: view.status == Status.HEALTHY))
    about = ({**_labels(client, view), **_standing(view)} for client, view in rows)
    yield info("proxy_status", "How the proxy stands, and where it is published.", about)
    text = "Attempts to bind that have failed since the last success, or since retrying began anew."
    yield gauges("proxy_failed_attempts", text, _each(rows, lambda view: view.attempt))
    yield gauges("proxy_visitors", "Visitors inside.", _each(rows, lambda view: view.visitors))
    figures: tuple[tuple[str, str, Callable[[ProxyView], float]], ...] = (
        ("proxy_visitors_accepted", "Visitors that came.", lambda view: view.visitors_total),
        ("proxy_visitors_refused", "Visitors that could not be served.", lambda view: sum(view.refused.values())),
        ("proxy_received_bytes", "Bytes that came from visitors.", lambda view: view.bytes_in),
        ("proxy_sent_bytes", "Bytes that went to visitors.", lambda view: view.bytes_out),
    )
    for name, text, figure in figures:
        yield labelled_counter(name, f"{text} Begins anew with each session.", _each(rows, figure))


def _standing(view: ProxyView) -> dict[str, str]:
    where = f"[{view.publish_addr}]" if ":" in view.publish_addr else view.publish_addr
    return {"status": view.status, "reason": view.reason or "", "address": f"{where}:{view.publish_port}"}


def _visitors(meters: Meters) -> Iterator[Family]:
    relay, is_server = meters.relay, meters.role == "server"
    received, sent = (relay.read, relay.written) if is_server else (relay.written, relay.read)
    yield gauge("visitors", "Visitors inside.", relay.visitors)
    if relay.visitors_limit is not None:
        yield gauge("visitors_limit", "How many can be inside; more wait in the kernel.", relay.visitors_limit)
    yield counter("visitors_accepted", "Visitors that came.", relay.visitors_total)
    yield counters("visitors_refused", "Visitors that could not be served.", "reason", relay.refused)
    yield counters("visitors_cut", "Visitors that were served and did not end cleanly.", "reason", relay.cut)
    yield counter("received_bytes", "Bytes that came from visitors.", received)
    yield counter("sent_bytes", "Bytes that went to visitors.", sent)
    if is_server:
        text = "From accepting a visitor to the first byte back; a visitor that waits before it asks waits here, too."
        yield histogram("first_byte_duration_seconds", text, relay.first_bytes)
    else:
        text = "From hearing of a visitor to a connection to its target."
        yield histogram("dial_duration_seconds", text, relay.dials)


def _relay(relay: RelayMeters) -> Iterator[Family]:
    channels = (({"state": state}, number) for state, number in relay.channels.items())
    yield gauges("data_channels", "Data channels by state.", channels)
    yield counter("data_channels_opened", "Data channels that began.", relay.channels_opened)
    yield counters("data_channels_ended", "Data channels that ended.", "how", relay.channels_ended)
    yield counter("relay_turns", "Turns of the relay; one handles every socket that is ready.", relay.turns)
    yield counter("relay_errors", "Errors that ended one stream or channel and nothing else.", relay.errors)
    yield gauge("relay_buffer_bytes", "Receive windows promised to visitors' streams.", relay.buffer_bytes)
    yield gauge("relay_buffer_limit_bytes", "How much may be promised in all.", relay.buffer_limit)
    text = "Proxies whose new visitors wait in the kernel for a bound."
    yield gauge("relay_paused_listeners", text, relay.paused_listeners)


def _pools(pools: list[PoolMeters]) -> Iterator[Family]:
    def each(figure: Callable[[PoolMeters], float]) -> Values:
        return (({"pool": pool.kind, "proxy": pool.proxy}, figure(pool)) for pool in pools)

    def by(label: str, figures: Callable[[PoolMeters], Mapping[str, int]]) -> Values:
        for pool in pools:
            for word, number in figures(pool).items():
                yield {"pool": pool.kind, "proxy": pool.proxy, label: word}, number

    if not pools:
        return
    yield gauges("pool_connections", "Connections of the pool by state.", by("state", lambda pool: pool.states))
    yield gauges("pool_waiting", "Who waits for a connection.", each(lambda pool: pool.waiting))
    yield gauges("pool_lent", "Leases that were not given back.", each(lambda pool: pool.lent))
    totals: tuple[tuple[str, str, Callable[[PoolMeters], float]], ...] = (
        ("pool_leases", "Leases given.", lambda pool: pool.leases),
        ("pool_hits", "Leases on a connection that was ready.", lambda pool: pool.hits),
        ("pool_misses", "Who had to wait.", lambda pool: pool.misses),
        ("pool_wait_timeouts", "Waits that ended at their deadline.", lambda pool: pool.timeouts),
        ("pool_opened", "Connections made.", lambda pool: pool.opened),
        ("pool_quarantines", "Times an address was left alone for a while.", lambda pool: pool.quarantines),
    )
    for name, text, figure in totals:
        yield labelled_counter(name, text, each(figure))
    yield labelled_counter("pool_failures", "Openings that failed.", by("fault", lambda pool: pool.failures))
    yield labelled_counter(
        "pool_retired", "Connections that left.", by("cause", lambda pool: {**dict.fromkeys(CAUSES, 0), **pool.retired})
    )


def _notices(notices: Mapping[str, Mapping[str, Any]]) -> Iterator[Family]:
    def each(figure: str) -> Values:
        return (({"notice": name}, figures[figure]) for name, figures in notices.items())

    if not notices:
        return
    yield gauges("notices_waiting", "Notices that are still to be sent.", each("waiting"))
    yield labelled_counter("notices_sent", "Notices that their receiver took.", each("sent"))
    yield labelled_counter("notices_failed", "Notices that it did not take.", each("failed"))
    yield labelled_counter("notices_dropped", "Notices that were never sent.", each("dropped"))
    yield labelled_counter("notices_retried", "Attempts after the first.", each("retried"))


def _binds(binds: BindMeters) -> Iterator[Family]:
    yield counter("bind_attempts", "Attempts to bind a proxy's public address.", binds.attempts)
    yield counter("bind_retries", "Attempts to bind that followed a failed one.", binds.retries)
    failures = {**dict.fromkeys(map(str, BIND_REASONS), 0), **binds.failures}
    yield counters("bind_failures", "Attempts to bind that failed.", "reason", failures)


def _gate(gate: GateMeters) -> Iterator[Family]:
    yield gauge("gate_strangers", "Connections that have not proved anything yet.", gate.strangers)
    yield gauge("gate_handshakes", "TLS handshakes under way.", gate.handshakes)
    yield gauge("gate_penalised_sources", "Sources with a penalty on their account.", gate.penalised_sources)
    yield counter("gate_logins", "Good tokens and tickets.", gate.logins)
    yield counters("gate_refusals", "Connections that came to nothing.", "reason", gate.refusals)


def _client(name: str) -> dict[str, str]:
    return {"client": name}


def _labels(client: str, view: ProxyView) -> dict[str, str]:
    return {"client": client, "proxy": view.name}


def _each(rows: list[tuple[str, ProxyView]], figure: Callable[[ProxyView], float]) -> Values:
    return ((_labels(client, view), figure(view)) for client, view in rows)
