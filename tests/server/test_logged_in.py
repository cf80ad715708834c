"""What a client with a good token may not do to others: hand-made messages, frames and floods after its login."""

import json
import random
import socket
import time
from contextlib import suppress

import pytest
import trio
from attrs import evolve
from gate_rig import (
    PATIENT,
    open_house,
    receive,
    request,
    to_end,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import PortRange
from tunnel.config import Grant, Limits
from tunnel.errors import PeerLost, Refused
from tunnel.frames import FIN, FRAME, WS_ROOM, control_message, put_message_head
from tunnel.messages import (
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    ProxySet,
    ProxySpec,
    ProxyStatusUpdate,
    Reason,
    RetryProxy,
    Status,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
    encode,
)


@pytest.mark.parametrize("seed", range(3))
async def test_random_bytes_after_a_good_login_end_that_session_only(files, seed):
    async with open_house(files) as house:
        stream = await house.tls()
        await stream.send_all(request())
        await stream.receive_some()
        with trio.fail_after(30):
            try:
                await stream.send_all(random.Random(seed).randbytes(5000))
            except trio.BrokenResourceError:
                pass
            await to_end(stream)
        stream.close()


SPEC = ProxySpec("p", "127.0.0.1", 0)
UPDATE = ProxyStatusUpdate("p", "healthy", None, None, 1, None, 0, None, "127.0.0.1", 1, "")
WRONG_AT_FIRST = [
    Welcome("s", "c", (), 1.0), ProxySet(1, (SPEC,)), UPDATE, TargetHealth("p", True), RetryProxy("p"),
    TicketRequest(1), Tickets(()), Heartbeat(1), HeartbeatReply(1), Goodbye(Farewell.STOPPING),
]  # fmt: skip
WRONG_LATER = [
    Hello(1), Welcome("s", "c", (), 1.0), UPDATE, Tickets(()), TicketRequest(0), TicketRequest(17), ProxySet(0, ()),
    ProxySet(2**32, ()), ProxySet(1, (SPEC, SPEC)),
    ProxySet(1, tuple(ProxySpec(f"p{n}", "127.0.0.1", 0) for n in range(1001))),
    ProxySet(1, (ProxySpec("a/b", "127.0.0.1", 0),)),
]  # fmt: skip


@pytest.mark.parametrize("phase", ["greeting", "ready"])
async def test_every_message_in_the_wrong_phase_ends_the_session_with_a_word(files, phase):
    async with open_house(files) as house:
        for message in WRONG_AT_FIRST if phase == "greeting" else WRONG_LATER:
            async with house.login(hello=phase == "ready") as (control, _):
                await control.send(message)
                with trio.fail_after(30):
                    goodbye = await receive(control, Goodbye)
                assert goodbye.reason is Farewell.PROTOCOL_ERROR
            await until(house.is_quiet)


async def test_another_protocol_version_is_told_so(files):
    async with open_house(files) as house, house.login(hello=False) as (control, _):
        await control.send(Hello(99))
        assert (await receive(control, Goodbye)).reason is Farewell.VERSION_UNSUPPORTED


async def test_a_login_without_a_greeting_ends_at_its_deadline(files):
    limits = evolve(PATIENT, login_seconds=0.3)
    async with open_house(files, limits) as house, house.login(hello=False) as (control, _):
        with trio.fail_after(30), pytest.raises(PeerLost):
            await control.receive()


async def test_a_client_that_falls_silent_is_gone_after_two_missed_beats(files):
    async with open_house(files, evolve(PATIENT, heartbeat_seconds=1.0)) as house, house.login():
        await until(lambda: len(house.gate.sessions) == 2)
        await until(house.is_quiet, 4.5)


async def test_proxies_of_the_hand_made_kind_are_told_why_not(files):
    async with open_house(files) as house, house.login() as (control, _):
        specs = (
            ProxySpec("good", "127.0.0.1", 0),
            ProxySpec("name", "localhost", 0),
            ProxySpec("high", "127.0.0.1", 70_000),
            ProxySpec("low", "127.0.0.1", -1),
            ProxySpec("server", "127.0.0.1", house.server.where.port),
        )
        await control.send(ProxySet(1, specs))
        seen = {}
        with trio.fail_after(30):
            while len([update for update in seen.values() if update.reason != "pending"]) < len(specs):
                update = await receive(control, ProxyStatusUpdate)
                seen[update.proxy_name] = update
        assert seen["good"].status == "healthy"
        assert {name: update.reason.value for name, update in seen.items() if update.reason} == {
            "name": "malformed_addr", "high": "malformed_addr", "low": "malformed_addr", "server": "addr_in_use",
        }  # fmt: skip


@pytest.mark.parametrize("flood", ["pings", "heartbeats", "tickets", "proxy sets", "fragments"])
async def test_a_flood_with_nothing_read_stops_the_flooder_only(files, flood):
    masked = {
        "pings": control_message(9, b"x" * 100, masked=True),
        "heartbeats": text(encode(Heartbeat(1))),
        "tickets": text(encode(TicketRequest(16))),
        "fragments": b"\x00\x80\0\0\0\0",
    }
    async with open_house(files) as house:
        stream = await house.tls()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(request())
        await stream.receive_some()
        await stream.send_all(text(encode(Hello(1))))
        if flood == "fragments":
            await stream.send_all(b"\x01\x80\0\0\0\0")
        with trio.move_on_after(1.0):
            try:
                version = 0
                while True:
                    if flood == "proxy sets":
                        version += 1
                        spec = ProxySpec(f"p{version}", "127.0.0.1", 0)
                        await stream.send_all(text(encode(ProxySet(version, (spec,)))))
                    else:
                        await stream.send_all(masked[flood] * 200)
            except trio.BrokenResourceError:
                pass
        for session in house.gate.sessions:
            assert len(session._outbox._replies) <= 64
            assert len(session._outbox._changed) <= 1
        stream.abort()


async def test_a_message_without_end_ends_its_session_long_before_the_heartbeat_does(files):
    """B37, B41"""
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house:
        stream = await house.tls()
        await stream.send_all(request())
        await stream.receive_some()
        await stream.send_all(text(encode(Hello(1))))
        await until(lambda: len(house.gate.sessions) == 2)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 1500)
        await until(house.is_quiet, 2.0)
        stream.abort()


def text(payload):
    body = payload.encode()
    head = bytearray(WS_ROOM)
    at = put_message_head(head, len(body), masked=True, opcode=1)
    return bytes(head[at:]) + body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
KINDS = ["Hello", "ProxySet", "TargetHealth", "RetryProxy", "TicketRequest", "Heartbeat", "Goodbye", "Welcome", "None"]
FIELDS = {
    "version": JSON, "proxies": JSON, "proxy_name": JSON, "count": JSON, "seq": JSON, "reason": JSON, "healthy": JSON,
}  # fmt: skip
MESSAGES = st.builds(
    lambda kind, fields: text(json.dumps({"type": kind, **fields})),
    st.sampled_from(KINDS),
    st.fixed_dictionaries({}, optional=FIELDS),
)
PIECES = st.one_of(
    st.binary(min_size=1, max_size=40),
    JSON.map(lambda value: text(json.dumps(value))),
    MESSAGES,
    st.builds(
        lambda opcode, body: control_message(opcode, body, masked=True), st.integers(0, 15), st.binary(max_size=125)
    ),
)


async def test_fuzzed_messages_and_frames_end_their_own_session_only(files, caplog):
    async with open_house(files) as house:
        examples = []

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.booleans(), st.lists(PIECES, min_size=1, max_size=6))
        def collect(greeted, pieces):
            examples.append((greeted, pieces))

        collect()
        for number, (greeted, pieces) in enumerate(examples):
            stream = await house.tls()
            await stream.send_all(request(Trio_Tunnel_Epoch=str(number + 1)))
            await stream.receive_some()
            try:
                if greeted:
                    await stream.send_all(text(encode(Hello(1))))
                for piece in pieces:
                    await stream.send_all(piece)
                await wait_all_tasks_blocked(0.0)
            except trio.BrokenResourceError:
                pass
            stream.close()
        await until(house.is_quiet)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


async def test_random_frames_on_a_data_channel_end_that_channel_only(files):
    dice = random.Random(7)
    async with open_house(files) as house, house.login() as (control, welcome):
        tickets = list(welcome.tickets)
        for number in range(8):
            if not tickets:
                await control.send(TicketRequest(8))
                tickets += (await receive(control, Tickets)).tickets
            stream = await house.data_channel(tickets.pop())
            try:
                if number % 2:
                    body = b"".join(FRAME.pack(FIN + (dice.randrange(9) << 24), dice.randrange(5)) for _ in range(20))
                    head = bytearray(WS_ROOM)
                    at = put_message_head(head, len(body), masked=True)
                    await stream.send_all(bytes(head[at:]) + body)
                else:
                    await stream.send_all(dice.randbytes(1000))
            except trio.BrokenResourceError:
                pass
            with trio.fail_after(30):
                stream.socket.shutdown(socket.SHUT_WR)
                await to_end(stream)
            stream.close()
        assert len(house.gate.sessions) == 2


async def test_draining_is_not_stopped_by_a_client_that_does_not_read(files):
    async with open_house(files) as house, house.login():
        (session,) = [session for session in house.gate.sessions if session.client == "lab"]
        session._outbox._replies.extend(Heartbeat(1) for _ in range(64))
        session._outbox._wake = trio.Event()  # the writer does not hear of it
        session.drain()
        await until(session.ended.is_set)


async def test_who_came_while_the_server_began_to_drain_is_told_to_come_later(files, monkeypatch):
    async with open_house(files) as house, house.login(instance="a" * 32):
        asked, go_on = trio.Event(), trio.Event()

        async def answers(self):
            asked.set()
            await go_on.wait()
            return False

        monkeypatch.setattr("tunnel.server.session.Session.answers", answers)
        async with trio.open_nursery() as nursery:

            async def come():
                with pytest.raises(Refused) as caught:
                    async with house.login(instance="b" * 32):
                        pass
                assert caught.value.reason == "server_stopping"

            nursery.start_soon(come)
            await asked.wait()
            house.gate.is_draining = True
            go_on.set()
        house.gate.is_draining = False


async def test_being_stopped_for_a_while_is_nobodys_silence(files):
    """Both ends stand still together: what each said is in the kernel when they go on."""
    async with open_house(files, Limits(heartbeat_seconds=0.1)) as house:
        sessions = house.gate.sessions
        for _ in range(4):
            time.sleep(0.35)
            await trio.sleep(0.15)
        assert house.gate.sessions == sessions


async def test_a_session_has_so_many_data_channels(files, monkeypatch):
    monkeypatch.setattr("tunnel.server.data_channels.MAX_CHANNELS", 5)
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login() as (control, welcome):
        tickets, channels = list(welcome.tickets), []

        async def one_more():
            if not tickets:
                await control.send(TicketRequest(16))
                tickets.extend((await receive(control, Tickets)).tickets)
            channels.append(await house.data_channel(tickets.pop()))

        for _ in range(5):
            await one_more()
        await until(lambda: len(house.gate.sessions[1].relay.channels) == 5)
        with pytest.raises(Refused) as caught:
            await one_more()
        assert caught.value.reason == "too_many_channels"
        for channel in channels:
            channel.close()


async def test_a_status_that_is_longer_than_a_message_may_be_is_cut(files):
    ports = tuple(PortRange(port, port) for port in range(10_000, 10_400))
    proxy = ProxySpec("web", "127.0.0.1", 9)
    async with open_house(files) as house, house.login() as (control, _):
        house.gate.sessions[1]._published.grant = Grant("lab", bytes(32), allow_ports=ports)
        await control.send(ProxySet(1, (proxy,)))
        assert (await receive(control, ProxyStatusUpdate)).reason is Reason.NOT_ALLOWED


async def test_the_last_word_of_a_proxy_that_moved_is_not_passed_on(files):
    async with open_house(files) as house, house.login() as (control, _):
        await control.send(ProxySet(1, (ProxySpec("web", "127.0.0.1", 0),)))
        await receive(control, ProxyStatusUpdate)
        session = house.gate.sessions[1]
        old = session.proxies["web"]
        await control.send(ProxySet(2, (ProxySpec("web", "127.0.0.2", 0),)))
        assert (await receive(control, ProxyStatusUpdate)).status is Status.HEALTHY
        old._set(Status.UNHEALTHY, Reason.LISTENER_LOST, "its last word")
        await control.send(Heartbeat(1))
        while not isinstance(message := await control.receive(), HeartbeatReply):
            assert not isinstance(message, ProxyStatusUpdate)
