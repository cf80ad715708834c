"""The way to the server as `connect` takes it: names, the proxy to go out by, each address.

A server counts who comes and leaves without a token (a second's debt each, enforced from 15 s on): so few handshakes
are made, and a connection that was tried is used on.
"""

import errno
import socket

import trio
from attrs import frozen

from tunnel.addresses import HostPort, is_ip
from tunnel.client.dialer import HANG_UP, Dialer
from tunnel.client.resolver import ServerAddress, leave_name, look_up
from tunnel.config import ClientConfig
from tunnel.doctor.findings import STEP_SECONDS, Report, parts
from tunnel.doctor.trust import check_tls
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.sockets import dial_tcp

MAX_HANDSHAKES = 4  # addresses beyond are only connected to
_OF_TRUST = ("tls", "certificate", "clock")
_REMEDIES = {
    errno.ECONNREFUSED: "nothing listens there: start `trio-tunnel serve`, or name the port that it listens on",
    errno.ENETUNREACH: "there is no route to it from here; for IPv6 that is common, and does no harm beside IPv4",
    errno.ECONNRESET: HANG_UP,  # it was as quick as we
    errno.EHOSTUNREACH: "the host does not answer, or a firewall says so: look whether it is up",
}
_SILENT = "a firewall on the way drops it, or the host is down: open the port there, for TCP"


async def check_way(config: ClientConfig, dialer: Dialer, report: Report) -> ServerAddress | None:
    """Each check up to the clock; those that cannot be made are said to be skipped. Returns the first address that was
    verified."""
    addresses = await _check_names(config, report)
    if not addresses:
        report.skip("no address is known", "tcp", *_OF_TRUST)
        return None
    if config.via is not None and not await _check_proxy(config, report):
        report.skip("the proxy cannot be reached", "tcp", *_OF_TRUST)
        return None
    connected = await _check_tcp(config, dialer, addresses, report)
    if not connected:
        report.skip("no address can be connected to", *_OF_TRUST)
        return None
    verified: ServerAddress | None = None
    try:
        while connected:
            address, sock = next(iter(connected.items()))
            del connected[address]
            if await check_tls(config, dialer, address, sock, report, is_first=verified is None):
                verified = verified or address
    finally:
        for sock in connected.values():  # cancelled
            sock.close()
    if verified is None:
        report.skip("no connection was verified", *_OF_TRUST[1:])
    return verified


async def _check_names(config: ClientConfig, report: Report) -> list[ServerAddress]:
    found: dict[ServerAddress, None] = {}
    for server in config.servers:
        if is_ip(server.host):
            report.ok("dns", f"{server.host} is an address")
            ips = [server.host]
        elif config.via is not None and config.via.resolves:
            report.skip(f"{server.host} is looked up by the proxy {config.via}", "dns")
            ips = await leave_name(server)
        else:
            ips = await _look_up(server, report)
        found |= {ServerAddress(ip, server.port, server): None for ip in ips}
    return list(found)


async def _look_up(server: HostPort, report: Report) -> list[str]:
    began = trio.current_time()
    try:
        with trio.fail_after(STEP_SECONDS):
            ips = await look_up(server)
    except trio.TooSlowError:
        report.fail("dns", f"{server.host}: no answer within {STEP_SECONDS:g} s", "look at this machine's resolver")
        return []
    except PeerLost as exc:
        report.fail("dns", parts(exc)[0], "check the spelling, and that this machine can look names up")
        return []
    report.ok("dns", f"{server.host}: {', '.join(ips)}", seconds=trio.current_time() - began)
    return ips


async def _check_proxy(config: ClientConfig, report: Report) -> bool:
    assert config.via is not None
    began = trio.current_time()
    try:
        with trio.fail_after(STEP_SECONDS):
            (await dial_tcp(config.via.where, name=f"the proxy {config.via}")).close()
    except (PeerLost, trio.TooSlowError) as exc:
        word = str(exc) or f"the proxy {config.via} does not answer within {STEP_SECONDS:g} s"
        report.fail("proxy", word, "name a proxy that this machine can reach, or none (proxy, --via)")
        return False
    who = f", as {config.via.username}" if config.via.username else ""
    report.ok("proxy", f"{config.via}{who}", seconds=trio.current_time() - began)
    return True


async def _check_tcp(
    config: ClientConfig, dialer: Dialer, addresses: list[ServerAddress], report: Report
) -> dict[ServerAddress, socket.socket]:
    """All at once; those that go on to shake hands stay open, the others are closed."""
    results: dict[ServerAddress, _Connected | TunnelError] = {}

    async def connect(address: ServerAddress) -> None:
        began = trio.current_time()
        try:
            with trio.fail_after(STEP_SECONDS):
                results[address] = _Connected(await dialer.connect(address), trio.current_time() - began)
        except (PeerLost, Refused) as exc:
            results[address] = exc
        except trio.TooSlowError:
            results[address] = PeerLost(f"cannot reach {address}: no answer within {STEP_SECONDS:g} s; {_SILENT}")

    try:
        async with trio.open_nursery() as connects:
            for address in addresses:
                connects.start_soon(connect, address)
    except BaseException:
        _close(results, [])
        raise
    by = "" if config.via is None else f" through {config.via}"
    kept: dict[ServerAddress, socket.socket] = {}
    any_up = any(isinstance(result, _Connected) for result in results.values())
    for address in addresses:
        result = results[address]
        if isinstance(result, _Connected):
            report.ok("tcp", f"{address}{by}", seconds=result.seconds)
            if len(kept) < MAX_HANDSHAKES:
                kept[address] = result.sock
        else:
            _report_tcp(result, report, any_up=any_up)
    _close(results, list(kept))
    return kept


@frozen
class _Connected:
    sock: socket.socket
    seconds: float


def _close(results: "dict[ServerAddress, _Connected | TunnelError]", kept: list[ServerAddress]) -> None:
    for address, result in results.items():
        if isinstance(result, _Connected) and address not in kept:
            result.sock.close()


def _report_tcp(problem: TunnelError, report: Report, *, any_up: bool) -> None:
    message, remedy = parts(problem)
    number = problem.errno if isinstance(problem, PeerLost) else None
    remedy = remedy or _REMEDIES.get(number or 0, _SILENT if number == errno.ETIMEDOUT else "")
    if any_up:
        report.warn("tcp", f"{message}; the client uses the other addresses", remedy)
    else:
        is_trust = isinstance(problem, Refused) and problem.trust
        report.fail("tcp", message, remedy, is_trust=is_trust)
