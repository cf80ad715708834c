"""What `/stats` and ``status --json`` tell of a pool, ready for JSON; bounded however many addresses and owners. Pure.

`states` counts members, `in_use` those lent for good, too. `reuse` is the share of leases on a connection that had been
lent before, `hit` that of leases that did not wait. An address has missed whom it was given after a wait; who got none
at all is the pool's miss alone. Durations are in seconds.
"""

from math import inf
from typing import Any

from tunnel.meters import PoolMeters
from tunnel.pool.figures import Counts
from tunnel.pool.members import A, Site, State, V
from tunnel.pool.rules import Rules

MAX_ADDRESSES = 200  # told one by one; those in trouble, then the busiest


def describe(rules: Rules[A, V], now: float) -> dict[str, Any]:
    roster, figures = rules.roster, rules.figures
    states = dict.fromkeys(map(str, State), 0)
    ages: list[float] = []
    for site in roster.sites.values():
        for state, number in _states(site, reusable=rules.reusable).items():
            states[state] += number
        ages += [now - member.opened_at for member in site.members.values() if member.opened_at < inf]
    states[State.RETIRED] = sum(figures.retired.values())
    told = sorted(roster.sites.values(), key=lambda s: (not s.is_quarantined, s.down is None, -s.lent))[:MAX_ADDRESSES]
    return {
        "states": states,
        "min": rules.config.min,
        "max": rules.config.max,
        "wanted": rules.wanted(now),
        "waiting": rules.waiting,
        "lent": rules.lent,
        **_describe_counts(figures, misses=figures.misses),
        "wait_timeouts": figures.timeouts,
        "openings": figures.openings.summary(),
        "failures": dict(figures.faults),
        "denied_retries": figures.denied_retries,
        "quarantines": figures.quarantines,
        "retired": dict(figures.retired),
        "leaks": dict(figures.leaks),
        "arrivals_per_second": round(rules.arrivals_per_second(now), 3),
        "oldest_seconds": round(max(ages, default=0.0), 3),
        "addresses": {str(site.address): _describe_site(site, now, reusable=rules.reusable) for site in told},
        "addresses_in_all": len(roster.sites),
    }


def read_meters(rules: Rules[A, V], *, kind: str, proxy: str) -> PoolMeters:
    """The pool as a whole, without what takes long to tell: no percentiles, no addresses."""
    figures = rules.figures
    states = dict.fromkeys(map(str, State), 0)
    for site in rules.roster.sites.values():
        for state, number in _states(site, reusable=rules.reusable).items():
            states[state] += number
    del states[State.RETIRED]  # nobody is: they are counted as they go
    return PoolMeters(
        kind=kind,
        proxy=proxy,
        states=states,
        waiting=rules.waiting,
        lent=rules.lent,
        leases=figures.leases,
        hits=figures.hits,
        misses=figures.misses,
        timeouts=figures.timeouts,
        opened=figures.opened,
        failures=dict(figures.faults),
        retired=dict(figures.retired),
        quarantines=figures.quarantines,
    )


def _states(site: Site[A, V], *, reusable: bool) -> dict[State, int]:
    counts: dict[State, int] = {}
    for member in site.members.values():
        state = State.IN_USE if member.state is State.AVAILABLE and member.load else member.state
        counts[state] = counts.get(state, 0) + 1
    if not reusable and site.lent:
        counts[State.IN_USE] = counts.get(State.IN_USE, 0) + site.lent
    return counts


def _describe_site(site: Site[A, V], now: float, *, reusable: bool) -> dict[str, Any]:
    return {
        "states": {str(state): number for state, number in _states(site, reusable=reusable).items()},
        "users": site.lent + sum(member.load - member.leases for member in site.members.values()),
        "weight": site.weight,
        "backup": site.backup,
        "down": site.down,
        "failures": site.failures,
        "last_failure": site.fault and f"{site.fault.phase}.{site.fault.kind}: {site.fault.message}",
        "next_try_seconds": round(max(site.probe_at - now, 0.0), 3) if site.is_quarantined else None,
        **_describe_counts(site.counts, misses=site.counts.leases - site.counts.hits),
        "quarantines": site.quarantines,
        "oldest_seconds": round(
            max((now - m.opened_at for m in site.members.values() if m.opened_at < inf), default=0.0), 3
        ),
    }


def _describe_counts(counts: Counts, *, misses: int) -> dict[str, Any]:
    return {
        "leases": counts.leases,
        "hits": counts.hits,
        "misses": misses,
        "hit": _share(counts.hits, counts.hits + misses),
        "reuse": _share(counts.reused, counts.leases),
        "cold_dials": counts.cold_dials,
        "handshakes": counts.opened,
        "waits": counts.waits.summary(),
        "validation_failures": dict(counts.validation_failures),
        "retries": dict(counts.retries),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None
