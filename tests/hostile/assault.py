"""One attacker's means: connections of every stage, from a source address of its own."""

import hashlib
import random
import socket
import ssl
from functools import cache

import trio
from attrs import define, frozen

from tunnel.tls import TlsStream

from .wire import RESET, request

PATIENCE_SECONDS = 2.0  # for what a server does at once; a slow attack brings its own


@frozen
class Target:
    """What is attacked: the port for clients, a proxy's public port, and the tokens that attackers have."""

    host: str
    port: int
    public: int
    tokens: tuple[str, ...] = ()


@cache
def careless() -> ssl.SSLContext:
    """Trusts anybody, as an attacker does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@define(eq=False)
class Assault:
    """For one connection. `dice` are seeded, so that a run can be had again; `held` is how long we were let be."""

    target: Target
    dice: random.Random
    source: str
    token: str = ""
    epoch: int = 0

    async def tcp(self, port: int = 0) -> trio.SocketStream:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            await sock.bind((self.source, 0))
            await sock.connect((self.target.host, port or self.target.port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def tls(self, context: ssl.SSLContext | None = None) -> TlsStream:
        """A connection after its handshake."""
        tcp = await self.tcp()
        raw = socket.socket(fileno=tcp.socket.detach())
        raw.setblocking(False)
        stream = TlsStream(raw, context or careless(), server_side=False, server_hostname="localhost")
        try:
            await stream.do_handshake()
        except BaseException:
            stream.abort()
            raise
        return stream

    async def upgraded(self, path: str, secret: str, rest: bytes = b"") -> TlsStream:
        """A WebSocket that the server has agreed to; `rest` follows the head in the same write."""
        stream = await self.tls()
        try:
            # Mostly one process that comes back, whose newest session counts at once; at times one that contends.
            known = hashlib.sha256(secret.encode()).hexdigest()[:32]
            instance = known if self.dice.random() < 0.9 else f"{self.dice.getrandbits(128):032x}"
            head = request(path, secret, Trio_Tunnel_Epoch=str(self.epoch), Trio_Tunnel_Instance=instance)
            await stream.send_all(head + rest)
            answer = b""
            while b"\r\n\r\n" not in answer:
                if not (more := await stream.receive_some()):
                    raise trio.BrokenResourceError
                answer += more
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise Refused(answer.partition(b"\r\n")[0].decode("latin-1"))
            stream.push_back(answer.partition(b"\r\n\r\n")[2])
        except BaseException:
            stream.abort()
            raise
        return stream

    def garbage(self, most: int = 3000) -> bytes:
        return self.dice.randbytes(self.dice.randint(1, most))


class Refused(Exception):
    """An upgrade was answered with an error."""


async def until_end(stream: trio.abc.ReceiveStream, seconds: float = PATIENCE_SECONDS) -> None:
    """Read to the end, whatever end that is."""
    with trio.move_on_after(seconds):
        try:
            while await stream.receive_some(65536):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def reset(stream: trio.SocketStream | TlsStream) -> None:
    """End with RST."""
    if isinstance(stream, TlsStream):
        stream.abort()
        return
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass
    stream.socket.close()
