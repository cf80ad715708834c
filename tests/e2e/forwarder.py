"""A forwarder in front of one of the server's addresses, as a process: to be killed, stopped, or told to cut.

    python forwarder.py LISTEN_PORT SERVER_PORT [LISTEN_HOST]

Each line on its stdin is a command, answered with one line: ``cut N`` resets all connections but the oldest N,
``reset`` cuts all and resets whoever comes from then on, ``deaf`` accepts from then on and forwards nothing, ``well``
forwards again, ``count`` is the number of connections, of those accepted in all, and of bytes forwarded.
"""

import socket
import struct
import sys
from contextlib import suppress
from functools import partial

import trio

CHUNK = 256 * 1024


class Forwarder:
    def __init__(self, port: int) -> None:
        self.port = port
        self.mode = "well"
        self.accepted = 0
        self.forwarded = 0
        self.pairs: list[tuple[trio.SocketStream, ...]] = []

    async def serve(self, visitor: trio.SocketStream) -> None:
        self.accepted += 1
        if self.mode == "reset":
            reset(visitor)
            return
        if self.mode == "deaf":
            self.pairs.append((visitor,))
            await trio.sleep_forever()
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.port)
        except OSError:
            reset(visitor)
            return
        pair = visitor, server
        self.pairs.append(pair)
        try:
            async with trio.open_nursery() as ways:
                ways.start_soon(self.pump, visitor, server)
                ways.start_soon(self.pump, server, visitor)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side went; so does the other
        if pair in self.pairs:
            self.pairs.remove(pair)
        for stream in pair:
            stream.socket.close()

    async def pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while data := await source.receive_some(CHUNK):
            await sink.send_all(data)
            self.forwarded += len(data)
        await sink.send_eof()

    def obey(self, words: list[str]) -> str:
        match words:
            case ["cut", number]:
                return self.cut(int(number))
            case ["reset" | "deaf" | "well" as mode]:
                self.mode = mode
                return self.cut(0) if mode == "reset" else mode
            case ["count"]:
                return f"{len(self.pairs)} {self.accepted} {self.forwarded}"
        return f"no such command: {words}"

    def cut(self, spared: int) -> str:
        doomed, self.pairs = self.pairs[spared:], self.pairs[:spared]
        for pair in doomed:
            for stream in pair:
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
