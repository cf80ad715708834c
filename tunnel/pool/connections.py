"""The pool as a library: hot, validated TLS or TCP connections for another Trio program.

    async with tunnel.open_pool(tunnel.PoolConfig(max=100)) as pool:
        async with pool.connect("https://host/path", to="127.0.3.7") as stream: ...

The name comes from the URL (what TLS asks for and verifies), the address from `to`. Limits, deadlines, retries and
quarantines are those of `PoolConfig`; the law is `rules`, the same as for data channels and targets.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from attrs import evolve, frozen

from tunnel.addresses import is_ip
from tunnel.config import PoolConfig
from tunnel.errors import PeerLost, TunnelError, unwrapped
from tunnel.faults import Fault, Kind, Phase, classify
from tunnel.pool.core import Pool, Unavailable, running
from tunnel.pool.http_check import Check
from tunnel.pool.members import Lease, State, Use
from tunnel.pool.names import Names
from tunnel.pool.stream import Connection, Endpoint, PooledStream, open_connection
from tunnel.tls import client_context, pin_check, target_context

PORTS = {"https": 443, "http": 80}
DEFAULT = PoolConfig()


@frozen
class WarmUp:
    """What `ConnectionPool.warm` did: how many addresses are ready, and why the others are not."""

    opened: int
    failed: Mapping[str, Fault]


class ConnectionPool:
    """Made by `open_pool`; usable while its body runs."""

    def __init__(self, pool: Pool[Endpoint, Connection], config: PoolConfig) -> None:
        self._pool = pool
        self._config = config
        self._names = Names()

    @asynccontextmanager
    async def connect(self, url: str, *, to: str | None = None, owner: str = "") -> AsyncIterator[PooledStream]:
        """A connection for `url`, hot if there is one, yours while the body runs; what is sent over it is up to you.

        `to` is the numeric address to connect to; without it all addresses of the URL's name are candidates, the least
        used first. `owner` (default: the task's name) is named if the body outlasts `PoolConfig.lease_seconds`.

        Leaving the body gives the connection back, to be used again: leave it with the exchange finished, or call
        `discard`. Leaving by an exception closes it. Raises `Unavailable`, within `PoolConfig.wait_seconds`, when there
        is none to be had, and `ValueError` for a URL or address that is none. Cancelled, it leaves nothing behind.
        """
        lease = await self._lease(parse_url(url), to, owner or trio.lowlevel.current_task().name)
        stream = PooledStream(lease)
        try:
            yield stream
        except BaseException:
            stream.discard()
            raise
        stream.give_back()

    async def warm(self, url: str, *, to: Iterable[str] | None = None) -> WarmUp:
        """Have a validated connection for `url` ready at each of the addresses; None: at all that its name stands for.

        Opens `PoolConfig.fill_concurrency` at a time, each within `wait_seconds`. Connections that were ready count as
        opened. If cancelled, those opened so far stay.
        """
        origin = parse_url(url)
        endpoints = await self._endpoints(origin, to)
        failed: dict[str, Fault] = {}
        waiting = iter(endpoints)

        async def open_one_by_one() -> None:
            for endpoint in waiting:
                try:
                    (await self._pool.take("warm-up", endpoint)).release()
                except Unavailable as exc:
                    failed[endpoint.address] = exc.fault

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._config.fill_concurrency, len(endpoints))):
                nursery.start_soon(open_one_by_one, name=f"warm-up of {origin.origin}")
        return WarmUp(len(endpoints) - len(failed), failed)

    def stats(self) -> dict[str, Any]:
        """What the pool has done and holds, per address and in all; fit for JSON. Durations in seconds."""
        return self._pool.stats()

    async def _lease(self, origin: Endpoint, to: str | None, owner: str) -> Lease[Endpoint, Connection]:
        if to is not None:
            return await self._pool.take(owner, _at(origin, to))
        seconds = self._config.wait_seconds
        fault = Fault(Phase.RESOLVE, Kind.TIMEOUT, True, f"no connection for {origin.origin} in {seconds:g} s")
        with trio.move_on_after(seconds) as scope:
            endpoints = sorted(await self._endpoints(origin, None), key=self._burden)
            for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
                share = (scope.deadline - trio.current_time()) / left  # one that is silent leaves the others theirs
                try:
                    with trio.move_on_after(share):
                        return await self._pool.take(owner, endpoint)
                    fault = Fault(Phase.DIAL, Kind.TIMEOUT, True, f"{endpoint}: no connection in {share:.3g} s")
                except Unavailable as exc:
                    fault = exc.fault
        raise Unavailable(fault)

    def _burden(self, endpoint: Endpoint) -> tuple[bool, bool, int]:
        """The smaller, the sooner it is asked: an address that is well, then one that has a connection ready."""
        site = self._pool.rules.roster.sites.get(endpoint)
        if site is None:
            return False, True, 0
        return site.is_quarantined, not any(m.state is State.AVAILABLE for m in site.members.values()), site.lent

    async def _endpoints(self, origin: Endpoint, to: Iterable[str] | None) -> list[Endpoint]:
        """Each address once, in the order given."""
        if to is None:
            to = [origin.host] if is_ip(origin.host) else await self._resolve(origin.host)
        return list(dict.fromkeys(_at(origin, address) for address in to))

    async def _resolve(self, host: str) -> list[str]:
        delays, figures = self._config.retry.delays(), self._pool.rules.figures
        while True:
            try:
                with trio.fail_after(self._config.open_seconds):
                    return await self._names.resolve(host)
            except (PeerLost, trio.TooSlowError) as exc:
                fault = classify(exc, Phase.RESOLVE)
            figures.failed(fault)
            delay = next(delays, None) if fault.retryable else None
            if delay is None or not self._pool.may_retry():
                raise Unavailable(fault)
            figures.retries[f"{fault.phase}.{fault.kind}"] += 1
            await trio.sleep(delay)


@asynccontextmanager
async def open_pool(
    config: PoolConfig = DEFAULT,
    *,
    ca_file: Path | None = None,
    pin: bytes | None = None,
    check: Check | None = None,
) -> AsyncIterator[ConnectionPool]:
    """A `ConnectionPool` for the length of the body; leaving it closes every connection, lent ones too.

    TLS is verified by `ca_file`, else by the `pin` alone if there is one (32 bytes, see `parse_pin`), else by the
    system's CAs. ``await check(stream, url)`` raises if a connection is not good: it is asked about every new one, and
    about those unused for `PoolConfig.probe_interval`; `http_check` makes one. Raises `TunnelError` for a CA file that
    cannot be used.
    """
    prove = None if pin is None else pin_check(pin)
    use = Use(
        partial(open_connection, context=_context_maker(ca_file, pin), check=prove), partial(_validate, check=check)
    )
    async with unwrapped(), running(Pool(use, config, name="connections")) as pool:
        yield ConnectionPool(pool, config)


def _context_maker(ca_file: Path | None, pin: bytes | None) -> Callable[[], ssl.SSLContext]:
    if ca_file is None and pin is None:
        return target_context
    try:
        context = client_context(ca_file=ca_file, pinned=pin is not None)
    except (OSError, ssl.SSLError) as exc:
        raise TunnelError(f"cannot use the CA file {ca_file}: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # these services are other people's
    return lambda: context


async def _validate(connection: Connection, *, check: Check | None) -> None:
    why = connection.peek()
    if why is not None:
        raise trio.BrokenResourceError(f"{connection.endpoint}: {why}")
    if check is not None:
        await check(connection.stream, connection.endpoint.origin)


@lru_cache(maxsize=1024)
def parse_url(url: str) -> Endpoint:
    """Where a URL leads, address still open; its path is the user's business."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS:
        raise ValueError(f"{url!r} is not a URL for a connection; write https://HOST or http://HOST")
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"{url!r} names no host; write {parts.scheme}://HOST, without a user")
    try:
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{url!r} has no good port; write a number from 1 to 65535") from exc
    if port == 0:
        raise ValueError(f"{url!r} has port 0; write a number from 1 to 65535")
    return Endpoint(parts.scheme, parts.hostname, port or PORTS[parts.scheme], "")


@lru_cache(maxsize=4096)
def _at(origin: Endpoint, address: str) -> Endpoint:
    if not is_ip(address):
        raise ValueError(f"{address!r} is not an IP address; write one such as 127.0.0.1 or ::1")
    return evolve(origin, address=str(ip_address(address)))
