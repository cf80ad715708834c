"""Channels to several addresses of the server: visitors are spread over them, bulk has channels of its own at each."""

import pytest
from relay_rig import POLLERS, open_rig, read_exactly, until

from tunnel.relay.channel import COLD_SECONDS, FAR_SECONDS, WARM_BYTES


@pytest.fixture(params=POLLERS)
def poller(request):
    return request.param


async def ping(visitor):
    await visitor.send_all(b"ping")
    assert await read_exactly(visitor, 4) == b"ping"


async def proven(rig, *places):
    for place in places:
        await rig.add_channel(place)
    for channel in (*rig.server.channels, *rig.client.channels):
        await channel.wait_proven()


async def visitors(rig, count):
    here = [await rig.visit() for _ in range(count)]
    for visitor in here:
        await ping(visitor)
    return here


async def test_at_one_place_visitors_share_the_first_channel(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "a", "a")
        rig.server.channels[0].round_trip = FAR_SECONDS / 10  # whatever a busy machine has measured
        here = await visitors(rig, 6)
        assert [channel.users for channel in rig.server.channels] == [6, 0, 0]
        for visitor in here:
            await visitor.aclose()


async def test_far_away_visitors_are_spread_until_the_first_channel_is_warm(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "a", "a")
        lead, *others = rig.server.channels
        lead.round_trip = FAR_SECONDS
        crowd = await visitors(rig, 6)
        assert [channel.users for channel in rig.server.channels] == [2, 2, 2]
        lead.received += WARM_BYTES
        crowd += await visitors(rig, 3)
        assert [channel.users for channel in rig.server.channels] == [5, 2, 2]
        lead._picked_at -= COLD_SECONDS + 1  # silent since: the next crowd is spread again
        crowd += await visitors(rig, 6)
        assert [channel.users for channel in rig.server.channels] == [5, 5, 5]
        others[0].become_bulk_lane()
        crowd += await visitors(rig, 3)
        assert [channel.users for channel in rig.server.channels] == [7, 5, 6]
        for visitor in crowd:
            await visitor.aclose()


async def test_near_by_the_first_channel_leads_though_it_is_cold(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "a", "a")
        rig.server.channels[0].round_trip = FAR_SECONDS * 0.99
        crowd = await visitors(rig, 6)
        assert [channel.users for channel in rig.server.channels] == [6, 0, 0]
        for visitor in crowd:
            await visitor.aclose()


async def test_over_several_places_each_gets_the_visitor_who_finds_it_least_used_on_its_first_channel(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "a", "b", "c", "b")
        here = await visitors(rig, 7)
        assert [channel.users for channel in rig.server.channels] == [3, 0, 2, 2, 0]
        for visitor in here:
            await visitor.aclose()


async def test_a_place_that_is_lost_takes_its_own_visitors_only(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "b", "c")
        here = await visitors(rig, 6)
        rig.server.channels[0].lost("cut")
        rig.server_engine.wake()
        await until(lambda: len(rig.client.channels) == 2)
        assert len(rig.server.streams) == 4
        for visitor in (here[1], here[2], here[4], here[5]):
            await ping(visitor)
        more = await visitors(rig, 2)
        assert [channel.users for channel in rig.server.channels] == [3, 3]
        for visitor in (*here, *more):
            await visitor.aclose()


async def test_bulk_leaves_a_places_first_channel_for_one_that_leads_nowhere(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "b", "b")
        async with await rig.visit() as visitor:
            await ping(visitor)
            stream = rig.server.streams[1]
            first, second, bulk = rig.server.channels
            assert stream.channel is first
            await until(lambda: rig.server.moving.make_room(stream))  # a round trip later: its OPEN must have been seen
            assert stream.channel is bulk
            assert not rig.server.moving.make_room(stream), "it is where bulk belongs"
            await ping(visitor)
        async with await rig.visit() as visitor:
            await ping(visitor)
            assert rig.server.streams[2].channel in (first, second)


async def test_where_every_channel_leads_bulk_stays(poller):
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "b")
        async with await rig.visit() as visitor:
            await ping(visitor)
            await rig.server.channels[0].echo()
            assert not rig.server.moving.make_room(rig.server.streams[1])


async def test_a_place_with_a_silent_channel_gets_no_visitor_on_its_others_while_there_is_another_place(poller):
    """What is silent is an address more often than a channel, and each would have to be found out by visitors."""
    async with open_rig(poller, channels=0) as rig:
        await proven(rig, "a", "a", "b")
        silent, sibling, other = rig.server.channels
        silent.is_suspect = True
        rig.server.judge_places()
        here = await visitors(rig, 2)
        assert [channel.users for channel in rig.server.channels] == [0, 0, 2]
        other.is_suspect = True
        rig.server.judge_places()
        here += await visitors(rig, 1)
        assert sibling.users == 1
        silent.ping()
        rig.server_engine.wake()
        await until(lambda: not silent.is_suspect)
        here += await visitors(rig, 1)
        assert silent.users == 1
        for visitor in here:
            await visitor.aclose()
