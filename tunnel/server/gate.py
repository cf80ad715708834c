"""The one public port: TLS, the HTTP head, then a session (`/control`) or a data channel for one (`/data`).

Each connection is a task of its own behind a wall; nothing a stranger sends is heard by anybody but this module before
a token or ticket was good. Handshake and head have deadlines; the handshakes in flight have a cap, above which new
connections wait in the kernel's backlog.
"""

import logging
import socket
import ssl
from collections.abc import Callable

import trio

from tunnel.backoff import Policy
from tunnel.config import Grant, ServerConfig
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.logs import log_fields
from tunnel.rate_limited import RateLimited
from tunnel.relay import Engine
from tunnel.server.admission import source_of
from tunnel.server.data_channels import take_data_channel
from tunnel.server.logins import Logins
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.server.strangers import Stranger, Strangers
from tunnel.snapshot import EventStream
from tunnel.sockets import PASSING, SHORTAGES, tunnel_options
from tunnel.tls import TlsStream
from tunnel.upgrade import Head, read_head

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 64  # in flight; each costs 1.4 ms of CPU here (measured, P-256)
SHORTAGE_SECONDS = 0.1  # accepting pauses so long when descriptors or memory run out


class Gate:
    """`serve` one or more listening sockets with it, each in a task of its own."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        context: Callable[[], ssl.SSLContext],
        grants: Callable[[], tuple[Grant, ...]],
        engine: Engine,
        registry: Registry[Session],
        events: EventStream,
        remember_port: Callable[[str, str, int], None],
    ) -> None:
        self._limits = config.limits
        self._context = context
        self._registry = registry
        self._logins = Logins(
            config, grants=grants, engine=engine, registry=registry, events=events, remember_port=remember_port
        )
        self._strangers = Strangers()
        self._handshakes = trio.CapacityLimiter(MAX_HANDSHAKES)
        self._told = RateLimited(log, trio.current_time, count=1, interval_seconds=60.0)

    @property
    def is_draining(self) -> bool:
        """Whether whoever comes now is told to come again later."""
        return self._logins.is_draining

    @is_draining.setter
    def is_draining(self, is_draining: bool) -> None:
        self._logins.is_draining = is_draining

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those alive."""
        return self._logins.sessions

    def apply(self, bind_retry: Policy) -> None:
        """A new default for the rounds of bind retry that begin from now on."""
        self._logins.apply(bind_retry)

    async def serve(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept until cancelled; connections live in `connections`, which outlives the accepting.

        Closes the listener. Raises `OSError` when nothing can be accepted from it any more.
        """
        with listener:
            try:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    async with self._handshakes:  # a place for the next handshake; above the cap the backlog waits
                        pass
                    await self._accept(listener, connections)
            finally:
                trio.lowlevel.notify_closing(listener)

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        try:
            sock, address = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            if exc.errno in SHORTAGES:
                self._told.log(logging.ERROR, "accepting connections pauses: %s", exc.strerror, key="shortage")
                await trio.sleep(SHORTAGE_SECONDS)
            elif exc.errno not in PASSING:
                raise
            return
        stranger = self._strangers.arrive(source_of(address[0]))
        if stranger is None:
            sock.close()
            return
        connections.start_soon(self._guarded, sock, stranger, name=f"connection from {address[0]}")

    async def _guarded(self, sock: socket.socket, stranger: Stranger) -> None:
        with log_fields(peer=stranger.source):
            try:
                await self._handle(self._stream(sock), stranger)
            except* (trio.BrokenResourceError, trio.ClosedResourceError, PeerLost, OSError) as lost:
                log.debug("connection lost: %s", lost.exceptions[0])
            except* (RemoteProtocolError, trio.TooSlowError) as bad:
                word = str(bad.exceptions[0]) or "too slow"
                stranger.tell(logging.INFO, "connection from %s refused: %s", word)
            except* Exception:
                log.exception("a connection's task failed")
            finally:
                stranger.leave()

    def _stream(self, sock: socket.socket) -> TlsStream:
        try:
            sock.setblocking(False)
            tunnel_options(sock)
            return TlsStream(sock, self._context(), server_side=True)
        except BaseException:
            sock.close()
            raise

    async def _handle(self, stream: TlsStream, stranger: Stranger) -> None:
        try:
            async with self._handshakes:
                with trio.fail_after(self._limits.handshake_seconds):
                    await stream.do_handshake()
            with trio.fail_after(self._limits.head_seconds):
                head = await read_head(stream)
        except RemoteProtocolError as exc:
            try:
                await stranger.refuse(stream, 400, "bad_request", str(exc))
            finally:
                stream.close()
            raise
        except BaseException:
            stream.abort()
            raise
        try:
            await self._route(stream, head, stranger)
        finally:
            stream.close()

    async def _route(self, stream: TlsStream, head: Head, stranger: Stranger) -> None:
        if head.path == "/control":
            await self._logins.serve(stream, head, stranger)
        elif head.path == "/data":
            await take_data_channel(stream, head, stranger, registry=self._registry, limits=self._limits)
        else:
            word = "this is a trio-tunnel server; connect with `trio-tunnel connect`"
            await stranger.refuse(stream, 404, "not_found", word)
