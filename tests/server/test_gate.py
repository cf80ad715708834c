"""The one public port before a token was good, under attack at every stage, while a healthy client's proxy answers."""

import gc
import json
import random
import socket

import pytest
import trio
from attrs import evolve
from gate_rig import (
    PATIENT,
    QUICK,
    open_house,
    receive,
    request,
    to_end,
    until,
)

from tunnel.errors import Refused
from tunnel.frames import FRAME, OPEN, OPEN_PAYLOAD, WS_ROOM, control_message, put_message_head
from tunnel.messages import (
    TicketRequest,
    Tickets,
)

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
