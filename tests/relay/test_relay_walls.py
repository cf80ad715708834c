"""Walls and bounds: what one socket does ends that one alone; at a bound the listener pauses, and goes on after."""

import errno

import pytest
import trio
from relay_rig import POLLERS, SilentRoute, connected_pair, open_rig, read_exactly, saw_reset, tls_pair, until

from tunnel.config import Limits
from tunnel.frames import DATA, FIN, FIRST_WINDOW, FRAME, MOVE, OPEN, OPEN_PAYLOAD, WS_ROOM, put_message_head
from tunnel.relay import Engine
from tunnel.relay.poller import ERROR, HANGUP, READ
from tunnel.sockets import reset

pytestmark = pytest.mark.parametrize("poller", POLLERS)


class Broken:
    """Stands in front of a stream's socket and raises what no socket should."""

    def __init__(self, sock, *methods):
        self._sock, self._methods = sock, methods

    def __getattr__(self, name):
        if name in self._methods:
            return self._raise
        return getattr(self._sock, name)

    def _raise(self, *args):
        raise RuntimeError("injected")


async def ping(visitor):
    await visitor.send_all(b"x")
    assert await read_exactly(visitor, 1) == b"x"


@pytest.mark.parametrize("method", ["recv_into", "send", "shutdown"])
async def test_a_bug_in_one_streams_socket_ends_that_stream_only(poller, method):
    async with open_rig(poller) as rig, await rig.visit() as healthy, await rig.visit() as sick:
        await ping(healthy)
        await ping(sick)
        stream = rig.client.streams[2]
        stream.sock = Broken(stream.sock, method)
        stream.send, stream.recv_into = stream.sock.send, stream.sock.recv_into
        await sick.send_all(b"y")
        if method == "shutdown":
            await sick.send_eof()
        with trio.move_on_after(1):
            await until(lambda: 2 not in rig.client.streams)
        assert list(rig.client.streams) == [1]
        await until(lambda: list(rig.server.streams) == [1])
        assert rig.client_engine.errors == 1
        await ping(healthy)


async def test_a_bug_in_one_channel_ends_that_channel_only(poller, monkeypatch):
    async with open_rig(poller, channels=2) as rig, await rig.visit() as visitor:
        await ping(visitor)
        sick = rig.server.channels[1]
        monkeypatch.setattr(sick, "sock", Broken(sick.sock, "recv_into", "send", "sendmsg"))
        sick.ping()
        rig.server_engine.wake()
        await until(lambda: len(rig.lost[1][0]) == 1)
        assert rig.lost[1][0][0].startswith("internal error: RuntimeError")
        assert rig.lost[0] == ([], [])
        await ping(visitor)


async def test_a_bug_behind_a_deadline_ends_that_member_only(poller):
    async with open_rig(poller, channels=2) as rig, await rig.visit() as visitor:
        await ping(visitor)
        engine = rig.server_engine

        def broken(channel):
            raise RuntimeError("injected")

        sick = engine._deadlines(0.0, broken)
        sick.add(rig.server.channels[1], engine.now())
        sick.expire(engine.now())
        assert len(rig.lost[1][0]) == 1
        await ping(visitor)


async def test_a_poller_that_takes_no_more_costs_the_newcomer_only(poller, monkeypatch):
    async with open_rig(poller) as rig, await rig.visit() as healthy:
        await ping(healthy)

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(rig.server_engine._poller, "register", full) if poller.__name__ == "TrioPoller" else (
                patch.setattr(rig.server_engine, "_poller", Passing(rig.server_engine._poller, full))
            )
            async with await rig.visit() as unlucky:
                assert await saw_reset(unlucky)
            ours, theirs = await tls_pair()
            lost = []
            rig.server.add_channel(ours.detach(), masks=False, on_lost=lost.append)
            assert len(lost) == 1
            theirs.close()
        await ping(healthy)
        assert len(rig.server.streams) == 1


class Passing:
    def __init__(self, poller, register):
        self._poller = poller
        self.register = register

    def __getattr__(self, name):
        return getattr(self._poller, name)


@pytest.mark.parametrize("bound", ["engine", "session", "proxy"])
async def test_at_a_bound_the_listener_pauses_and_resumes(poller, bound):
    limits = Limits(max_visitors=3) if bound == "engine" else None
    async with open_rig(poller, server_limits=limits, max_streams=3 if bound == "session" else None) as rig:
        if bound == "proxy":
            rig.listener.max_visitors = 3
        visitors = [await rig.visit() for _ in range(3)]
        for visitor in visitors:
            await ping(visitor)
        async with await rig.visit() as waiting:  # in the kernel's backlog
            await waiting.send_all(b"x")
            await until(lambda: rig.listener in rig.server_engine.bounds.waiting)
            turns = rig.server_engine.turns
            with trio.move_on_after(0.1) as patience:
                await waiting.receive_some(1)
            assert patience.cancelled_caught
            assert rig.server_engine.turns - turns < 5  # paused, not spinning
            assert rig.tally.visitors == 3
            await visitors[0].aclose()
            assert await read_exactly(waiting, 1) == b"x"
        for visitor in visitors:
            await visitor.aclose()
        await until(lambda: rig.tally.visitors == 0)
        assert rig.tally.visitors_total == 4


async def ask_and_leave(visitor):
    async with visitor:
        await ping(visitor)


async def test_a_place_that_gets_free_costs_the_work_of_one_listener_however_many_wait(poller, monkeypatch):
    many, registered = 30, []
    async with open_rig(poller, server_limits=Limits(max_visitors=1)) as rig:
        engine = rig.server_engine
        register = engine.register

        def counted(fd, entry, *, level=False):
            registered.append(level)
            register(fd, entry, level=level)

        addresses = [rig.address]
        for _ in range(many - 1):
            rig.listen()
            addresses.append(rig.address)
        visitors = []
        for rig.address in addresses:
            visitors.append(await rig.visit())
        await until(lambda: len(engine.bounds.waiting) == many)
        monkeypatch.setattr(engine, "register", counted)
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(ask_and_leave, visitor)
        await until(lambda: rig.tally.visitors == 0 and not engine.bounds.waiting)
        assert rig.tally.visitors_total == many
        assert registered.count(True) <= 2 * many  # once to take its visitor in, once to find that it has no other


async def test_a_client_at_its_bound_refuses_with_the_reason(poller):
    async with open_rig(poller, client_limits=Limits(max_visitors=1)) as rig, await rig.visit() as visitor:
        await ping(visitor)
        async with await rig.visit() as refused:
            assert await saw_reset(refused)
        assert rig.tally.refused == {"over_limit": 1}
        await ping(visitor)


async def test_at_the_end_of_the_budget_the_listener_pauses_and_recovers(poller):
    async with open_rig(poller, server_limits=Limits(buffer_budget=2 * FIRST_WINDOW)) as rig:
        first, second = await rig.visit(), await rig.visit()
        await ping(first)
        await ping(second)
        assert rig.server_engine.bounds.budget.free == 0
        async with await rig.visit() as third:
            await third.send_all(b"x")
            await until(lambda: rig.listener in rig.server_engine.bounds.waiting)
            await first.aclose()
            assert await read_exactly(third, 1) == b"x"
        await second.aclose()


async def test_a_shortage_of_descriptors_pauses_accepting_without_spinning(poller, caplog):
    class Short:
        def __init__(self, sock):
            self._sock, self.tried, self.short = sock, 0, True

        def accept(self):
            self.tried += 1
            if self.short:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

        def close(self):
            self._sock.close()

    async with open_rig(poller) as rig:
        short = rig.listener._sock = Short(rig.listener._sock)
        async with await rig.visit() as visitor:
            await trio.sleep(0.35)
            assert 2 <= short.tried <= 6
            short.short = False
            await ping(visitor)
    assert [record.message for record in caplog.records if "pauses" in record.message] == [
        "accepting visitors pauses: [Errno 24] Too many open files"
    ]


async def test_a_connection_that_died_before_it_was_accepted_is_passed_over(poller):
    class Aborting:
        def __init__(self, sock):
            self._sock, self.aborted = sock, False

        def accept(self):
            if not self.aborted:
                self.aborted = True
                raise OSError(errno.ECONNABORTED, "Software caused connection abort")
            return self._sock.accept()

        def close(self):
            self._sock.close()

    async with open_rig(poller) as rig:
        rig.listener._sock = Aborting(rig.listener._sock)
        async with await rig.visit() as visitor:
            await ping(visitor)


async def test_an_event_in_hand_is_not_told_to_the_next_owner_of_its_number(poller):
    """Closed and accepted within one turn: the kernel gives the number again, and the old event is still listed."""

    class Member:
        def __init__(self):
            self.events = []

        def on_event(self, event):
            self.events.append(event)

        def wants(self):
            return 0

    class Ending(Member):
        def on_event(self, event):
            engine.unregister(fd)
            reset(old)
            fresh, self.other = connected_pair()
            self.fresh = fresh if fresh.fileno() == fd else self.other
            assert self.fresh.fileno() == fd
            engine.register(fd, newcomer)

    engine = Engine(poller=poller)
    newcomer, ending, gone = Member(), Ending(), Member()
    old, far = connected_pair()
    fd = old.fileno()
    engine.register(fd, gone)
    engine.register(far.fileno(), ending)
    events = [[(far.fileno(), READ), (fd, ERROR | HANGUP)], [(fd, READ)]]
    real = engine._poller
    engine._poller = Passing(real, real.register)
    engine._poller.poll = lambda timeout: events.pop(0)
    engine.turn(0)
    assert newcomer.events == []
    engine.turn(0)
    assert (newcomer.events, gone.events) == ([READ], [])
    engine.unregister(fd)
    engine.unregister(far.fileno())
    for sock in (far, ending.fresh, ending.other):
        sock.close()
    engine._poller = real
    engine.close()


def message(*frames):
    body = b"".join(frames)
    head = bytearray(WS_ROOM)
    at = put_message_head(head, len(body), masked=False)
    return bytes(head[at:]) + body


async def two_raw_channels(rig):
    (one, lost_one), (two, lost_two) = [await rig.add_raw_channel(side="client") for _ in range(2)]
    await one.send_all(message(FRAME.pack(OPEN | 8, 1) + OPEN_PAYLOAD.pack(0, 1)))
    await until(lambda: 1 in rig.client.streams)
    return one, two, lost_one, lost_two


async def test_what_overtakes_its_move_waits_for_it_in_little_memory(poller):
    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        one, two, lost_one, lost_two = await two_raw_channels(rig)
        await two.send_all(message(*[FRAME.pack(DATA, 1), FRAME.pack(DATA | 1, 1) + b"b"] * 1000, FRAME.pack(FIN, 1)))
        (stream,) = route.streams
        await until(lambda: stream.strays is not None and stream.strays.fin)
        assert bytes(stream.strays.data) == b"b" * 1000
        await one.send_all(message(FRAME.pack(DATA | 1, 1) + b"a", FRAME.pack(MOVE, 1)))
        await until(lambda: stream.fin_seen)
        assert b"".join(stream.held) == b"a" + b"b" * 1000
        assert lost_one == lost_two == []
        one.close()
        two.close()


@pytest.mark.parametrize("crime", ["too much", "after FIN", "two FINs"])
async def test_what_overtakes_its_move_keeps_the_law(poller, crime):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, two, lost_one, lost_two = await two_raw_channels(rig)
        frames = {
            "too much": [FRAME.pack(DATA | 60_000, 1) + bytes(60_000)] * 2,
            "after FIN": [FRAME.pack(FIN, 1), FRAME.pack(DATA | 1, 1) + b"x"],
            "two FINs": [FRAME.pack(FIN, 1), FRAME.pack(FIN, 1)],
        }[crime]
        await two.send_all(message(*frames))
        await until(lambda: len(lost_two) == 1)
        assert lost_two[0].startswith("protocol error: ")
        assert (lost_one, rig.client.streams) == ([], {})
        one.close()
        two.close()


async def test_an_engine_that_ends_leaves_nothing_whoever_still_holds_it(poller):
    async with trio.open_nursery() as nursery:
        engine = Engine(poller=poller)
        await nursery.start(engine.run)
        with engine.attach() as session:
            ours, theirs = await tls_pair()
            lost = []
            session.add_channel(ours.detach(), masks=False, on_lost=lost.append)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: lost == ["closed"])
        theirs.close()
        assert engine._entries == {}
