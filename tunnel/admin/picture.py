"""What a dashboard shows, as one JSON object, and what changed in it since the last look. Pure.

The state holds `sessions` by client, each with its `proxies` by name, and beside them what `summary` makes of `/stats`.
A change is a JSON Merge Patch (RFC 7396) of it: only what differs, null for what is gone. Values are absolute, so that
a patch that is applied twice does no harm. Nulls are left out of the state itself.
"""

import math
from collections.abc import Iterator
from typing import Any

from attrs import Factory, define, fields

from tunnel.snapshot import ProxyView, SessionView

MAX_POOLS = 100  # of targets, shown one by one: those with trouble, then the busiest
MAX_TROUBLES = 5  # addresses named of one pool
_SAME_RETRY = 1.0  # seconds; `retry_after_seconds` is rounded up, so two tellings of one moment differ by less
_FIELDS = tuple(f.name for f in fields(ProxyView) if f.name not in ("name", "retry_after_seconds"))

Json = dict[str, Any]


@define(eq=False)
class _Session:
    since: str
    proxies: dict[str, ProxyView] = Factory(dict)
    retry_at: dict[str, float] = Factory(dict)  # by proxy; on the caller's clock


@define(eq=False)
class Picture:
    """The state as last seen. A look is `see` for each session, `see_rest`, then `finish`, which returns the patch.

    `now` is any clock in seconds; it is only used for how long it is until a retry.
    """

    rest: Json = Factory(dict)
    _sessions: dict[str, _Session] = Factory(dict)
    _seen: set[str] = Factory(set)
    _patch: Json = Factory(lambda: {"sessions": {}})

    def see(self, view: SessionView, now: float) -> None:
        self._seen.add(view.client)
        patch: Json = {}
        session = self._sessions.get(view.client)
        if session is None:
            session = self._sessions[view.client] = _Session(view.since)
            patch = {"since": view.since}
        elif session.since != view.since:
            session.since = patch["since"] = view.since
        if proxies := _see_proxies(session, view.proxies, now):
            patch["proxies"] = proxies
        if patch:
            self._patch["sessions"][view.client] = patch

    def see_rest(self, rest: Json) -> None:
        self._patch.update(merge_patch(self.rest, rest))
        self.rest = rest

    def finish(self) -> Json:
        for client in self._sessions.keys() - self._seen:
            del self._sessions[client]
            self._patch["sessions"][client] = None
        patch, self._patch, self._seen = self._patch, {"sessions": {}}, set()
        if not patch["sessions"]:
            del patch["sessions"]
        return patch

    def sessions(self, now: float) -> list[tuple[str, str, Iterator[tuple[str, Json]]]]:
        """All of it as (client, since, rows), as it is at this call, however late the rows are read."""
        return [
            (client, session.since, _rows(list(session.proxies.values()), dict(session.retry_at), now))
            for client, session in self._sessions.items()
        ]


def _rows(views: list[ProxyView], retry_at: dict[str, float], now: float) -> Iterator[tuple[str, Json]]:
    for view in views:
        yield view.name, row(view, retry_at.get(view.name), now)


def row(view: ProxyView, retry_at: float | None, now: float) -> Json:
    """A proxy without its name, and without what is null."""
    whole = {name: value for name in _FIELDS if (value := getattr(view, name)) is not None}
    if retry_at is not None:
        whole["retry_after_seconds"] = max(0, math.ceil(retry_at - now))
    return whole


def _see_proxies(session: _Session, views: tuple[ProxyView, ...], now: float) -> Json:
    patch: Json = {}
    for view in views:
        before = session.proxies.get(view.name)
        if before is not None and view == before and view.retry_after_seconds is None:
            continue
        if changed := _see_proxy(session, before, view, now):
            patch[view.name] = changed
    if len(session.proxies) > len(views):
        for name in session.proxies.keys() - {view.name for view in views}:
            del session.proxies[name]
            session.retry_at.pop(name, None)
            patch[name] = None
    return patch


def _see_proxy(session: _Session, before: ProxyView | None, view: ProxyView, now: float) -> Json:
    name, seconds = view.name, view.retry_after_seconds
    session.proxies[name] = view
    known = session.retry_at.pop(name, None)
    retry_at = None if seconds is None else now + seconds
    is_same = retry_at is not None and known is not None and abs(known - retry_at) <= _SAME_RETRY
    if is_same and known is not None and retry_at is not None:
        retry_at = min(known, retry_at)
    if retry_at is not None:
        session.retry_at[name] = retry_at
    if before is None:
        return row(view, retry_at, now)
    changed: Json = {key: value for key in _FIELDS if (value := getattr(view, key)) != getattr(before, key)}
    if not is_same and (known is not None or retry_at is not None):
        changed["retry_after_seconds"] = seconds
    return changed


def merge_patch(before: Json, after: Json) -> Json:
    """What turns `before` into `after` by RFC 7396; empty if nothing differs."""
    patch: Json = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif value != old:
            patch[key] = value
    return patch


# Of /stats


def summary(stats: Json) -> Json:
    """What a page shows of `stats`: the pools without what ticks on by itself, the gate and the client's connection."""
    pools = stats.get("connection_pool") or {}
    shown: Json = {key: stats[key] for key in ("gate", "connection") if stats.get(key)}
    if pools.get("clients"):
        shown["channels"] = pools["clients"]
    if pools.get("data_channels"):
        shown["data_channels"] = _pool(pools["data_channels"])
    if targets := pools.get("targets"):
        first = sorted(targets, key=lambda name: (not _has_trouble(targets[name]), -targets[name]["lent"]))[:MAX_POOLS]
        shown["targets"] = {name: _pool(targets[name]) for name in first}
        shown["targets_in_all"] = len(targets)
    return shown


def _has_trouble(pool: Json) -> bool:
    return any(map(_trouble, pool["addresses"].values()))


def _pool(pool: Json) -> Json:
    troubles = {address: word for address, site in pool["addresses"].items() if (word := _trouble(site))}
    return {
        "states": {state: number for state, number in pool["states"].items() if state != "retired"},
        "min": pool["min"],
        "max": pool["max"],
        "waiting": pool["waiting"],
        "hits": pool["hits"],
        "misses": pool["misses"],
        "wait_p95": pool["waits"]["p95"],
        "failures": sum(pool["failures"].values()),
        "leaks": sum(pool["leaks"].values()),
        "troubles": dict(list(troubles.items())[:MAX_TROUBLES]),
        "troubles_in_all": len(troubles),
    }


def _trouble(site: Json) -> str:
    if site["down"]:
        return f"down: {site['down']}"
    if site["states"].get("quarantined") or site["failures"]:
        failures = f"{site['failures']} failure{'' if site['failures'] == 1 else 's'}"
        return f"in quarantine after {failures}: {site['last_failure'] or 'no reason given'}"
    return ""
