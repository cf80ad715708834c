"""A forwarder in front of one of the server's addresses, as a process: to be killed, stopped, or told to cut.

    python forwarder.py LISTEN_PORT SERVER_PORT [LISTEN_HOST]

Each line on its stdin is a command, answered with one line: ``cut N`` resets all connections but the oldest N,
``reset`` cuts all and resets whoever comes from then on, ``deaf`` accepts from then on and forwards nothing, ``mute N``
forwards nothing any more, the oldest N connections aside, and keeps all sockets open, ``freeze N`` does that for good
and only to those there are, ``well`` forwards again (also what a mute connection was sent meanwhile), ``count`` is the
number of connections, of those accepted in all, and of bytes forwarded.
"""

import socket
import struct
import sys
from contextlib import suppress
from functools import partial

import trio

CHUNK = 256 * 1024


class Pair:
    """A connection of a visitor and, once it is dialled, of the server. Nothing moves unless `flows` is set."""

    def __init__(self, visitor: trio.SocketStream) -> None:
        self.streams = [visitor]
        self.is_frozen = False
        self.flows = trio.Event()

    def stop(self) -> None:
        self.flows = trio.Event()

    def go_on(self) -> None:
        if not self.is_frozen:
            self.flows.set()

    async def wait_flowing(self) -> None:
        while not self.flows.is_set():
            await self.flows.wait()


class Forwarder:
    def __init__(self, port: int) -> None:
        self.port = port
        self.mode = "well"
        self.accepted = 0
        self.forwarded = 0
        self.pairs: list[Pair] = []

    async def serve(self, visitor: trio.SocketStream) -> None:
        self.accepted += 1
        if self.mode == "reset":
            reset(visitor)
            return
        pair = Pair(visitor)
        self.pairs.append(pair)
        if self.mode == "deaf":
            await trio.sleep_forever()
        if self.mode == "well":
            pair.go_on()
        await pair.wait_flowing()
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.port)
        except OSError:
            reset(visitor)
            self.pairs.remove(pair)
            return
        pair.streams.append(server)
        try:
            async with trio.open_nursery() as ways:
                ways.start_soon(self.pump, pair, visitor, server)
                ways.start_soon(self.pump, pair, server, visitor)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side went; so does the other
        if pair in self.pairs:
            self.pairs.remove(pair)
        for stream in pair.streams:
            stream.socket.close()

    async def pump(self, pair: Pair, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(CHUNK):
                await pair.wait_flowing()
                await sink.send_all(data)
                self.forwarded += len(data)
        finally:  # an end, whichever, is held back like all else
            with trio.CancelScope(shield=not pair.flows.is_set()):
                await pair.wait_flowing()
        await sink.send_eof()

    def obey(self, words: list[str]) -> str:
        match words:
            case ["cut", number]:
                return self.cut(int(number))
            case ["freeze", number]:
                return self.stop(self.pairs[int(number) :], for_good=True)
            case ["mute", number]:
                self.mode = "mute"
                return self.stop(self.pairs[int(number) :])
            case ["reset" | "deaf" | "well" as mode]:
                self.mode = mode
                if mode == "well":
                    for pair in self.pairs:
                        pair.go_on()
                return self.cut(0) if mode == "reset" else mode
            case ["count"]:
                return f"{len(self.pairs)} {self.accepted} {self.forwarded}"
        return f"no such command: {words}"

    def stop(self, pairs: list[Pair], *, for_good: bool = False) -> str:
        for pair in pairs:
            pair.is_frozen |= for_good
            pair.stop()
        return f"stopped {len(pairs)}"

    def cut(self, spared: int) -> str:
        doomed, self.pairs = self.pairs[spared:], self.pairs[:spared]
        for pair in doomed:
            for stream in pair.streams:
                reset(stream)
        return f"cut {len(doomed)}"


def reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def main(listen_port: int, server_port: int, host: str) -> None:
    forwarder = Forwarder(server_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, forwarder.serve, listen_port, host=host))
        print("ready", flush=True)
        stdin = trio.lowlevel.FdStream(0)
        async for piece in stdin:
            for line in piece.decode().splitlines():
                print(forwarder.obey(line.split()), flush=True)
        nursery.cancel_scope.cancel(reason="whoever started this is gone")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1")
