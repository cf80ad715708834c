"""The addresses that names stand for, remembered for a minute. One `Names` a connection pool."""

import trio

from tunnel.sockets import look_up_name

KEEP_SECONDS = 60.0  # the resolver gives no lifetime; a minute is what most address changes count on
MAX_NAMES = 10_000  # then all are forgotten: a crawler meets more names than it will meet again
MAX_ADDRESSES = 64  # of one name, the preferred ones; the time to wait is shared out among them


class Names:
    """`resolve` asks the system at most once a minute for each name."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, list[str]]] = {}  # touched between awaits only

    async def resolve(self, host: str) -> list[str]:
        """Numeric addresses, the preferred ones first. Raises `PeerLost` if there are none; deadline by the caller."""
        until, addresses = self._known.get(host, (0.0, []))
        if addresses and trio.current_time() < until:
            return addresses
        addresses = (await look_up_name(host, name=host))[:MAX_ADDRESSES]
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[host] = trio.current_time() + KEEP_SECONDS, addresses
        return addresses
