"""The addresses of the server: those its names stand for now, looked up again from time to time."""

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio
from attrs import frozen

from tunnel.addresses import HostPort, is_ip
from tunnel.errors import PeerLost
from tunnel.sockets import look_up_name

log = logging.getLogger(__name__)

MAX_ADDRESSES = 16  # of one name; more would be somebody's load balancer, and all of it is one server to us
MISSES = 10  # look-ups in a row without an address until it is dropped: big names answer with a changing part of all
PATIENCE_SECONDS = 1.0  # for a name, where another has given an address already


@frozen
class ServerAddress:
    """A numeric address, and what it was found under: the name that TLS and HTTP ask for."""

    ip: str
    port: int
    server: HostPort

    @property
    def place(self) -> str:
        """What the server may call it, in a header; a name keeps only its ASCII."""
        return f"{self.ip}:{self.port}".encode("ascii", "replace").decode()

    def __str__(self) -> str:
        where = str(HostPort(self.ip, self.port))
        return where if self.ip == self.server.host else f"{where} ({self.server.host})"


LookUp = Callable[[HostPort], Awaitable[list[str]]]


async def look_up(server: HostPort) -> list[str]:
    """The numeric addresses of a server's name. Raises `PeerLost`."""
    return (await look_up_name(server.host, name=str(server)))[:MAX_ADDRESSES]


async def leave_name(server: HostPort) -> list[str]:
    """Where a proxy on the way looks names up: a name stands for itself, and is one address to us."""
    return [server.host]


class Resolver:
    """`addresses` is what is known; `changed` is set, and replaced, when that changes."""

    def __init__(self, servers: Iterable[HostPort], *, look_up: LookUp = look_up) -> None:
        self.addresses: tuple[ServerAddress, ...] = ()
        self.changed = trio.Event()
        self._servers = tuple(servers)
        self._look_up = look_up
        self._known: dict[HostPort, list[str]] = {}
        self._misses: dict[tuple[HostPort, str], int] = {}  # of known addresses that the last look-ups did not bring
        self._replaced = trio.Event()
        self._note_literals()

    def _note_literals(self) -> None:
        self._known = {server: self._known.get(server, []) for server in self._servers}
        self._misses = {key: misses for key, misses in self._misses.items() if key[0] in self._known}
        for server in self._servers:
            if is_ip(server.host):
                self._known[server] = [server.host]
        self._publish()

    def replace(self, servers: Iterable[HostPort]) -> None:
        """Other servers from now on; their names are looked up at once where `keep` runs."""
        self._servers = tuple(servers)
        self._note_literals()
        self._replaced.set()

    async def find(self) -> tuple[ServerAddress, ...]:
        """Look all names up now. One that cannot be resolved keeps what it stood for; `PeerLost` if nothing is known.

        A name that takes long holds nobody up for more than a second once there is an address.
        """
        problems: list[PeerLost] = []
        found = trio.Event()
        async with trio.open_nursery() as queries:
            names = [server for server in self._servers if not is_ip(server.host)]
            pending = set(names)

            async def query(server: HostPort) -> None:
                try:
                    self._take_in(server, await self._look_up(server))
                except PeerLost as exc:
                    problems.append(exc)
                pending.discard(server)
                found.set()

            for server in names:
                queries.start_soon(query, server, name=f"look-up of {server.host}")
            while pending and not any(self._known.values()):
                await found.wait()
                found = trio.Event()
            if pending:
                queries.cancel_scope.deadline = trio.current_time() + PATIENCE_SECONDS
        self._publish()
        if not self.addresses:
            raise problems[0] if problems else PeerLost("no server is configured")
        return self.addresses

    def _take_in(self, server: HostPort, found: list[str]) -> None:
        """What was known stays in its place until it is missed for good; an empty answer tells nothing."""
        known = self._known.get(server, [])
        if not found:
            return
        kept = []
        for ip in known:
            misses = 0 if ip in found else self._misses.pop((server, ip), 0) + 1
            if misses < MISSES:
                kept.append(ip)
            if 0 < misses < MISSES:
                self._misses[server, ip] = misses
            else:
                self._misses.pop((server, ip), None)
        self._known[server] = [*kept, *(ip for ip in found if ip not in kept)][:MAX_ADDRESSES]

    async def keep(self, seconds: Callable[[], float]) -> None:
        """Look up again every so many seconds, until cancelled."""
        while True:
            with trio.move_on_after(seconds()):
                await self._replaced.wait()
            self._replaced = trio.Event()
            try:
                await self.find()
            except PeerLost as exc:
                log.warning("%s", exc)

    def _publish(self) -> None:
        """Each address once, in the order of the configuration."""
        addresses: dict[tuple[str, int], ServerAddress] = {}
        for server in self._servers:
            for ip in self._known.get(server, ()):
                addresses.setdefault((ip, server.port), ServerAddress(ip, server.port, server))
        found = tuple(addresses.values())
        if found != self.addresses:
            self.addresses = found
            self.changed.set()
            self.changed = trio.Event()
