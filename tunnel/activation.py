"""Listening sockets that systemd made and passed on to this process (socket activation). Used by `commands` and the
server's entrances.

    LISTEN_PID      for whom they are: this process, or they are not looked at
    LISTEN_FDS      how many, as descriptors 3, 4, …
    LISTEN_FDNAMES  what their units call them, with colons between

systemd goes on holding them: who connects while nobody serves waits in their backlog, so that a restart refuses no one.
"""

import os
import socket
from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address

from attrs import frozen

from tunnel.addresses import HostPort
from tunnel.errors import TunnelError

FIRST = 3  # the descriptor after standard input, output and error
MAX_PASSED = 1024  # more is no unit file, but a wrong variable
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@frozen
class Passed:
    """One listening socket, and what its unit calls it. Its owner closes it; systemd keeps its own."""

    name: str
    sock: socket.socket

    @property
    def where(self) -> HostPort:
        host, port = self.sock.getsockname()[:2]
        return HostPort(str(host), port)


def take_passed(environ: MutableMapping[str, str] | None = None, *, first: int = FIRST) -> tuple[Passed, ...]:
    """All that were passed to this process; none where there are none. Our children inherit neither them nor the
    variables.

    `TunnelError` for what is no socket that listens for TCP connections; none is open then.
    """
    environ = os.environ if environ is None else environ
    pid, count, names = (environ.pop(variable, "") for variable in VARIABLES)
    if pid != str(os.getpid()) or not count:
        return ()
    if not count.isascii() or not count.isdigit() or int(count) > MAX_PASSED:
        raise TunnelError(f"LISTEN_FDS={count!r} is no number of sockets; let systemd set it, or unset it")
    descriptors = range(first, first + int(count))
    called = dict(zip(descriptors, names.split(":") if names else (), strict=False))
    for descriptor in descriptors:
        _keep_from_children(descriptor)
    taken: list[Passed] = []
    try:
        taken.extend(_take(descriptor, called.get(descriptor, "unknown")) for descriptor in descriptors)
    except TunnelError:
        for one in taken:
            one.sock.close()
        for descriptor in descriptors[len(taken) :]:
            os.close(descriptor)
        raise
    return tuple(taken)


def _keep_from_children(descriptor: int) -> None:
    try:
        os.set_inheritable(descriptor, False)
    except OSError as exc:
        raise TunnelError(
            f"LISTEN_FDS counts descriptor {descriptor}, which is not open ({exc.strerror}); "
            f"let systemd set it, or unset it"
        ) from exc


def _take(descriptor: int, name: str) -> Passed:
    which = f"systemd passed descriptor {descriptor} ({name!r:.80})"
    remedy = "leave only ListenStream=ADDRESS:PORT lines in the socket unit"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise TunnelError(f"{which}, which is no socket; {remedy}") from exc
    problem = _problem(sock)
    if problem is not None:
        sock.detach()
        raise TunnelError(f"{which}, which {problem}")
    sock.setblocking(False)
    return Passed(name, sock)


def _problem(sock: socket.socket) -> str | None:
    """What keeps clients from coming in by this socket, and the remedy; None where they can."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"is of {_family(sock)}; clients come by TCP, write ListenStream=ADDRESS:PORT in the socket unit"
    if sock.type != socket.SOCK_STREAM:
        return "is no TCP socket; write ListenStream= in the socket unit"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen, but is a connection; take Accept=yes out of the socket unit"
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return "takes IPv4 and IPv6 at once; write BindIPv6Only=ipv6-only, and a ListenStream= for each"
    return None


def _family(sock: socket.socket) -> str:
    return getattr(sock.family, "name", str(sock.family))


def match(passed: Iterable[Passed], wanted: Iterable[HostPort]) -> dict[HostPort, Passed]:
    """Which of the passed sockets stands for which of the addresses to listen at; the others are to be bound.

    `TunnelError` where one stands for none: nobody would answer there.
    """
    found: dict[HostPort, Passed] = {}
    by_address = {(_numeric(where.host), where.port): where for where in wanted}
    for one in passed:
        where = by_address.pop((_numeric(one.where.host), one.where.port), None)
        if where is None:
            free = ", ".join(map(str, by_address.values())) or "no other"
            raise TunnelError(
                f"systemd passed a socket at {one.where} ({one.name!r:.80}), where this server is not to listen; "
                f"make the socket unit and the configuration agree, which names {free}"
            )
        found[where] = one
    return found


def _numeric(host: str) -> object:
    """Equal for all spellings of an address; a name stands for itself."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return host
