"""Who may knock: caps on connections that have not proved anything yet. Pure; the gate asks and tells.

As OpenSSH's MaxStartups and PerSourceMaxStartups, with room for two hundred clients behind one NAT address that come
back together after a restart (design §8).
"""

import ipaddress
import random
from collections.abc import Callable

from attrs import Factory, define

MAX_STRANGERS = 100  # unauthenticated connections in all
EARLY_DROP_FROM = 50  # above, a newcomer is dropped with a probability that grows to 1 at MAX_STRANGERS
PER_SOURCE = 8
PER_KNOWN_SOURCE = 256
KNOWN_SECONDS = 3600.0  # a source stays known so long after a login
MAX_KNOWN = 65_536  # sources kept; the oldest go first


def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address, or an IPv6 /64."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address


@define(eq=False)
class Admission:
    """Counts strangers; `admit` and `leave` come in pairs, `login` when one has shown a good token or ticket."""

    rand: Callable[[], float] = random.random
    dropped: int = 0
    _strangers: dict[str, int] = Factory(dict)
    _known: dict[str, float] = Factory(dict)  # source → last login, oldest first
    _crowd: int = 0  # strangers, of each source at most PER_SOURCE: no one source can shut the others out

    def admit(self, source: str, now: float) -> bool:
        """Whether a connection from `source` may go on to its handshake; if not it is closed unheard."""
        known = now - self._known.get(source, -KNOWN_SECONDS) < KNOWN_SECONDS
        here = self._strangers.get(source, 0)
        crowd = (self._crowd - EARLY_DROP_FROM) / (MAX_STRANGERS - EARLY_DROP_FROM)
        if here >= (PER_KNOWN_SOURCE if known else PER_SOURCE) or (not known and self.rand() < crowd):
            self.dropped += 1
            return False
        self._strangers[source] = here + 1
        self._crowd += here < PER_SOURCE
        return True

    def leave(self, source: str) -> None:
        """It is gone, or no stranger any more."""
        left = self._strangers[source] - 1
        self._crowd -= left < PER_SOURCE
        if left:
            self._strangers[source] = left
        else:
            del self._strangers[source]

    def login(self, source: str, now: float) -> None:
        self._known.pop(source, None)
        self._known[source] = now
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
