"""What a person is told of the pools in ``/stats``: a line for each, and one for each address in trouble. Pure.

Lenient towards what another version leaves out or adds, like all that reads an answer.
"""

import math
from collections.abc import Iterator
from typing import Any

from tunnel.wording import clean

MAX_TROUBLES = 5  # lines for the addresses of one pool
MAX_SECONDS = 100_000  # of what is told in seconds


def pool_lines(stats: dict[str, Any]) -> list[str]:
    """Nothing for a process that pools nothing."""
    pools = _table(stats.get("connection_pool"))
    lines = list(_pool("data channels", _table(pools.get("data_channels")), is_lent=False))
    for name, pool in _table(pools.get("targets")).items():
        lines += _pool(f"targets of {clean(str(name))}", _table(pool))
    for client, channels in _table(pools.get("clients")).items():
        lines.append(f"data channels of {clean(str(client))}: {_channels(_table(channels))}")
    return lines


def _pool(name: str, pool: dict[str, Any], *, is_lent: bool = True) -> Iterator[str]:
    """`is_lent` where each visitor takes one: data channels are shared by all, and how many were ready says nothing."""
    if not pool:
        return
    states, sites = _table(pool.get("states")), _table(pool.get("addresses"))
    ready, in_use = (_number(states.get(state)) for state in ("available", "in_use"))
    is_hot = pool.get("min") != 0 or ready > 0
    line = f"{name}: {f'{ready} ready' if is_hot else 'none kept ready'}, {in_use} in use"
    hits, leases = _number(pool.get("hits")), _number(pool.get("leases"))
    if is_lent and (asked := hits + _number(pool.get("misses"))):
        share = (
            f"{hits / asked:.1%} of {asked:,} found one ready"
            if is_hot
            else f"{leases:,} of {asked:,} visitors connected"
        )
        line += f"; {share}"
    if coming := sum(_number(states.get(state)) for state in ("connecting", "validating")):
        line += f"; {coming} coming"
    if leaked := sum(map(_number, _table(pool.get("leaks")).values())):
        line += f"; {leaked} kept too long"
    yield line
    troubles = [trouble for address, site in sites.items() if (trouble := _trouble(str(address), _table(site)))]
    yield from troubles[:MAX_TROUBLES]
    if len(troubles) > MAX_TROUBLES:
        yield f"  and {len(troubles) - MAX_TROUBLES} more addresses in trouble"


def _trouble(address: str, site: dict[str, Any]) -> str:
    if site.get("down"):
        return f"  {clean(address)} is down: {clean(str(site['down']))}"
    if _number(_table(site.get("states")).get("quarantined")) or _number(site.get("failures")):
        failures, next_try = _number(site.get("failures")), site.get("next_try_seconds")
        after = f"{failures} failure{'s' if failures != 1 else ''}"
        if isinstance(next_try, (int, float)) and 0 < next_try < MAX_SECONDS:
            after += f", tried again in {math.ceil(next_try)} s"
        why = clean(str(site.get("last_failure") or "no reason given"))
        return f"  {clean(address)} is in quarantine after {after}: {why}"
    return ""


def _channels(channels: dict[str, Any]) -> str:
    streams = _number(channels.get("streams"))
    words = [f"{_number(channels.get('channels'))}, {streams} stream{'' if streams == 1 else 's'}"]
    words += [f"{number} {state}" for state in ("suspect", "retiring") if (number := _number(channels.get(state)))]
    return ", ".join(words)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return value if type(value) is int else 0
