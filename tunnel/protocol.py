"""The law of a session, sans IO: what each side may say in which phase, and what its words must satisfy.

server side hears            client side hears
GREETING  Hello              GREETING  Welcome, Goodbye
READY     the rest           READY     the rest
ENDED     nothing            ENDED     nothing            (after Goodbye)
"""

import re
from enum import Enum

from tunnel.addresses import check_name
from tunnel.errors import RemoteProtocolError
from tunnel.messages import (
    MAX_PROXIES,
    ChannelsSilent,
    ControlMoved,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProxySet,
    ProxyStatusUpdate,
    RetryProxy,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
)

MAX_TICKETS = 16  # asked for at once
INSTANCE = re.compile(r"[0-9a-f]{32}\Z")  # in the upgrade's head: 128 random bits, one per client process
EPOCH = re.compile(r"[0-9]{1,15}\Z")  # the client's session counter


class Phase(Enum):
    GREETING = "greeting"
    READY = "ready"
    ENDED = "ended"


_BOTH = (Heartbeat, HeartbeatReply, ControlMoved, Goodbye)
HEARD_BY_SERVER: dict[Phase, tuple[type, ...]] = {
    Phase.GREETING: (Hello,),
    Phase.READY: (ProxySet, TargetHealth, RetryProxy, TicketRequest, *_BOTH),
    Phase.ENDED: (),
}
HEARD_BY_CLIENT: dict[Phase, tuple[type, ...]] = {
    Phase.GREETING: (Welcome, Goodbye),
    Phase.READY: (ProxyStatusUpdate, Tickets, ChannelsSilent, *_BOTH),
    Phase.ENDED: (),
}


class Law:
    """Judges what one side hears. `RemoteProtocolError` from `heard` means: say goodbye and drop the peer."""

    def __init__(self, heard_by: dict[Phase, tuple[type, ...]]) -> None:
        self.phase = Phase.GREETING
        self._heard_by = heard_by
        self._proxy_set_version = 0
        self._seq = 0

    def heard(self, message: Message) -> None:
        """Take note of a message, or refuse it."""
        if not isinstance(message, self._heard_by[self.phase]):
            raise RemoteProtocolError(f"{type(message).__name__} in phase {self.phase.value}")
        if isinstance(message, ProxySet):
            self._check_proxy_set(message)
        elif isinstance(message, TicketRequest) and not 1 <= message.count <= MAX_TICKETS:
            raise RemoteProtocolError(f"a request for {message.count} tickets; 1 to {MAX_TICKETS}")
        elif isinstance(message, (Tickets, Welcome)) and len(message.tickets) > MAX_TICKETS:
            raise RemoteProtocolError(f"{len(message.tickets)} tickets; at most {MAX_TICKETS}")
        elif isinstance(message, ProxyStatusUpdate):
            self._check_seq(message)
        if isinstance(message, Goodbye):
            self.phase = Phase.ENDED
        elif self.phase is Phase.GREETING:
            self.phase = Phase.READY

    def _check_proxy_set(self, proxies: ProxySet) -> None:
        if not self._proxy_set_version < proxies.version < 2**32:
            raise RemoteProtocolError(f"proxy set version {proxies.version} after {self._proxy_set_version}")
        if len(proxies.proxies) > MAX_PROXIES:
            raise RemoteProtocolError(f"{len(proxies.proxies)} proxies; at most {MAX_PROXIES}")
        names = [spec.name for spec in proxies.proxies]
        if len(set(names)) != len(names):
            raise RemoteProtocolError("two proxies have one name")
        for spec in proxies.proxies:
            try:
                check_name(spec.name)
            except ValueError as exc:
                raise RemoteProtocolError(f"a proxy's name: {exc}") from exc
        self._proxy_set_version = proxies.version

    def _check_seq(self, update: ProxyStatusUpdate) -> None:
        if update.seq <= self._seq:
            raise RemoteProtocolError(f"status {update.seq} after {self._seq}")
        self._seq = update.seq
