"""Who may knock: caps on connections that have not proved anything yet. Pure; `strangers` asks and tells.

As OpenSSH's MaxStartups and PerSourceMaxStartups, with room for two hundred clients behind one NAT address that come
back together after a restart (design §8), and for whoever comes while the places are held by silence.
"""

import ipaddress
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile

from attrs import Factory, define

MAX_STRANGERS = 100  # unauthenticated connections from sources that are not known
EARLY_DROP_FROM = 50  # above, a newcomer is dropped with a probability that grows to 1 at MAX_STRANGERS
PER_SOURCE = 8
PER_KNOWN_SOURCE = 256
MAX_IN_ALL = 1000  # from known and other sources
PATIENCE_SECONDS = 3.0  # where it is full, who has been there for so long makes room: four round trips of a poor link
KNOWN_SECONDS = 3600.0  # a source stays known so long after a login, and after the end of its last session
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
class Place:
    """What a stranger takes up, from `enter` to `leave`."""

    source: str
    since: float
    is_known: bool  # its source was, when it came


@define(eq=False)
class Admission:
    """`enter` and `leave` come in pairs; `login` when one has shown a good token or ticket, `begin` and `end` around a
    session's stay.
    """

    rand: Callable[[], float] = random.random
    in_all: int = MAX_IN_ALL
    _all: dict[Place, None] = Factory(dict)  # the oldest first, as in the next two
    _crowd: dict[Place, None] = Factory(dict)  # of sources that are not known
    _here: dict[str, dict[Place, None]] = Factory(dict)  # of each source
    _known: dict[str, float] = Factory(dict)  # source → last login, the oldest first
    _living: Counter[str] = Factory(Counter)  # sessions of each source

    @property
    def strangers(self) -> int:
        return len(self._all)

    def is_known(self, source: str, now: float) -> bool:
        """Whether a session lives there, or a good token or ticket came from there within the hour."""
        return source in self._living or now - self._known.get(source, -KNOWN_SECONDS) < KNOWN_SECONDS

    def overdue(self, source: str, now: float) -> list[Place]:
        """Who should go before a newcomer from `source` is judged: those that have been in its way for too long."""
        return list(takewhile(lambda place: now - place.since >= PATIENCE_SECONDS, self._in_the_way(source, now)))

    def _in_the_way(self, source: str, now: float) -> Iterable[Place]:
        here = self._here.get(source, {})
        if len(here) >= self._share(source, now):
            return here
        if len(self._all) >= self.in_all:
            return self._all
        return self._crowd if len(self._crowd) >= EARLY_DROP_FROM and not self.is_known(source, now) else ()

    def objection(self, source: str, now: float) -> str | None:
        """Why a connection from `source` is closed unheard; None if it may enter."""
        if len(self._here.get(source, ())) >= self._share(source, now):
            return "source_full"
        if len(self._all) >= self.in_all:
            return "crowd"
        crowd = (len(self._crowd) - EARLY_DROP_FROM) / (MAX_STRANGERS - EARLY_DROP_FROM)
        return "crowd" if not self.is_known(source, now) and self.rand() < crowd else None

    def enter(self, source: str, now: float) -> Place:
        """After `objection` had none."""
        place = Place(source, now, self.is_known(source, now))
        self._all[place] = None
        self._here.setdefault(source, {})[place] = None
        if not place.is_known:
            self._crowd[place] = None
        return place

    def leave(self, place: Place) -> None:
        """It is gone, or no stranger any more."""
        del self._all[place]
        self._crowd.pop(place, None)
        here = self._here[place.source]
        del here[place]
        if not here:
            del self._here[place.source]

    def login(self, source: str, now: float) -> None:
        self._known.pop(source, None)
        self._known[source] = now
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def known(self, now: float) -> dict[str, float]:
        """Every known source, with the seconds since its last login; 0 for one with a living session."""
        ages = {source: now - at for source, at in self._known.items() if now - at < KNOWN_SECONDS}
        return ages | dict.fromkeys(self._living, 0.0)

    def recall(self, ages: Mapping[str, float], now: float) -> None:
        """What `known` gave an earlier process, oldest first or not; for the start, when nobody is known."""
        self._known = {source: now - ages[source] for source in sorted(ages, key=ages.__getitem__, reverse=True)}

    def begin(self, source: str) -> None:
        """A session has its control channel from there."""
        self._living[source] += 1

    def end(self, source: str, now: float) -> None:
        self._living[source] -= 1
        if not self._living[source]:
            del self._living[source]
        self.login(source, now)

    def _share(self, source: str, now: float) -> int:
        return PER_KNOWN_SOURCE if self.is_known(source, now) else PER_SOURCE
