"""A channel is retired without hurting a stream: both sides leave it, then it is closed."""

import random

import pytest
import trio
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import (
    POLLERS,
    Lost,
    SilentRoute,
    connected_pair,
    echo,
    open_rig,
    read_exactly,
    read_to_end,
    tls_pair,
    until,
)
from test_relay_bytes import both_ways, receive_hashed, send_hashed
from test_relay_law import Reader, frame, message, open_frame

import tunnel.relay.batch as batch_module
import tunnel.relay.tempo as tempo_module
from tunnel.frames import CLOSE, DATA, FIN, MOVE, PONG, RETIRE, control_message
from tunnel.relay.tempo import ALONE

pytestmark = pytest.mark.parametrize("poller", POLLERS)
MIB = 1024 * 1024
NEAR_SECONDS = 0.0002


async def ping(visitor):
    await visitor.send_all(b"x")
    assert await read_exactly(visitor, 1) == b"x"


async def proven(rig):
    """Every channel has answered: what a pool waits for before it uses one. All are near, whatever a busy machine
    measured."""
    channels = [channel for session in (rig.server, rig.client) for channel in session.channels]
    await until(lambda: all(channel.is_proven for channel in channels))
    for channel in channels:
        channel.round_trip = NEAR_SECONDS


async def test_a_channel_nobody_uses_is_closed_and_the_others_are_not_touched(poller):
    async with open_rig(poller, channels=2) as rig:
        await proven(rig)
        rig.client.retire(rig.client.channels[0])
        await until(lambda: rig.lost[0] == (["retired"], ["retired"]))
        assert rig.lost[1] == ([], [])
        async with await rig.visit() as visitor:
            await ping(visitor)
        assert [engine.errors for engine in rig.engines] == [0, 0]


async def test_streams_that_use_a_retired_channel_go_on_over_another(poller):
    async with open_rig(poller, channels=2) as rig:
        await proven(rig)
        visitors = [await rig.visit() for _ in range(20)]
        for visitor in visitors:
            await ping(visitor)
        assert {stream.channel for stream in rig.client.streams.values()} == {rig.client.channels[0]}
        rig.client.retire(rig.client.channels[0])
        for visitor in visitors:
            await visitor.send_all(b"a")  # crosses RETIRE
        await until(lambda: rig.lost[0] == (["retired"], ["retired"]))
        for visitor in visitors:
            await visitor.send_all(b"b")
            assert await read_exactly(visitor, 2) == b"ab"
            await visitor.aclose()
        assert rig.lost[1] == ([], [])


@pytest.mark.slow
async def test_a_transfer_outlives_every_channel_it_ran_on(poller):
    at_target = []

    async def target(stream):
        async with stream:
            at_target.append(await both_ways(stream, 24 * MIB, 65_521))

    async with open_rig(poller, target, channels=2) as rig, await rig.visit() as visitor:
        done = trio.Event()

        async def replace_channels():
            while not done.is_set():
                await rig.add_channel()
                await proven(rig)
                oldest = next(channel for channel in rig.client.channels if not channel.is_retiring)
                rig.client.retire(oldest)
                await until(lambda oldest=oldest: not oldest.alive)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace_channels)
            sent, received = await both_ways(visitor, 24 * MIB, 100_003)
            await until(lambda: at_target == [(received, sent)])
            done.set()
        await until(lambda: len(rig.client.channels) == 2)
        assert len(rig.lost) > 4
        assert {why for ends in rig.lost for end in ends for why in end} == {"retired"}


async def test_the_last_channel_stays_in_use_until_another_comes(poller):
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        await ping(visitor)
        rig.client.retire(rig.client.channels[0])
        rig.client.retire(rig.client.channels[0])
        await until(lambda: rig.server.channels[0].is_retiring)
        async with await rig.visit() as newcomer:
            await ping(newcomer)
            await ping(visitor)
            assert rig.lost == [([], [])]
            await rig.add_channel()
            await until(lambda: rig.lost[0] == (["retired"], ["retired"]))
            await ping(newcomer)
            await ping(visitor)


@pytest.mark.parametrize("ends_first", ["visitor", "target"])
async def test_a_half_closed_stream_keeps_its_credit_when_its_channel_retires(poller, ends_first):
    """Its sender has nothing to move, but what it grants must go elsewhere: far more comes than the window."""
    go = trio.Event()
    heard = []

    async def lasting(stream):
        await go.wait()
        heard.append(await send_hashed(stream, 4 * MIB, 65_536))

    async def ending(stream):
        await stream.send_eof()
        heard.append(await receive_hashed(stream))

    async def target(stream):
        async with stream:
            await stream.send_all(b"x")
            await (lasting if ends_first == "visitor" else ending)(stream)

    async with open_rig(poller, target, channels=2) as rig, await rig.visit() as visitor:
        await read_exactly(visitor, 1)
        rig.nursery.start_soon(ending if ends_first == "visitor" else lasting, visitor)
        ended = rig.server if ends_first == "visitor" else rig.client
        await until(lambda: ended.streams[1].ended)
        rig.client.retire(rig.client.streams[1].channel)
        await until(lambda: sorted(map(len, (ends[0] for ends in rig.lost))) == [0, 1])
        go.set()
        await until(lambda: len(heard) == 2)
        assert heard[0] == heard[1]


async def test_a_channel_that_its_peer_does_not_leave_is_closed_by_its_owner(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        other, _ = await rig.add_raw_channel(side="client")
        await peer.send_all(message(open_frame(1), masked=False))
        await until(lambda: 1 in rig.client.streams)
        (channel, _) = rig.client.channels
        rig.client.retire(channel)
        await Reader(peer, masked=True).until(lambda seen: ("retire",) in seen and ("move", 1) in seen)
        assert (lost, channel.leaving) == ([], set())
        channel.close()
        assert (lost, rig.client.streams) == (["closed"], {})
        peer.close()
        other.close()


# The law, spoken by hand at one end


async def answer(peer, reader, *, masked):
    """A pong to the newest ping."""
    nonce = [what for what in reader.seen if what[0] == "ping"][-1][1]
    await peer.send_all(control_message(PONG, nonce, masked=masked))


def kinds(reader):
    return [what[0] for what in reader.seen]


async def test_the_server_moves_nothing_before_its_open_is_known_to_be_seen(poller):
    """Else the client might read the stream's bytes on the new channel first, and take them for a stream long gone."""
    async with open_rig(poller, channels=0) as rig:
        one, lost_one = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await visitor.send_all(b"first")
            reader = Reader(one, masked=False)
            await reader.until(lambda seen: ("data", 1, b"first") in seen)
            two, lost_two = await rig.add_raw_channel()
            await one.send_all(message(frame(RETIRE, 0), frame(RETIRE, 0), masked=True))
            await reader.until(lambda seen: kinds(reader).count("ping") == 2)
            await visitor.send_all(b"second")
            await reader.until(lambda seen: ("data", 1, b"second") in seen)
            assert "move" not in kinds(reader)
            await answer(one, reader, masked=True)
            await reader.until(lambda seen: ("retire",) in seen)
            assert [what for what in reader.seen if what[0] != "ping"] == [
                ("open", 1, 0, 1), ("data", 1, b"first"), ("data", 1, b"second"), ("move", 1), ("retire",),
            ]  # fmt: skip
            await visitor.send_all(b"third")
            other = Reader(two, masked=False)
            await other.until(lambda seen: ("data", 1, b"third") in seen)
            async with await rig.visit():
                await other.until(lambda seen: ("open", 2, 0, 1) in seen)
            await one.send_all(message(frame(MOVE, 1), masked=True) + control_message(CLOSE, b"", masked=True))
            await until(lambda: lost_one == ["retired"])
            one.close()
            assert 1 in rig.server.streams
            assert lost_two == []
        two.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_stream_moves_again_only_when_both_its_ends_there_are_known_to_be_seen(poller, order):
    """That it left the first channel, and that it came to the second: else bytes on the third could overtake either."""
    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        peers = [(await rig.add_raw_channel(side="client"))[0] for _ in range(3)]
        first, second, third = rig.client.channels
        await peers[0].send_all(message(open_frame(1), masked=False))
        await until(lambda: len(route.streams) == 1)
        (stream,) = route.streams
        ours, theirs = connected_pair()
        stream.connected(ours)
        readers = [Reader(peer, masked=True) for peer in peers]
        rig.client.retire(first)
        await readers[0].until(lambda seen: ("move", 1) in seen and ("retire",) in seen)
        await readers[1].until(lambda seen: ("data", 1, b"") in seen)
        rig.client.retire(second)
        for number in order:
            await readers[number].until(lambda seen: [what[0] for what in seen].count("ping") == 2)
            text = b"not yet %d" % number
            theirs.send(text)
            await readers[1].until(lambda seen, text=text: ("data", 1, text) in seen)
            assert "move" not in kinds(readers[1])
            await answer(peers[number], readers[number], masked=False)
        await readers[1].until(lambda seen: ("move", 1) in seen)
        assert stream.channel is third
        theirs.send(b"third")
        await readers[2].until(lambda seen: ("data", 1, b"third") in seen)
        assert [what for what in readers[2].seen if what[0] != "ping"] == [("data", 1, b""), ("data", 1, b"third")]
        for peer in peers:
            peer.close()
        await until(lambda: rig.client.channels == [])
        theirs.close()


async def test_the_client_closes_only_when_its_last_move_there_is_known_to_be_seen(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, lost = await rig.add_raw_channel(side="client")
        two, _ = await rig.add_raw_channel(side="client")
        reader = Reader(one, masked=True)
        rig.client.retire(rig.client.channels[0])
        await reader.until(lambda seen: ("retire",) in seen)
        await one.send_all(message(open_frame(1), frame(MOVE, 1), frame(RETIRE, 0), masked=False))  # OPEN crossed it
        await reader.until(lambda seen: ("move", 1) in seen and kinds(reader).count("ping") == 2)
        assert kinds(reader)[-2:] == ["move", "ping"]
        assert lost == []
        await answer(one, reader, masked=False)
        await until(lambda: lost == ["retired"])
        assert list(rig.client.streams) == [1]
        one.close()
        two.close()


async def test_a_stream_whose_end_waits_for_its_move_survives_the_channel_that_brought_it(poller):
    """Its FIN overtook its MOVE: all of it is here when the channel it came on is retired and closed."""
    async with open_rig(poller, channels=0) as rig:
        one, lost_one = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await until(lambda: 1 in rig.server.streams)
            two, lost_two = await rig.add_raw_channel()
            await two.send_all(message(frame(DATA | 4, 1, b"last"), frame(FIN, 1), frame(RETIRE, 0), masked=True))
            await Reader(two, masked=False).until(lambda seen: ("retire",) in seen)
            await two.send_all(control_message(CLOSE, b"", masked=True))
            await until(lambda: lost_two == ["retired"])
            await one.send_all(message(frame(DATA | 6, 1, b"first "), frame(MOVE, 1), masked=True))
            assert await read_to_end(visitor) == b"first last"
            assert lost_one == []
        one.close()
        two.close()


@pytest.mark.parametrize("crime", ["RETIRE unasked", "OPEN after RETIRE"])
async def test_a_server_may_not_retire_unasked_nor_open_after_it(poller, crime):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        if crime == "OPEN after RETIRE":
            rig.client.retire(rig.client.channels[0])
        await peer.send_all(message(frame(RETIRE, 0), open_frame(1), masked=False))
        await until(lambda: len(lost) == 1)
        assert lost[0].startswith("protocol error: ")
        assert rig.client.streams == {}
        peer.close()


async def test_a_stream_whose_move_may_be_lost_stays_where_it_is(poller):
    """Its old channel broke before the proof: the peer may wait for that MOVE until it learns of the loss."""
    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        peers = [(await rig.add_raw_channel(side="client"))[0] for _ in range(3)]
        first, second, third = rig.client.channels
        await peers[0].send_all(message(open_frame(1), frame(MOVE, 1), masked=False))
        await until(lambda: len(route.streams) == 1)
        (stream,) = route.streams
        rig.client.retire(first)

        ours, theirs = connected_pair()
        stream.connected(ours)
        theirs.send(b"x")
        await Reader(peers[1], masked=True).until(lambda seen: ("data", 1, b"x") in seen)
        peers[0].abort()
        await until(lambda: first not in rig.client.channels)
        rig.client.retire(second)
        rig.client_engine.wake()
        await until(lambda: third.sent > 0)
        assert (stream.alive, stream.channel, second.leaving) == (True, second, {stream})
        for peer in peers[1:]:
            peer.close()
        await until(lambda: rig.client.channels == [])
        theirs.close()


# Any sequence, over wires of unequal length: what is sent on a short one overtakes what left before on a long one


async def add_channel(rig, delay):
    server, client = await tls_pair(lambda: far_apart(rig.nursery, delay))
    ends = Lost(), Lost()
    rig.lost.append(ends)
    rig.server.add_channel(server.detach(), masks=False, on_lost=ends[0])
    rig.client.add_channel(client.detach(), masks=True, on_lost=ends[1])


def far_apart(nursery, delay):
    """Two sockets, joined by a wire on which every piece takes `delay` seconds."""
    (ours, here), (there, theirs) = connected_pair(), connected_pair()
    here, there = (trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (here, there))
    nursery.start_soon(carry, here, there, delay)
    nursery.start_soon(carry, there, here, delay)
    return ours, theirs


async def carry(source, sink, delay):
    try:
        async with source, sink:
            async for piece in source:
                await trio.sleep(delay)
                await sink.send_all(piece)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


DELAYS = st.sampled_from([0, 0.002, 0.01])
SIZES = st.sampled_from([1, 700, 30_000, 400_000])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), SIZES),
        st.tuples(st.just("send"), st.integers(0, 2), SIZES),
        st.tuples(st.just("end"), st.integers(0, 2)),
        st.tuples(st.just("visit")),
        st.tuples(st.just("retire"), st.integers(0, 3)),
        st.tuples(st.just("add"), DELAYS),
        st.tuples(st.just("rest"), st.sampled_from([0.0, 0.001, 0.008])),
    ),
    max_size=25,
)


@pytest.mark.slow
@given(delays=st.lists(DELAYS, min_size=1, max_size=3), steps=STEPS)
@settings(max_examples=40, deadline=None)
async def test_whatever_moves_and_retires_every_byte_arrives_and_retired_channels_close(poller, delays, steps):
    with pytest.MonkeyPatch.context() as small:
        small.setattr(tempo_module, "ALONE", evolve(ALONE, read=8 * 1024))
        small.setattr(batch_module, "BULK_BYTES", 66_000)
        async with open_rig(poller, echo, channels=0) as rig:
            for delay in delays:
                await add_channel(rig, delay)
            await follow(rig, steps)


async def follow(rig, steps):
    async with trio.open_nursery() as nursery:
        speakers = [Speaker(rig, nursery) for _ in range(3)]
        for verb, *rest in steps:
            if verb == "send":
                speakers[rest[0]].say(random.Random(rest[1]).randbytes(rest[1]))
            elif verb == "end":
                speakers[rest[0]].mouth.close()
            elif verb == "visit":
                speakers.append(Speaker(rig, nursery))
                speakers[-1].say(b"short")
            elif verb == "retire" and rest[0] < len(rig.client.channels):
                rig.client.retire(rig.client.channels[rest[0]])
            elif verb == "add":
                await add_channel(rig, rest[0])
            elif verb == "rest":
                await trio.sleep(rest[0])
        await add_channel(rig, 0)
        for speaker in speakers:
            speaker.mouth.close()
    assert [len(speaker.heard) for speaker in speakers] == [len(speaker.said) for speaker in speakers]
    assert [speaker.heard for speaker in speakers] == [speaker.said for speaker in speakers]
    await until(lambda: not any(c.is_retiring for session in (rig.server, rig.client) for c in session.channels))
    assert {why for ends in rig.lost for end in ends for why in end} <= {"retired"}
    assert [engine.errors for engine in rig.engines] == [0, 0]


class Speaker:
    """A visitor that says what it is told to, and hears everything again."""

    def __init__(self, rig, nursery):
        self.said = self.heard = b""
        self.mouth, self._words = trio.open_memory_channel(100)
        nursery.start_soon(self._run, rig)

    def say(self, text):
        try:
            self.mouth.send_nowait(text)
            self.said += text
        except trio.ClosedResourceError:
            pass

    async def _run(self, rig):
        async with await rig.visit() as visitor, trio.open_nursery() as nursery:
            nursery.start_soon(self._speak, visitor)
            self.heard = await read_to_end(visitor)

    async def _speak(self, visitor):
        async for text in self._words:
            await visitor.send_all(text)
        await visitor.send_eof()
