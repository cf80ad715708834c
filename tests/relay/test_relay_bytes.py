"""B22, B23, B27, B29: bytes through two engines are exact, ends stay ends, and nobody waits for anybody else."""

import hashlib
import random
import socket

import pytest
import trio
from relay_rig import (
    POLLERS,
    echo,
    open_rig,
    read_exactly,
    read_to_end,
    until,
)

from tunnel.frames import FIRST_WINDOW, MAX_WINDOW

pytestmark = pytest.mark.parametrize("poller", POLLERS)
MIB = 1024 * 1024


async def send_hashed(stream, size, chunk):
    digest = hashlib.sha256()
    block = random.Random(size).randbytes(chunk)
    while size:
        piece = block[: min(size, chunk)]
        digest.update(piece)
        await stream.send_all(piece)
        size -= len(piece)
    await stream.send_eof()
    return digest.hexdigest()


async def receive_hashed(stream):
    digest = hashlib.sha256()
    async for chunk in stream:
        digest.update(chunk)
    return digest.hexdigest()


async def both_ways(stream, size, chunk):
    """What was sent and what came, as hashes."""
    digests = {}

    async def send():
        digests["sent"] = await send_hashed(stream, size, chunk)

    async def receive():
        digests["received"] = await receive_hashed(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
    return digests["sent"], digests["received"]


async def test_sixteen_mebibytes_go_both_ways_at_once_exactly(poller):
    at_target = []

    async def target(stream):
        async with stream:
            at_target.append(await both_ways(stream, 16 * MIB, 65_521))

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        sent, received = await both_ways(visitor, 16 * MIB, 100_003)
        await until(lambda: at_target != [])
        assert at_target == [(received, sent)]
        await until(lambda: rig.tally.visitors == 0)
        assert (rig.tally.read, rig.tally.written) == (16 * MIB, 16 * MIB)
        assert (rig.route.tally.read, rig.route.tally.written) == (16 * MIB, 16 * MIB)


async def test_single_byte_writes_arrive_in_order(poller):
    text = random.Random(1).randbytes(3000)
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        for byte in text:
            await visitor.send_all(bytes([byte]))
        await visitor.send_eof()
        assert await read_to_end(visitor) == text


async def test_many_small_streams_are_exact_while_others_come_and_go(poller):
    results = []

    async def one(rig, number):
        text = random.Random(number).randbytes(1024)
        async with await rig.visit() as visitor:
            for _ in range(3):
                await visitor.send_all(text)
                results.append(await read_exactly(visitor, 1024) == text)
            if number % 3:
                await visitor.send_eof()
                assert await read_to_end(visitor) == b""

    async with open_rig(poller, channels=2) as rig:
        for _ in range(3):
            async with trio.open_nursery() as visitors:
                for number in range(40):
                    visitors.start_soon(one, rig, number)
        assert results == [True] * 360
        await until(lambda: rig.tally.visitors == 0)
        assert rig.tally.visitors_total == 120


async def test_the_server_may_speak_first(poller):
    async def target(stream):
        async with stream:
            await stream.send_all(b"220 ready\r\n")
            assert await read_exactly(stream, 4) == b"QUIT"

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        assert await read_exactly(visitor, 11) == b"220 ready\r\n"
        await visitor.send_all(b"QUIT")


async def test_the_visitors_fin_still_lets_the_target_answer(poller):
    async def target(stream):
        async with stream:
            question = await read_to_end(stream)
            await stream.send_all(question[::-1])
            await stream.send_eof()

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        await visitor.send_all(b"abc")
        await visitor.send_eof()
        assert await read_to_end(visitor) == b"cba"
        await until(lambda: rig.server.streams == {} and rig.client.streams == {})


async def test_the_targets_fin_still_lets_the_visitor_send(poller):
    heard = []

    async def target(stream):
        async with stream:
            await stream.send_all(b"bye")
            await stream.send_eof()
            heard.append(await read_to_end(stream))

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        assert await read_to_end(visitor) == b"bye"
        for _ in range(5):
            await visitor.send_all(b"x" * 100_000)
        await visitor.send_eof()
        await until(lambda: heard == [b"x" * 500_000])
        await until(lambda: rig.server.streams == {} and rig.client.streams == {})


async def test_both_may_end_at_once(poller):
    async def target(stream):
        async with stream:
            await stream.send_all(b"t" * 1000)
            await stream.send_eof()
            assert await read_to_end(stream) == b"v" * 1000

    async with open_rig(poller, target) as rig:
        for _ in range(20):
            async with await rig.visit() as visitor:
                await visitor.send_all(b"v" * 1000)
                await visitor.send_eof()
                assert await read_to_end(visitor) == b"t" * 1000
        await until(lambda: rig.server.streams == {} and rig.client.streams == {})


@pytest.mark.parametrize("first", ["visitor", "target"])
async def test_fin_behind_full_buffers_comes_after_the_last_byte(poller, first):
    """The reader does not read until everything was sent that fits; then all of it must come, and the end."""
    size = 4 * MIB
    full = trio.Event()
    heard = []

    async def sender(stream):
        await send_hashed(stream, size, 65_536)

    async def lazy_reader(stream):
        await full.wait()
        heard.append(len(await read_to_end(stream)))

    async def target(stream):
        async with stream:
            await (lazy_reader if first == "visitor" else sender)(stream)
            await stream.send_eof()
            await read_to_end(stream)

    async with open_rig(poller, target) as rig, await rig.visit() as visitor, trio.open_nursery() as nursery:
        nursery.start_soon(sender if first == "visitor" else lazy_reader, visitor)
        reading = rig.tally if first == "visitor" else rig.route.tally
        with trio.move_on_after(1):
            await until(lambda: reading.read >= size)
        full.set()
        await until(lambda: heard == [size])
        await visitor.send_eof()
        assert await read_to_end(visitor) == b""


async def test_a_visitor_that_stops_reading_stops_its_sender_and_nobody_else(poller):
    sent = 0

    async def target(stream):
        nonlocal sent
        async with stream:
            if await stream.receive_some(1) == b"s":
                while True:
                    await stream.send_all(bytes(65_536))
                    sent += 65_536
            await echo(stream)

    async with open_rig(poller, target) as rig:
        stopped = [await rig.visit() for _ in range(8)]
        for visitor in stopped:
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await visitor.send_all(b"s")
        async with await rig.visit() as other:
            await other.send_all(b"e")
            await _settled(lambda: sent)
            for _ in range(50):
                await other.send_all(b"x" * 10_000)
                assert await read_exactly(other, 10_000) == b"x" * 10_000
            at_rest = sent
            assert at_rest < 200 * MIB
            for stream in rig.server.streams.values():
                assert stream.held_size <= stream.window <= MAX_WINDOW
                assert sum(map(len, stream.held or ())) == stream.held_size
            await trio.sleep(0.1)
            assert sent - at_rest < MIB  # the kernel may still probe a closed window
        for visitor in stopped:
            await visitor.aclose()
        await until(lambda: rig.server.streams == {} and rig.client.streams == {})


async def _settled(figure):
    last = -1
    while figure() != last:
        last = figure()
        await trio.sleep(0.1)


async def test_a_target_that_stops_reading_holds_no_more_than_the_window(poller):
    started = trio.Event()

    async def target(stream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        started.set()
        await trio.sleep_forever()

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        await started.wait()
        with trio.move_on_after(0.3):
            while True:
                await visitor.send_all(bytes(65_536))
        (stream,) = rig.client.streams.values()
        assert stream.held_size <= stream.window <= MAX_WINDOW


async def test_single_bytes_for_a_stuck_reader_are_joined_in_memory(poller):
    """1-byte DATA frames must not cost an object each: a stream's memory is bounded, not only its bytes."""
    from relay_rig import SilentRoute

    from tunnel.frames import DATA, FRAME, OPEN, OPEN_PAYLOAD, WS_ROOM, put_message_head

    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        frames = FRAME.pack(OPEN | 8, 1) + OPEN_PAYLOAD.pack(0, 1) + (FRAME.pack(DATA | 1, 1) + b"x") * FIRST_WINDOW
        head = bytearray(WS_ROOM)
        at = put_message_head(head, len(frames), masked=False)
        await peer.send_all(bytes(head[at:]) + frames)
        await until(lambda: route.streams != [] and route.streams[0].held_size == FIRST_WINDOW)
        assert len(route.streams[0].held) <= 4
        assert lost == []
        peer.close()
        await until(lambda: len(lost) == 1)
