"""What a server tells whoever follows its events: sessions with how they ended, proxies with every status."""

import pytest
import trio
from attrs import evolve
from gate_rig import until
from test_living_grants import free_ports, open_lab, specs

from tunnel.messages import Farewell, Goodbye, ProxySet


def kinds(lab):
    return [event.kind for event in lab.server.events.recent]


@pytest.mark.slow  # a second for the goodbye
async def test_a_session_that_said_goodbye_and_its_proxies_are_told_in_order(files):
    (port,) = free_ports(1)
    async with open_lab(files) as lab:
        await lab.control.send(ProxySet(1, specs(port)))
        await lab.until_seen(p0="healthy")
        await lab.control.send(ProxySet(2, ()))
        await until(lambda: "proxy.removed" in kinds(lab))
        await lab.control.send(Goodbye(Farewell.STOPPING, "that is all"))
        await until(lambda: "session.ended" in kinds(lab))
        assert kinds(lab) == ["session.started", "proxy.status", "proxy.removed", "session.ended"]
        started, healthy, removed, ended = [event.to_json() for event in lab.server.events.recent]
        assert started["fields"] == {"peer": "127.0.0.1"}
        assert (healthy["client"], healthy["proxy"], healthy["fields"]["status"]) == ("lab", "p0", "healthy")
        assert healthy["fields"]["publish_port"] == port
        assert removed["proxy"] == "p0"
        assert (ended["fields"]["reason"], ended["fields"]["message"]) == ("goodbye", "that is all")
        assert 0 < ended["fields"]["seconds"] < 10


@pytest.mark.slow  # a second for the goodbye
async def test_a_session_that_was_ended_is_told_with_the_reason_of_who_ended_it(files):
    async with open_lab(files) as lab:
        lab.server.apply(evolve(lab.config, clients=()))
        await until(lambda: "session.ended" in kinds(lab))
        assert lab.server.events.recent[-1].fields["reason"] == "revoked"


async def test_a_session_that_was_lost_is_told_as_lost(files):
    async with open_lab(files) as lab:
        await trio.aclose_forcefully(lab.control._websocket._stream)
        await until(lambda: "session.ended" in kinds(lab))
        assert lab.server.events.recent[-1].fields["reason"] == "lost"
