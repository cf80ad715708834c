"""Channels prove themselves before they are preferred, and lose that trust soon when they fall silent."""

import pytest
import trio
from relay_rig import POLLERS, SilentRoute, open_rig, read_exactly, until
from test_relay_law import Clock, Reader, frame, message, open_frame
from test_relay_retire import answer, kinds

from tunnel.errors import PeerLost
from tunnel.frames import CREDIT, MOVE, PING, RETIRE, RST, control_message
from tunnel.relay.tempo import BATCH_BYTES

pytestmark = pytest.mark.parametrize("poller", POLLERS)


async def ping(visitor):
    await visitor.send_all(b"x")
    assert await read_exactly(visitor, 1) == b"x"


async def test_a_channel_is_proven_by_its_first_pong(poller):
    async with open_rig(poller) as rig:
        (channel,) = rig.client.channels
        with trio.fail_after(1):
            assert 0 < await channel.wait_proven() == channel.round_trip < 1
            assert 0 < await channel.echo() < 1
        assert channel.is_proven
        assert len(rig.client_engine.pongs) == 0


async def test_who_waits_for_a_proof_learns_that_the_channel_ended(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        (channel,) = rig.client.channels
        told = []

        async def wait(wait_for):
            with pytest.raises(PeerLost, match="ended before it answered: the peer closed it"):
                await wait_for()
            told.append(wait_for.__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, channel.wait_proven)
            nursery.start_soon(wait, channel.echo)
            await until(lambda: channel.pulse.nonce == 2)
            assert told == []
            peer.close()
        assert sorted(told) == ["echo", "wait_proven"]
        assert lost == ["the peer closed it"]
        await wait(channel.echo)


async def test_asking_often_does_not_keep_a_dead_channel(poller):
    async with open_rig(poller, channels=0) as rig:
        clock = Clock(rig.server_engine)
        peer, lost = await rig.add_raw_channel()
        (channel,) = rig.server.channels
        for _ in range(3):
            clock.pass_seconds(3)
            channel.ping()
        assert lost == []
        clock.pass_seconds(1.1)
        assert lost == ["no sign of life"]
        peer.close()


async def test_no_ping_overtakes_a_frame_that_was_put_before_it(poller):
    """Its pong is the proof that they have been seen."""
    count = BATCH_BYTES // 8 + 1
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        (channel,) = rig.server.channels
        reader = Reader(peer, masked=False)
        await reader.until(lambda seen: kinds(reader) == ["ping"])
        for _ in range(count):
            channel.put(RST, 9)
        channel.ping()
        await peer.send_all(control_message(PING, b"theirs", masked=True))
        await reader.until(lambda seen: len(seen) >= count + 3)
        assert kinds(reader) == ["ping", *["rst"] * count, "ping", "pong"]
        peer.close()


async def test_a_cold_start_waits_for_no_proof(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await visitor.send_all(b"now")
            await Reader(peer, masked=False).until(lambda seen: ("data", 1, b"now") in seen)
        peer.close()


async def test_new_streams_prefer_a_channel_that_has_proven_itself(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        await rig.add_channel()
        await rig.server.channels[1].wait_proven()
        async with await rig.visit() as visitor:
            await ping(visitor)
            assert rig.server.streams[1].channel is rig.server.channels[1]
        peer.close()


async def test_channels_and_sessions_have_figures_for_the_pool(poller):
    async with open_rig(poller) as rig, await rig.visit() as one, await rig.visit() as two:
        await ping(one)
        await ping(two)
        (channel,) = rig.client.channels
        assert (channel.users, rig.client.opened_total) == (2, 2)
        assert 0 <= rig.client_engine.now() - channel.opened_at < 5
        await one.aclose()
        await until(lambda: channel.users == 1)
        assert rig.client.opened_total == 2


# Silence


async def silent_channel(rig, *, round_trip=0.01):
    """A channel of the server that has proven itself and says nothing more."""
    peer, _ = await rig.add_raw_channel()
    reader = Reader(peer, masked=False)
    await reader.until(lambda seen: "ping" in kinds(reader))
    await answer(peer, reader, masked=True)
    channel = rig.server.channels[-1]
    await channel.wait_proven()
    channel.round_trip = round_trip
    return channel, peer, reader


@pytest.mark.slow
async def test_visitors_stop_waiting_within_a_second_when_a_channel_falls_silent(poller):
    """With the engine's own timekeeping, in real time."""
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        channel, peer, _ = await silent_channel(rig)
        await rig.add_channel()
        await rig.server.channels[1].wait_proven()
        await trio.sleep(0.05)  # the engine sleeps: a new deadline has to wake it
        async with await rig.visit():
            await until(lambda: len(channel.inbound) == 1)
            began = trio.current_time()
            await until(lambda: channel.is_suspect)
            assert trio.current_time() - began >= 0.49
            async with await rig.visit() as visitor:
                with trio.fail_after(5):  # on the silent channel it would wait until that is given up
                    await ping(visitor)
            assert channel.alive
        peer.close()


@pytest.mark.parametrize(("round_trip", "steps"), [(0.01, [0.25, 0.25]), (0.1, [0.25, 0.25, 0.25]), (0.25, [0.25] * 4)])
async def test_a_channel_is_suspect_after_a_quarter_second_and_three_round_trips(poller, round_trip, steps):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock = Clock(rig.server_engine)
        channel, peer, _ = await silent_channel(rig, round_trip=round_trip)
        async with await rig.visit():
            await until(lambda: len(channel.inbound) == 1)
            for step in steps:
                assert (channel.in_doubt, channel.is_suspect) == (True, False)
                clock.pass_seconds(step + 0.001)
            assert (channel.in_doubt, channel.is_suspect) == (False, True)
            assert len(rig.server_engine.doubts) == 0
        peer.close()


async def test_a_word_from_a_suspect_channel_clears_it(poller):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock = Clock(rig.server_engine)
        channel, peer, reader = await silent_channel(rig)
        async with await rig.visit() as visitor:
            await until(lambda: len(channel.inbound) == 1)
            clock.pass_seconds(0.251)
            clock.pass_seconds(0.251)
            assert channel.is_suspect
            await peer.send_all(message(frame(CREDIT | 1, 77), masked=True))
            await until(lambda: not channel.is_suspect)
            await visitor.send_all(b"x")
            await reader.until(lambda seen: ("data", 1, b"x") in seen)
        peer.close()


async def test_a_channel_that_answers_is_not_watched_any_longer(poller):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock = Clock(rig.server_engine)
        channel, peer, _ = await silent_channel(rig)
        async with await rig.visit():
            await until(lambda: channel.in_doubt)
            received = channel.received
            await peer.send_all(message(frame(CREDIT | 1, 77), masked=True))
            await until(lambda: channel.received > received)
            nonce = channel.pulse.nonce
            clock.pass_seconds(0.251)
            assert (channel.in_doubt, channel.is_suspect, channel.pulse.nonce) == (False, False, nonce)
        peer.close()


async def test_a_word_from_before_the_newest_stream_proves_nothing_for_that_one(poller):
    """A busy channel that falls silent: its doubt was about the visitor before, who was answered."""
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock = Clock(rig.server_engine)
        channel, peer, _ = await silent_channel(rig)
        async with await rig.visit():
            await until(lambda: channel.in_doubt)
            received = channel.received
            await peer.send_all(message(frame(CREDIT | 1, 77), masked=True))
            await until(lambda: channel.received > received)
            async with await rig.visit():
                await until(lambda: len(channel.inbound) == 2)
                clock.pass_seconds(0.251)
                assert (channel.in_doubt, channel.is_suspect) == (True, False)
                clock.pass_seconds(0.251)
                assert (channel.in_doubt, channel.is_suspect) == (False, True)
        peer.close()


async def test_when_no_channel_answers_any_more_the_session_is_told(poller):
    """B18: it alone can ask the client for others."""
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock, told = Clock(rig.server_engine), []
        first, one, _ = await silent_channel(rig)
        second, two, _ = await silent_channel(rig)
        rig.server.on_silent = lambda: told.append((first.is_suspect, second.is_suspect))
        async with await rig.visit():
            await until(lambda: first.in_doubt or second.in_doubt)
            for _ in range(2):
                clock.pass_seconds(0.251)
            assert told == []
            async with await rig.visit():
                await until(lambda: first.in_doubt or second.in_doubt)
                for _ in range(2):
                    clock.pass_seconds(0.251)
                assert told == [(True, True)]
        one.close()
        two.close()


async def test_suspect_channels_are_used_when_there_are_no_others(poller):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        channel, peer, reader = await silent_channel(rig)
        channel.is_suspect = True
        async with await rig.visit():
            await reader.until(lambda seen: ("open", 1, 0, 1) in seen)
        peer.close()


async def test_a_stream_does_not_flee_from_a_retiring_channel_to_a_suspect_one(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, _ = await rig.add_raw_channel(side="client")
        two, _ = await rig.add_raw_channel(side="client")
        first, second = rig.client.channels
        await one.send_all(message(open_frame(1), masked=False))
        await until(lambda: 1 in rig.client.streams)
        second.is_suspect = True
        rig.client.retire(first)
        reader = Reader(one, masked=True)
        await reader.until(lambda seen: ("retire",) in seen)
        assert rig.client.streams[1].channel is first
        await two.send_all(message(frame(CREDIT | 1, 77), masked=False))
        await reader.until(lambda seen: ("move", 1) in seen)
        assert rig.client.streams[1].channel is second
        one.close()
        two.close()


async def test_a_server_does_not_leave_a_channel_while_all_others_are_suspect(poller):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        first, one, reader = await silent_channel(rig)
        second, two, _ = await silent_channel(rig)
        second.is_suspect = True
        await one.send_all(message(frame(RETIRE, 0), masked=True))
        await until(lambda: first.is_retiring)
        async with await rig.visit():
            await reader.until(lambda seen: ("open", 1, 0, 1) in seen)
            assert "retire" not in kinds(reader)
            await two.send_all(message(frame(CREDIT | 1, 77), masked=True))
            await reader.until(lambda seen: kinds(reader).count("ping") >= 2)
            await answer(one, reader, masked=True)
            await reader.until(lambda seen: ("retire",) in seen)
            assert ("move", 1) in reader.seen
        one.close()
        two.close()


async def test_a_stream_that_came_by_move_puts_a_channel_in_doubt_too(poller):
    """A client opens nothing; this is how it learns."""
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, _ = await rig.add_raw_channel(side="client")
        two, _ = await rig.add_raw_channel(side="client")
        first, second = rig.client.channels
        await one.send_all(message(open_frame(1), frame(MOVE, 1), masked=False))
        await until(lambda: 1 in rig.client.streams)
        rig.client.retire(first)
        assert second.in_doubt
        one.close()
        two.close()


async def test_when_a_channel_is_suspect_the_others_of_its_place_are_asked(poller):
    async with open_rig(poller, channels=0, keeps_time=False) as rig:
        clock = Clock(rig.server_engine)
        channel, peer, _ = await silent_channel(rig)
        await rig.add_channel()
        await rig.add_channel("elsewhere")
        sibling, other = rig.server.channels[1:]
        await sibling.wait_proven()
        await other.wait_proven()
        async with await rig.visit():
            await until(lambda: channel.users == 1)
            asked = [one.pulse.nonce for one in (sibling, other)]
            clock.pass_seconds(0.251)
            clock.pass_seconds(0.251)
            assert channel.is_suspect
            clock.pass_seconds(0.251)
            await until(lambda: not sibling.pulse.is_asking)
            assert [one.pulse.nonce for one in (sibling, other)] == [asked[0] + 1, asked[1]]
            clock.pass_seconds(0.251)
            assert (sibling.in_doubt, sibling.is_suspect) == (False, False)
        peer.close()
