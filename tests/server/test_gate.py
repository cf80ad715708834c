"""The one public port under attack at every stage, while a healthy client's proxy answers; and whose an identity is."""

import gc
import json
import os
import random
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import pytest
import trio
import trustme
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ports import free_port
from trio.testing import wait_all_tasks_blocked

import tunnel
from tunnel.addresses import HostPort, PortRange, Target
from tunnel.config import DATA_CHANNELS, ClientConfig, Grant, Limits, ProxyConfig, ServerConfig
from tunnel.control import open_client_control
from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.frames import FIN, FRAME, OPEN, OPEN_PAYLOAD, WS_ROOM, control_message, put_message_head
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
from tunnel.server.app import open_server
from tunnel.state import hash_token
from tunnel.tls import TlsStream
from tunnel.upgrade import request_upgrade

TOKENS = {"home": "home-token", "lab": "lab-token"}
SOON = 30.0
QUICK = Limits(handshake_seconds=0.3, head_seconds=0.3, login_seconds=0.3, ticket_seconds=0.5, heartbeat_seconds=1.0)
# For those that wait for no deadline: a machine that stands still for two seconds cuts nobody off.
PATIENT = Limits(handshake_seconds=3.0, head_seconds=3.0, login_seconds=3.0, heartbeat_seconds=10.0)
TURN_SECONDS = 0.1  # at most, by which a turn of the loop uses up a bound

ONE_CHANNEL = evolve(DATA_CHANNELS, min=1, max=1)


@cache
def authority():
    return trustme.CA()


@cache
def client_context():
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate")
    certificate = authority().issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(path / "cert.pem")
    authority().cert_pem.write_to_path(path / "ca.pem")
    return path


class House:
    """A running server, and what the tests do to it."""

    def __init__(self, server, files, nursery):
        self.server = server
        self.files = files
        self.nursery = nursery
        self.gate = server._gate

    async def tcp(self):
        sock = socket.create_connection(("127.0.0.1", self.server.where.port))
        sock.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    async def tls(self):
        sock = socket.create_connection(("127.0.0.1", self.server.where.port))
        sock.setblocking(False)
        stream = TlsStream(sock, client_context(), server_side=False, server_hostname="localhost")
        await stream.do_handshake()
        return stream

    @asynccontextmanager
    async def login(self, *, token="lab-token", instance="1" * 32, epoch=1, hello=True, **more):
        """A hand-made client; yields its control channel and Welcome."""
        stream = await self.tls()
        headers = {
            "Authorization": f"Bearer {token}",
            "Trio-Tunnel-Instance": instance,
            "Trio-Tunnel-Epoch": str(epoch),
            **more,
        }
        async with open_client_control(stream, host="localhost", path="/control", headers=headers) as control:
            welcome = None
            if hello:
                await control.send(Hello(1, "test"))
                welcome = await receive(control, Welcome)
            yield control, welcome

    async def data_channel(self, ticket):
        stream = await self.tls()
        try:
            await request_upgrade(stream, "localhost", "/data", {"Authorization": f"Bearer {ticket}"})
        except BaseException:
            stream.close()
            raise
        return stream

    def is_quiet(self):
        """Nobody but the healthy client is there."""
        there = self.gate.stats()
        return (len(self.gate.sessions), there["strangers"], there["handshakes"]) == (1, 0, 0)


async def receive(control, kind):
    """The next message of `kind`; what comes before it is passed over."""
    while not isinstance(message := await control.receive(), kind):
        pass
    return message


def grants():
    return tuple(Grant(name, hash_token(token), allow_ports=None) for name, token in TOKENS.items())


async def echo(stream):
    async with stream:
        with suppress(trio.BrokenResourceError):
            async for chunk in stream:
                await stream.send_all(chunk)


@asynccontextmanager
async def open_house(files, limits=PATIENT, **more):
    """A server with one healthy client, whose proxy must answer throughout; at the end nothing else may be left."""
    config = ServerConfig(
        listen=(HostPort("127.0.0.1", 0),),
        cert_file=files / "cert.pem",
        key_file=files / "key.pem",
        clients=grants(),
        limits=limits,
        **more,
    )
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery, open_server(config) as server:
            listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            target = listeners[0].socket.getsockname()
            healthy = ClientConfig(
                servers=(HostPort("localhost", server.where.port),),
                token=TOKENS["home"],
                ca_file=files / "ca.pem",
                proxies=(ProxyConfig("echo", HostPort("127.0.0.1", 0), (Target("tcp", *target),)),),
                data_channels=ONE_CHANNEL,
            )
            async with tunnel.connect(healthy) as client:
                await client.wait_healthy()
                await until(lambda: len(server.engine._entries) == 3)  # waker, proxy's listener, data channel
                house = House(server, files, nursery)
                visitor = await trio.open_tcp_stream("127.0.0.1", client.statuses["echo"].publish_port)
                await until(house.is_quiet)
                await answers(visitor)
                await wait_all_tasks_blocked(0.01)
                tasks, descriptors = living(), open_descriptors()
                answered = [0]
                asking = trio.CancelScope()
                nursery.start_soon(keep_asking, visitor, answered, asking)
                yield house
                await until(house.is_quiet)
                await until(lambda: (living(), open_descriptors()) <= (tasks + 1, descriptors))
                before = answered[0]
                await until(lambda: answered[0] > before)
                asking.cancel()
                await visitor.aclose()
            nursery.cancel_scope.cancel()


async def answers(visitor):
    with trio.fail_after(30):
        await visitor.send_all(b"still there?")
        got = b""
        while len(got) < 12:
            got += await visitor.receive_some()
    assert got == b"still there?"


async def keep_asking(visitor, answered, scope):
    with scope:
        while True:
            await answers(visitor)
            answered[0] += 1
            await trio.sleep(0.01)


def living():
    return trio.lowlevel.current_statistics().tasks_living


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


async def until(condition, seconds=SOON):
    """In which the loop has turned: while the machine stands still, nothing can come true."""
    left = seconds
    while not condition():
        if left <= 0:
            raise trio.TooSlowError(f"{seconds:g} s have passed")
        began = trio.current_time()
        await trio.sleep(0.005)
        left -= min(TURN_SECONDS, trio.current_time() - began)


async def to_end(stream):
    """What comes until the end, whatever end it is."""
    data = b""
    try:
        while chunk := await stream.receive_some(65536):
            data += chunk
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return data


def request(path="/control", **headers):
    pairs = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Authorization": "Bearer lab-token",
        "Trio-Tunnel-Instance": "1" * 32,
        "Trio-Tunnel-Epoch": "1",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in pairs.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


# Before a token was good

RAW_ATTACKS = {
    "silence": b"",
    "half a ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "garbage": random.Random(1).randbytes(3000),
    "plain HTTP": b"GET /control HTTP/1.1\r\nHost: here\r\n\r\n",
    "an SSH client": b"SSH-2.0-OpenSSH_9.6\r\n",
    "TLS 1.0 alert": b"\x15\x03\x01\x00\x02\x02\x28",
}


@pytest.mark.parametrize("end", ["wait", "reset"])
async def test_whatever_comes_instead_of_tls_is_cut_in_time(files, end):
    async with open_house(files, QUICK) as house, trio.open_nursery() as attackers:
        for raw in RAW_ATTACKS.values():

            @attackers.start_soon
            async def attack(raw=raw):
                stream = await house.tcp()
                if raw:
                    await stream.send_all(raw)
                if end == "reset":
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                else:
                    with trio.fail_after(30):
                        await to_end(stream)
                stream.socket.close()


async def test_silence_and_slow_heads_inside_tls_are_cut_in_time(files):
    async with open_house(files, evolve(PATIENT, head_seconds=0.3)) as house, trio.open_nursery() as attackers:
        for slow in (False, True):

            @attackers.start_soon
            async def attack(slow=slow):
                stream = await house.tls()
                with trio.fail_after(30):
                    try:
                        for byte in request() if slow else b"":
                            await stream.send_all(bytes([byte]))
                            await trio.sleep(0.02)
                    except trio.BrokenResourceError:
                        pass
                    assert await to_end(stream) == b""
                stream.close()


HEADS = {
    "oversize": (b"GET /control HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 400, "bad_request"),
    "no HTTP": (b"\x00\x01\x02\r\n\r\n", 400, "bad_request"),
    "two tokens": (request(authorization="Bearer x"), 400, "bad_request"),
    "wrong path": (request("/"), 404, "not_found"),
    "a query": (request("/control?token=lab-token", Authorization=None), 404, "not_found"),
    "no token": (request(Authorization=None), 401, "token_refused"),
    "empty token": (request(Authorization="Bearer "), 401, "token_refused"),
    "wrong token": (request(Authorization="Bearer wrong"), 401, "token_refused"),
    "odd token": (request(Authorization="Bearer \xe9\xe8"), 401, "token_refused"),
    "huge token": (request(Authorization="Bearer " + "x" * 12_000), 401, "token_refused"),
    "basic": (request(Authorization="Basic bGFiLXRva2Vu"), 401, "token_refused"),
    "no upgrade": (request(Upgrade=None), 400, "bad_request"),
    "no key": (request(Sec_WebSocket_Key="short"), 400, "bad_request"),
    "bad instance": (request(Trio_Tunnel_Instance="g" * 32), 400, "bad_request"),
    "bad epoch": (request(Trio_Tunnel_Epoch="-1"), 400, "bad_request"),
    "trailing bytes": (request() + control_message(9, b"early", masked=True), 400, "bad_request"),
    "bad ticket": (request("/data", Authorization="Bearer " + "0" * 32), 401, "ticket_refused"),
    "the token as a ticket": (request("/data"), 401, "ticket_refused"),
}


@pytest.mark.parametrize("what", HEADS)
async def test_a_bad_head_is_refused_with_its_reason(files, what):
    head, status, reason = HEADS[what]
    async with open_house(files) as house:
        stream = await house.tls()
        await stream.send_all(head)
        with trio.fail_after(30):
            answer = await to_end(stream)
        stream.close()
        first, _, body = answer.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["reason"] == reason
        assert b"lab-token" not in answer
        del stream
        gc.collect()  # a descriptor that only a collection closes is a leak, and a warning


async def test_a_ticket_opens_one_channel_once_and_in_time(files):
    limits = evolve(PATIENT, ticket_seconds=2.5)
    async with open_house(files, limits) as house, house.login() as (control, welcome):
        assert len(welcome.tickets) == 4
        one = await house.data_channel(welcome.tickets[0])
        for ticket in (welcome.tickets[0], welcome.tickets[0].upper() + "x"):
            with pytest.raises(Refused, match="unknown, used or expired"):
                await house.data_channel(ticket)
        await trio.sleep(limits.ticket_seconds + 0.05)
        with pytest.raises(Refused, match="unknown, used or expired"):
            await house.data_channel(welcome.tickets[1])
        await control.send(TicketRequest(1))
        tickets = await receive(control, Tickets)
        two = await house.data_channel(tickets.tickets[0])
        one.close()
        two.close()


async def test_a_data_channel_that_is_no_upgrade_costs_the_ticket(files):
    async with open_house(files) as house, house.login() as (_, welcome):
        stream = await house.tls()
        await stream.send_all(request("/data", Authorization=f"Bearer {welcome.tickets[0]}", Upgrade=None))
        assert (await to_end(stream)).startswith(b"HTTP/1.1 426 ")
        stream.close()
        with pytest.raises(Refused):
            await house.data_channel(welcome.tickets[0])


async def test_a_ticket_outlives_no_session(files):
    async with open_house(files) as house:
        async with house.login() as (_, welcome):
            pass
        await until(house.is_quiet)
        with pytest.raises(Refused):
            await house.data_channel(welcome.tickets[0])


async def test_frames_right_behind_a_data_channels_head_are_not_lost(files):
    body = FRAME.pack(OPEN | 8, 1) + OPEN_PAYLOAD.pack(0, 1)  # a crime, so that it is seen to have been read
    head = bytearray(WS_ROOM)
    at = put_message_head(head, len(body), masked=True)
    async with open_house(files) as house, house.login() as (_, welcome):
        stream = await house.tls()
        upgrade = request("/data", Authorization=f"Bearer {welcome.tickets[0]}")
        await stream.send_all(upgrade + bytes(head[at:]) + body)
        with trio.fail_after(30):
            assert (await to_end(stream)).startswith(b"HTTP/1.1 101 ")
        stream.close()


# With a good token


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


# Whose an identity is


async def test_a_holder_with_replies_waiting_keeps_its_identity_if_it_answers(files):
    async with open_house(files, Limits()) as house:  # no beat of either side comes between
        (session,) = house.gate.sessions
        session._outbox._replies.extend(HeartbeatReply(1) for _ in range(64))
        assert await session.answers()


async def test_a_session_that_was_replaced_is_not_shown_beside_its_successor(files):
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login(), house.login(epoch=2):
        assert [session.client for session in house.gate.sessions] == ["home", "lab"]


async def test_a_higher_epoch_of_one_process_replaces_at_once_and_gets_the_port(files, monkeypatch):
    monkeypatch.setattr("tunnel.server.session.ANSWER_SECONDS", 60.0)  # who asks the holder has to wait for it
    async with open_house(files) as house, trio.open_nursery() as nursery:
        port = free_port()
        told = []

        @nursery.start_soon
        async def first():
            async with house.login(epoch=1) as (control, _):
                await control.send(ProxySet(1, (ProxySpec("p", "127.0.0.1", port),)))
                assert (await healthy(control)).publish_port == port
                told.append("up")
                told.append((await receive(control, Goodbye)).reason)

        await until(lambda: told == ["up"])
        async with house.login(epoch=2) as (control, _):
            await control.send(ProxySet(1, (ProxySpec("p", "127.0.0.1", port),)))
            update = await healthy(control)
            assert (update.publish_port, update.attempt) == (port, 0)
            await until(lambda: told == ["up", Farewell.REPLACED])
            with pytest.raises(Refused, match="newer session") as caught:
                async with house.login(epoch=1):
                    raise AssertionError("it was let in")
            assert caught.value.reason == "identity_held"


async def healthy(control):
    with trio.fail_after(30):
        while True:
            update = await receive(control, ProxyStatusUpdate)
            if update.status == "healthy":
                return update
            assert update.reason == "pending", update


async def test_another_process_is_refused_while_the_holder_answers(files, monkeypatch):
    monkeypatch.setattr("tunnel.server.session.ANSWER_SECONDS", 60.0)  # so long it may take, and does not
    async with (
        open_house(files) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32) as (control, _),
    ):

        @nursery.start_soon
        async def answer():
            try:
                while True:
                    if isinstance(message := await control.receive(), Heartbeat):
                        await control.send(HeartbeatReply(message.seq))
            except PeerLost:
                pass

        for _ in range(2):
            with trio.fail_after(SOON), pytest.raises(Refused) as caught:
                async with house.login(instance="b" * 32, epoch=9):
                    raise AssertionError("it was let in")
            assert caught.value.reason == "identity_held"
            assert caught.value.trust
            since = next(session.since for session in house.gate.sessions if session.client == "lab")
            assert "'lab'" in str(caught.value)
            assert since in str(caught.value)
        assert len(house.gate.sessions) == 2


async def test_a_holder_whose_greeting_is_still_on_its_way_answers_by_it(files):
    """On a long path a sign of life that was asked for during the login takes two round trips more."""
    async with (
        open_house(files, Limits(heartbeat_seconds=10.0)) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32, hello=False) as (slow, _),
    ):
        refused = trio.Event()

        @nursery.start_soon
        async def come():
            with pytest.raises(Refused, match="'lab' is connected from another process"):
                async with house.login(instance="b" * 32):
                    pass
            refused.set()

        await until(lambda: house.gate._logins._waiting["lab"])
        await slow.send(Hello(1, "test"))
        await refused.wait()
        assert (await receive(slow, Welcome)).client == "lab"


async def test_a_silent_holder_is_replaced_after_a_second(files):
    async with (
        open_house(files, Limits(heartbeat_seconds=10.0)) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32) as (old, _),
    ):
        began, is_in = trio.current_time(), trio.Event()

        @nursery.start_soon
        async def come():
            async with house.login(instance="b" * 32):
                is_in.set()
                await trio.sleep_forever()

        await until(is_in.is_set, 2.0)
        assert trio.current_time() - began > 0.9
        assert (await receive(old, Goodbye)).reason is Farewell.REPLACED
        nursery.cancel_scope.cancel()


async def test_of_many_newcomers_at_once_exactly_one_holds_the_identity(files):
    async with open_house(files) as house:
        held, refused = [], []
        done = trio.Event()

        async def come(number):
            try:
                async with house.login(instance=f"{number:032x}") as (control, _):
                    held.append(number)
                    with trio.move_on_after(SOON):
                        while not done.is_set():
                            message = await control.receive()
                            if isinstance(message, Heartbeat):
                                await control.send(HeartbeatReply(message.seq))
            except (Refused, PeerLost, RemoteProtocolError) as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(come, number)
            await until(lambda: len(held) + len(refused) >= 6)
            assert len([session for session in house.gate.sessions if session.client == "lab"]) == 1
            done.set()
            nursery.cancel_scope.cancel()
