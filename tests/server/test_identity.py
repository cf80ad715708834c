"""Whose an identity is: replaced, refused, silent and late holders at one server."""

import pytest
import trio
from gate_rig import SOON, open_house, receive, until
from ports import free_port

from tunnel.config import Limits
from tunnel.errors import PeerLost, Refused, RemoteProtocolError
from tunnel.messages import (
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    ProxySet,
    ProxySpec,
    ProxyStatusUpdate,
    Welcome,
)


async def test_a_holder_with_replies_waiting_keeps_its_identity_if_it_answers(files):
    async with open_house(files, Limits()) as house:  # no beat of either side comes between
        (session,) = house.gate.sessions
        session._outbox._replies.extend(HeartbeatReply(1) for _ in range(64))
        assert await session.answers()


async def test_a_session_that_was_replaced_is_not_shown_beside_its_successor(files):
    async with open_house(files, Limits(heartbeat_seconds=10.0)) as house, house.login(), house.login(epoch=2):
        assert [session.client for session in house.gate.sessions] == ["home", "lab"]


async def test_a_higher_epoch_of_one_process_replaces_at_once_and_gets_the_port(files, monkeypatch):
    monkeypatch.setattr("tunnel.server.session.ANSWER_SECONDS", 60.0)  # who asks the holder has to wait for it
    async with open_house(files) as house, trio.open_nursery() as nursery:
        port = free_port()
        told = []

        @nursery.start_soon
        async def first():
            async with house.login(epoch=1) as (control, _):
                await control.send(ProxySet(1, (ProxySpec("p", "127.0.0.1", port),)))
                assert (await healthy(control)).publish_port == port
                told.append("up")
                told.append((await receive(control, Goodbye)).reason)

        await until(lambda: told == ["up"])
        async with house.login(epoch=2) as (control, _):
            await control.send(ProxySet(1, (ProxySpec("p", "127.0.0.1", port),)))
            update = await healthy(control)
            assert (update.publish_port, update.attempt) == (port, 0)
            await until(lambda: told == ["up", Farewell.REPLACED])
            with pytest.raises(Refused, match="newer session") as caught:
                async with house.login(epoch=1):
                    raise AssertionError("it was let in")
            assert caught.value.reason == "identity_held"


async def healthy(control):
    with trio.fail_after(30):
        while True:
            update = await receive(control, ProxyStatusUpdate)
            if update.status == "healthy":
                return update
            assert update.reason == "pending", update


async def test_another_process_is_refused_while_the_holder_answers(files, monkeypatch):
    monkeypatch.setattr("tunnel.server.session.ANSWER_SECONDS", 60.0)  # so long it may take, and does not
    async with (
        open_house(files) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32) as (control, _),
    ):

        @nursery.start_soon
        async def answer():
            try:
                while True:
                    if isinstance(message := await control.receive(), Heartbeat):
                        await control.send(HeartbeatReply(message.seq))
            except PeerLost:
                pass

        for _ in range(2):
            with trio.fail_after(SOON), pytest.raises(Refused) as caught:
                async with house.login(instance="b" * 32, epoch=9):
                    raise AssertionError("it was let in")
            assert caught.value.reason == "identity_held"
            assert caught.value.trust
            since = next(session.since for session in house.gate.sessions if session.client == "lab")
            assert "'lab'" in str(caught.value)
            assert since in str(caught.value)
        assert len(house.gate.sessions) == 2


async def test_a_holder_whose_greeting_is_still_on_its_way_answers_by_it(files):
    """On a long path a sign of life that was asked for during the login takes two round trips more."""
    async with (
        open_house(files, Limits(heartbeat_seconds=10.0)) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32, hello=False) as (slow, _),
    ):
        refused = trio.Event()

        @nursery.start_soon
        async def come():
            with pytest.raises(Refused, match="'lab' is connected from another process"):
                async with house.login(instance="b" * 32):
                    pass
            refused.set()

        await until(lambda: house.gate._logins._waiting["lab"])
        await slow.send(Hello(1, "test"))
        await refused.wait()
        assert (await receive(slow, Welcome)).client == "lab"


async def test_a_silent_holder_is_replaced_after_a_second(files):
    async with (
        open_house(files, Limits(heartbeat_seconds=10.0)) as house,
        trio.open_nursery() as nursery,
        house.login(instance="a" * 32) as (old, _),
    ):
        began, is_in = trio.current_time(), trio.Event()

        @nursery.start_soon
        async def come():
            async with house.login(instance="b" * 32):
                is_in.set()
                await trio.sleep_forever()

        await until(is_in.is_set, 2.0)
        assert trio.current_time() - began > 0.9
        assert (await receive(old, Goodbye)).reason is Farewell.REPLACED
        nursery.cancel_scope.cancel()


async def test_of_many_newcomers_at_once_exactly_one_holds_the_identity(files):
    async with open_house(files) as house:
        held, refused = [], []
        done = trio.Event()

        async def come(number):
            try:
                async with house.login(instance=f"{number:032x}") as (control, _):
                    held.append(number)
                    with trio.move_on_after(SOON):
                        while not done.is_set():
                            message = await control.receive()
                            if isinstance(message, Heartbeat):
                                await control.send(HeartbeatReply(message.seq))
            except (Refused, PeerLost, RemoteProtocolError) as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(come, number)
            await until(lambda: len(held) + len(refused) >= 6)
            assert len([session for session in house.gate.sessions if session.client == "lab"]) == 1
            done.set()
            nursery.cancel_scope.cancel()
