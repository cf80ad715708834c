"""The wall around trio-websocket: each of its traps ends as our own error, in time, and leaves no task or descriptor.

What the traps are is told in `tunnel/control.py`.
"""

import os
import socket
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache

import pytest
import trio
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

import tunnel.control as control_module
from tunnel.control import open_client_control, open_server_control
from tunnel.errors import PeerLost, Refused, RemoteProtocolError, TunnelError
from tunnel.messages import MAX_MESSAGE_BYTES, Heartbeat, HeartbeatReply, encode
from tunnel.sockets import listen
from tunnel.tls import TlsStream
from tunnel.upgrade import accept_key, read_head, refuse

HEAD = (
    b"GET /control HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@cache
def contexts():
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.num_tickets = 0
    ca.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    return server, client


async def tls_pair():
    server_context, client_context = contexts()
    with listen("127.0.0.1", 0) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    server = TlsStream(ours, server_context, server_side=True)
    client = TlsStream(theirs, client_context, server_side=False, server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    return server, client


@asynccontextmanager
async def pair():
    """A TLS connection; afterwards no descriptor and no task may be left."""
    descriptors, tasks = len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living
    server, client = await tls_pair()
    with trio.fail_after(15):
        try:
            yield server, client
        finally:
            server.close()
            client.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert trio.lowlevel.current_statistics().tasks_living == tasks


def client_control(stream):
    return open_client_control(stream, host="here", path="/control", headers={"Authorization": "Bearer x"})


class RawPeer:
    """A WebSocket peer that does only what it is told."""

    def __init__(self, stream, kind):
        self.stream = stream
        self.ws = WSConnection(kind)
        self.events = []

    async def send(self, event):
        await self.stream.send_all(self.ws.send(event))

    async def receive(self, kind):
        while not any(isinstance(event, kind) for event in self.events):
            self.ws.receive_data(await self.stream.receive_some())
            self.events += list(self.ws.events())
        return next(event for event in self.events if isinstance(event, kind))


async def raw_client(stream):
    peer = RawPeer(stream, ConnectionType.CLIENT)
    await peer.send(Request(host="here", target="/control"))
    return peer


async def raw_server(stream):
    peer = RawPeer(stream, ConnectionType.SERVER)
    await peer.receive(Request)
    await peer.send(AcceptConnection())
    return peer


async def test_messages_go_both_ways_and_a_clean_end_is_a_lost_peer():
    async with pair() as (server, client), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            async with open_server_control(server) as control:
                while True:
                    try:
                        message = await control.receive()
                    except PeerLost:
                        return
                    await control.send(HeartbeatReply(message.seq))

        async with client_control(client) as control:
            for seq in range(3):
                await control.send(Heartbeat(seq))
                assert await control.receive() == HeartbeatReply(seq)


@contextmanager
def ends_in(*kinds):
    with trio.fail_after(30), pytest.raises(kinds):
        yield


class BodyError(Exception):
    pass


async def test_what_the_body_raises_comes_out_unwrapped():
    async with pair() as (server, client):
        peer = await raw_client(client)
        with pytest.raises(BodyError):
            async with open_server_control(server):
                raise BodyError
        with pytest.raises(trio.ClosedResourceError):
            await server.receive_some()
        assert peer.events == []


GARBAGE = {
    "nothing": b"",
    "a plain GET": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "no HTTP": b"\x00\x01\x02\xff\xff\r\n\r\n",
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0"),
    "two keys": HEAD.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: BBBBBBBBBBBBBBBBBBBBBB==\r\n\r\n"),
    "an odd extension": HEAD.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: ;;;=\r\n\r\n"),
    "an odd protocol": HEAD.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\xfe\r\n\r\n"),
    "half a head": HEAD[:60],
}


@pytest.mark.parametrize("end", ["close", "reset", "cut"])
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_server_survives_any_opening_and_any_end(garbage, end):
    async with pair() as (server, client):
        if GARBAGE[garbage]:
            await client.send_all(GARBAGE[garbage])
        if end == "close":
            client.close()
        elif end == "reset":
            client.abort()
        else:
            client.socket.shutdown(socket.SHUT_WR)
        with ends_in(PeerLost):
            async with open_server_control(server) as control:
                await control.receive()


async def test_an_opening_that_never_comes_ends_at_its_deadline(monkeypatch):
    monkeypatch.setattr(control_module, "OPEN_SECONDS", 0.1)
    async with pair() as (server, client):
        with trio.fail_after(30), pytest.raises(PeerLost):
            async with open_server_control(server):
                raise AssertionError("it was opened")
        client.close()


ANSWERS = {
    "nothing": b"",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a 200": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "a cut body": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 200\r\n\r\n{",
    "a wrong accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
    "an extension nobody asked for": None,
    "bad numbers": b"HTTP/1.1 9999999 ?\r\nContent-Length: -3\r\n\r\n",
    "a head without end": b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 40_000,
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_client_survives_any_answer(answer):
    async with pair() as (server, client), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            request = b""
            while b"\r\n\r\n" not in request:
                request += await server.receive_some()
            key = next(line for line in request.decode().split("\r\n") if line.lower().startswith("sec-websocket-key"))
            odd = (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept_key(key.split(': ')[1])}\r\nSec-WebSocket-Extensions: foo\r\n\r\n"
            )
            reply = ANSWERS[answer]
            with_reply = odd.encode() if reply is None else reply
            if with_reply:
                await server.send_all(with_reply)
            server.close()

        with ends_in(PeerLost, Refused):
            async with client_control(client) as control:
                await control.receive()


async def test_a_refusal_is_told_with_its_reason():
    async with pair() as (server, client), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            await read_head(server)
            await refuse(server, 401, "token_refused", "the server does not know this token")
            server.close()

        with pytest.raises(Refused, match="does not know this token") as caught:
            async with client_control(client):
                raise AssertionError("it was opened")
        assert (caught.value.reason, caught.value.trust) == ("token_refused", True)


async def test_an_answer_that_never_comes_ends_at_its_deadline(monkeypatch):
    monkeypatch.setattr(control_module, "OPEN_SECONDS", 0.1)
    async with pair() as (_, client):
        with trio.fail_after(30), pytest.raises(PeerLost):
            async with client_control(client):
                raise AssertionError("it was opened")


async def test_a_ping_that_crosses_a_close_is_a_lost_peer_not_a_crash():
    async with pair() as (server, client):
        peer = await raw_client(client)
        with ends_in(PeerLost):
            async with open_server_control(server) as control:
                await peer.receive(AcceptConnection)
                both = peer.ws.send(Ping(b"x"))
                closing = peer.ws.send(CloseConnection(code=1000))
                await client.send_all(both + closing + b"\x89\x80\0\0\0\0")
                await control.receive()


async def test_a_message_over_the_bound_ends_the_channel(monkeypatch):
    async with pair() as (server, client):
        peer = await raw_client(client)
        with ends_in(PeerLost, RemoteProtocolError):
            async with open_server_control(server) as control:
                await peer.receive(AcceptConnection)
                with trio.move_on_after(2):
                    await peer.send(TextMessage("x" * (MAX_MESSAGE_BYTES + 1)))
                await control.receive()
        assert server._closed


@pytest.mark.parametrize("last", ["receive", "send"])
async def test_nonsense_frames_are_a_lost_peer_for_reader_and_writer(last):
    async with pair() as (server, client):
        peer = await raw_client(client)
        with ends_in(PeerLost):
            async with open_server_control(server) as control:
                await peer.receive(AcceptConnection)
                await client.send_all(b"\x83\x80\0\0\0\0")  # a reserved opcode
                await wait_all_tasks_blocked(0.02)
                if last == "receive":
                    await control.receive()
                while True:
                    await control.send(Heartbeat(1))


async def test_a_writer_learns_of_a_peer_that_closed():
    async with pair() as (server, client):
        peer = await raw_client(client)
        with ends_in(PeerLost):
            async with open_server_control(server) as control:
                await peer.receive(AcceptConnection)
                await peer.send(CloseConnection(code=1000))
                await wait_all_tasks_blocked(0.02)
                while True:
                    await control.send(Heartbeat(1))


@pytest.mark.parametrize("how", ["mute", "stuck"])
async def test_leaving_is_quick_whatever_the_peer_does(how):
    async with pair() as (server, client):
        await raw_client(client)
        async with turning_for_at_most(2.5), open_server_control(server) as control:
            if how == "stuck":
                with trio.move_on_after(0.2):
                    while True:
                        await control.send(Heartbeat(1))
        assert server._closed


@asynccontextmanager
async def turning_for_at_most(seconds):
    """Counts the time in which the loop turns: while the machine stands still, nobody can leave."""
    turned = 0.0

    async def count():
        nonlocal turned
        while True:
            began = trio.current_time()
            await trio.sleep(0.01)
            turned += min(0.1, trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        yield
        nursery.cancel_scope.cancel()
    assert turned < seconds


async def test_cancelling_leaves_nothing_at_any_moment():
    for moment in ("opening", "receiving", "sending"):
        async with pair() as (server, client):
            if moment != "opening":
                await raw_client(client)
            with trio.move_on_after(0.1):
                async with open_server_control(server) as control:
                    if moment == "receiving":
                        await control.receive()
                    while True:
                        await control.send(Heartbeat(1))
            assert server._closed


async def test_a_peer_that_died_is_a_lost_peer():
    async with pair() as (server, client):
        await raw_client(client)
        with ends_in(PeerLost):
            async with open_server_control(server) as control:
                client.abort()
                await control.receive()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4))
async def test_random_bytes_after_the_upgrade_are_only_our_errors(pieces):
    server, client = await tls_pair()
    peer = await raw_client(client)
    with trio.fail_after(30):
        try:
            async with open_server_control(server) as control:
                await peer.receive(AcceptConnection)
                with suppress(trio.BrokenResourceError):
                    for piece in pieces:
                        await client.send_all(piece)
                client.close()
                while True:
                    await control.receive()
        except TunnelError:
            pass
    assert server._closed
    client.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=200) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(repr))
async def test_random_text_is_only_our_errors(text):
    server, client = await tls_pair()
    peer = await raw_client(client)
    with ends_in(TunnelError):
        async with open_server_control(server) as control:
            await peer.receive(AcceptConnection)
            with suppress(trio.BrokenResourceError):
                await peer.send(TextMessage(text))
                await peer.send(TextMessage(encode(Heartbeat(1))))
            client.close()
            while True:
                await control.receive()
    client.close()
