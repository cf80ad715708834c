"""What shows only when one side was slow to look: edges that came together, deadlines that passed, queues that grew."""

import socket
import threading
import time

import pytest
import trio
from relay_rig import (
    POLLERS,
    LiteralRoute,
    Lost,
    SilentRoute,
    echo,
    open_rig,
    read_exactly,
    read_to_end,
    reset_now,
    tls_pair,
    until,
)
from test_relay_law import frame, message

import tunnel.relay.channel as channel_module
from tunnel.config import Limits
from tunnel.frames import DATA, FIRST_WINDOW, PONG, control_message
from tunnel.relay.session import MAX_OPENS_BYTES
from tunnel.relay.tempo import ALONE

pytestmark = pytest.mark.parametrize("poller", POLLERS)
MIB = 1024 * 1024


async def test_a_target_that_speaks_and_hangs_up_before_the_dial_is_seen_is_heard_to_its_end(poller):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            sock, _ = listener.accept()
            sock.sendall(b"banner")
            sock.close()
            spoken.set()

        class Busy(LiteralRoute):
            def dial(self, stream):
                super().dial(stream)
                assert spoken.wait(30)  # the engine looks only now

        spoken = threading.Event()
        threading.Thread(target=speak, daemon=True).start()
        async with open_rig(poller, Busy(listener.getsockname())) as rig, await rig.visit() as visitor:
            with trio.fail_after(30):
                assert await read_to_end(visitor) == b"banner"


def speak_urgently(sock: socket.socket) -> None:
    """As telnet's Synch, and the ABOR of FTP clients: one byte out of band, which is not part of the stream."""
    sock.send(b"abc")
    sock.send(b"!", socket.MSG_OOB)
    sock.send(b"defg")


async def test_what_stands_behind_urgent_data_is_heard(poller):
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        speak_urgently(visitor.socket._sock)
        assert await read_exactly(visitor, 7) == b"abcdefg"
        for _ in range(3):
            await visitor.send_all(b"x")
            assert await read_exactly(visitor, 1) == b"x"


async def test_a_target_that_speaks_urgently_before_the_dial_is_seen_is_heard(poller):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        class Busy(LiteralRoute):
            def dial(self, stream):
                super().dial(stream)
                accepted.append(listener.accept()[0])
                speak_urgently(accepted[0])  # the engine looks only now

        async with open_rig(poller, Busy(listener.getsockname())) as rig, await rig.visit() as visitor:
            assert await read_exactly(visitor, 7) == b"abcdefg"
            accepted[0].close()


async def test_a_pong_that_waits_in_the_kernel_counts(poller):
    async with open_rig(poller, channels=0) as rig:
        server, client = await tls_pair()
        lost = Lost()
        channel = rig.server.add_channel(server.detach(), masks=False, on_lost=lost)
        await until(lambda: channel.sent > 0)
        parts = client.detach()
        with parts.sock:
            parts.tls.write(control_message(PONG, (1).to_bytes(8, "big"), masked=True))
            parts.sock.send(parts.outgoing.read())
            time.sleep(0.02)  # stopped: neither the engine nor the clock of its deadlines was asked
            engine = rig.server_engine
            engine.expire(engine.now() + engine.pongs.seconds + 1)
            assert lost == []
            assert len(engine.pongs) == 0


async def test_a_channel_has_one_share_of_a_turn_however_much_waits(poller):
    async with open_rig(poller, channels=0) as rig:
        server, client = await tls_pair()
        channel = rig.server.add_channel(server.detach(), masks=False, on_lost=Lost())
        parts = client.detach()
        unknown = message(frame(DATA | 60_000, 999, bytes(60_000)), masked=True)
        pieces = []
        for _ in range(800):
            parts.tls.write(unknown)
            pieces.append(parts.outgoing.read())
        engine, turn, shares = rig.server_engine, rig.server_engine.turn, []

        def watched(timeout):
            before = channel.received
            handled = turn(timeout)
            shares.append(channel.received - before)
            return handled

        engine.turn = watched
        parts.sock.setblocking(True)
        with parts.sock:
            await trio.to_thread.run_sync(parts.sock.sendall, b"".join(pieces))
            await until(lambda: sum(shares) >= 800 * 60_000)
        assert max(shares) < 4 * ALONE.inbound  # one as told, one of the turns before, each with its last read


async def test_a_channel_waits_in_one_line_once_however_often_it_is_looked_at(poller):
    """Its silence may be asked about while it has more than its share: then it is read out of its turn."""
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        await peer.receive_some()  # the first ping
        channel, rereads = rig.server.channels[0], rig.server_engine.rereads
        channel._read_later()
        channel.read_now()
        channel._read_later()
        assert rereads.next() is channel
        assert not rereads
        channel.reread()
        peer.close()


async def test_bulk_passes_where_several_pieces_cannot_be_sent_in_one_call(poller, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(channel_module, "GATHERS", False)

    class Plain:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            assert name != "sendmsg"
            return getattr(self._sock, name)

    async with open_rig(poller) as rig, await rig.visit() as visitor:
        for session in (rig.server, rig.client):
            session.channels[0].sock = Plain(session.channels[0].sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visitor.send_all, bytes(4 * MIB))
            assert await read_exactly(visitor, 4 * MIB) == bytes(4 * MIB)
        assert rig.server_engine.errors == rig.client_engine.errors == 0


async def test_windows_that_grew_leave_room_for_new_visitors(poller):
    async def source(stream):
        async with stream:
            for _ in range(32):
                await stream.send_all(bytes(MIB))
            await stream.receive_some(1)

    budget = 32 * FIRST_WINDOW
    async with (
        open_rig(poller, source, server_limits=Limits(buffer_budget=budget)) as rig,
        await rig.visit() as visitor,
    ):
        await read_exactly(visitor, 32 * MIB)
        assert rig.server_engine.bounds.budget.free >= budget // 2
        assert not rig.server_engine.bounds.are_reached


async def test_a_client_that_takes_no_opens_loses_the_channel_before_they_cost_much(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        channel = rig.server.channels[0]
        await until(lambda: channel.sent > 0)
        channel._unsent.append(bytes(32 * MIB))  # more than the kernel takes
        channel._send()
        channel._small += bytes(MAX_OPENS_BYTES)
        async with await rig.visit():
            assert channel.is_blocked
            async with await rig.visit():
                await until(lambda: lost == ["it does not read"])
        peer.abort()


async def test_the_task_that_dials_ends_with_the_visitor(poller):
    route = SilentRoute()
    async with open_rig(poller, route) as rig:
        visitor = await rig.visit()
        await until(lambda: len(route.streams) == 1)
        scope = route.streams[0].dialling = trio.CancelScope()
        reset_now(visitor)
        await until(lambda: scope.cancel_called)


async def test_a_bug_in_ending_one_member_does_not_spare_the_others(poller):
    async with open_rig(poller, echo) as rig, await rig.visit() as first, await rig.visit() as second:
        for visitor in (first, second):
            await visitor.send_all(b"x")
            await read_exactly(visitor, 1)

        def broken():
            raise RuntimeError("a bug")

        rig.listener.on_closed = broken
        rig.server.close()
        assert (rig.server.streams, rig.server.channels, rig.server.listeners) == ({}, [], set())
        assert rig.server_engine.errors == 1
