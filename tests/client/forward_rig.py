"""Small HTTP CONNECT and SOCKS5 proxies on plain sockets, well-behaved or not, for what dials through them."""

import base64
from collections.abc import Awaitable, Callable
from functools import partial

import trio
import trio.testing
from attrs import define, field

from tunnel.addresses import HostPort
from tunnel.config import ForwardProxy

Ask = Callable[[trio.SocketStream], Awaitable["tuple[str, int] | None"]]


@define(eq=False)
class Proxy:
    """One that runs. `names` are those it knows, and where they are; `auth` is user:password, if it wants one."""

    scheme: str
    names: dict[str, str] = field(factory=dict)
    auth: str = ""
    raw: bytes | None = None  # said instead of anything sensible
    pieces: int = 0  # bytes at a time in which it answers; 0: in one
    port: int = 0
    asked: list[str] = field(factory=list)
    heads: list[bytes] = field(factory=list)
    open: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def value(self, username: str = "", password: str = "") -> ForwardProxy:
        return ForwardProxy(self.scheme, HostPort("127.0.0.1", self.port), username, password)

    async def start(self, nursery: trio.Nursery) -> "Proxy":
        listeners = await nursery.start(partial(trio.serve_tcp, self._guarded, 0, host="127.0.0.1"))
        self.port = listeners[0].socket.getsockname()[1]
        return self

    async def _guarded(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                self.open += 1
                await self._serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # they hung up
        finally:
            self.open -= 1

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self.raw is not None:
            await stream.receive_some()
            await stream.send_all(self.raw)
            return
        ask = self._http if self.scheme == "http" else self._socks
        to = await ask(stream)
        if to is not None:
            self.asked.append(str(HostPort(*to)))
            await self._pass(stream, to)

    async def _pass(self, stream: trio.SocketStream, to: tuple[str, int]) -> None:
        try:
            beyond = await trio.open_tcp_stream(self.names.get(to[0], to[0]), to[1])
        except OSError:
            await self._say(stream, b"HTTP/1.1 502 Bad Gateway\r\n\r\n" if self.scheme == "http" else SOCKS_REFUSED)
            return
        await self._say(stream, b"HTTP/1.1 200 OK\r\nX-Proxy: ours\r\n\r\n" if self.scheme == "http" else SOCKS_DONE)
        async with beyond, trio.open_nursery() as both:
            both.start_soon(copy, stream, beyond, both.cancel_scope)
            both.start_soon(copy, beyond, stream, both.cancel_scope)

    async def _say(self, stream: trio.SocketStream, answer: bytes) -> None:
        for at in range(0, len(answer), self.pieces or len(answer)):
            if at:
                await trio.testing.wait_all_tasks_blocked()  # they have read what came
            await stream.send_all(answer[at : at + (self.pieces or len(answer))])

    async def _http(self, stream: trio.SocketStream) -> tuple[str, int] | None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return None
            head += more
        self.heads.append(head)
        if self.auth and b"Basic " + base64.b64encode(self.auth.encode()) not in head:
            await self._say(stream, b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=x\r\n\r\n")
            return None
        host, _, port = head.split()[1].decode().rpartition(":")
        return host.strip("[]"), int(port)

    async def _socks(self, stream: trio.SocketStream) -> tuple[str, int] | None:
        count = (await exactly(stream, 2))[1]
        methods = await exactly(stream, count)
        wanted = 2 if self.auth else 0
        await self._say(stream, bytes([5, wanted if wanted in methods else 0xFF]))
        if wanted not in methods:
            return None
        if self.auth:
            await exactly(stream, 1)
            words = [(await exactly(stream, (await exactly(stream, 1))[0])).decode() for _ in range(2)]
            is_good = ":".join(words) == self.auth
            await self._say(stream, bytes([1, not is_good]))
            if not is_good:
                return None
        kind = (await exactly(stream, 4))[3]
        size = {1: 4, 4: 16}.get(kind) or (await exactly(stream, 1))[0]
        where = await exactly(stream, size)
        host = where.decode() if kind == 3 else trio.socket.inet_ntop({1: 2, 4: 10}[kind], where)
        return host, int.from_bytes(await exactly(stream, 2), "big")


SOCKS_DONE = bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
SOCKS_REFUSED = bytes([5, 5, 0, 1, 0, 0, 0, 0, 0, 0])


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError("they hung up")
        data += more
    return data


async def copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while chunk := await source.receive_some():
            await sink.send_all(chunk)
        await sink.send_eof()
    except trio.BrokenResourceError:
        scope.cancel()
