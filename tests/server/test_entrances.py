"""A server on several addresses, over real sockets: clients come by each, and what befalls one is its own."""

import logging
import socket
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from attrs import evolve
from gate_rig import PATIENT, client_context, grants, receive, until

from tunnel.addresses import HostPort
from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.certificates import make_self_signed
from tunnel.config import ServerConfig
from tunnel.control import open_client_control
from tunnel.errors import TunnelError
from tunnel.messages import Heartbeat, HeartbeatReply, Hello, ProxySet, ProxySpec, ProxyStatusUpdate, Retry, Welcome
from tunnel.server import certificate as certificate_module
from tunnel.server import entrance as entrance_module
from tunnel.server.app import open_server
from tunnel.sockets import listen
from tunnel.tls import TlsStream

FIRST, SECOND = HostPort("127.0.0.1", 0), HostPort("127.0.0.2", 0)


def config(files, *wanted):
    return ServerConfig(
        listen=wanted or (FIRST, SECOND), cert_file=files / "cert.pem", key_file=files / "key.pem", clients=grants(),
        limits=PATIENT,
    )  # fmt: skip


@asynccontextmanager
async def login(where, *, token="lab-token"):
    """A hand-made client that comes by one address."""
    sock = socket.create_connection((where.host, where.port))
    sock.setblocking(False)
    stream = TlsStream(sock, client_context(), server_side=False, server_hostname="localhost")
    await stream.do_handshake()
    headers = {"Authorization": f"Bearer {token}", "Trio-Tunnel-Instance": "1" * 32, "Trio-Tunnel-Epoch": "1"}
    async with open_client_control(stream, host="localhost", path="/control", headers=headers) as control:
        await control.send(Hello(1, "test"))
        await receive(control, Welcome)
        yield control


async def is_alive(control):
    with trio.fail_after(30):
        await control.send(Heartbeat(1))
        await receive(control, HeartbeatReply)


def listens(where):
    with suppress(ConnectionRefusedError), socket.create_connection((where.host, where.port)):
        return True
    return False


async def test_clients_come_by_any_address_and_where_is_the_first(files):
    async with open_server(config(files)) as server:
        assert [where.host for where in server.addresses] == ["127.0.0.1", "127.0.0.2"]
        assert server.where == server.addresses[0]
        async with login(server.addresses[0]) as one, login(server.addresses[1], token="home-token") as other:
            await is_alive(one)
            await is_alive(other)
            assert {session.client for session in server.snapshot().sessions} == {"lab", "home"}


async def test_no_client_may_publish_on_any_of_the_servers_addresses(files):
    async with open_server(config(files)) as server, login(server.where) as control:
        specs = [ProxySpec(where.host, where.host, where.port) for where in server.addresses]
        await control.send(ProxySet(1, tuple(specs)))
        told = {(await receive(control, ProxyStatusUpdate)).error_message for _ in specs}
        assert told == {
            f"Port {where.port} is already in use by this server itself (its own port for clients)"
            for where in server.addresses
        }


async def test_a_start_that_fails_on_the_second_address_leaves_the_first_free(files):
    with listen("127.0.0.2", 0) as taken, listen("127.0.0.1", 0) as probe:
        first = HostPort("127.0.0.1", probe.getsockname()[1])
        second = HostPort("127.0.0.2", taken.getsockname()[1])
        probe.close()
        with pytest.raises(TunnelError, match=f"cannot listen on {second}: Address already in use"):
            async with open_server(config(files, first, second)):
                pytest.fail("it has started")
        listen(first.host, first.port).close()


async def test_a_listening_socket_that_breaks_costs_nobody_anything_and_is_replaced(files, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(entrance_module, "AGAIN_SECONDS", 1.0)  # time to see that it is closed
    async with open_server(config(files)) as server, login(server.where) as one:
        first, second = server.addresses
        async with login(second, token="home-token") as other:
            server._entrances[0]._listener.shutdown(socket.SHUT_RDWR)  # it hears nothing any more, for good
            await until(lambda: not server._entrances[0].is_open)
            assert server.is_ready()
            assert (listens(first), listens(second)) == (False, True)
            await until(lambda: server._entrances[0].is_open)
            assert listens(first)
            await is_alive(one)
            await is_alive(other)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert all(f"listening on {first}" in message for message in caplog.messages)


async def test_a_server_whose_only_address_is_lost_is_not_ready(files):
    async with open_server(config(files, FIRST)) as server:
        assert server.is_ready()
        server._entrances[0]._listener.shutdown(socket.SHUT_RDWR)
        await until(lambda: not server.is_ready())


async def test_an_address_can_be_left_alone_and_who_came_by_it_stays(files):
    async with open_server(config(files)) as server:
        first, second = server.addresses
        async with login(second) as control:
            server.leave(second)
            await until(lambda: not listens(second))
            assert (server.addresses, server.where, server.is_ready()) == ((first,), first, True)
            await is_alive(control)
            await control.send(ProxySet(1, (ProxySpec("web", second.host, second.port),)))
            assert (await receive(control, ProxyStatusUpdate)).status == "healthy"
        with pytest.raises(LookupError, match=f"does not listen on {second}"):
            server.leave(second)
        server.leave(first)
        assert not server.is_ready()


async def test_draining_stops_accepting_on_all_of_them(files):
    async with open_server(config(files)) as server:
        await server.drain(0)
        await until(lambda: not any(listens(where) for where in server.addresses))


# A new configuration


async def test_a_new_bind_retry_counts_from_the_next_round_for_those_without_their_own(files):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        own = Retry(initial_delay=60, factor=1, max_delay=60, max_retries=5, jitter=0)
        specs = (ProxySpec("web", "127.0.0.1", port), ProxySpec("ssh", "127.0.0.1", port, bind_retry=own))
        running = config(files)
        async with open_server(running) as server, login(server.where) as control:
            await control.send(ProxySet(1, specs))
            for _ in specs:
                await receive(control, ProxyStatusUpdate)
            wanted = evolve(running, bind_retry=RetryPolicy(initial_delay=60, max_delay=60, max_retries=3))
            assert server.apply(wanted) == [
                "bind_retry: counts for proxies without one of their own, from their next round of attempts on"
            ]
            assert retries(server) == {"web": 10, "ssh": 5}  # the round under way goes on by its own
            assert [server.retry(name) for name in ("web", "ssh")] == [["lab/web"], ["lab/ssh"]]
            await until(lambda: retries(server) == {"web": 3, "ssh": 5})
            async with login(server.where, token="home-token") as newcomer:
                await newcomer.send(ProxySet(1, (ProxySpec("later", "127.0.0.1", port),)))
                assert (await receive(newcomer, ProxyStatusUpdate)).max_retries == 3


def retries(server):
    return {proxy.name: proxy.max_retries for session in server.snapshot().sessions for proxy in session.proxies}


async def test_only_what_changed_is_told_and_only_once(files):
    running = config(files)
    async with open_server(running) as server:
        assert server.apply(running) == []
        assert server.apply(evolve(running, listen=(FIRST,))) == []  # that needs a restart
        assert len(server.addresses) == 2
        linear = evolve(running, bind_retry=LinearPolicy())
        assert [len(server.apply(linear)) for _ in range(2)] == [1, 0]


# The first start


async def test_the_certificate_of_the_first_start_names_all_hosts(tmp_path, monkeypatch):
    named = []

    def make(hosts, *, key_pem=None):
        named.extend(hosts)
        return make_self_signed(hosts, key_pem=key_pem)

    monkeypatch.setattr(certificate_module, "make_elsewhere", make)
    async with open_server(ServerConfig(listen=(FIRST, SECOND), state_dir=tmp_path / "state")):
        assert named == ["127.0.0.1", "127.0.0.2", socket.gethostname()]
