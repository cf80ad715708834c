"""B24, B25: what is not a clean end is a reset on the other side, soon, and its reason is counted."""

import errno
import socket
import types

import pytest
import trio
from relay_rig import (
    POLLERS,
    LiteralRoute,
    SilentRoute,
    echo,
    open_rig,
    read_exactly,
    reset_now,
    saw_reset,
    until,
)

import tunnel.relay.stream as stream_module
from tunnel.config import Limits
from tunnel.frames import Abort

pytestmark = pytest.mark.parametrize("poller", POLLERS)


async def test_a_reset_of_the_visitor_resets_the_target(poller):
    ends = []

    async def target(stream):
        await stream.send_all(b"hello")
        ends.append(await saw_reset(stream, within=5))

    async with open_rig(poller, target) as rig:
        visitor = await rig.visit()
        assert await read_exactly(visitor, 5) == b"hello"
        reset_now(visitor)
        await until(lambda: ends == [True], 1)


async def test_a_reset_of_the_target_resets_the_visitor(poller):
    async def target(stream):
        await stream.send_all(b"hello")
        await stream.receive_some(1)
        reset_now(stream)

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        assert await read_exactly(visitor, 5) == b"hello"
        await visitor.send_all(b"x")
        assert await saw_reset(visitor)


async def test_a_reset_in_the_middle_of_a_transfer_is_never_a_clean_end(poller):
    async def target(stream):
        for _ in range(20):
            await stream.send_all(bytes(65_536))
        reset_now(stream)

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        assert await saw_reset(visitor)


async def test_a_reset_is_seen_while_its_stream_has_no_credit(poller):
    """The reader is stuck, so nothing is read from the sender: its reset must come through all the same."""

    async def target(stream):
        with trio.move_on_after(0.3):
            while True:
                await stream.send_all(bytes(65_536))
        reset_now(stream)

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        await until(lambda: rig.route.tally.visitors == 1)
        await until(lambda: rig.route.tally.visitors == 0 and rig.tally.visitors == 0, 1.3)
        assert await saw_reset(visitor)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_cut_channel_resets_visitor_and_target(poller, side):
    ends = []

    async def target(stream):
        await stream.send_all(b"hello")
        ends.append(await saw_reset(stream, within=5))

    async with open_rig(poller, target) as rig, await rig.visit() as visitor:
        assert await read_exactly(visitor, 5) == b"hello"
        session = rig.server if side == "server" else rig.client
        session.channels[0].sock.shutdown(socket.SHUT_RDWR)  # FIN without close_notify, as from a killed process
        assert await saw_reset(visitor)
        await until(lambda: ends == [True], 1)
        await until(lambda: rig.server.channels == [] and rig.client.channels == [], 1)


async def test_a_channel_cut_right_behind_its_last_bytes_is_noticed_at_once(poller):
    """Bytes and FIN may come in one edge: no other tells of the FIN."""
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        await peer.receive_some()  # the first ping
        for engine in rig.engines:
            assert engine.errors == 0
        peer._tls.write(b"\x8a\x80\0\0\0\0")  # a pong nobody asked for
        ciphertext = peer._outgoing.read()
        assert peer.socket.send(ciphertext) == len(ciphertext)
        peer.socket.shutdown(socket.SHUT_WR)  # no Trio, no relay ran since: both are there at the next turn
        await until(lambda: lost == ["the connection was cut"], 1)
        peer.close()


async def test_a_refused_dial_resets_the_visitor_and_is_counted_on_both_sides(poller):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with open_rig(poller, unused.getsockname()) as rig, await rig.visit() as visitor:
            assert await saw_reset(visitor, within=0.1)
            assert rig.tally.refused == rig.route.tally.refused == {"dial_refused": 1}
            assert rig.tally.visitors == rig.route.tally.visitors == 0


async def test_a_visitor_while_the_target_is_known_to_be_down_is_counted_on_both_sides(poller):
    route = SilentRoute()
    route.dial = lambda stream: stream.refuse(Abort.TARGET_DOWN)
    async with open_rig(poller, route) as rig, await rig.visit() as visitor:
        assert await saw_reset(visitor, within=0.1)
        assert rig.tally.refused == route.tally.refused == {"target_down": 1}


async def test_a_dial_that_hangs_ends_at_its_deadline(poller):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):  # a full backlog drops SYNs: connect hangs
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with open_rig(poller, full.getsockname(), client_limits=Limits(dial_seconds=0.2)) as rig:
            async with await rig.visit() as visitor:
                began = trio.current_time()
                assert await saw_reset(visitor, within=3)
                assert 0.15 < trio.current_time() - began < 2  # an added deadline is at most a second late
            assert rig.tally.refused == rig.route.tally.refused == {"dial_timeout": 1}
        for filler in fillers:
            filler.close()


async def test_a_unix_target_works_and_a_missing_one_is_refused(poller, tmp_path):
    path = str(tmp_path / "target.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        route = LiteralRoute(path, socket.AF_UNIX)
        async with open_rig(poller, route) as rig:
            rig.nursery.start_soon(
                trio.serve_listeners, echo, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            )
            async with await rig.visit() as visitor:
                await visitor.send_all(b"over a path")
                await visitor.send_eof()
                assert await read_exactly(visitor, 11) == b"over a path"
                assert await visitor.receive_some() == b""
            route.address = str(tmp_path / "missing.sock")
            async with await rig.visit() as visitor:
                assert await saw_reset(visitor)
            route.address = str(tmp_path / "longer than any socket's name may be" / ("x" * 100))
            async with await rig.visit() as visitor:
                assert await saw_reset(visitor)
            await until(lambda: rig.tally.refused == {"dial_failed": 2})
            assert rig.route.tally.refused == {"dial_failed": 2}
            assert rig.client_engine.errors == 0


async def test_a_unix_target_with_a_full_backlog_is_left_to_be_dialled_again(poller, tmp_path):
    """connect() answers EAGAIN there and will never become connected: waiting for it would take it for done."""

    class BusyRoute(LiteralRoute):
        def dial(self, stream: stream_module.Stream) -> None:
            assert not stream.dial(self.family, self.address)
            assert (stream.alive, stream.connecting, stream.sock) == (True, False, None)
            stream.refuse(Abort.DIAL_TIMEOUT)

    path = str(tmp_path / "target.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        async with open_rig(poller, BusyRoute(path, socket.AF_UNIX)) as rig, await rig.visit() as visitor:
            assert await saw_reset(visitor)
            assert rig.tally.refused == rig.route.tally.refused == {"dial_timeout": 1}


async def test_a_target_over_ipv6_and_an_ipv6_listener(poller):
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no ::1")
    probe.setblocking(False)
    with probe:
        async with open_rig(poller, probe.getsockname()[:2], family=socket.AF_INET6) as rig:
            rig.nursery.start_soon(
                trio.serve_listeners, echo, [trio.SocketListener(trio.socket.from_stdlib_socket(probe))]
            )
            rig.listen("::1")
            async with await rig.visit() as visitor:
                await visitor.send_all(b"six")
                assert await read_exactly(visitor, 3) == b"six"


async def test_no_descriptor_for_the_dial_is_a_failed_dial(poller, monkeypatch):
    def no_socket(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    async with open_rig(poller) as rig:
        without = types.SimpleNamespace(**{**vars(socket), "socket": no_socket})
        with monkeypatch.context() as patch:
            patch.setattr(stream_module, "socket", without)
            async with await rig.visit() as visitor:
                assert await saw_reset(visitor)
        assert rig.tally.refused == rig.route.tally.refused == {"dial_failed": 1}
        assert rig.client_engine.errors == 0


async def test_half_closed_and_silent_is_cut_at_its_deadline_but_not_while_bytes_move(poller):
    async def target(stream):
        await stream.send_eof()
        await trio.sleep_forever()

    limits = Limits(half_closed_seconds=0.4)
    async with open_rig(poller, target, server_limits=limits) as rig, await rig.visit() as visitor:
        assert await visitor.receive_some() == b""
        for _ in range(12):  # 0.6 s, never silent for longer than 0.05 s
            await visitor.send_all(b"x")
            await trio.sleep(0.05)
        assert rig.tally.visitors == 1
        await until(lambda: rig.tally.visitors == 0 and rig.route.tally.visitors == 0, 3)
        with pytest.raises(trio.BrokenResourceError):
            await visitor.send_all(b"x")


async def test_a_visitor_before_any_channel_waits_and_is_served_when_one_comes(poller):
    async with open_rig(poller, channels=0) as rig:
        early, ended = await rig.visit(), await rig.visit()
        await early.send_all(b"early")
        await ended.send_all(b"and done")
        await ended.send_eof()
        await until(lambda: len(rig.server.streams) == 2)
        await rig.add_channel()
        async with early, ended:
            assert await read_exactly(early, 5) == b"early"
            assert await read_exactly(ended, 8) == b"and done"
            assert await ended.receive_some() == b""


async def test_a_visitor_waiting_with_bytes_to_read_does_not_spin(poller):
    async with open_rig(poller, channels=0) as rig, await rig.visit() as visitor:
        await visitor.send_all(b"early")
        await until(lambda: len(rig.server.streams) == 1)
        await trio.sleep(0.05)
        before = rig.server_engine.turns
        await trio.sleep(0.2)
        assert rig.server_engine.turns - before < 5


async def test_a_visitor_without_a_channel_is_reset_at_its_deadline(poller):
    limits = Limits(channel_wait_seconds=0.2)
    async with open_rig(poller, channels=0, server_limits=limits) as rig, await rig.visit() as visitor:
        began = trio.current_time()
        assert await saw_reset(visitor, within=3)
        assert 0.15 < trio.current_time() - began < 1.5
        assert rig.tally.refused == {"channel_lost": 1}


async def test_channels_that_die_at_birth_do_not_extend_a_visitors_wait(poller):
    limits = Limits(channel_wait_seconds=0.5)
    async with open_rig(poller, channels=0, server_limits=limits) as rig, await rig.visit() as visitor:
        await until(lambda: len(rig.server.streams) == 1)
        (stream,) = rig.server.streams.values()
        deadline = rig.server_engine.waits._deadlines[stream]
        from relay_rig import tls_pair

        for _ in range(3):
            ours, theirs = await tls_pair()
            theirs.close()
            lost = []
            rig.server.add_channel(ours.detach(), masks=False, on_lost=lost.append)
            assert lost == ["the peer closed it"]
        assert rig.server_engine.waits._deadlines[stream] == deadline
        assert await saw_reset(visitor, within=3)


async def test_one_of_several_channels_lost_resets_only_its_streams(poller):
    async with open_rig(poller, channels=2) as rig:
        first = await rig.visit()
        await until(lambda: len(rig.server.streams) == 1)
        pick, rig.server._pick = rig.server._pick, lambda: rig.server.channels[1]  # else they share the first
        second = await rig.visit()
        await until(lambda: len(rig.server.streams) == 2)
        rig.server._pick = pick
        async with first, second:
            for visitor in (first, second):
                await visitor.send_all(b"x")
                assert await read_exactly(visitor, 1) == b"x"
            rig.server.channels[0].sock.shutdown(socket.SHUT_RDWR)
            assert await saw_reset(first)
            await second.send_all(b"still here")
            assert await read_exactly(second, 10) == b"still here"
            assert [len(ends[0]) for ends in rig.lost] == [1, 0]
            third = await rig.visit()
            await third.send_all(b"new")
            assert await read_exactly(third, 3) == b"new"
            await third.aclose()


@pytest.mark.parametrize("side", ["server", "client"])
async def test_leaving_a_session_resets_its_streams_and_frees_its_port_at_once(poller, side):
    ends = []

    async def target(stream):
        await stream.send_all(b"hello")
        ends.append(await saw_reset(stream, within=5))

    async with open_rig(poller, target) as rig:
        visitors = [await rig.visit() for _ in range(3)]
        for visitor in visitors:
            assert await read_exactly(visitor, 5) == b"hello"
        (rig.server if side == "server" else rig.client).close()
        for visitor in visitors:
            assert await saw_reset(visitor)
            await visitor.aclose()
        await until(lambda: ends == [True] * 3, 1)
        assert rig.lost[0][side == "client"] == ["closed"]
        if side == "server":
            with socket.socket() as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind(rig.address)
                again.listen()


async def test_leaving_one_session_touches_no_other(poller):
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        await visitor.send_all(b"x")
        assert await read_exactly(visitor, 1) == b"x"
        with rig.server_engine.attach() as other:
            listener_fds = len(rig.server_engine._entries)
            from relay_rig import Lost, tls_pair

            ours, theirs = await tls_pair()
            lost = Lost()
            other.add_channel(ours.detach(), masks=False, on_lost=lost)
            assert len(rig.server_engine._entries) == listener_fds + 1
        assert lost == ["closed"]
        theirs.close()
        await visitor.send_all(b"y")
        assert await read_exactly(visitor, 1) == b"y"


async def test_a_target_had_too_late_is_closed(poller):
    """A slow dial ends after its visitor has gone."""
    route = SilentRoute()
    async with open_rig(poller, route) as rig:
        visitor = await rig.visit()
        await until(lambda: route.streams != [])
        reset_now(visitor)
        (stream,) = route.streams
        await until(lambda: not stream.alive)
        ours, theirs = socket.socketpair()
        with theirs:
            stream.connected(ours)
            assert ours.fileno() == -1
        stream.refuse(Abort.DIAL_TIMEOUT)
        assert route.tally.refused == {}
