"""The soak's load, steady so that a trend is the tunnel's: visitors of every kind, each again and again.

Every byte is checked. An end that looks clean and is not, and bytes other than those sent, are wrong at any time; an
error is wrong unless an accident that breaks connections was shortly before.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field
from processes import LOOPBACK

from .transfers import HEAD, Lie, pattern

IDLE_VISITORS = 60
FORGIVEN_SECONDS = 6.0  # after an accident: the session is back long before, but a visitor may be told late
STALL_SECONDS = 30.0  # any visit that takes longer has stalled
BULK_BYTES = 4 * 1024 * 1024


@define(eq=False)
class Counts:
    """What the visitors met."""

    done: Counter[str] = field(factory=Counter)
    forgiven: int = 0
    wrong: list[str] = field(factory=list)
    broken_at: float = -1e9  # of the last accident, in Trio's time

    def is_forgiven(self) -> bool:
        return trio.current_time() - self.broken_at < FORGIVEN_SECONDS


@define(eq=False)
class Load:
    """`run` it until cancelled; `ports` are the public ports of echo, up and down."""

    ports: dict[str, int]
    slow_bytes: int = BULK_BYTES  # for those who read slowly: 30 ms for each 64 KiB at most
    counts: Counts = field(factory=Counts)
    dice: random.Random = field(factory=lambda: random.Random(6))

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for kind, many, pause in (
                (self.small, 4, 0.02), (self.bulk_up, 1, 0.5), (self.bulk_down, 1, 0.5), (self.slow_reader, 4, 0.1),
                (self.half_closer, 2, 0.05), (self.leaver, 2, 0.1), (self.idle, IDLE_VISITORS, 0.0),
            ):  # fmt: skip
                for _ in range(many):
                    nursery.start_soon(self._again_and_again, kind, pause)

    async def _again_and_again(self, visit: Callable[[], Awaitable[None]], pause: float) -> None:
        name = visit.__name__
        while True:
            began = trio.current_time()
            try:
                with trio.fail_after(STALL_SECONDS + (60 if visit == self.idle else 0)):
                    await visit()
                self.counts.done[name] += 1
            except Lie as lie:
                self.counts.wrong.append(f"{name}: {lie}")
            except trio.TooSlowError:
                self.counts.wrong.append(f"{name}: stalled for {trio.current_time() - began:.0f} s")
            except (OSError, trio.BrokenResourceError) as exc:
                if self.counts.is_forgiven():
                    self.counts.forgiven += 1
                else:
                    self.counts.wrong.append(f"{name}: {exc!r} and no accident before"[:200])
                await trio.sleep(0.1)
            await trio.sleep(pause)

    async def _dial(self, name: str) -> trio.SocketStream:
        return await trio.open_tcp_stream(LOOPBACK, self.ports[name])

    async def small(self) -> None:
        await self._echo(self.dice.randbytes(self.dice.randint(1, 2000)))

    async def _echo(self, word: bytes, *, stay: float = 0.0) -> None:
        async with await self._dial("echo") as stream:
            await stream.send_all(word)
            if await _exactly(stream, len(word)) != word:
                raise Lie("another echo")
            if stay:
                with trio.move_on_after(stay):
                    heard = await stream.receive_some()  # a reset is noticed at once, and another takes the place
                    raise Lie(f"{len(heard)} bytes that nobody asked for")
                await stream.send_all(word)
                if await _exactly(stream, len(word)) != word:
                    raise Lie("another echo, after a while")
            await stream.send_eof()
            if await stream.receive_some():
                raise Lie("more than was sent")

    async def idle(self) -> None:
        """Silent for most of a minute."""
        await self._echo(b"still there?", stay=self.dice.uniform(5, 50))

    async def bulk_up(self) -> None:
        async with await self._dial("up") as stream:
            await stream.send_all(HEAD.pack(0, BULK_BYTES))
            body = pattern(self.dice.randrange(1 << 20), BULK_BYTES)
            await stream.send_all(body)
            await stream.send_eof()
            if await _to_end(stream) != hashlib.sha256(body).digest():
                raise Lie("an upload's answer is cut or another")

    async def bulk_down(self) -> None:
        await self._download(0.0, 262144)

    async def slow_reader(self) -> None:
        """Seconds for what takes some milliseconds."""
        await self._download(0.03, 65536, self.slow_bytes)

    async def _download(self, pause: float, piece: int, size: int = BULK_BYTES) -> None:
        async with await self._dial("down") as stream:
            await stream.send_all(HEAD.pack(0, size))
            at = 0
            while data := await stream.receive_some(piece):
                if data != pattern(at, len(data)):
                    raise Lie(f"other bytes after {at}")
                at += len(data)
                if pause:
                    await trio.sleep(pause)
            if at != size:
                raise Lie(f"FIN after {at} of {size} bytes")

    async def half_closer(self) -> None:
        """FIN first, then the whole answer."""
        word = self.dice.randbytes(self.dice.randint(1, 200_000))
        async with await self._dial("echo") as stream:
            if await _heard_while_saying(stream, word) != word:
                raise Lie("the echo after FIN is cut or another")

    async def leaver(self) -> None:
        """Goes in the middle of a download, without a word."""
        async with await self._dial("down") as stream:
            await stream.send_all(HEAD.pack(0, BULK_BYTES))
            await stream.receive_some(1000)


async def _heard_while_saying(stream: trio.SocketStream, word: bytes) -> bytes:
    """All that comes until its end, while `word` and FIN are sent. A reset is raised as it is, not in a group.

    The kernel tells of it once: to who sends, and then who reads is told of a clean end, or the other way round.
    """
    cuts: list[trio.BrokenResourceError] = []
    heard = b""

    async def say() -> None:
        try:
            await stream.send_all(word)
            await stream.send_eof()
        except trio.BrokenResourceError as exc:
            cuts.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        try:
            heard = await _to_end(stream)
        except trio.BrokenResourceError as exc:
            cuts.append(exc)
    if cuts:
        raise cuts[0]
    return heard


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := await stream.receive_some(size - len(data))):
            raise Lie(f"FIN after {len(data)} of {size} bytes")
        data += more
    return data


async def _to_end(stream: trio.SocketStream) -> bytes:
    return b"".join([piece async for piece in stream])
