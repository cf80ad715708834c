"""What a peer may not do on a data channel ends that channel, and nothing else."""

import time

import pytest
import trio
from relay_rig import (
    POLLERS,
    SilentRoute,
    connected_pair,
    contexts,
    open_rig,
    read_exactly,
    saw_reset,
    until,
)

from tunnel.frames import CLOSE as WS_CLOSE
from tunnel.frames import (
    CREDIT,
    DATA,
    FIN,
    FIRST_WINDOW,
    FRAME,
    OPEN,
    OPEN_PAYLOAD,
    RST,
    WS_ROOM,
    Abort,
    control_message,
    put_message_head,
)
from tunnel.frames import PING as WS_PING
from tunnel.tls import TlsStream

pytestmark = pytest.mark.parametrize("poller", POLLERS)


def frame(word, sid, payload=b""):
    return FRAME.pack(word, sid) + payload


def open_frame(sid, index=0, version=1):
    return frame(OPEN | 8, sid, OPEN_PAYLOAD.pack(index, version))


def message(*frames, masked):
    body = b"".join(frames)
    head = bytearray(WS_ROOM)
    at = put_message_head(head, len(body), masked=masked)
    return bytes(head[at:]) + body


class Reader:
    """Collects the frames our raw end of a channel is sent (WebSocket heads stripped, pings left out)."""

    def __init__(self, peer, *, masked):
        from tunnel.frames import FrameReader

        self.peer = peer
        self.seen = []
        self._reader = FrameReader(self, lambda sid: _Sink(self.seen, sid), masked=masked)

    async def until(self, condition):
        with trio.fail_after(30):
            while not condition(self.seen):
                self._reader.feed(memoryview(bytearray(await self.peer.receive_some())))

    def on_stray(self, sid, data):
        self.seen.append(("data", sid, bytes(data)))

    def __getattr__(self, name):
        return lambda *args: self.seen.append((name.removeprefix("on_"), *args))


class _Sink:
    def __init__(self, seen, sid):
        self.seen, self.sid = seen, sid

    def deliver(self, data):
        self.seen.append(("data", self.sid, bytes(data)))


CLIENT_CRIMES = {
    "OPEN from a client": [open_frame(1)],
    "an unknown kind of frame": [frame(99 << 24, 1)],
    "DATA beyond credit": [
        frame(DATA | FIRST_WINDOW, 1, bytes(FIRST_WINDOW)),
        frame(DATA | FIRST_WINDOW, 1, bytes(FIRST_WINDOW)),
    ]
    * 70,
    "DATA after FIN": [frame(FIN, 1), frame(DATA | 1, 1, b"x")],
    "a second FIN": [frame(FIN, 1), frame(FIN, 1)],
}


@pytest.mark.parametrize("crime", CLIENT_CRIMES)
async def test_a_client_that_breaks_the_law_loses_the_channel(poller, crime):
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await until(lambda: 1 in rig.server.streams)
            with trio.move_on_after(5):
                try:
                    await peer.send_all(message(*CLIENT_CRIMES[crime], masked=True))
                except trio.BrokenResourceError:
                    pass
            await until(lambda: len(lost) == 1, 5)
            assert lost[0].startswith("protocol error: ")
            if "FIN" not in crime:
                assert await saw_reset(visitor)
        await until(lambda: rig.server.streams == {})
        peer.close()
        await rig.add_channel()
        async with await rig.visit() as visitor:
            await visitor.send_all(b"next")
            assert await read_exactly(visitor, 4) == b"next"


async def test_text_and_unmasked_messages_from_a_client_are_refused(poller):
    async with open_rig(poller, channels=0) as rig:
        for raw in (
            message(frame(CREDIT | 1, 1), masked=False),
            b"\x81\x82\0\0\0\0hi",
            b"\xf2\x80\0\0\0\0",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            peer, lost = await rig.add_raw_channel()
            await peer.send_all(raw)
            await until(lambda lost=lost: len(lost) == 1)
            assert lost[0].startswith("protocol error: ")
            peer.close()


async def test_frames_for_streams_that_are_gone_are_ignored(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        gone = [
            frame(DATA | 3, 7, b"abc"),
            frame(CREDIT | 9, 7),
            frame(FIN, 7),
            frame(FIN, 7),
            frame(RST | 1, 7),
            frame(RST | 200, 8),
        ]
        await peer.send_all(message(*gone, masked=True) + control_message(WS_PING, b"still there?", masked=True))
        reader = Reader(peer, masked=False)
        await reader.until(lambda seen: ("pong", b"still there?") in seen)
        assert lost == []
        assert rig.tally.refused == {}
        peer.close()
        await until(lambda: len(lost) == 1)


async def test_a_reset_with_a_later_versions_reason_is_a_reset(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, _ = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await until(lambda: 1 in rig.server.streams)
            await peer.send_all(message(frame(RST | 77, 1), masked=True))
            assert await saw_reset(visitor)
        assert rig.tally.refused == {}
        peer.close()


async def test_an_empty_data_frame_means_nothing(poller):
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        async with await rig.visit() as visitor:
            await until(lambda: 1 in rig.server.streams)
            empty = frame(DATA, 1)
            await peer.send_all(message(*[empty] * 1000, frame(DATA | 1, 1, b"x"), empty, masked=True))
            assert await read_exactly(visitor, 1) == b"x"
            assert lost == []
        peer.close()


async def test_open_of_an_unknown_proxy_or_set_is_answered_with_its_reason(poller):
    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        rig.client._route = lambda index, version: route if (index, version) == (0, 1) else None
        peer, lost = await rig.add_raw_channel(side="client")
        await peer.send_all(message(open_frame(1, 5, 1), open_frame(2, 0, 9), open_frame(3, 0, 1), masked=False))
        reader = Reader(peer, masked=True)
        await reader.until(lambda seen: ("rst", 2, Abort.UNKNOWN_PROXY) in seen)
        assert ("rst", 1, Abort.UNKNOWN_PROXY) in reader.seen
        assert list(rig.client.streams) == [3]
        assert lost == []
        peer.close()


async def test_a_second_open_of_a_living_stream_is_a_protocol_error(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        await peer.send_all(message(open_frame(1), open_frame(1), masked=False))
        await until(lambda: len(lost) == 1)
        assert lost[0].startswith("protocol error: OPEN of stream 1")
        peer.close()


async def test_what_follows_a_close_in_the_same_record_opens_nothing(poller):
    async with open_rig(poller, SilentRoute(), channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        close = control_message(WS_CLOSE, b"", masked=False)
        await peer.send_all(message(open_frame(1), masked=False) + close + message(open_frame(2), masked=False))
        await until(lambda: len(lost) == 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.client.streams == {}
        assert len(rig.route.streams) == 1
        peer.close()


async def test_a_server_that_opens_without_reading_cannot_fill_the_clients_memory(poller, monkeypatch):
    """Each OPEN of an unknown proxy wants an answer; a server that takes none must be cut at a bound."""
    import tunnel.relay.session as session_module

    monkeypatch.setattr(session_module, "MAX_SMALL_BYTES", 100_000)
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel(side="client")
        flood = message(*(open_frame(sid, 9, 9) for sid in range(1, 4001)), masked=False)
        with trio.fail_after(30):
            try:
                while not lost:
                    await peer.send_all(flood)
            except trio.BrokenResourceError:
                pass
            await until(lambda: len(lost) == 1)
        assert lost == ["protocol error: it asks and does not read the answers"]
        peer.close()


async def test_more_small_frames_than_a_batch_holds_keep_their_order(poller):
    """An OPEN that waits for room must not be overtaken by its stream's RST: the far stream would never end."""
    count = 12_000  # 24 bytes each
    async with open_rig(poller, channels=0) as rig:
        peer, lost = await rig.add_raw_channel()
        reader = Reader(peer, masked=False)
        (channel,) = rig.server.channels
        for sid in range(1, count + 1):
            channel.put_open(sid, 0, 1)
        for sid in range(1, count + 1):
            channel.put(RST, sid)
        rig.server_engine.wake()
        await reader.until(lambda seen: ("rst", count, 0) in seen[-3:])
        frames = [what for what in reader.seen if what[0] in ("open", "rst")]
        assert frames == [
            *(("open", sid, 0, 1) for sid in range(1, count + 1)),
            *(("rst", sid, 0) for sid in range(1, count + 1)),
        ]
        assert lost == []
        peer.close()


async def test_frames_already_in_the_tls_buffers_are_handled_without_another_byte(poller):
    """The gate read more from the kernel than it decrypted: no edge will tell of that."""
    server_context, client_context = contexts()
    ours, theirs = connected_pair()
    server = TlsStream(ours, server_context, server_side=True)
    client = TlsStream(theirs, client_context, server_side=False, server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    await server.send_all(b"first record")
    server._tls.write(message(open_frame(5), masked=False))
    await server.send_all(b"")
    assert await client.receive_some(5) == b"first"
    route = SilentRoute()
    async with open_rig(poller, route, channels=0) as rig:
        # What the gate would push back:
        while client._incoming.pending == 0:
            client._incoming.write(client.socket.recv(65536))
        from relay_rig import Lost

        client._tls.read(100)
        rig.client.add_channel(client.detach(), masks=True, on_lost=Lost())
        assert list(rig.client.streams) == [5]
        server.close()


class Clock:
    """Moves an engine's time on, real time included."""

    def __init__(self, engine):
        self.ahead = 0.0
        self._engine = engine
        engine.now = lambda: time.monotonic() + self.ahead

    def pass_seconds(self, seconds):
        self.ahead += seconds
        self._engine.expire(self._engine.now())


async def test_a_channel_that_never_answers_pings_is_lost(poller):
    async with open_rig(poller, channels=0) as rig:
        engine = rig.server_engine
        before = engine.now()
        peer, lost = await rig.add_raw_channel()
        (channel,) = rig.server.channels
        await until(lambda: channel.sent > 0)
        engine.expire(before + 9.9)
        assert lost == []
        engine.expire(engine.now() + 10.1)
        assert lost == ["no sign of life"]
        peer.close()


async def test_a_channel_that_goes_on_talking_is_alive_whatever_its_pongs_do(poller):
    """On a slow link a pong may stand behind megabytes; bytes that arrive are sign of life enough."""
    async with open_rig(poller, channels=0) as rig:
        clock = Clock(rig.server_engine)
        peer, lost = await rig.add_raw_channel()
        (channel,) = rig.server.channels
        for _ in range(8):
            before = channel.received
            await peer.send_all(message(frame(CREDIT | 1, 99), masked=True))
            await until(lambda before=before: channel.received > before)
            clock.pass_seconds(7)  # and three more in which the machine may stand still
            assert lost == []
        clock.pass_seconds(11)
        clock.pass_seconds(11)
        assert lost == ["no sign of life"]
        peer.close()


async def test_an_answered_channel_is_asked_again(poller):
    async with open_rig(poller, channels=0) as rig:
        clock = Clock(rig.server_engine)
        peer, lost = await rig.add_raw_channel()
        reader = Reader(peer, masked=False)
        for count in (1, 2, 3):
            await reader.until(lambda seen, count=count: [what[0] for what in seen].count("ping") == count)
            nonce = [what for what in reader.seen if what[0] == "ping"][-1][1]
            assert len(rig.server_engine.pongs) == 1
            await peer.send_all(control_message(10, nonce, masked=True))
            await until(lambda: len(rig.server_engine.pongs) == 0)
            clock.pass_seconds(20.1)
        assert lost == []
        peer.close()
