"""A peer with every right to be here that means harm: what it moves, holds back and forges costs itself alone."""

from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import POLLERS, Lost, SilentRoute, open_rig, tls_pair, until
from test_relay_law import Reader, frame, message, open_frame
from test_relay_retire import kinds, ping, proven

import tunnel.relay.moving as moving_module
from tunnel.frames import (
    CREDIT,
    DATA,
    FIN,
    FIRST_WINDOW,
    MOVE,
    PING,
    PONG,
    RETIRE,
    RST,
    control_message,
)

pytestmark = pytest.mark.parametrize("poller", POLLERS)


# Memory


async def two_ways_in(rig):
    """A stream that was opened on the first of two channels of the client, and both channels' far ends."""
    (one, lost_one), (two, lost_two) = [await rig.add_raw_channel(side="client") for _ in range(2)]
    await one.send_all(message(open_frame(1), masked=False))
    await until(lambda: 1 in rig.client.streams)
    return one, two, lost_one, lost_two


async def test_what_waits_for_its_move_and_what_the_target_has_not_taken_share_one_window(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, two, lost_one, lost_two = await two_ways_in(rig)
        stream = rig.client.streams[1]
        await two.send_all(message(frame(DATA | 40_000, 1, bytes(40_000)), masked=False))
        await until(lambda: stream.strays is not None and len(stream.strays.data) == 40_000)
        rest = FIRST_WINDOW - 40_000
        await one.send_all(message(frame(DATA | rest, 1, bytes(rest)), masked=False))
        await until(lambda: stream.held_size == rest)
        assert (lost_one, lost_two) == ([], [])
        await one.send_all(message(frame(DATA | 1, 1, b"x"), masked=False))
        await until(lambda: len(lost_one) == 1)
        assert lost_one[0].startswith("protocol error: DATA beyond the credit")
        assert (lost_two, rig.client.streams) == ([], {})
        one.close()
        two.close()


async def test_what_waits_for_its_move_is_granted_when_it_is_delivered_and_not_before(poller):
    async with open_rig(poller, channels=0) as rig:
        one, two, lost_one, lost_two = await two_ways_in(rig)
        stream = rig.client.streams[1]
        await until(lambda: stream.held is None)
        await two.send_all(message(frame(DATA | 60_000, 1, bytes(60_000)), masked=False))
        await until(lambda: stream.strays is not None and len(stream.strays.data) == 60_000)
        await one.send_all(message(frame(DATA | 5_000, 1, bytes(5_000)), masked=False))
        await until(lambda: stream.bytes_written == 5_000)
        assert stream.allowance == FIRST_WINDOW - 65_000
        await one.send_all(message(frame(MOVE, 1), masked=False))
        reader = Reader(one, masked=True)
        await reader.until(lambda seen: "credit" in kinds(reader))
        assert [what for what in reader.seen if what[0] == "credit"] == [("credit", 1, 65_000)]
        assert (stream.bytes_written, lost_one, lost_two) == (65_000, [], [])
        one.close()
        two.close()


async def test_what_waits_is_not_delivered_by_a_move_after_the_end(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        one, two, lost_one, _ = await two_ways_in(rig)
        stream = rig.client.streams[1]
        await two.send_all(message(frame(DATA | 1, 1, b"x"), masked=False))
        await until(lambda: stream.strays is not None)
        await one.send_all(message(frame(FIN, 1), frame(MOVE, 1), masked=False))
        await until(lambda: len(lost_one) == 1)
        assert lost_one[0].startswith("protocol error: DATA beyond the credit, or the FIN")
        assert rig.client.streams == {}
        one.close()
        two.close()


async def test_who_leaves_is_forgotten_by_a_channel_whose_pong_never_comes(poller):
    """As long as it says something it lives, so it must not gather what has gone."""
    async with open_rig(poller, channels=0) as rig:
        one, _ = await rig.add_raw_channel()
        (channel,) = rig.server.channels
        visitors = [await rig.visit() for _ in range(5)]
        await until(lambda: len(rig.server.streams) == 5)
        two, _ = await rig.add_raw_channel()
        await one.send_all(message(frame(RETIRE, 0), masked=True))
        await until(lambda: len(channel.departing) == 5)
        await one.send_all(message(*(frame(RST, sid) for sid in range(1, 6)), masked=True))
        await until(lambda: rig.server.streams == {})
        assert (channel.departing, channel.leaving, channel.alive) == (set(), set(), True)
        for stream in (*visitors, one, two):
            stream.close() if stream in (one, two) else await stream.aclose()


async def test_a_channel_that_was_left_forgets_who_is_gone_too(poller):
    """The one whose MOVE it never answered waits elsewhere."""
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        peers = [(await rig.add_raw_channel(side="client"))[0] for _ in range(3)]
        first, second, _ = rig.client.channels
        await peers[0].send_all(message(open_frame(1), masked=False))
        await until(lambda: 1 in rig.client.streams)
        rig.client.retire(first)
        rig.client.retire(second)
        stream = rig.client.streams[1]
        assert (stream.channel, first.departing, second.departing) == (second, {stream}, {stream})
        await peers[2].send_all(message(frame(RST, 1), masked=False))
        await until(lambda: rig.client.streams == {})
        assert (first.departing, second.departing, second.leaving) == (set(), set(), set())
        for peer in peers:
            peer.close()


# Work


async def test_who_waits_for_a_pong_is_not_asked_again_by_every_channel_that_wakes_up(poller, monkeypatch):
    asked = []
    unknown = moving_module._unknown
    monkeypatch.setattr(moving_module, "_unknown", lambda stream: asked.append(stream.sid) or unknown(stream))
    async with open_rig(poller, channels=0) as rig:
        one, _ = await rig.add_raw_channel()
        visitors = [await rig.visit() for _ in range(5)]
        await until(lambda: len(rig.server.streams) == 5)
        others = [(await rig.add_raw_channel())[0] for _ in range(3)]
        await one.send_all(message(frame(RETIRE, 0), masked=True))
        retiring, *rest = rig.server.channels
        await until(lambda: len(retiring.departing) == 5)
        assert sorted(asked) == [1, 2, 3, 4, 5]
        for channel, other in zip(rest[1:], others[1:], strict=True):
            channel.is_suspect = True
            await other.send_all(message(frame(CREDIT | 1, 99), masked=True))
            await until(lambda channel=channel: not channel.is_suspect)
        assert len(asked) == 5
        for visitor in visitors:
            await visitor.aclose()
        for peer in (one, *others):
            peer.close()


async def test_those_of_a_place_that_is_left_spread_over_the_others(poller):
    async with open_rig(poller, channels=0) as rig:
        for place in ("a", "b", "c"):
            await rig.add_channel(place)
        await proven(rig)
        visitors = [await rig.visit() for _ in range(12)]
        for visitor in visitors:
            await ping(visitor)
        first = rig.client.channels[0]
        assert [channel.users for channel in rig.client.channels] == [4, 4, 4]
        rig.client.retire(first)
        await until(lambda: rig.lost[0] == (["retired"], ["retired"]))
        for visitor in visitors:
            await ping(visitor)
        for session in (rig.server, rig.client):
            assert Counter(stream.channel for stream in session.streams.values()) == dict.fromkeys(session.channels, 6)
        for visitor in visitors:
            await visitor.aclose()


async def test_bulk_that_leaves_a_channel_spreads_over_those_where_bulk_belongs(poller):
    async with open_rig(poller, channels=4) as rig:
        await proven(rig)
        visitors = [await rig.visit() for _ in range(6)]
        for visitor in visitors:
            await ping(visitor)
        for stream in rig.server.streams.values():
            stream.is_bulk = True
        rig.client.retire(rig.client.channels[0])
        await until(lambda: rig.lost[0] == (["retired"], ["retired"]))
        lead, *others = rig.server.channels
        assert Counter(stream.channel for stream in rig.server.streams.values()) == dict.fromkeys(others, 3)
        await until(lambda: lead.users == 6)  # the client's are no bulk
        for visitor in visitors:
            await ping(visitor)
            await visitor.aclose()


# Whatever it says


SIDS = st.integers(1, 4)
BYTES = st.sampled_from([0, 1, 700, 40_000])
WORDS = st.one_of(
    st.tuples(st.just("data"), SIDS, BYTES),
    st.tuples(st.just("data"), SIDS, BYTES),
    st.tuples(st.sampled_from(["fin", "move", "rst", "open"]), SIDS),
    st.tuples(st.just("credit"), SIDS, st.sampled_from([0, 1, 50_000, 0xFFFFFF])),
    st.tuples(st.just("retire")),
    st.tuples(st.just("pong"), st.integers(0, 4)),
    st.tuples(st.just("ping")),
)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 3), st.lists(WORDS, min_size=1, max_size=8)),
        st.tuples(st.just("say"), st.integers(0, 3), st.lists(WORDS, min_size=1, max_size=8)),
        st.tuples(st.just("add")),
        st.tuples(st.sampled_from(["close", "break", "retire", "suspect"]), st.integers(0, 3)),
        st.tuples(st.just("rest")),
    ),
    max_size=20,
)


def spoken(word, *, masked):
    kind, *numbers = word
    if kind == "pong":
        return control_message(PONG, numbers[0].to_bytes(8, "big"), masked=masked)
    if kind == "ping":
        return control_message(PING, b"?", masked=masked)
    if kind == "retire":
        return message(frame(RETIRE, 0), masked=masked)
    if kind == "open":
        return message(open_frame(numbers[0]), masked=masked)
    if kind == "data":
        return message(frame(DATA | numbers[1], numbers[0], bytes(numbers[1])), masked=masked)
    if kind == "credit":
        return message(frame(CREDIT | numbers[1], numbers[0]), masked=masked)
    return message(frame({"fin": FIN, "move": MOVE, "rst": RST}[kind], numbers[0]), masked=masked)


class Hostile:
    """The far ends of one session's channels, with nobody's law to keep."""

    def __init__(self, rig, side):
        self.rig, self.side = rig, side
        self.masked = side == "server"  # then it plays a client
        self.session = getattr(rig, side)
        self.peers = []
        self.lost = []

    async def add(self):
        peer, lost = await self.rig.add_raw_channel(side=self.side)
        self.peers.append(peer)
        self.lost.append(lost)

    async def act(self, verb, *rest):
        if verb == "add":
            if len(self.session.channels) < 5:
                await self.add()
        elif verb == "rest":
            await trio.sleep(0.002)
        elif verb in ("retire", "suspect"):
            if rest[0] < len(self.session.channels):
                channel = self.session.channels[rest[0]]
                if verb == "suspect":
                    channel.is_suspect = True
                elif self.side == "client":
                    self.session.retire(channel)
        else:
            await self._use(self.peers[rest[0] % len(self.peers)], verb, *rest[1:])

    async def _use(self, peer, verb, words=()):
        try:
            if verb == "close":
                await peer.send_all(control_message(8, b"", masked=self.masked))
            elif verb == "break":
                peer.abort()
            else:
                await peer.send_all(b"".join(spoken(word, masked=self.masked) for word in words))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def check(self):
        """The tables agree with each other, and nothing is held beyond its bound."""
        alive = set(self.session.streams.values())
        for channel in self.session.channels:
            assert channel.alive
            assert channel.leaving <= alive
            assert channel.departing <= alive
            assert all(stream.channel is channel for stream in channel.leaving)
            assert all(stream.source is channel for stream in channel.inbound.values())
            assert set(channel.inbound.values()) <= alive
        for stream in alive:
            waiting = len(stream.strays.data) if stream.strays is not None else 0
            assert stream.held_size + waiting <= stream.window
            assert stream.channel is None or stream.channel.alive
            assert stream.source is None or stream.source.alive
            assert stream.left is None or stream.left.alive
        assert not any(why.startswith("internal error") for lost in self.lost for why in lost)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client"])
@given(acts=ACTS)
@settings(max_examples=40, deadline=None)
async def test_whatever_a_hostile_peer_says_its_tables_stay_whole_and_others_do_not_notice(poller, side, acts):
    async with open_rig(poller, channels=0) as rig:
        honest = rig.server_engine.attach(), rig.client_engine.attach(route=lambda index, version: rig.route)
        with honest[0], honest[1]:
            ours, theirs = await tls_pair()
            unhurt = Lost()
            honest[0].add_channel(ours.detach(), masks=False, on_lost=unhurt)
            honest[1].add_channel(theirs.detach(), masks=True, on_lost=unhurt)
            hostile = Hostile(rig, side)
            await hostile.add()
            visitors = [await rig.visit() for _ in range(3)] if side == "server" else []
            for act in acts:
                await hostile.act(*act)
                hostile.check()
            await trio.sleep(0.002)
            hostile.check()
            for session in honest:
                await session.channels[0].echo()
            assert unhurt == []
            for visitor in visitors:
                await visitor.aclose()
            for peer in hostile.peers:
                peer.abort()
            await until(lambda: hostile.session.channels == [])
            hostile.check()
            if side == "server":
                await until(lambda: len(rig.server.streams) == len(rig.server._waiting))
