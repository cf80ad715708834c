"""A planned change of the control channel over real TLS: the session, its statuses and its visitors do not notice.

What the line does by itself, in virtual time, is in `tests/test_control_line.py`.
"""

from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from attrs import evolve
from gate_rig import (
    ONE_CHANNEL,
    TOKENS,
    client_context,
    echo,
    grants,
    living,
    open_descriptors,
    open_house,
    receive,
    request,
    until,
)
from test_logged_in import text

import tunnel
from tunnel.addresses import HostPort, Target
from tunnel.client.dialer import Reached
from tunnel.client.resolver import ServerAddress
from tunnel.config import ClientConfig, Limits, ProxyConfig, ServerConfig
from tunnel.control import open_client_control
from tunnel.control_line import ControlLine
from tunnel.errors import PeerLost, Refused
from tunnel.messages import (
    ATTACH,
    ControlMoved,
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    ProxyStatusUpdate,
    encode,
)
from tunnel.server.app import open_server
from tunnel.sockets import dial_tcp
from tunnel.tls import TlsStream

INSTANCE = "1" * 32


# A real client and server


class Couple:
    """A server and its one client, each with its session, and how to dial once more."""

    def __init__(self, server, client):
        self.server = server
        self.client = client
        self.ours = client._session
        (self.theirs,) = server._gate.sessions

    async def dial(self):
        stream = TlsStream(
            await dial_tcp(HostPort("127.0.0.1", self.server.where.port)),
            client_context(),
            server_side=False,
            server_hostname="localhost",
        )
        await stream.do_handshake()
        server = HostPort("localhost", self.server.where.port)
        return Reached(stream, ServerAddress("127.0.0.1", server.port, server))

    async def change(self):
        await self.ours.change_control(await self.dial())

    def assert_goes_on(self):
        assert self.client._session is self.ours
        assert self.server._gate.sessions == (self.theirs,)
        assert not self.ours._line.is_changing

    def spy(self):
        """What each side says and hears from now on, as far as it is not about the change itself."""
        said, heard = {"client": [], "server": []}, {"client": [], "server": []}
        for side, session in (("client", self.ours), ("server", self.theirs)):
            _spy(session._line, "send", said[side])
            _spy(session._law, "heard", heard[side])
        return said, heard


def _spy(subject, name, record):
    original = getattr(subject, name)

    def spied(message):
        if not isinstance(message, ControlMoved):
            record.append(message)
        return original(message)

    setattr(subject, name, spied)


@asynccontextmanager
async def open_couple(files, **limits):
    config = ServerConfig(
        (HostPort("127.0.0.1", 0),), None, files / "cert.pem", files / "key.pem", clients=grants(),
        limits=Limits(**limits),
    )  # fmt: skip
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, open_server(config) as server:
            listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            proxy = ProxyConfig("echo", HostPort("127.0.0.1", 0), (Target("tcp", *listeners[0].socket.getsockname()),))
            wanted = ClientConfig(
                (HostPort("localhost", server.where.port),), TOKENS["home"], None, files / "ca.pem", (proxy,),
                data_channels=ONE_CHANNEL,
            )  # fmt: skip
            async with tunnel.connect(wanted) as client:
                await client.wait_healthy()
                couple = Couple(server, client)
                await until(lambda: len(couple.ours.relay.channels) == len(couple.theirs.relay.channels) == 1)
                yield couple
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_change_under_a_storm_keeps_every_word_in_its_order(files):
    async with open_couple(files, heartbeat_seconds=0.05) as couple, trio.open_nursery() as storm:
        said, heard = couple.spy()

        @storm.start_soon
        async def statuses():
            while True:
                couple.theirs._published._report(couple.theirs.proxies["echo"])
                await trio.sleep(0.0005)

        @storm.start_soon
        async def questions():
            while True:
                couple.client.retry("echo")
                await trio.sleep(0.0005)

        changes = 0
        while changes < 10 or min(map(len, said.values())) <= 100:
            await couple.change()
            changes += 1
            await trio.sleep(0.02)
        storm.cancel_scope.cancel()
        couple.assert_goes_on()
        for side, other in (("client", "server"), ("server", "client")):
            last = len(said[side])
            await until(lambda last=last, other=other: len(heard[other]) >= last)
            assert heard[other] == said[side][: len(heard[other])]
        seqs = [message.seq for message in heard["client"] if isinstance(message, ProxyStatusUpdate)]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert {Heartbeat, HeartbeatReply} <= {type(message) for message in heard["client"]}


async def test_a_visitor_inside_and_the_data_channels_do_not_notice(files):
    async with (
        open_couple(files) as couple,
        await trio.open_tcp_stream("127.0.0.1", couple.client.statuses["echo"].publish_port) as visitor,
        trio.open_nursery() as nursery,
    ):
        sent, got = bytearray(), bytearray()

        @nursery.start_soon
        async def talk():
            for number in range(10**6):
                piece = b"%d " % number
                sent.extend(piece)
                await visitor.send_all(piece)
                got.extend(await visitor.receive_some())

        channels = couple.ours.relay.channels + couple.theirs.relay.channels
        for _ in range(5):
            before = len(got)
            await couple.change()
            await until(lambda before=before: len(got) > before + 50)
        assert couple.ours.relay.channels + couple.theirs.relay.channels == channels
        assert sent.startswith(got)
        couple.assert_goes_on()
        nursery.cancel_scope.cancel()


async def test_the_control_channel_is_where_it_moved_to(files):
    async with open_couple(files) as couple:
        first = couple.ours._line._source.channel
        assert couple.ours.control_peer == f"127.0.0.1:{couple.server.where.port}"
        await couple.change()
        second = couple.ours._line._source.channel
        assert second is not first
        await until(lambda: first.ended.is_set() and len(couple.theirs._line._held) == 1)
        assert not second.ended.is_set()
        couple.assert_goes_on()


@pytest.mark.slow
async def test_fifty_changes_in_a_row_leave_nothing_behind(files):
    async with open_couple(files) as couple:
        await couple.change()
        await until(lambda: len(couple.theirs._line._held) == len(couple.ours._line._held) == 1)
        tasks, descriptors = living(), open_descriptors()
        for _ in range(50):
            await couple.change()
        await until(lambda: len(couple.theirs._line._held) == len(couple.ours._line._held) == 1)
        await until(lambda: (living(), open_descriptors()) == (tasks, descriptors))
        admission = couple.server._gate.strangers._admission
        assert admission.strangers == 0
        assert len(couple.theirs.relay.channels) == 1
        couple.assert_goes_on()


async def test_losing_the_old_channel_in_the_midst_of_a_change_ends_the_session(files, monkeypatch):
    async with open_couple(files) as couple, trio.open_nursery() as nursery:
        asked = trio.Event()

        async def follow(self):
            asked.set()
            await trio.sleep_forever()

        monkeypatch.setattr(ControlLine, "follow", follow)
        old = couple.ours._line._source.channel

        @nursery.start_soon
        async def change():
            with pytest.raises(PeerLost):
                await couple.change()

        await asked.wait()
        old._websocket._stream._stream.abort()
        await couple.theirs.ended.wait()
        await until(lambda: couple.client._session not in (couple.ours, None))


async def test_a_server_that_does_not_follow_costs_the_session_in_time(files, monkeypatch):
    monkeypatch.setattr("tunnel.control_line.HAND_OVER_SECONDS", 0.15)
    async with open_couple(files) as couple:

        async def follow(self):
            await trio.sleep_forever()

        couple.theirs._line.follow = partial(follow, None)
        with pytest.raises(PeerLost), trio.fail_after(30):
            await couple.change()
        await couple.theirs.ended.wait()
        await until(lambda: couple.client._session not in (couple.ours, None))


async def test_a_change_that_crosses_the_servers_draining_is_followed(files, monkeypatch):
    """The client has left the old channel when it hears that the server drains; it must hear the server to its end."""
    async with open_couple(files) as couple, trio.open_nursery() as nursery:
        follow, asked, go_on = couple.theirs._line.follow, trio.Event(), trio.Event()

        async def late():
            asked.set()
            await go_on.wait()
            await follow()

        couple.theirs._line.follow = late
        nursery.start_soon(couple.change)
        await asked.wait()
        couple.theirs.drain()
        await until(lambda: couple.client.statuses["echo"].reason == "draining")
        go_on.set()
        await until(lambda: not couple.ours._line.is_changing)
        assert couple.client._session is couple.ours
        couple.theirs.close(Farewell.DRAINING)
        await until(lambda: couple.client._session is not couple.ours)


@pytest.mark.parametrize("why", ["refused", "unsupported", "no session", "under way"])
async def test_a_change_that_comes_to_nothing_closes_its_stream_and_the_session_goes_on(files, why):
    async with open_couple(files) as couple:
        reached = await couple.dial()
        if why == "refused":
            couple.theirs._published.is_draining = True
        elif why == "unsupported":
            assert couple.ours._welcome.features == (ATTACH,)
            couple.ours._welcome = evolve(couple.ours._welcome, features=())
        elif why == "no session":
            couple.ours._nursery, kept = None, couple.ours._nursery
        elif why == "under way":
            couple.ours._line._newcomer = object()
        with pytest.raises((Refused, PeerLost)) as caught:
            await couple.ours.change_control(reached)
        if why == "no session":
            couple.ours._nursery = kept
        couple.ours._line._newcomer = None
        couple.theirs._published.is_draining = False
        assert getattr(caught.value, "reason", None) == {
            "refused": "session_gone", "unsupported": "attach_unsupported", "under way": "attach_under_way",
        }.get(why)  # fmt: skip
        assert reached.stream._closed
        couple.assert_goes_on()
        _, heard = couple.spy()
        couple.ours.say(Heartbeat(999))
        await until(lambda: HeartbeatReply(999) in heard["client"])


# A hand-made client


@asynccontextmanager
async def attach(house, session, *, token="lab-token", instance=INSTANCE, epoch=1):
    headers = {
        "Authorization": f"Bearer {token}",
        "Trio-Tunnel-Instance": instance,
        "Trio-Tunnel-Epoch": str(epoch),
        "Trio-Tunnel-Session": session,
    }
    async with open_client_control(await house.tls(), host="localhost", path="/control", headers=headers) as control:
        yield control


async def answers(control, seq=77):
    with trio.fail_after(30):
        await control.send(Heartbeat(seq))
        while (await receive(control, HeartbeatReply)).seq != seq:
            pass
    return True


def lab(house):
    (session,) = [session for session in house.gate.sessions if session.client == "lab"]
    return session


async def test_the_new_channel_is_heard_after_the_last_word_on_the_old_one(files):
    async with open_house(files) as house, house.login() as (old, welcome), attach(house, welcome.session) as new:
        await new.send(Heartbeat(3))
        await old.send(Heartbeat(1))
        await until(lambda: lab(house)._line._newcomer.opened.is_set())
        assert (await receive(old, HeartbeatReply)).seq == 1
        await old.send(Heartbeat(2))
        await old.send(ControlMoved())
        assert (await receive(old, HeartbeatReply)).seq == 2
        await receive(old, ControlMoved)
        with pytest.raises(PeerLost):
            await old.receive()
        assert (await receive(new, HeartbeatReply)).seq == 3
        assert lab(house).id == welcome.session


REFUSALS = {
    "another session": ({"session": "0" * 16}, "session_gone"),
    "no session named": ({"session": ""}, "session_gone"),
    "another process": ({"instance": "2" * 32}, "session_gone"),
    "an older epoch": ({"epoch": 0}, "session_gone"),
    "a newer epoch": ({"epoch": 2}, "session_gone"),
    "another client": ({"token": "home-token"}, "session_gone"),
    "no client": ({"token": "wrong"}, "token_refused"),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_only_the_process_that_has_the_session_may_attach(files, what):
    asked, reason = REFUSALS[what]
    async with open_house(files) as house, house.login() as (control, welcome):
        with pytest.raises(Refused) as caught:
            async with attach(house, **{"session": welcome.session, **asked}):
                raise AssertionError("it was let in")
        assert caught.value.reason == reason
        assert (await answers(control), lab(house).id) == (True, welcome.session)


@pytest.mark.parametrize("when", ["not greeted", "closing", "draining", "server draining", "over"])
async def test_a_session_that_will_not_last_takes_no_other_channel(files, when):
    async with open_house(files) as house, house.login(hello=when != "not greeted") as (control, _):
        session = lab(house)
        if when == "closing":
            session._farewell = Goodbye(Farewell.REVOKED)
        elif when == "draining":
            session.drain()
        elif when == "over":
            await control.send(Goodbye(Farewell.STOPPING))
            await session.ended.wait()
        house.gate.is_draining = when == "server draining"
        with pytest.raises(Refused) as caught:
            async with attach(house, session.id):
                raise AssertionError("it was let in")
        house.gate.is_draining = False
        assert caught.value.reason == ("server_stopping" if when == "server draining" else "session_gone")


@pytest.mark.parametrize("how", ["at once", "in the upgrade"])
async def test_a_new_channel_that_dies_before_it_is_used_is_forgotten(files, how):
    async with open_house(files) as house, house.login() as (control, welcome):
        line = lab(house)._line
        for _ in range(3):
            stream = await house.tls()
            await stream.send_all(request(Trio_Tunnel_Session=welcome.session))
            if how == "at once":
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
                await until(lambda: line.is_changing)
            stream.abort()
            await until(lambda: not line.is_changing and len(line._held) == 1)
        assert await answers(control)
        async with attach(house, welcome.session) as new:
            await control.send(ControlMoved())
            await receive(control, ControlMoved)
            assert await answers(new)


async def test_a_new_channel_that_nobody_moves_to_is_closed_and_moving_there_late_is_a_loss(files, monkeypatch):
    monkeypatch.setattr("tunnel.control_line.HAND_OVER_SECONDS", 0.1)
    async with open_house(files) as house, house.login() as (control, welcome), attach(house, welcome.session) as new:
        with trio.fail_after(30), pytest.raises(PeerLost):
            await new.receive()
        assert await answers(control)
        await control.send(ControlMoved())
        with trio.fail_after(30), pytest.raises(PeerLost):
            await receive(control, Goodbye)


@pytest.mark.parametrize("phase", ["greeting", "ready"])
async def test_moving_with_nothing_attached_ends_that_session_with_a_word(files, phase):
    async with open_house(files) as house, house.login(hello=phase == "ready") as (control, _):
        await control.send(ControlMoved())
        with trio.fail_after(30):
            assert (await receive(control, Goodbye)).reason is Farewell.PROTOCOL_ERROR


async def test_losing_the_old_channel_with_another_attached_but_not_used_ends_the_session(files):
    async with open_house(files) as house, house.login() as (control, welcome):
        session = lab(house)
        async with attach(house, welcome.session) as new:
            control._websocket._stream._stream.abort()
            await session.ended.wait()
            with trio.fail_after(30), pytest.raises(PeerLost):
                await new.receive()


async def test_a_session_that_is_replaced_in_the_midst_of_a_change_takes_both_channels_with_it(files):
    async with open_house(files) as house, house.login() as (old, welcome), attach(house, welcome.session) as new:
        session = lab(house)
        await until(lambda: len(session._line._held) == 2)
        async with house.login(epoch=2) as (control, _):
            assert session.ended.is_set()
            assert (await receive(old, Goodbye)).reason is Farewell.REPLACED
            with trio.fail_after(30), pytest.raises(PeerLost):
                await new.receive()
            assert await answers(control)


async def test_a_flood_of_new_channels_gets_one_place(files):
    async with open_house(files) as house, house.login() as (control, welcome):
        told, line = [], lab(house)._line
        async with trio.open_nursery() as flood:

            async def come():
                try:
                    async with attach(house, welcome.session):
                        told.append("attached")
                        await trio.sleep_forever()
                except Refused as refused:
                    told.append(refused.reason)

            for _ in range(6):  # eight at once from one address are let in, the healthy client's and ours among them
                flood.start_soon(come)
            await until(lambda: len(told) == 6)
            assert sorted(told) == ["attach_under_way"] * 5 + ["attached"]
            assert len(line._held) == 2
            assert await answers(control)
            flood.cancel_scope.cancel()


async def test_a_flood_of_last_words_ends_its_own_session_only(files):
    async with open_house(files) as house:
        stream = await house.tls()
        await stream.send_all(request())
        await stream.receive_some()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(text(encode(Hello(1))) + text(encode(ControlMoved())) * 5000)
        await until(house.is_quiet)
        stream.close()


async def test_bytes_behind_the_head_of_an_attach_are_refused(files):
    async with open_house(files) as house, house.login() as (control, welcome):
        stream = await house.tls()
        await stream.send_all(request(Trio_Tunnel_Session=welcome.session) + text(encode(Heartbeat(1))))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
        stream.close()
        assert await answers(control)
