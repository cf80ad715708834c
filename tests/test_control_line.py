"""Changing the channel under a conversation: nothing lost, doubled or early; every way it can fail, in virtual time."""

import random
from collections import deque
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel.control_line import HAND_OVER_SECONDS, open_line
from tunnel.errors import PeerLost, RemoteProtocolError, unwrapped
from tunnel.messages import ControlMoved, Heartbeat


class End:
    """One end of a connection in memory that behaves as a `ControlChannel`."""

    def __init__(self, name):
        self.peer = name
        self.ended = trio.Event()
        self.is_closed = False
        self.is_stuck = False  # what is sent waits for ever
        self.theirs = None
        self._arrived = deque()
        self._news = trio.Event()

    async def send(self, message):
        if self.ended.is_set():
            raise PeerLost("the control channel was closed")
        if self.is_stuck:
            await trio.sleep_forever()
        self.theirs.put(message)
        await trio.lowlevel.checkpoint()

    def put(self, message):
        self._arrived.append(message)
        self._news.set()

    async def receive(self):
        while not self._arrived:
            if self.ended.is_set():
                raise PeerLost("the control channel was closed")
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        return self._arrived.popleft()

    def end(self):
        self.ended.set()
        self._news.set()

    def close(self):
        self.is_closed = True
        self.end()
        self.theirs.end()


def connection(name="first"):
    client, server = End(name), End(name)
    client.theirs, server.theirs = server, client
    return client, server


@asynccontextmanager
async def opening(end, *, after=0.0, failure=None):
    try:
        await trio.sleep(after)
        if failure is not None:
            raise failure
        yield end
    finally:
        end.close()


@asynccontextmanager
async def two_lines():
    client, server = connection()
    async with open_line(opening(client)) as ours, open_line(opening(server)) as theirs:
        yield ours, theirs, client, server


async def converse(line, heard):
    """Receive for ever, as a session does."""
    while True:
        message = await line.receive()
        if isinstance(message, ControlMoved):
            await line.follow()
        else:
            heard.append(message.seq)


async def talk(line, until, dice):
    for number in range(until):
        await line.send(Heartbeat(number))
        if dice.random() < 0.3:
            await trio.sleep(dice.random())


@pytest.mark.parametrize("seed", range(20))
async def test_no_word_is_lost_doubled_or_early_over_many_changes(autojump_clock, seed):
    dice = random.Random(seed)
    heard, answers, ends = [], [], []
    async with two_lines() as (ours, theirs, *first), trio.open_nursery() as nursery:
        ends += first
        nursery.start_soon(converse, theirs, heard)
        nursery.start_soon(converse, ours, answers)
        nursery.start_soon(talk, ours, 200, dice)
        nursery.start_soon(talk, theirs, 200, dice)
        for number in range(25):
            client, server = connection(str(number))
            ends += [client, server]
            nursery.start_soon(theirs.attach, opening(server, after=dice.random() / 10))
            await ours.change_to(opening(client, after=dice.random() / 10))
            assert (ours.peer, ours.is_changing) == (str(number), False)
            await trio.sleep(dice.random())
            assert theirs.peer == str(number)
            assert [end.is_closed for end in ends[-4:]] == [True, True, False, False]
        await trio.sleep(300)
        assert (heard, answers) == (list(range(200)), list(range(200)))
        assert (len(ours._held), len(theirs._held)) == (1, 1)
        nursery.cancel_scope.cancel()
    assert all(end.is_closed for end in ends)


async def test_a_message_that_is_under_way_when_the_change_begins_comes_before_it(autojump_clock):
    heard = []
    async with two_lines() as (ours, theirs, first, _), trio.open_nursery() as nursery:
        slow = first.send

        async def slowly(message):
            await trio.sleep(3)
            await slow(message)

        first.send = slowly
        nursery.start_soon(converse, ours, [])
        nursery.start_soon(converse, theirs, heard)
        nursery.start_soon(ours.send, Heartbeat(1))
        await wait_all_tasks_blocked()
        client, server = connection("second")
        nursery.start_soon(theirs.attach, opening(server))
        nursery.start_soon(ours.send, Heartbeat(2))
        await ours.change_to(opening(client))
        assert trio.current_time() == 9  # two messages and the last word, each in its turn
        await ours.send(Heartbeat(3))
        await wait_all_tasks_blocked()
        assert heard == [1, 2, 3]
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_opened_leaves_the_line_as_it_was(autojump_clock):
    heard = []
    async with two_lines() as (ours, theirs, *_), trio.open_nursery() as nursery:
        nursery.start_soon(converse, theirs, heard)
        with pytest.raises(PeerLost, match="nobody there"):
            await ours.change_to(opening(connection()[0], after=1.0, failure=PeerLost("nobody there")))
        assert not ours.is_changing
        await ours.send(Heartbeat(1))
        await wait_all_tasks_blocked()
        assert heard == [1]
        nursery.cancel_scope.cancel()


async def test_a_new_channel_that_breaks_before_it_is_used_is_forgotten(autojump_clock):
    heard = []
    async with two_lines() as (ours, theirs, first, _), trio.open_nursery() as nursery:
        nursery.start_soon(converse, theirs, heard)
        client, server = connection("second")
        nursery.start_soon(theirs.attach, opening(server))
        first.is_stuck = True  # so that the last word waits for its turn
        scope = trio.CancelScope()

        async def wait_stuck():
            with scope:
                await ours.send(Heartbeat(0))

        nursery.start_soon(wait_stuck)
        await wait_all_tasks_blocked()

        @nursery.start_soon
        async def change():
            with pytest.raises(PeerLost, match="before it was used"):
                await ours.change_to(opening(client))

        await wait_all_tasks_blocked()
        server.close()
        client.end()
        first.is_stuck = False
        scope.cancel()
        await wait_all_tasks_blocked()
        assert (ours.is_changing, theirs.is_changing) == (False, False)
        await ours.send(Heartbeat(1))
        await wait_all_tasks_blocked()
        assert heard == [1]
        assert (client.is_closed, server.is_closed) == (True, True)
        nursery.cancel_scope.cancel()


async def test_an_attached_channel_that_nobody_moves_to_is_closed_after_ten_seconds(autojump_clock):
    async with two_lines() as (_, theirs, client, _):
        began = trio.current_time()
        end = connection("second")[1]
        await theirs.attach(opening(end))
        assert trio.current_time() - began == HAND_OVER_SECONDS == 10.0
        assert end.is_closed
        assert not theirs.is_changing
        await client.send(Heartbeat(7))
        assert await theirs.receive() == Heartbeat(7)


async def test_who_moves_to_a_channel_that_was_given_up_is_lost_not_blamed(autojump_clock):
    async with two_lines() as (_, theirs, *_):
        await theirs.attach(opening(connection("second")[1]))
        with pytest.raises(PeerLost, match="is gone"):
            await theirs.follow()


async def test_moving_with_nothing_attached_is_blamed(autojump_clock):
    async with two_lines() as (_, theirs, *_):
        with pytest.raises(RemoteProtocolError, match="no other control channel is attached"):
            await theirs.follow()


async def test_a_peer_that_does_not_follow_within_ten_seconds_is_lost(autojump_clock):
    async def change_in_vain():
        async with unwrapped(), two_lines() as (ours, *_):
            with pytest.raises(PeerLost):
                await ours.change_to(opening(connection("second")[0]))
            await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(PeerLost, match="broke off"):
        await change_in_vain()
    assert trio.current_time() - began == HAND_OVER_SECONDS


async def test_a_peer_that_does_not_take_our_last_word_within_ten_seconds_is_lost(autojump_clock):
    async with two_lines() as (_, theirs, _, first), trio.open_nursery() as nursery:
        nursery.start_soon(theirs.attach, opening(connection("second")[1], after=4.0))
        first.is_stuck = True
        await wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(PeerLost, match="broke off"):
            await theirs.follow()
        assert trio.current_time() - began == HAND_OVER_SECONDS
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("which", ["old", "new"])
async def test_losing_either_channel_in_the_midst_of_a_change_loses_the_line(autojump_clock, which):
    async def change_in_vain():
        async with unwrapped(), two_lines() as (ours, _, first, _), trio.open_nursery() as nursery:
            client, _ = connection("second")
            nursery.start_soon(converse, ours, [])

            @nursery.start_soon
            async def change():
                with pytest.raises(PeerLost):
                    await ours.change_to(opening(client))

            await wait_all_tasks_blocked()
            (first if which == "old" else client).end()
            await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(PeerLost):
        await change_in_vain()
    assert trio.current_time() == began


@pytest.mark.parametrize("moment", ["opening", "waiting for a turn", "waiting for the peer"])
async def test_cancelling_the_caller_of_a_change_hurts_nothing(autojump_clock, moment):
    heard, answers = [], []
    async with two_lines() as (ours, theirs, first, _), trio.open_nursery() as nursery:
        client, server = connection("second")
        nursery.start_soon(converse, ours, answers)
        nursery.start_soon(theirs.attach, opening(server))
        if moment == "waiting for a turn":
            slow = first.send

            async def slowly(message):
                await trio.sleep(3)
                await slow(message)

            first.send = slowly
            nursery.start_soon(ours.send, Heartbeat(0))
            await wait_all_tasks_blocked()
        with trio.move_on_after(1) as caller:
            await ours.change_to(opening(client, after=5.0 if moment == "opening" else 0.0))
        assert caller.cancelled_caught
        nursery.start_soon(converse, theirs, heard)
        await trio.sleep(6)
        assert not ours.is_changing
        assert ours.peer == theirs.peer == ("first" if moment == "opening" else "second")
        await ours.send(Heartbeat(1))
        await theirs.send(Heartbeat(2))
        await trio.sleep(6)
        assert (heard[-1], answers) == (1, [2])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("moment", ["opening", "moving"])
async def test_a_line_that_ends_in_the_midst_of_a_change_ends_at_once_and_tells_its_caller(autojump_clock, moment):
    told = []
    client, _ = connection("second")
    async with trio.open_nursery() as nursery:
        async with two_lines() as (ours, *_):

            @nursery.start_soon
            async def change():
                with pytest.raises(PeerLost):
                    await ours.change_to(opening(client, after=5.0 if moment == "opening" else 0.0))
                told.append(trio.current_time())

            await wait_all_tasks_blocked()
            began = trio.current_time()
        assert trio.current_time() == began
    assert told == [began]
    assert client.is_closed


@pytest.mark.parametrize(
    ("failure", "polite"),
    [
        (PeerLost("silent"), False),
        (RemoteProtocolError("nonsense"), True),
    ],
    ids=["of a lost peer", "of a peer that talks nonsense"],
)
@pytest.mark.parametrize("in_nursery", [False, True], ids=["raised", "raised in a nursery"])
async def test_no_politeness_for_a_peer_that_is_gone(autojump_clock, failure, polite, in_nursery):
    """The last second of a session whose server fell silent is one of the next session's."""

    @asynccontextmanager
    async def polite_opening(end):
        try:
            yield end
        finally:
            end.close()
            with trio.move_on_after(1.0):
                await trio.sleep_forever()

    async def fail():
        await trio.sleep(5)
        raise failure

    async def have_a_session(end):
        async with open_line(polite_opening(end)):
            if in_nursery:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail)
            else:
                await fail()

    client, _server = connection()
    with pytest.raises((ExceptionGroup, type(failure))):
        await have_a_session(client)
    assert client.is_closed
    assert trio.current_time() == (6 if polite else 5)
