"""B31: what a relay has counted stays counted when the streams, channels and sessions that made it are gone."""

import pytest
import trio
from relay_rig import POLLERS, SilentRoute, echo, open_rig, read_exactly, read_to_end, reset_now, saw_reset, until

from tunnel.frames import Abort
from tunnel.relay import Stream
from tunnel.relay.ledger import read_meters
from tunnel.relay.stream import Unanswered

pytestmark = pytest.mark.parametrize("poller", POLLERS)


async def test_bytes_and_visitors_grow_while_they_come_and_stay_when_all_is_gone(poller):
    async with open_rig(poller) as rig:
        async with await rig.visit() as visitor:
            await visitor.send_all(bytes(100_000))
            assert await read_exactly(visitor, 100_000)
            during = read_meters(rig.server_engine)
            assert (during.visitors, during.visitors_total, during.read) == (1, 1, 100_000)
            assert during.buffer_bytes >= 64 * 1024
            await visitor.send_eof()
            assert await read_to_end(visitor) == b""
        await until(lambda: not rig.server.streams and not rig.client.streams)
    for engine in rig.engines:  # the sessions have ended, too
        after = read_meters(engine)
        assert (after.visitors, after.visitors_total, after.read, after.written) == (0, 1, 100_000, 100_000)
        assert after.buffer_bytes == 0
        assert after.channels == {"open": 0, "suspect": 0, "retiring": 0}
        assert (after.channels_opened, sum(after.channels_ended.values())) == (1, 1)
        assert not any(after.refused.values())


async def test_each_visitor_is_timed_once_however_many_frames_it_gets(poller):
    async with open_rig(poller) as rig:
        for _ in range(3):
            async with await rig.visit() as visitor:
                for _ in range(5):
                    await visitor.send_all(b"x")
                    assert await read_exactly(visitor, 1) == b"x"
        await until(lambda: not rig.server.streams)
        server, client = (read_meters(engine) for engine in rig.engines)
    assert server.first_bytes.buckets[-1][1] == 3
    assert client.dials.buckets[-1][1] == 3
    assert 0 < server.first_bytes.sum < 30
    assert server.dials.sum == client.first_bytes.sum == 0  # each counts at the one side alone


async def test_a_visitor_that_was_answered_is_a_stream_like_any_other(poller):
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        await until(lambda: bool(rig.server.streams))
        (stream,) = rig.server.streams.values()
        assert type(stream) is Unanswered
        stream.deliver(memoryview(b""))  # the greeting of a stream that moved is no answer
        assert type(stream) is Unanswered
        await visitor.send_all(b"x")
        assert await read_exactly(visitor, 1) == b"x"
        assert type(stream) is Stream


async def test_who_was_never_answered_counts_in_no_histogram_and_with_the_reason(poller):
    route = SilentRoute()
    route.dial = lambda stream: stream.refuse(Abort.TARGET_DOWN)
    async with open_rig(poller, route) as rig:
        async with await rig.visit() as visitor:
            assert await saw_reset(visitor, within=5)
        for engine in rig.engines:
            meters = read_meters(engine)
            assert {reason: n for reason, n in meters.refused.items() if n} == {"target_down": 1}
            assert not any(meters.cut.values())  # it was refused, and is not counted twice
            assert meters.first_bytes.buckets[-1][1] == meters.dials.buckets[-1][1] == 0


async def test_a_reset_of_a_served_visitor_is_a_cut_on_both_sides(poller):
    async with open_rig(poller, echo) as rig:
        visitor = await rig.visit()
        await visitor.send_all(b"x")
        assert await read_exactly(visitor, 1) == b"x"
        reset_now(visitor)
        await until(lambda: not rig.server.streams and not rig.client.streams)
        for engine in rig.engines:
            assert {reason: n for reason, n in read_meters(engine).cut.items() if n} == {"reset": 1}


async def test_a_channel_that_breaks_is_lost_and_its_visitors_are_cut_for_that(poller):
    async with open_rig(poller) as rig:
        raw, _lost = await rig.add_raw_channel(side="server")
        rig.client.channels[0].close()
        await until(lambda: len(rig.server.channels) == 1)
        async with await rig.visit() as visitor:
            with trio.fail_after(30):
                await raw.receive_some(1)
            raw.abort()
            assert await saw_reset(visitor, within=30)
        meters = read_meters(rig.server_engine)
        assert meters.channels_ended == {"retired": 0, "closed": 1, "lost": 1}
        assert meters.cut["channel_lost"] == 1
