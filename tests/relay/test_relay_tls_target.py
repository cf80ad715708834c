"""Targets that speak TLS: the same law for bytes and ends, with close_notify in the place of FIN."""

import hashlib
import socket
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
from relay_rig import POLLERS, arrived_bytes, contexts, open_rig, read_exactly, read_to_end, saw_reset, until

from tunnel.addresses import Target
from tunnel.client.target_dial import dial_target
from tunnel.relay import Tally
from tunnel.relay.tls_leg import TlsLeg
from tunnel.sockets import listen
from tunnel.tls import TlsStream

pytestmark = pytest.mark.parametrize("poller", POLLERS)
MIB = 1024 * 1024
RECORD_BYTES = 16 * 1024 + 256  # at most, with all that TLS adds


class TlsRoute:
    """As the client's TLS targets, with the test's CA; a stream is handed over after the handshake."""

    def __init__(self, nursery, handler):
        self.tally = Tally()
        self.streams = []
        self._nursery = nursery
        self._handler = handler

    def dial(self, stream):
        self.streams.append(stream)
        self._nursery.start_soon(self._dial, stream)

    async def _dial(self, stream):
        server_context, client_context = contexts()
        with listen("127.0.0.1", 0) as listener:
            if sys.platform == "linux":  # else a send buffer is one segment of lo, each acknowledged 40 ms late
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
            sock = await dial_target(Target("tcp", "127.0.0.1", listener.getsockname()[1]))
            theirs, _ = listener.accept()
        theirs.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # so that TLS has more than the kernel takes
        target = TlsStream(theirs, server_context, server_side=True)
        tls = TlsStream(sock, client_context, server_side=False, server_hostname="localhost")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.do_handshake)
            nursery.start_soon(tls.do_handshake)
        leg = TlsLeg(tls.detach(), stream)
        stream.connected(leg, leg)
        try:
            await self._handler(target)
        except trio.BrokenResourceError:
            pass
        finally:
            target.close()


@asynccontextmanager
async def open_visit(poller, target):
    async with trio.open_nursery() as nursery, open_rig(poller, TlsRoute(nursery, target)) as rig:
        async with await rig.visit() as visitor:
            yield rig, visitor
        await until(lambda: rig.client.streams == {})


async def send_close_notify(target):
    """Half-close: the TCP connection stays open both ways, and what is on its way to the target is still read.

    What came already is decrypted first, as `TlsLeg` does: OpenSSL's second shutdown takes a whole record that nobody
    has read for a fatal error, and every later read says "EOF in violation of protocol" though nothing has ended.
    """
    arrived = b""
    with suppress(ssl.SSLError):  # wants more, or an end that comes again with the next read
        while data := target._tls.read(MIB):
            arrived += data
    target._replay += arrived
    with suppress(ssl.SSLError):  # wants the peer's close_notify
        target._tls.unwrap()
    await target.send_all(b"")  # all of it: a full socket must not keep the close_notify back


async def test_bytes_go_both_ways_and_close_notify_is_fin(poller):
    heard = []

    async def target(stream):
        heard.append(await read_to_end(stream))
        await stream.send_all(heard[0][::-1])

    async with open_visit(poller, target) as (rig, visitor):
        await visitor.send_all(b"abc" * 1000)
        await visitor.send_eof()
        assert await read_to_end(visitor) == b"cba" * 1000
        assert heard == [b"abc" * 1000]
        await until(lambda: rig.client.streams == {})


async def test_a_big_transfer_both_ways_is_exact(poller):
    size = 4 * MIB
    block = bytes(range(256)) * 4096
    hashes = []

    async def drain(stream):
        digest = hashlib.sha256()
        async for chunk in stream:
            digest.update(chunk)
        hashes.append(digest.hexdigest())

    async def fill(stream, end):
        for _ in range(size // len(block)):
            await stream.send_all(block)
        await end()

    async def both(stream, end):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            nursery.start_soon(fill, stream, end)

    async def target(stream):
        await both(stream, partial(send_close_notify, stream))

    async with open_visit(poller, target) as (rig, visitor):
        await both(visitor, visitor.send_eof)
        await until(lambda: len(hashes) == 2)
        assert hashes == [hashlib.sha256(block * (size // len(block))).hexdigest()] * 2
        await until(lambda: rig.client.streams == {})


async def test_a_target_that_ends_while_much_is_on_its_way_to_it_gets_it_all(poller):
    """Its close_notify is sent with whole records unread behind it."""
    data = bytes(range(256)) * 1024
    heard = []

    async def target(stream):
        await until(lambda: arrived_bytes(stream.socket) > 3 * RECORD_BYTES)
        first = await stream.receive_some(1)
        assert stream._incoming.pending > RECORD_BYTES
        await send_close_notify(stream)
        heard.append(first + await read_to_end(stream))

    async with open_visit(poller, target) as (_rig, visitor):
        await visitor.send_all(data)
        assert await read_to_end(visitor) == b""
        assert heard == []
        await visitor.send_eof()
        await until(lambda: heard != [])
        assert heard == [data]


async def test_a_target_that_speaks_first_is_heard(poller):
    async def target(stream):
        await stream.send_all(b"220 ready")
        await stream.receive_some()

    async with open_visit(poller, target) as (_rig, visitor):
        assert await read_exactly(visitor, 9) == b"220 ready"


async def test_a_close_notify_right_behind_the_last_bytes_is_passed_on_at_once(poller):
    """One segment brings both, and no FIN follows: nothing else would ever tell of the end."""
    heard = []

    async def target(stream):
        stream._tls.write(b"last words")
        await send_close_notify(stream)
        heard.append(await read_to_end(stream))

    async with open_visit(poller, target) as (_rig, visitor):
        with trio.fail_after(30):
            assert await read_to_end(visitor) == b"last words"
        await visitor.send_all(b"and mine")
        await visitor.send_eof()
        await until(lambda: heard == [b"and mine"])


async def test_a_target_that_ends_without_close_notify_was_cut(poller):
    async def target(stream):
        await stream.send_all(b"part of the answ")
        stream.socket.shutdown(socket.SHUT_WR)
        await trio.sleep(0.2)

    async with open_visit(poller, target) as (_rig, visitor):
        assert await read_exactly(visitor, 16) == b"part of the answ"
        assert await saw_reset(visitor)


async def test_a_reset_by_a_tls_target_is_a_reset(poller):
    async def target(stream):
        await stream.receive_some()
        stream.abort()

    async with open_visit(poller, target) as (_rig, visitor):
        await visitor.send_all(b"x")
        assert await saw_reset(visitor)


async def test_the_visitors_fin_loses_none_of_the_answer_that_is_under_way(poller):
    """`unwrap()` throws away what it finds unread: the answer stands there while the visitor has no credit to give."""
    size = 8 * MIB
    block = bytes(range(256)) * 64
    fin = trio.Event()

    async def target(stream):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def listen_for_the_end():
                assert await read_to_end(stream) == b""
                fin.set()

            for _ in range(size // len(block)):
                await stream.send_all(block)
            await fin.wait()

    async with open_visit(poller, target) as (rig, visitor):
        await until(lambda: rig.route.streams != [] and rig.route.streams[0].queued is None)
        await visitor.send_eof()
        await until(lambda: rig.route.streams[0].fin_seen)
        answer = hashlib.sha256(await read_to_end(visitor)).hexdigest()
        assert answer == hashlib.sha256(block * (size // len(block))).hexdigest()


async def test_the_last_bytes_reach_a_slow_target_that_ended_first(poller):
    """Both ends were seen, but what TLS took is not all with the kernel: closing now would lose it."""
    size = 3 * MIB
    heard = []
    sent = trio.Event()

    async def target(stream):
        await send_close_notify(stream)
        await sent.wait()
        heard.append(len(await read_to_end(stream)))

    async with open_visit(poller, target) as (rig, visitor):
        assert await read_to_end(visitor) == b""

        @rig.nursery.start_soon
        async def let_it_read():
            with trio.move_on_after(0.3):
                await until(lambda: rig.route.streams[0].fin_seen)
            sent.set()

        await visitor.send_all(bytes(size))
        await visitor.send_eof()
        await until(lambda: heard == [size])
        await until(lambda: rig.client.streams == {})


async def test_an_empty_data_frame_means_nothing_to_a_tls_target(poller):
    heard = []

    async def target(stream):
        heard.append(await stream.receive_some())

    async with open_visit(poller, target) as (rig, visitor):
        await until(lambda: rig.route.streams != [] and rig.route.streams[0].sock is not None)
        rig.route.streams[0].deliver(memoryview(b""))
        await visitor.send_all(b"x")
        await until(lambda: heard == [b"x"])


async def test_what_a_target_sends_after_its_end_costs_no_other_stream(poller):
    """Its end must be told once: a second FIN would end the whole channel."""

    async def target(stream):
        await send_close_notify(stream)
        for _ in range(3):
            await trio.sleep(0.02)
            stream.socket.send(b"\x17\x03\x03\x00\x10" + bytes(16))
        spoken.set()
        heard.append(await read_to_end(stream))

    heard = []
    spoken = trio.Event()
    async with open_visit(poller, target) as (rig, visitor):
        assert await read_to_end(visitor) == b""
        await spoken.wait()  # all of it: what it sends to a closed socket would be answered with a reset
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.lost == [([], [])]
        await visitor.send_all(b"still heard")
        await visitor.send_eof()
        await until(lambda: heard == [b"still heard"])
