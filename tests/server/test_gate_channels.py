"""What a client with good tickets may ask of the gate: a bounded number of data channels, and any name for a place."""

import pytest
import trio
from gate_rig import SOON, open_house, receive, request, until

from tunnel.config import Limits
from tunnel.errors import Refused
from tunnel.messages import TicketRequest, Tickets
from tunnel.relay.room import FEW
from tunnel.server.data_channels import MAX_PLACE
from tunnel.tls import TlsStream

PLACES = {
    "none": (None, ""),
    "an address": ("tunnel.example.com:8443", "tunnel.example.com:8443"),
    "too long": ("x" * 12_000, "x" * MAX_PLACE),
    "not a text": ("\xff\x80 \xa0\t\xe9", "\xff\x80 \xa0\t\xe9"),
    "empty": ("", ""),
}


@pytest.mark.parametrize("what", PLACES)
async def test_a_place_is_any_word_of_the_clients_cut_to_its_length(files, what):
    said, kept = PLACES[what]
    async with open_house(files) as house, house.login() as (_, welcome):
        (session,) = [session for session in house.gate.sessions if session.client == "lab"]
        stream = await house.tls()
        await stream.send_all(request("/data", Authorization=f"Bearer {welcome.tickets[0]}", Trio_Tunnel_Place=said))
        await until(lambda: len(session.relay.channels) == 1)
        assert session.relay.channels[0].place == kept
        assert session.relay.describe()["channels"] == 1
        stream.close()
        await until(lambda: session.relay.channels == [])


async def test_channels_that_come_at_once_do_not_pass_the_bound_together(files, monkeypatch):
    """Each found room before any of them was answered."""
    monkeypatch.setattr("tunnel.server.data_channels.MAX_CHANNELS", 2)
    answer, go_on, asked = TlsStream.send_all, trio.Event(), []

    async def late(self, data):
        if data.startswith(b"HTTP/1.1 101") and b"\r\n\r\n" in data:
            asked.append(self)
            await go_on.wait()
        await answer(self, data)

    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login() as (_, welcome):
        (session,) = [session for session in house.gate.sessions if session.client == "lab"]
        monkeypatch.setattr(TlsStream, "send_all", late)
        streams = []
        for ticket in welcome.tickets:
            streams.append(await house.tls())
            await streams[-1].send_all(request("/data", Authorization=f"Bearer {ticket}"))
        await until(lambda: len(asked) == 4)
        assert session.relay.channels == []
        go_on.set()
        ends = [stream for stream in streams if await is_ended(stream)]
        assert (len(session.relay.channels), len(ends)) == (2, 2)
        for stream in streams:
            stream.close()


async def is_ended(stream):
    """Behind its answer comes a ping, or the end."""
    with trio.fail_after(SOON):
        heard = b""
        while heard.count(b"\r\n\r\n") == 0 or heard.endswith(b"\r\n\r\n"):
            try:
                chunk = await stream.receive_some()
            except trio.BrokenResourceError:
                return True
            if not chunk:
                return True
            heard += chunk
    return False


@pytest.mark.slow
async def test_with_no_descriptors_to_spare_a_session_has_a_few_channels_and_others_have_theirs(files):
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login() as (control, welcome):
        room = house.server.engine.bounds.room
        room.most, before = 2, room.most
        channels = [await house.data_channel(ticket) for ticket in welcome.tickets]
        assert len(channels) == FEW
        await control.send(TicketRequest(1))
        (ticket,) = (await receive(control, Tickets)).tickets
        with pytest.raises(Refused, match="as many as the server has descriptors for") as caught:
            await house.data_channel(ticket)
        assert (caught.value.reason, caught.value.trust) == ("too_many_channels", False)
        room.most = before
        for channel in channels:
            channel.close()
