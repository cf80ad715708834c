"""One visitor connection on its way: a local socket on one side, frames on a channel on the other."""

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from tunnel.errors import RemoteProtocolError
from tunnel.frames import CREDIT, FIRST_WINDOW, RST, Abort, grant_size, grown_window
from tunnel.relay.poller import ERROR, HANGUP, READ, READ_END, URGENT, WRITE
from tunnel.relay.tally import Tally
from tunnel.sockets import expect_reset, reset

if TYPE_CHECKING:
    from trio import CancelScope

    from tunnel.relay.channel import Channel
    from tunnel.relay.engine import Member
    from tunnel.relay.session import RelaySession
    from tunnel.relay.strays import Strays

NONBLOCKING = getattr(socket, "SOCK_NONBLOCK", 0)  # saves a system call where sockets can be born so
JOINED_BYTES = 16 * 1024  # of data held for a slow local socket, kept in one piece
_ENDING = READ_END | HANGUP
_RARE = ERROR | URGENT | _ENDING


# What befalls dials and is told to the visitor's side as such; anything else there is a reset.
_DIAL_ERRORS = {errno.ECONNREFUSED: Abort.DIAL_REFUSED, errno.ETIMEDOUT: Abort.DIAL_TIMEOUT}


class Lease(Protocol):
    """What the stream holds of a pool."""

    def release(self) -> None: ...


class LocalSocket(Protocol):
    """The local side of a stream: a plain socket, or something that looks like one (TLS to a target).

    `send` and `recv_into` raise `BlockingIOError` when they would block and `OSError` when the connection broke;
    `recv_into` gives 0 only for a clean end, and less than asked only when nothing more is there. `shutdown` raises
    `BlockingIOError` while what `send` took is not all with the kernel, and is then called again at the next edge.
    """

    def send(self, data: bytes | bytearray | memoryview, /) -> int: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def getsockopt(self, level: int, option: int, /) -> int: ...
    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Stream:
    """Owned by its `RelaySession` from the first moment; over once `alive` is False. Synchronous throughout.

    `queued` is True in a channel's ready queue, None when parked without credit. `held` is what the local socket has
    not taken yet (None: nothing, write directly); it is bounded by the window, for no credit is granted for it.
    """

    __slots__ = (
        "alive",
        "allowance",
        "began_at",
        "bytes_read",
        "bytes_written",
        "came_nonce",
        "channel",
        "connecting",
        "credit",
        "dialling",
        "ended",
        "ending",
        "fd",
        "fin_seen",
        "grant_at",
        "granted_at",
        "held",
        "held_size",
        "is_bulk",
        "is_pinned",
        "lease",
        "left",
        "left_nonce",
        "queued",
        "recv_into",
        "send",
        "session",
        "shut",
        "sid",
        "silent_at",
        "sock",
        "source",
        "strays",
        "tally",
        "window",
    )  # fmt: skip

    def __init__(self, session: "RelaySession", sid: int, tally: Tally) -> None:
        self.session = session
        self.sid = sid
        self.tally = tally
        self.channel: Channel | None = None  # where we send; None while it waits for one
        self.source: Channel | None = None  # where the peer sends; None until its first frame after a MOVE
        self.strays: Strays | None = None  # what came elsewhere before MOVE did
        self.came_nonce = -1  # of the newest ping on `channel` when we first spoke there; -1: the peer did before
        self.left: Channel | None = None  # where our last MOVE went, if the peer may not have seen it yet
        self.left_nonce = 0  # of the newest ping there at that time
        self.is_bulk = False  # it was given a channel away from the interactive ones
        self.is_pinned = False  # whether MOVE was seen cannot be known any more: it stays where it is
        self.sock: LocalSocket | None = None  # None while the target is being dialled elsewhere
        self.fd = -1
        self.alive = True
        self.connecting = False
        self.dialling: CancelScope | None = None  # the task that dials, where one is needed; ends with the stream
        self.lease: Lease | None = None  # on its target, where one counts; released with the stream
        self.credit = FIRST_WINDOW  # what we may send
        self.window = self.allowance = FIRST_WINDOW  # what we granted, and what is left of it
        self.grant_at = FIRST_WINDOW >> 1  # grant again when the allowance has come down to this
        self.granted_at = 0.0
        self.began_at = session.engine.now()
        self.held: deque[bytearray | memoryview] | None = deque()
        self.held_size = 0
        self.queued: bool | None = False
        self.ending = False  # the local peer's FIN is near, or urgent data: read until nothing is there
        self.ended = False  # we sent FIN
        self.fin_seen = False  # they sent FIN
        self.shut = False  # and the local socket was told
        self.bytes_read = self.bytes_written = 0  # from and to the local socket
        self.silent_at = -1  # bytes moved when the half-closed deadline began
        tally.enter(self)

    @property
    def moved(self) -> int:
        """Bytes, both ways."""
        return self.bytes_read + self.bytes_written

    # Local side: attaching and events

    def attach(self, sock: "LocalSocket", entry: "Member | None" = None) -> None:
        """Take a connected socket (or one that is connecting) and begin; `entry` stands in for it at the poller.

        The socket expects a reset until it has ended cleanly: killed, this process must not look like a clean end.
        """
        self.sock = sock
        self.send, self.recv_into = sock.send, sock.recv_into
        fd = sock.fileno()
        self.session.engine.register(fd, entry or self)
        self.fd = fd
        if not self.connecting:
            self.release_held()

    def connected(self, sock: "LocalSocket", entry: "Member | None" = None) -> None:
        """A dial made elsewhere has ended in `sock`. If the stream is over by now, the socket is closed."""
        if not self.alive:
            sock.close()
            return
        try:
            expect_reset(sock)
            self.attach(sock, entry)
            self._is_dialled()
            self.ready()
        except Exception as exc:
            self.session.engine.wall(self, exc)
        self.session.engine.wake()

    def on_event(self, event: int) -> None:
        if event & _RARE or self.connecting:
            self._rare_event(event)
            return
        if event & WRITE and self.held is not None:
            self.release_held()
        if event & READ and self.queued is False:
            channel = self.channel
            if channel is not None and self.alive:
                self.queued = True
                channel.fresh.append(self)
                if not channel.stirred:
                    channel.stir()

    def _rare_event(self, event: int) -> None:
        if self.connecting:
            self._dialled(event)
            return
        if event & ERROR:
            self.abort(Abort.RESET)  # at once, whatever the credit: this edge does not come again
            return
        self.ending = True  # or a read stops at urgent data: more may be behind it, of which no other edge tells
        if event & WRITE and self.held is not None:
            self.release_held()
        if self.queued is False and not self.ended:
            self.ready()

    def wants(self) -> int:
        wants = READ if not self.ended and self.queued is False and (self.channel or self.connecting) else 0
        return wants | WRITE if self.held is not None and (self.held or self.connecting) else wants

    def ready(self) -> None:
        """There may be bytes to read: join the channel's queue."""
        channel = self.channel
        if channel is not None and self.alive:
            self.queued = True
            channel.fresh.append(self)
            channel.stir()

    # Local side: dialling a literal address

    def dial(self, family: int, address: "tuple[str, int] | str") -> bool:
        """Connect to a literal address without waiting; refuses the stream if that fails now or later.

        False, and nothing is changed, for a Unix socket whose backlog is full: that has to be tried again later.
        """
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | NONBLOCKING)
        except OSError as exc:  # out of descriptors
            self.dial_failed(exc.errno or 0)
            return True
        code = _begin_connecting(sock, family, address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            if code == errno.EAGAIN:
                return False
            self.dial_failed(code)
            return True
        engine = self.session.engine
        if code:
            self.connecting = True
            engine.dials.add(self, engine.now())
        expect_reset(sock)
        self.attach(sock)
        if not code:
            self._is_dialled()
            self.ready()
        return True

    def _dialled(self, event: int) -> None:
        assert self.sock is not None
        failed = event & ERROR or not self.session.engine.tells_errors
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if failed else 0
        if code or event & ERROR:
            self.dial_failed(code or errno.ECONNREFUSED)
            return
        if not event & WRITE:
            return
        self.connecting = False
        self.ending = bool(event & (URGENT | _ENDING))  # it spoke before we looked; this edge does not come again
        self.session.engine.dials.discard(self)
        self._is_dialled()
        self.release_held()
        self.ready()

    def _is_dialled(self) -> None:
        engine = self.session.engine
        engine.ledger.dials.add(engine.now() - self.began_at)

    def dial_failed(self, code: int) -> None:
        self.refuse(_DIAL_ERRORS.get(code, Abort.DIAL_FAILED))

    def refuse(self, reason: Abort) -> None:
        """End a stream whose target could not be had; counted by reason on both sides."""
        if self.alive:
            self._count_refusal(reason)
            self._abort(reason)

    def refused_by_peer(self, reason: Abort) -> None:
        """The same, as the peer tells it."""
        if self.alive:
            self._count_refusal(reason)
            self._cut()

    def _count_refusal(self, reason: Abort) -> None:
        self.tally.refuse(reason)
        self.session.engine.ledger.refuse(reason)

    # Tunnel side: what the channel tells

    def deliver(self, data: memoryview) -> None:
        """Hand `data` to the local socket; what it does not take is held."""
        size = len(data)
        self.allowance -= size
        if self.allowance < 0:
            raise RemoteProtocolError(f"DATA beyond the credit, or the FIN, of stream {self.sid}")
        if self.held is not None:
            self._hold(data)
            return
        try:
            sent = self.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.abort(Abort.RESET)
            return
        except Exception as exc:
            self.session.engine.wall(self, exc)
            return
        self.bytes_written += sent
        if sent < size:
            self.held = deque()
            self._hold(data[sent:])
        if self.allowance <= self.grant_at:
            self._grant()

    def _hold(self, data: memoryview) -> None:
        """Small pieces are joined: a peer that sends single bytes must not cost a hundred each."""
        assert self.held is not None
        self.held_size += len(data)
        last = self.held[-1] if self.held else None
        if isinstance(last, bytearray) and len(last) < JOINED_BYTES:
            last += data
        else:
            self.held.append(bytearray(data))

    def _grant(self) -> None:
        """Give back what was delivered, once it is enough; more, if the window seems to be the limit."""
        owed = self.window - self.allowance - self.held_size
        if self.strays is not None:
            owed -= len(self.strays.data)
        channel = self.channel
        if owed < grant_size(self.window) or channel is None or self.fin_seen:
            return
        engine = self.session.engine
        now = engine.now()
        if self.held is None:  # a local socket that lags behind has window enough
            window = grown_window(self.window, owed, now - self.granted_at, channel.round_trip)
            growth = window - self.window
            if growth and engine.bounds.budget.take(growth):
                owed += growth
                self.window = window
                self.grant_at = window - grant_size(window)
        channel.put(CREDIT | owed, self.sid)
        self.allowance += owed
        self.granted_at = now

    def release_held(self) -> None:
        """The local socket may take more: give it what was held, then the FIN that waited behind it."""
        held = self.held
        while held:
            data = held[0]
            try:
                sent = self.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.abort(Abort.RESET)
                return
            self.bytes_written += sent
            self.held_size -= sent
            if sent < len(data):
                held[0] = memoryview(data)[sent:]
                self._grant()
                return
            held.popleft()
            self._grant()
        self.held = None
        if self.fin_seen:
            self._shut()

    def fin(self) -> None:
        """They will send no more."""
        if self.fin_seen:
            raise RemoteProtocolError(f"a second FIN of stream {self.sid}")
        self.fin_seen = True
        self.allowance = 0  # and so must not
        if self.held is None:
            self._shut()

    def _shut(self) -> None:
        assert self.sock is not None
        if self.ended and self.session.engine.is_alone and isinstance(self.sock, socket.socket):
            self.finish()  # closing the only copy says so, too
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self.held = deque()  # TLS: what it took is not all with the kernel yet; the next edge tries again
            return
        except OSError:
            self.abort(Abort.RESET)  # not connected any more
            return
        except Exception as exc:
            self.session.engine.wall(self, exc)
            return
        self.shut = True
        if self.ended:
            self.finish()
        else:
            self.session.half_closed(self)

    # Ends

    def fail(self, exc: Exception) -> None:
        """Our own bug, caught by the engine's wall."""
        self.abort(Abort.INTERNAL)

    def at_end(self) -> None:
        """The local socket's FIN was read and told."""
        self.ended = True
        self.queued = True  # in no queue, and never again: TLS targets can be readable after their end
        if self.shut:
            self.finish()
        else:
            self.session.half_closed(self)

    def finish(self) -> None:
        """Both directions ended cleanly."""
        if self._leave() and self.sock is not None:
            expect_reset(self.sock, False)
            self.sock.close()

    def abort(self, reason: Abort) -> None:
        """End it visibly on both sides: RST to the peer, a reset to the local socket."""
        if self.alive:
            self.session.engine.ledger.cut_off(reason)
            self._abort(reason)

    def _abort(self, reason: Abort) -> None:
        channel = self.channel
        if self._leave():
            if channel is not None:
                channel.put(RST | reason, self.sid)
            if self.sock is not None:
                reset(self.sock)

    def cut(self, reason: Abort) -> None:
        """The peer aborted, or the channel is gone: a reset to the local socket."""
        if self.alive:
            self.session.engine.ledger.cut_off(reason)
            self._cut()

    def _cut(self) -> None:
        if self._leave() and self.sock is not None:
            reset(self.sock)

    def _leave(self) -> bool:
        """Leave every table; False if that was done before. The caller closes the socket, behind this: numbers are
        reused."""
        if not self.alive:
            return False
        self.alive = False
        if self.dialling is not None:
            self.dialling.cancel(reason="the visitor has gone")
        if self.source is not None:
            self.source.inbound.pop(self.sid, None)
        if self.channel is not None and self.channel.is_retiring:
            self.channel.leaving.discard(self)
            self.channel.departing.discard(self)
            self.channel.stir()
        if self.left is not None:
            self.left.departing.discard(self)
        self.strays = None
        self.tally.leave(self)
        self.session.forget(self)
        if self.fd >= 0:
            self.session.engine.closing(self.fd)
            self.fd = -1
        self.held = None
        return True


class Unanswered(Stream):
    """A visitor to whom nothing was delivered yet. The first bytes make it a `Stream` like any other: how long they
    took is asked once a stream, and no frame after them pays for it."""

    __slots__ = ()

    def deliver(self, data: memoryview) -> None:
        if data:
            self.__class__ = Stream  # type: ignore[assignment]  # the same slots
            engine = self.session.engine
            engine.ledger.first_bytes.add(engine.now() - self.began_at)
        Stream.deliver(self, data)


def _begin_connecting(sock: socket.socket, family: int, address: tuple[str, int] | str) -> int:
    """Start to connect; returns the error's number, EINPROGRESS among them, 0 if it is done."""
    try:
        if not NONBLOCKING:
            sock.setblocking(False)
        if family == getattr(socket, "AF_UNIX", None):
            return sock.connect_ex(address)  # EAGAIN: its backlog is full, and it is not connecting
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(address)
    except OSError as exc:  # a path that is too long for a socket's name
        return exc.errno or errno.EINVAL
    return errno.EINPROGRESS if code == errno.EWOULDBLOCK else code  # Windows' word
