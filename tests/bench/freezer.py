"""A TCP proxy that can be frozen: `python -m tests.bench.freezer PORT TO_PORT`, on loopback.

Frozen by SIGUSR1, it forwards nothing more and accepts nobody, but keeps every socket open: the kernel still takes
connections and bytes for it, so nothing but silence tells that it is dead.
"""

import signal
import sys

import trio

RECEIVE_BYTES = 64 * 1024


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except trio.BrokenResourceError:
        for stream in (source, sink):
            await trio.aclose_forcefully(stream)
    except trio.ClosedResourceError:
        pass  # the other direction has found out


async def forward(ours: trio.SocketStream, to_port: int, kept: list[trio.SocketStream]) -> None:
    try:
        theirs = await trio.open_tcp_stream("127.0.0.1", to_port)
    except OSError:
        return await trio.aclose_forcefully(ours)
    kept += [ours, theirs]  # so that cancelling closes nothing
    async with trio.open_nursery() as directions:
        directions.start_soon(pump, ours, theirs)
        directions.start_soon(pump, theirs, ours)
    for stream in (ours, theirs):
        kept.remove(stream)
        await trio.aclose_forcefully(stream)
    return None


async def serve(listener: trio.SocketListener, to_port: int, scope: trio.CancelScope) -> None:
    kept: list[trio.SocketStream] = []
    with scope:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(forward, await listener.accept(), to_port, kept)
    await trio.sleep_forever()


async def run(port: int, to_port: int) -> None:
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(serve, listener, to_port, scope)
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            print("ready", flush=True)
            async for _ in signals:
                scope.cancel()
                print("frozen", flush=True)


if __name__ == "__main__":
    trio.run(run, *map(int, sys.argv[1:]))
