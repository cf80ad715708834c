"""A server with its gate, a healthy client at home, and what attackers and clients of the tests are made of."""

import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import trio
import trustme
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

import tunnel
from tunnel.addresses import HostPort, Target
from tunnel.config import DATA_CHANNELS, ClientConfig, Grant, Limits, ProxyConfig, ServerConfig
from tunnel.control import open_client_control
from tunnel.messages import (
    Hello,
    Welcome,
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
