"""Dialling the server: one verified TLS connection to one of its addresses, whose turn it is (design §5)."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import trio
from attrs import Factory, define, frozen

from tunnel.addresses import HostPort
from tunnel.certificates import expiry, pair_problem
from tunnel.client.resolver import Resolver, ServerAddress
from tunnel.client.way_out import dial_through
from tunnel.config import ClientConfig, ForwardProxy
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.faults import Kind, Phase, classify
from tunnel.sockets import dial_tcp, tunnel_options
from tunnel.tls import TlsStream, client_certificate_refused, client_context, pin_check, show_certificate

REFUSED_SECONDS = 30.0  # that an address is left out after it refused us: only a person can mend that
STAGGER_SECONDS = 0.25  # within a dial, from one address to the next while nothing answers (RFC 8305 §5)
# A server of ours says nothing to strangers that it turns away.
HANG_UP = (
    "if it goes on doing so, it is no trio-tunnel server, or full, or closes what comes from this address for some "
    "minutes after too many wrong tokens"
)
NO_TLS = "something else listens there: name the port of `trio-tunnel serve`, 8443 unless it was told otherwise"


@define(eq=False)
class SeenCertificate:
    """What the server showed last, on any connection, in DER; empty before the first."""

    der: bytes = b""

    @property
    def ends(self) -> datetime | None:
        """None before the first one, and for one that cannot be read."""
        try:
            return expiry(self.der) if self.der else None
        except ValueError:
            return None


@define(eq=False)
class Dialer:
    """What this client accepts as its server's proof, and shows of itself, wherever it dials it."""

    context: ssl.SSLContext
    pin: bytes | None
    via: ForwardProxy | None = None
    seen: SeenCertificate = Factory(SeenCertificate)

    def become(self, other: "Dialer") -> None:
        """As `other` is, for the connections that are dialled from now on."""
        self.context, self.pin, self.via = other.context, other.pin, other.via

    async def connect(self, address: ServerAddress) -> socket.socket:
        """A connected socket, through the proxy if there is one. Raises as `dial_tcp` and `dial_through` do."""
        if self.via is not None:
            return await dial_through(self.via, HostPort(address.ip, address.port))
        return await dial_tcp(HostPort(address.ip, address.port), name=str(address))

    async def dial(self, address: ServerAddress, enter: Callable[[Phase], None] = lambda _phase: None) -> TlsStream:
        """A TLS connection whose peer was verified; nothing but the handshake was sent before that.

        `enter` is told of each phase. Raises `PeerLost` (`answered` tells whether anything was there), or `Refused`
        when the proof is not good. The caller holds the deadline.
        """
        enter(Phase.DIAL)
        sock = await self.connect(address)
        enter(Phase.HANDSHAKE)
        return await self.shake_hands(sock, address)

    async def shake_hands(self, sock: socket.socket, address: ServerAddress) -> TlsStream:
        """The second half of `dial`; `sock` is the stream's, and closed if that fails or is cancelled."""
        try:
            tunnel_options(sock)
            stream = TlsStream(sock, self.context, server_side=False, server_hostname=address.server.host)
        except BaseException:
            sock.close()
            raise
        try:
            await stream.do_handshake(pin_check(self.pin) if self.pin is not None else None)
        except ssl.SSLCertVerificationError as exc:
            stream.close()
            raise Refused(
                "certificate_untrusted",
                f"the certificate of {address} is not trusted: {exc.verify_message}; give the pin that "
                "`trio-tunnel serve` prints (--pin sha256:…), or the CA (ca_file)",
                trust=True,
            ) from exc
        except (trio.BrokenResourceError, ssl.SSLEOFError) as exc:
            stream.close()
            raise PeerLost(f"{address} ended the connection in the TLS handshake; {HANG_UP}", answered=True) from exc
        except ssl.SSLError as exc:
            stream.close()
            lost = PeerLost(f"{address} does not speak our TLS: {exc.reason or exc}; {NO_TLS}", answered=True)
            raise client_certificate_refused(exc) or lost from exc
        except BaseException:
            stream.abort()
            raise
        self.seen.der = stream.peer_certificate
        return stream


def make_dialer(config: ClientConfig) -> Dialer:
    """Raises `TunnelError` when the CA file, or the client's certificate with its key, cannot be used."""
    try:
        context = client_context(
            ca_file=config.ca_file, pinned=config.pin is not None, min_version=config.tls_min_version
        )
    except (OSError, ssl.SSLError) as exc:
        raise TunnelError(f"cannot use the CA file {config.ca_file}: {exc}") from exc
    if config.cert_file is not None and config.key_file is not None:
        try:
            show_certificate(context, config.cert_file, config.key_file)
        except (OSError, ssl.SSLError) as exc:
            raise TunnelError(pair_problem(config.cert_file, config.key_file)) from exc
    return Dialer(context, config.pin, config.via)


@frozen
class Reached:
    """A connection, and where it goes."""

    stream: TlsStream
    address: ServerAddress

    def close(self) -> None:
        self.stream.close()


class Turns:
    """The server's addresses in turn: one that answers is asked first again, one that failed last.

    One that refused us for good (another server's, perhaps) is left out for a while, as long as there are others.
    """

    def __init__(self, dialer: Dialer, resolver: Resolver) -> None:
        self._dialer = dialer
        self._resolver = resolver
        self._first: ServerAddress | None = None
        self._refused_until: dict[ServerAddress, float] = {}

    async def dial(self, *, last: ServerAddress | None = None) -> Reached:
        """A connection to whichever address answers first, each given a start over the next.

        Raises as `Dialer.dial` does; where an answer was no good, the next dial begins at another address. The caller
        holds the deadline.
        """
        turns = self._order(await self._resolver.find())
        addresses = sorted(turns, key=last.__eq__) if last is not None else turns
        sock, address = await _connect(addresses, self._dialer.connect)
        self.avoid(address)  # until it has proven itself: a dial that overlaps this one begins elsewhere
        try:
            reached = Reached(await self._dialer.shake_hands(sock, address), address)
        except Refused:
            self.refuse(address)
            raise
        self._first = address
        return reached

    async def dial_other(self, than: ServerAddress) -> Reached:
        """A connection to another address than `than`, if there is one; to which one, the dials before tell."""
        return await self.dial(last=than)

    def avoid(self, address: ServerAddress) -> None:
        """It has failed, or is to be left: begin behind it."""
        addresses = self._resolver.addresses
        if address in addresses:
            self._first = addresses[(addresses.index(address) + 1) % len(addresses)]

    def refuse(self, address: ServerAddress) -> None:
        """It would not have us, or we not trust it."""
        now = trio.current_time()
        self._refused_until = {other: until for other, until in self._refused_until.items() if until > now}
        self._refused_until[address] = now + REFUSED_SECONDS
        self.avoid(address)

    def forgive(self) -> None:
        """We are not who was refused any more, or trust whom we did not."""
        self._refused_until.clear()

    @property
    def has_another(self) -> bool:
        """Whether there is an address that did not refuse us lately."""
        return any(not self._is_refused(address) for address in self._resolver.addresses)

    def _is_refused(self, address: ServerAddress) -> bool:
        return self._refused_until.get(address, 0.0) > trio.current_time()

    def _order(self, addresses: Sequence[ServerAddress]) -> Sequence[ServerAddress]:
        at = addresses.index(self._first) if self._first in addresses else 0
        turns = (*addresses[at:], *addresses[:at])
        return tuple(address for address in turns if not self._is_refused(address)) or turns


async def _connect(
    addresses: Sequence[ServerAddress], connect: Callable[[ServerAddress], Awaitable[socket.socket]]
) -> tuple[socket.socket, ServerAddress]:
    """The first that connects; `PeerLost` with a problem of one if none does, or a proxy's `Refused`. Leaves no other
    socket."""
    connected: list[tuple[socket.socket, ServerAddress]] = []
    problems: dict[ServerAddress, PeerLost | Refused] = {}

    async def attempt(address: ServerAddress, ended: trio.Event) -> None:
        try:
            connected.append((await connect(address), address))
            attempts.cancel_scope.cancel(reason="an address answered")
        except (PeerLost, Refused) as exc:
            problems[address] = exc
        finally:
            ended.set()

    try:
        async with trio.open_nursery() as attempts:
            for address in addresses:
                ended = trio.Event()
                attempts.start_soon(attempt, address, ended, name=f"dial of {address}")
                with trio.move_on_after(STAGGER_SECONDS):
                    await ended.wait()
    except BaseException:
        for sock, _address in connected:
            sock.close()
        raise
    if not connected:
        refused = [problem for problem in problems.values() if isinstance(problem, Refused)]  # for a person to mend
        told = [problem for problem in problems.values() if classify(problem, Phase.DIAL).kind is not Kind.UNREACHABLE]
        raise [*refused, *told, *problems.values()][0]  # a host without IPv6 must not hide what the others said
    for sock, _address in connected[1:]:
        sock.close()
    return connected[0]
