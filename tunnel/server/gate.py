"""The one public port: TLS, the HTTP head, then a session (`/control`) or a data channel for one (`/data`).

Each connection is a task of its own behind a wall; nothing a stranger sends is heard by anybody but this module before
a token or ticket was good. All that is waited for has a deadline: a balancer's header, the first byte, the handshake,
the head.

The handshakes in flight have a cap. Those above it wait here, not in the kernel's backlog: there, known clients would
stand in line behind whoever connects and says nothing. For the same reason a place is taken by the first byte, not by
being there, and held only for so long as an answer takes on most paths: who needs longer is waiting for the network.
"""

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

import trio

from tunnel.backoff import Policy
from tunnel.config import Grant, Limits, ServerConfig
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.limits import stranger_bound
from tunnel.logs import log_fields
from tunnel.rate_limited import RateLimited
from tunnel.relay import Engine
from tunnel.server.admission import MAX_IN_ALL, source_of
from tunnel.server.balancers import UNASKED_HEADER, Balancers, sends_header
from tunnel.server.data_channels import take_data_channel
from tunnel.server.logins import Logins
from tunnel.server.registry import Registry
from tunnel.server.session import Session
from tunnel.server.strangers import Stranger, Strangers
from tunnel.snapshot import EventStream
from tunnel.sockets import ENDED, PASSING, SHORTAGES, peek, reset, tunnel_options
from tunnel.tls import TlsStream, certificate_refused
from tunnel.upgrade import Head, read_head

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 64  # in flight; each costs 1.4 ms of CPU here (measured, P-256)
PLACE_SECONDS = 0.25  # at most, among those; then it goes on without a place
PART_SECONDS = 2.0  # for an alert, and the peer's FIN
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
        self.strangers = Strangers(in_all=stranger_bound(MAX_IN_ALL))
        self._balancers = Balancers(config.proxy_protocol_from, header_seconds=config.limits.head_seconds)
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

    def limit(self, limits: Limits) -> None:
        """Other deadlines and bounds, for whoever comes from now on and for the sessions' proxies."""
        self._limits = limits
        self._balancers.header_seconds = limits.head_seconds
        self._logins.limit(limits)

    def stats(self) -> dict[str, Any]:
        """How many are at the gate, and why connections came to nothing since the start."""
        return {**self.strangers.stats(), "handshakes": self._handshakes.borrowed_tokens}

    async def serve(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept until cancelled; connections live in `connections`, which outlives the accepting.

        Closes the listener. Raises `OSError` when nothing can be accepted from it any more.
        """
        with listener:
            try:
                while True:
                    await trio.lowlevel.wait_readable(listener)
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
        sock.setblocking(False)
        name = f"connection from {address[0]}"
        if address[0] in self._balancers:
            connections.start_soon(self._introduced, sock, address[0], name=name)
        elif stranger := self.strangers.arrive(source_of(address[0])):
            connections.start_soon(self._guarded, sock, stranger, name=name)
        else:
            reset(sock)  # leaves nothing behind, as a FIN would

    # One connection, in its own task

    async def _introduced(self, sock: socket.socket, balancer: str) -> None:
        """One from a balancer, which must say first for whom it is."""
        try:
            address = await self._balancers.hear(sock)
        except ValueError as wrong:
            self.strangers.count("proxy_header")
            self.strangers.tell(logging.WARNING, "the PROXY header of %s %s", balancer, wrong)
            _drop(sock)
        except (OSError, trio.BrokenResourceError):
            self.strangers.count("left")
            _drop(sock)
        except Exception as failed:  # a bug: the wall, as below
            self._tell_failure(failed)
            _drop(sock)
        except BaseException:
            _drop(sock)
            raise
        else:
            if stranger := self.strangers.arrive(source_of(address or balancer)):
                await self._guarded(sock, stranger)
            else:
                _drop(sock)

    async def _guarded(self, sock: socket.socket, stranger: Stranger) -> None:
        """The wall."""
        with log_fields(peer=stranger.source):
            try:
                with stranger.scope:
                    await self._handle(sock, stranger)
            except* (trio.BrokenResourceError, trio.ClosedResourceError, PeerLost, OSError) as lost:
                log.debug("connection lost: %s", lost.exceptions[0])
            except* (RemoteProtocolError, trio.TooSlowError) as bad:
                word = str(bad.exceptions[0]) or "too slow"
                stranger.tell(logging.INFO, "connection from %s refused: %s", word)
            except* Exception as failed:
                self._tell_failure(failed)
            finally:
                stranger.leave()

    def _tell_failure(self, failed: BaseException) -> None:
        self._told.log(logging.ERROR, "a connection's task failed", key="failed", exc_info=failed)

    async def _handle(self, sock: socket.socket, stranger: Stranger) -> None:
        stream = await self._shake_hands(sock, stranger)
        if stream is None:
            return
        try:
            with stranger.phase(self._limits.head_seconds, slow="slow_head"):
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

    async def _shake_hands(self, sock: socket.socket, stranger: Stranger) -> TlsStream | None:
        """None if it left without a word. `sock` is the stream's, or closed."""
        stream: TlsStream | None = None
        try:
            with stranger.phase(self._limits.handshake_seconds, slow="slow_handshake"):
                await trio.lowlevel.wait_readable(sock)
                if peek(sock) == ENDED:
                    stranger.is_gone("left")
                    _drop(sock)
                    return None
                stranger.speak()
                if sends_header(sock):  # and goes on to fail, for it is no TLS
                    stranger.tell(logging.WARNING, UNASKED_HEADER)
                tunnel_options(sock)
                stream = TlsStream(sock, self._context(), server_side=True)
                async with self._handshakes:
                    with trio.move_on_after(PLACE_SECONDS) as at_once:
                        await stream.do_handshake()
                if at_once.cancelled_caught:
                    await stream.do_handshake()
        except ssl.SSLError as exc:
            try:
                if stream is not None and (why := certificate_refused(exc)) is not None:
                    await _part_with_reason(stream, stranger, why)
            finally:
                _drop(sock) if stream is None else stream.abort()
            raise
        except BaseException:
            _drop(sock) if stream is None else stream.abort()
            raise
        return stream

    async def _route(self, stream: TlsStream, head: Head, stranger: Stranger) -> None:
        if head.path == "/control":
            await self._logins.serve(stream, head, stranger)
        elif head.path == "/data":
            await take_data_channel(stream, head, stranger, registry=self._registry, limits=self._limits)
        else:
            word = "this is a trio-tunnel server; connect with `trio-tunnel connect`"
            await stranger.refuse(stream, 404, "not_found", word)


async def _part_with_reason(stream: TlsStream, stranger: Stranger, why: str) -> None:
    """Of a client whose certificate is no good. It learns that by the alert it reads next, which no reset may
    overtake."""
    stranger.tell(logging.WARNING, "a client at %s is refused for its certificate: %s", why)
    with trio.move_on_after(PART_SECONDS):
        await stream.end_politely()


def _drop(sock: socket.socket) -> None:
    trio.lowlevel.notify_closing(sock)
    reset(sock)
