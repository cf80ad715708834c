"""What a token allows, at a living session: hand-made messages get no more (B11), and a reload counts at once."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
from attrs import evolve
from gate_rig import PATIENT, House, client_context, until
from ports import free_port

from tunnel.addresses import HostPort, PortRange
from tunnel.config import Grant, ServerConfig
from tunnel.control import ControlChannel
from tunnel.errors import PeerLost, Refused
from tunnel.messages import Farewell, Goodbye, ProxySet, ProxySpec, ProxyStatusUpdate, RetryProxy
from tunnel.server.app import Server, open_server
from tunnel.sockets import listen
from tunnel.state import hash_token

__all__ = ["client_context"]


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


class Lab:
    """A client made by hand, and the server that is told what it may do."""

    def __init__(self, server: Server, config: ServerConfig, control: ControlChannel) -> None:
        self.server, self.config, self.control = server, config, control
        self.seen: dict[str, ProxyStatusUpdate] = {}
        self.goodbye: Goodbye | None = None

    async def hear(self) -> None:
        try:
            while True:
                match await self.control.receive():
                    case ProxyStatusUpdate() as update:
                        self.seen[update.proxy_name] = update
                    case Goodbye() as goodbye:
                        self.goodbye = goodbye
        except PeerLost:
            pass

    async def until_seen(self, **wanted: str) -> None:
        """By proxy: the status, or the reason where there is one."""
        await until(lambda: self.words() == wanted)

    def words(self) -> dict[str, str]:
        return {name: str(update.reason or update.status) for name, update in self.seen.items()}

    def reload(self, **changes: Any) -> None:
        (grant,) = self.config.clients
        self.config = evolve(self.config, clients=(evolve(grant, **changes),))
        self.server.apply(self.config)

    @property
    def session(self) -> Any:
        (session,) = self.server._gate.sessions
        return session


@asynccontextmanager
async def open_lab(
    files: Path, headers: Mapping[str, str] = MappingProxyType({}), **allowed: Any
) -> AsyncIterator[Lab]:
    grant = Grant("lab", hash_token("lab-token"), **{"allow_ports": None, **allowed})
    config = ServerConfig(
        (HostPort("127.0.0.1", 0),), None, files / "cert.pem", files / "key.pem", clients=(grant,), limits=PATIENT
    )
    with trio.fail_after(30):
        async with open_server(config) as server, trio.open_nursery() as nursery:
            house = House(server, files, nursery)
            async with house.login(**headers) as (control, _):
                lab = Lab(server, config, control)
                nursery.start_soon(lab.hear)
                yield lab
                nursery.cancel_scope.cancel()


def specs(*ports: int) -> tuple[ProxySpec, ...]:
    return tuple(ProxySpec(f"p{number}", "127.0.0.1", port) for number, port in enumerate(ports))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Made by hand


async def test_nothing_that_a_hand_made_client_says_gives_it_more_than_its_token(files: Path) -> None:
    """B11"""
    mine, others = free_ports(2)
    async with open_lab(
        files, allow_ports=(PortRange(mine, mine),), allow_addrs=("127.0.0.1",), allow_names=("web", "ssh")
    ) as lab:
        wanted = (
            ProxySpec("web", "127.0.0.1", mine),
            ProxySpec("ssh", "127.0.0.1", others),
            ProxySpec("mail", "127.0.0.1", mine),
        )
        refused = {"ssh": "not_allowed", "mail": "not_allowed"}
        await lab.control.send(ProxySet(1, wanted))
        await lab.until_seen(web="healthy", **refused)
        for name in refused:  # asking again does not help
            await lab.control.send(RetryProxy(name))
        # Nor does saying it bit by bit: each set is judged as if it were the first.
        await lab.control.send(ProxySet(2, (wanted[0], ProxySpec("ssh", "0.0.0.0", mine), ProxySpec("web2", "::1", 0))))
        await until(lambda: lab.words().get("web2") == "not_allowed")
        assert lab.words() == {"web": "healthy", **refused, "web2": "not_allowed"}
        assert [listens(mine), listens(others)] == [True, False]
        await lab.control.send(ProxySet(3, (ProxySpec("web", "127.0.0.1", others),)))
        await until(lambda: lab.words()["web"] == "not_allowed")
        assert [listens(mine), listens(others)] == [False, False]


async def test_of_a_thousand_proxies_only_as_many_listen_as_the_token_allows(files: Path) -> None:
    """B11"""
    async with open_lab(files, max_proxies=3) as lab:
        await lab.control.send(ProxySet(1, specs(*[0] * 1000)))
        await until(lambda: len(lab.seen) == 1000 and "pending" not in lab.words().values())
        words = list(lab.words().values())
        assert (words.count("healthy"), words.count("not_allowed")) == (3, 997)
        message = "client 'lab' already has 3 proxies; raise max_proxies at the server"
        assert {update.error_message for update in lab.seen.values()} == {None, message}
        assert len(lab.session.relay.listeners) == 3


# A reload


async def test_what_is_allowed_no_more_is_closed_with_its_reason_and_the_others_never_blink(files: Path) -> None:
    kept, lost = free_ports(2)
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(kept, lost)))
        await lab.until_seen(p0="healthy", p1="healthy")
        listener, inside = next(iter(lab.session.relay.listeners)), socket.create_connection(("127.0.0.1", lost))
        before = lab.seen["p0"]
        await until(lambda: len(lab.session.relay.streams) == 1)
        lab.reload(allow_ports=(PortRange(kept, kept),))
        assert not listens(lost)
        await lab.until_seen(p0="healthy", p1="not_allowed")
        told = lab.seen["p1"]
        assert (told.status, told.error_message) == (
            "bind_failed",
            f"the token of client 'lab' does not allow port {lost} (allowed: {kept}); change allow_ports at the server or what is published",  # noqa: E501
        )
        assert lab.seen["p0"] is before
        assert listens(kept)
        assert len(lab.session.relay.streams) >= 1  # whoever is inside may finish
        assert listener.session is lab.session.relay
        lab.reload(allow_ports=None)  # and back
        await lab.until_seen(p0="healthy", p1="healthy")
        assert lab.seen["p0"] is before
        inside.close()


async def test_a_port_that_the_server_chose_is_given_up_for_one_that_is_allowed(files: Path) -> None:
    (only,) = free_ports(1)
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(0)))
        await lab.until_seen(p0="healthy")
        assert lab.seen["p0"].publish_port != only
        lab.reload(allow_ports=(PortRange(only, only),))
        await until(lambda: lab.seen["p0"].publish_port == only and listens(only))


async def test_of_too_many_proxies_the_first_ones_stay_and_the_others_come_back_when_they_may(files: Path) -> None:
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(0, 0, 0)))
        await lab.until_seen(p0="healthy", p1="healthy", p2="healthy")
        lab.reload(max_proxies=1)
        await lab.until_seen(p0="healthy", p1="not_allowed", p2="not_allowed")
        lab.reload(max_proxies=2)
        await lab.until_seen(p0="healthy", p1="healthy", p2="not_allowed")


async def test_a_proxy_that_waits_for_its_port_learns_that_it_may_not_have_it(files: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        async with open_lab(files) as lab:
            await lab.control.send(ProxySet(1, specs(taken.getsockname()[1])))
            await lab.until_seen(p0="addr_in_use")
            lab.reload(allow_ports=())
            await lab.until_seen(p0="not_allowed")
            lab.reload(allow_ports=None)
            await lab.until_seen(p0="addr_in_use")


async def test_bounds_on_visitors_count_from_now_on_both_ways(files: Path) -> None:
    (port,) = free_ports(1)
    async with open_lab(files, max_visitors=1) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        visitors = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        await until(lambda: len(lab.session.relay.streams) == 1)
        await trio.sleep(0.05)
        assert len(lab.session.relay.streams) == 1
        lab.reload(max_visitors=2)
        await until(lambda: len(lab.session.relay.streams) == 2)
        await trio.sleep(0.05)
        assert len(lab.session.relay.streams) == 2
        lab.reload(max_visitors=None)
        await until(lambda: len(lab.session.relay.streams) == 3)
        for visitor in visitors:
            visitor.close()


async def test_a_rate_of_new_visitors_can_come_and_go_and_is_told_once(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    async with open_lab(files, max_visitor_rate=0.02) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        visitors = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        word = "new visitors of client 'lab' wait: more come than its max_visitor_rate of 0.02 a second"
        await until(lambda: word in caplog.text)
        await trio.sleep(0.05)
        assert len(lab.session.relay.streams) == 1
        assert caplog.text.count(word) == 1
        lab.reload(max_visitor_rate=None)
        await until(lambda: len(lab.session.relay.streams) == 5)
        for visitor in visitors:
            visitor.close()


async def test_an_entry_that_is_gone_ends_its_session_with_a_word(files: Path) -> None:
    (port,) = free_ports(1)
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        session = lab.session
        lab.server.apply(evolve(lab.config, clients=()))
        await session.ended.wait()
        assert not listens(port)
        await until(lambda: lab.goodbye is not None)
        assert lab.goodbye is not None
        assert lab.goodbye.reason is Farewell.REVOKED
        assert lab.goodbye.message.startswith("the server knows no client 'lab' with this token any more")
        with pytest.raises(Refused) as caught:
            async with House(lab.server, files, None).login():
                pass
        assert caught.value.reason == "token_refused"


async def test_another_token_for_the_same_client_ends_the_session_of_the_old_one(files: Path) -> None:
    async with open_lab(files) as lab:
        session = lab.session
        lab.reload(token_sha256=hash_token("new-token"))
        await session.ended.wait()
        async with House(lab.server, files, None).login(token="new-token") as (_, welcome):
            assert welcome.client == "lab"


async def test_limits_that_change_hold_for_living_sessions_save_the_heartbeat_that_was_agreed_upon(files: Path) -> None:
    port, later = free_ports(2)
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        wanted = evolve(PATIENT, max_visitors_per_proxy=1, max_visitors=7, ticket_seconds=3.0, heartbeat_seconds=99.0)
        done = lab.server.apply(evolve(lab.config, limits=wanted))
        assert done == ["limits: for all that begins from now on; nobody inside is sent away"]
        await lab.control.send(ProxySet(2, specs(port, later)))
        await lab.until_seen(p0="healthy", p1="healthy")
        published = lab.session._published
        assert [listener.max_visitors for listener in published._listeners] == [1, 1]
        assert lab.server.engine.bounds.max_streams == 7
        limits = lab.session._config.limits
        assert (limits.ticket_seconds, limits.heartbeat_seconds) == (3.0, PATIENT.heartbeat_seconds)
        assert lab.server.config.limits == wanted


async def test_who_only_looks_has_no_visitors_whatever_limits_a_reload_brings(files: Path) -> None:
    (port,) = free_ports(1)
    async with open_lab(files, {"Trio-Tunnel-Yields": "1"}) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        lab.server.apply(evolve(lab.config, limits=evolve(PATIENT, max_visitors_per_proxy=7)))
        assert [listener.max_visitors for listener in lab.session._published._listeners] == [0]
