"""B21: a graceful stop, from either side, also keeps the visitor whose OPEN is still on its way to the client; and it
ends when nobody is inside, be the other side there or not."""

from functools import partial

import pytest
import trio
from attrs import evolve
from gate_rig import PATIENT, TOKENS, echo, grants, until

import tunnel
from tunnel.addresses import HostPort, Target
from tunnel.config import DATA_CHANNELS, ClientConfig, ProxyConfig, ServerConfig
from tunnel.messages import HeartbeatReply
from tunnel.server.app import open_server
from tunnel.server.outbox import Outbox

ONE_CHANNEL = evolve(DATA_CHANNELS, min=1, max=1)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_visitor_taken_in_just_before_is_served(files, side):
    config = ServerConfig(
        (HostPort("127.0.0.1", 0),), None, files / "cert.pem", files / "key.pem", clients=grants(), limits=PATIENT
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, open_server(config) as server:
            listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            proxy = ProxyConfig("echo", HostPort("127.0.0.1", 0), (Target("tcp", *listeners[0].socket.getsockname()),))
            wanted = ClientConfig(
                (HostPort("localhost", server.where.port),), TOKENS["home"], None, files / "ca.pem", (proxy,),
                data_channels=ONE_CHANNEL,
            )  # fmt: skip
            async with tunnel.connect(wanted) as client:
                await client.wait_healthy()
                (session,) = server._gate.sessions
                await until(lambda: len(session.relay.channels) == 1)
                (channel,) = session.relay.channels
                await until(lambda: len(server.engine.pongs) == 0)
                client._session.relay.channels[0].round_trip = 0.15
                pump, channel.pump = channel.pump, lambda: None  # a long way: what is sent there is not there yet
                visitor = await trio.open_tcp_stream("127.0.0.1", client.statuses["echo"].publish_port)
                await visitor.send_all(b"inside")
                await until(lambda: len(session.relay.streams) == 1)
                nursery.start_soon((server if side == "server" else client).drain, 3.0)
                await trio.sleep(0.05)
                channel.pump = pump
                channel.stir()
                server.engine.wake()
                assert await visitor.receive_some() == b"inside"
                await visitor.aclose()
                await session.ended.wait()  # this one: the client may be back with another at once
            nursery.cancel_scope.cancel()


async def test_a_client_whose_server_is_silent_does_not_use_up_its_time_for_nobody(files, monkeypatch):
    reply = Outbox.reply
    monkeypatch.setattr("tunnel.client.session.WITHDRAW_SECONDS", 0.2)
    config = ServerConfig(
        (HostPort("127.0.0.1", 0),), None, files / "cert.pem", files / "key.pem", clients=grants(), limits=PATIENT
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, open_server(config) as server:
            proxy = ProxyConfig("echo", HostPort("127.0.0.1", 0), (Target("tcp", "127.0.0.1", 9),))
            wanted = ClientConfig(
                (HostPort("localhost", server.where.port),), TOKENS["home"], None, files / "ca.pem", (proxy,),
                data_channels=ONE_CHANNEL,
            )  # fmt: skip
            async with tunnel.connect(wanted) as client:
                await client.wait_healthy()
                monkeypatch.setattr(
                    Outbox, "reply", lambda self, word: isinstance(word, HeartbeatReply) or reply(self, word)
                )
                began = trio.current_time()
                await client.drain(30.0)
                assert 0.2 <= trio.current_time() - began < 15  # and not all of its thirty seconds
            nursery.cancel_scope.cancel()
