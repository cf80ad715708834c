"""Far away a lost packet shows soon only if another one follows it."""

import pytest
from relay_rig import POLLERS, open_rig, read_exactly
from test_relay_law import Reader

from tunnel.relay import channel as channel_module
from tunnel.relay.channel import FAR_SECONDS, FOLLOWERS


@pytest.fixture(params=POLLERS)
def poller(request):
    return request.param


def followers(seen):
    return [what for what in seen if what == ("pong", b"")]


async def opened(rig, peer):
    """The one channel of the server has sent an OPEN, and nothing after it."""
    reader = Reader(peer, masked=False)
    visitor = await rig.visit()
    await reader.until(lambda seen: any(what[0] == "open" for what in seen))
    return reader, visitor


async def test_what_nothing_follows_is_followed_by_a_few_bytes_that_mean_nothing(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        engine, channel = rig.server_engine, rig.server.channels[0]
        channel.round_trip = FAR_SECONDS
        reader, visitor = await opened(rig, peer)
        assert engine.unfollowed == {channel}
        engine._follow_up()
        await reader.until(lambda seen: len(followers(seen)) == FOLLOWERS)
        assert engine.unfollowed == set()
        await visitor.aclose()
        peer.close()


async def test_nothing_follows_where_tcp_has_little_room_left_for_what_comes_next(poller, monkeypatch):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        channel = rig.server.channels[0]
        channel.round_trip = FAR_SECONDS
        reader, visitor = await opened(rig, peer)
        monkeypatch.setattr(channel_module, "has_room_for", lambda sock, packets: False)
        rig.server_engine._follow_up()
        channel.ping()
        rig.server_engine.wake()
        await reader.until(lambda seen: sum(what[0] == "ping" for what in seen) == 2)
        assert followers(reader.seen) == []
        await visitor.aclose()
        peer.close()


async def test_near_by_nothing_follows(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        channel = rig.server.channels[0]
        channel.round_trip = FAR_SECONDS * 0.99
        reader, visitor = await opened(rig, peer)
        assert rig.server_engine.unfollowed == set()
        assert followers(reader.seen) == []
        await visitor.aclose()
        peer.close()


async def test_a_channel_that_has_ended_is_not_followed_up(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        channel = rig.server.channels[0]
        channel.round_trip = FAR_SECONDS
        _, visitor = await opened(rig, peer)
        channel.close()
        assert rig.server_engine.unfollowed == set()
        await visitor.aclose()
        peer.close()


async def test_followers_harm_nobody(poller):
    async with open_rig(poller) as rig, await rig.visit() as visitor:
        await visitor.send_all(b"ping")
        assert await read_exactly(visitor, 4) == b"ping"
        for session in (rig.server, rig.client):
            session.channels[0].follow_up()
        await visitor.send_all(b"pong")
        assert await read_exactly(visitor, 4) == b"pong"
        assert rig.server_engine.errors == rig.client_engine.errors == 0
