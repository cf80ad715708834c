"""A proxy's public address while it is held: taken under the token's allowance, accepting, known to the registry."""

import ipaddress
import math
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import trio

from tunnel.addresses import HostPort
from tunnel.config import Grant
from tunnel.messages import ProxySpec, Reason
from tunnel.relay import Listener
from tunnel.server.binding import BindFailed, bind, check_address
from tunnel.server.registry import Address, Registry
from tunnel.sockets import is_addr_present

PRESENCE_SECONDS = 5.0  # how often a listener on one interface's address asks whether the host still has it
CHOICES = 150  # ports tried for PUBLISH 0 in one attempt: with 90 % of a range taken, one in 10^7 attempts finds none


def check_allowed(grant: Grant, spec: ProxySpec) -> None:
    """`BindFailed` (final) for what the client's token does not allow."""
    check_address(spec.publish_addr)
    if grant.allow_names is not None and spec.name not in grant.allow_names:
        raise _refused(f"the token of client '{grant.name}' does not allow the proxy name '{spec.name}'", "allow_names")
    if grant.allow_addrs is not None and not _is_addr_allowed(spec.publish_addr, grant.allow_addrs):
        words = ", ".join(grant.allow_addrs) or "none"
        raise _refused(
            f"the token of client '{grant.name}' does not allow the address {spec.publish_addr} (allowed: {words})",
            "allow_addrs",
        )
    ports = grant.allow_ports
    if ports is not None and not (any(spec.publish_port in r for r in ports) or (spec.publish_port == 0 and ports)):
        words = ", ".join(map(str, ports)) or "none"
        raise _refused(
            f"the token of client '{grant.name}' does not allow port {spec.publish_port} (allowed: {words})",
            "allow_ports",
        )


def _refused(what: str, key: str) -> BindFailed:
    return BindFailed(Reason.NOT_ALLOWED, f"{what}; change {key} at the server or what is published", final=True)


def _is_addr_allowed(addr: str, allowed: tuple[str, ...]) -> bool:
    """A wildcard in the list allows every address of its family: whoever may have them all may have one."""
    wanted = ipaddress.ip_address(addr)
    for text in allowed:
        one = ipaddress.ip_address(text)
        if one == wanted or (one.is_unspecified and one.version == wanted.version):
            return True
    return False


def presence_seconds(addr: str) -> float:
    """How often to ask whether the host still has `addr`; inf for what no host loses."""
    ip = ipaddress.ip_address(addr)
    return math.inf if ip.is_unspecified or ip.is_loopback else PRESENCE_SECONDS


class Publication:
    """One held address. Made by `publish`; `release` frees it at once, and may be called again."""

    def __init__(self, address: Address, where: HostPort, registry: Registry[Any]) -> None:
        self.where = where
        self.listener: Listener | None = None
        self._address = address
        self._registry = registry
        self._lost = trio.Event()
        self._why = ""

    def on_lost(self, exc: OSError) -> None:
        self._why = exc.strerror or str(exc)
        self._lost.set()

    async def wait_lost(self) -> str:
        """Until accepting has ended for good; returns why."""
        seconds = presence_seconds(self.where.host)
        while True:
            with trio.move_on_after(seconds):
                await self._lost.wait()
                return self._why
            if not is_addr_present(self.where.host):
                return f"this host no longer has the address {self.where.host}"

    def release(self) -> None:
        self._registry.withdraw(self._address)
        if self.listener is not None:
            self.listener.close()


def take_address(
    grant: Grant, spec: ProxySpec, registry: Registry[Any], listen: Callable[[str, int], socket.socket]
) -> tuple[socket.socket, Address]:
    """One bind attempt: a listening socket, entered in the registry. Raises `BindFailed`."""
    check_allowed(grant, spec)
    failure: BindFailed | None = None
    for port in _candidates(grant, spec, registry):
        where = HostPort(spec.publish_addr, port)
        try:
            sock = bind(where, listen=listen, held_by=registry.taken_by(where.host, port))
        except BindFailed as exc:
            failure = exc
            if spec.publish_port or exc.reason is not Reason.ADDR_IN_USE:
                raise
            continue
        address = Address(where.host, sock.getsockname()[1], grant.name, spec.name)
        registry.publish(address)
        return sock, address
    message = f"No free port among those allowed to client '{grant.name}'"
    raise BindFailed(Reason.ADDR_IN_USE, message) from failure


def _candidates(grant: Grant, spec: ProxySpec, registry: Registry[Any]) -> Iterator[int]:
    if spec.publish_port:
        yield spec.publish_port
        return
    before = registry.chosen_port(grant.name, spec.name)
    if before and (grant.allow_ports is None or any(before in ports for ports in grant.allow_ports)):
        yield before
    if grant.allow_ports is None:
        yield 0
        return
    sizes = [ports.last - ports.first + 1 for ports in grant.allow_ports]
    for _ in range(CHOICES):
        ports = random.choices(grant.allow_ports, sizes)[0]  # noqa: S311  no secret
        yield random.randint(ports.first, ports.last)  # noqa: S311
