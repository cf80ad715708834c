"""What `ConnectionPool` keeps and lends: a connection, and the stream through which one user has it for a while."""

import socket
import ssl
from collections.abc import Callable

import trio
from attrs import frozen

from tunnel.addresses import HostPort
from tunnel.faults import Phase
from tunnel.pool.members import Lease
from tunnel.sockets import dial_tcp, no_delay, peek
from tunnel.tls import TlsStream

ContextMaker = Callable[[], ssl.SSLContext]
PeerCheck = Callable[[ssl.SSLObject], None]


@frozen
class Endpoint:
    """What tells one kind of connection from another: two names at one address never share any."""

    scheme: str  # "https" or "http"
    host: str  # the name in the URL, which the certificate must have
    port: int
    address: str  # a numeric address: where to connect

    @property
    def origin(self) -> str:
        default = 443 if self.scheme == "https" else 80
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{shown}" + ("" if self.port == default else f":{self.port}")

    def __str__(self) -> str:
        return f"{self.origin} at {HostPort(self.address, self.port)}"


class Connection:
    """One TCP or TLS connection to an endpoint, as the pool sees it (`Poolable`)."""

    users = 0  # nobody uses it without a lease

    def __init__(self, endpoint: Endpoint, stream: TlsStream | trio.SocketStream, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.stream = stream
        self._sock = sock

    def peek(self) -> str | None:
        return self.stream.peek() if isinstance(self.stream, TlsStream) else peek(self._sock)

    def close(self) -> None:
        if isinstance(self.stream, TlsStream):
            self.stream.close()
        else:
            self.stream.socket.close()


async def open_connection(
    endpoint: Endpoint, entered: Callable[[Phase], None], *, context: ContextMaker, check: PeerCheck | None
) -> Connection:
    """Dial, and shake hands where it is https. The caller holds the deadline; if cancelled, nothing is left open."""
    entered(Phase.DIAL)
    sock = await dial_tcp(HostPort(endpoint.address, endpoint.port))
    no_delay(sock)
    if endpoint.scheme == "http":
        return Connection(endpoint, trio.SocketStream(trio.socket.from_stdlib_socket(sock)), sock)
    entered(Phase.HANDSHAKE)
    try:
        tls = TlsStream(sock, context(), server_side=False, server_hostname=endpoint.host)
    except BaseException:
        sock.close()
        raise
    try:
        await tls.do_handshake(check)
    except ssl.SSLError:
        tls.close()  # the alert that tells the peer why must not be lost to a reset
        raise
    except BaseException:
        tls.abort()
        raise
    return Connection(endpoint, tls, sock)


class PooledStream(trio.abc.Stream):
    """A connection lent by a pool: a stream like any other until the body of `ConnectionPool.connect` is left.

    Leave the body with the exchange finished, and the connection is used again; not so after `discard`, an end, an
    error or a cancelled call, since nobody knows then what the peer will say next.
    """

    def __init__(self, lease: Lease[Endpoint, Connection]) -> None:
        self._lease = lease
        self._stream = lease.value.stream
        self._is_spent = False
        self._users = 0  # tasks inside a call

    @property
    def address(self) -> str:
        """Where it is connected to."""
        return self._lease.address.address

    @property
    def was_hot(self) -> bool:
        """Whether it was ready when it was asked for."""
        return self._lease.was_hot

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._begin()
        try:
            await self._stream.send_all(data)
        except BaseException:
            self._is_spent = True
            raise
        finally:
            self._users -= 1

    async def wait_send_all_might_not_block(self) -> None:
        self._begin()
        try:
            await self._stream.wait_send_all_might_not_block()
        finally:
            self._users -= 1

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._begin()
        try:
            data = await self._stream.receive_some(max_bytes)
        except BaseException:
            self._is_spent = True
            raise
        finally:
            self._users -= 1
        self._is_spent |= not data
        return bytes(data)

    async def aclose(self) -> None:
        """`discard`, and a checkpoint."""
        self.discard()
        await trio.lowlevel.checkpoint()

    def discard(self) -> None:
        """Close the connection: nobody will use it again. Harmless when it was given back before."""
        self._lease.release(good=False)

    def give_back(self) -> None:
        """For the pool: the body was left."""
        self._lease.release(good=not self._is_spent and not self._users)

    def _begin(self) -> None:
        if self._lease.is_released:
            raise trio.ClosedResourceError("this connection was given back to its pool")
        self._users += 1
