"""A server that misuses its clients' trust: TLS and upgrades are as they should be, the rest is the test's."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

import trio
import trustme
from attrs import define, field

from tunnel.control import ControlChannel, open_server_control
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.frames import FrameReader
from tunnel.messages import Hello, Message, ProxySet, TicketRequest, Tickets, Welcome
from tunnel.sockets import listen
from tunnel.tls import TlsStream
from tunnel.upgrade import read_head, switching_protocols

Evil = Callable[["EvilSession"], Awaitable[None]]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@define(eq=False)
class EvilSession:
    """What one control channel of a client came to. `proxies` is its set, `channels` its data channels as they come."""

    control: ControlChannel
    nursery: trio.Nursery
    proxies: ProxySet = field(init=False)
    channels: trio.MemoryReceiveChannel[TlsStream] = field(init=False)
    heard: list[Message] = field(factory=list)

    async def say(self, message: Message) -> None:
        await self.control.send(message)

    async def say_raw(self, text: str) -> None:
        """Words that are no message of ours."""
        await self.control._websocket.send_message(text)

    async def channel(self) -> "DataEnd":
        """The server's end of the next data channel, heard from now on."""
        end = DataEnd(await self.channels.receive())
        self.nursery.start_soon(end.read)
        return end

    async def listen(self) -> None:
        """Hear the client, and give it the tickets it asks for, until it goes."""
        try:
            while True:
                message = await self.control.receive()
                self.heard.append(message)
                if isinstance(message, TicketRequest):
                    await self.say(Tickets(("another",)))
        except (PeerLost, RemoteProtocolError):
            return


@define(eq=False)
class DataEnd:
    """The server's end of a data channel; what the client answers is counted."""

    stream: TlsStream
    resets: dict[int, int] = field(factory=dict)  # reason by stream
    others: int = 0
    ended: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        """To the end, whatever end."""
        reader = FrameReader(self, lambda _sid: None, masked=True)
        try:
            while data := await self.stream.receive_some():
                reader.feed(memoryview(bytearray(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended.set()

    def on_rst(self, stream: int, reason: int) -> None:
        self.resets[stream] = reason

    def _count(self, *_what: object) -> None:
        self.others += 1

    on_open = on_stray = on_fin = on_credit = on_move = on_retire = on_ping = on_pong = on_close = _count


class EvilServer:
    """`with_each` is called with every session, once it was greeted and has said what it publishes."""

    def __init__(self, port: int, with_each: Evil) -> None:
        self.port = port
        self.sessions: list[EvilSession] = []
        self.logins = 0
        self.streams: list[TlsStream] = []  # all there were
        self._with_each = with_each
        self._arrivals: trio.MemorySendChannel[TlsStream]

    async def serve(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        stream = TlsStream(sock, context, server_side=True)
        self.streams.append(stream)
        try:
            await self._serve(stream)
        except* (PeerLost, RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass  # the client had enough

    async def _serve(self, stream: TlsStream) -> None:
        await stream.do_handshake()
        head = await read_head(stream)
        if head.path == "/data":
            await stream.send_all(switching_protocols(head))
            stream.push_back(head.rest)
            self._arrivals.send_nowait(stream)
            return
        self.logins += 1
        stream.push_back(head.raw)
        async with open_server_control(stream) as control, trio.open_nursery() as nursery:
            await self._session(EvilSession(control, nursery))
            nursery.cancel_scope.cancel()

    async def _session(self, session: EvilSession) -> None:
        self._arrivals, session.channels = trio.open_memory_channel[TlsStream](100)
        assert isinstance(await session.control.receive(), Hello)
        await session.say(Welcome("s", "home", tuple(f"ticket{number}" for number in range(16)), 10.0))
        proxies = await session.control.receive()
        assert isinstance(proxies, ProxySet)
        session.proxies = proxies
        self.sessions.append(session)
        await self._with_each(session)
        await session.listen()


@asynccontextmanager
async def open_evil_server(with_each: Evil) -> AsyncIterator[EvilServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    with listen("127.0.0.1", 0) as listener:
        server = EvilServer(listener.getsockname()[1], with_each)

        async def accept() -> None:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                nursery.start_soon(server.serve, sock, context)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield server
            nursery.cancel_scope.cancel()
            for stream in server.streams:
                stream.close()
            trio.lowlevel.notify_closing(listener)
