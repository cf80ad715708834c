"""What the gate tells whoever runs the server, where a person has to mend something."""

import logging
import socket

import pytest
from gate_rig import open_house, receive, until

from tunnel.config import Limits
from tunnel.errors import Refused
from tunnel.messages import Farewell, Goodbye
from tunnel.server.proxy_protocol import SIGNATURE

HEADERS = {
    "version 1": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 8443\r\n",
    "version 2": SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12),
}


def told(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("version", HEADERS)
async def test_a_header_that_nobody_asked_for_is_named_with_the_key_that_asks_for_it(files, caplog, version):
    async with open_house(files) as house:
        with socket.create_connection(("127.0.0.1", house.server.where.port)) as balancer:
            balancer.sendall(HEADERS[version] + b"\x16\x03\x01\x02")
            await until(lambda: house.gate.stats()["refusals"]["tls"] == 1)
    assert told(caplog, logging.WARNING) == [
        "127.0.0.1 sends a PROXY header, and proxy_protocol_from does not name it; add it there if it is a balancer"
    ]


async def test_what_is_no_tls_and_no_header_is_nobodys_to_mend(files, caplog):
    async with open_house(files) as house:
        with socket.create_connection(("127.0.0.1", house.server.where.port)) as stranger:
            stranger.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            await until(lambda: house.gate.stats()["refusals"]["tls"] == 1)
    assert told(caplog, logging.WARNING) == []


async def test_a_balancer_that_sends_no_header_is_told_of_with_both_ways_out(files, caplog):
    async with open_house(files, proxy_protocol_from=("127.0.0.2",)) as house:
        where = ("127.0.0.1", house.server.where.port)
        with socket.create_connection(where, source_address=("127.0.0.2", 0)) as balancer:
            balancer.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00")
            await until(lambda: house.gate.stats()["refusals"]["proxy_header"] == 1)
    assert told(caplog, logging.WARNING) == [
        "the PROXY header of 127.0.0.2 is missing, and something else came; "
        "have it send one, or take it out of proxy_protocol_from"
    ]


async def test_of_two_processes_with_one_token_the_log_names_the_one_refused(files, caplog):
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login(epoch=2):
        with pytest.raises(Refused, match="newer session"):
            async with house.login(epoch=1):
                raise AssertionError("it was let in")
    assert told(caplog, logging.WARNING) == [
        "a login from 127.0.0.1 is refused: client 'lab' already has a newer session of this very process"
    ]


@pytest.mark.slow
async def test_a_session_that_was_replaced_does_not_look_like_a_client_that_is_gone(files, caplog):
    caplog.set_level(logging.INFO)
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house:
        async with house.login() as (control, _), house.login(epoch=2):
            goodbye = await receive(control, Goodbye)
            await until(lambda: len(house.gate._logins._sessions) == 2)
        await until(lambda: len(house.gate._logins._sessions) == 1)
    assert goodbye == Goodbye(
        Farewell.REPLACED,
        "a newer session of client 'lab'; "
        "where two processes have its token, stop one, or give each a token of its own",
    )
    assert [line for line in told(caplog, logging.INFO) if "'lab' disconnected" in line] == [
        "client 'lab' disconnected: its session of before, in whose place is another",
        "client 'lab' disconnected",
    ]
