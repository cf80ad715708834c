"""An engine in somebody else's process: a child of theirs may hold copies of our sockets for as long as it lives."""

import os

import pytest
import trio
from relay_rig import POLLERS, connected_pair, echo, open_rig, read_exactly, read_to_end, reset_now, saw_reset, until

from tunnel.relay import Engine

pytestmark = pytest.mark.parametrize("poller", POLLERS)


class Member:
    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def wants(self):
        return 1


async def test_a_clean_end_needs_no_last_copy(poller):
    async with open_rig(poller, is_alone=False) as rig, await rig.visit() as visitor:
        await visitor.send_all(b"x")
        assert await read_exactly(visitor, 1) == b"x"
        copies = [os.dup(session.streams[1].fd) for session in (rig.server, rig.client)]
        await visitor.send_eof()
        with trio.fail_after(30):
            assert await read_to_end(visitor) == b""
        for copy in copies:
            os.close(copy)


async def test_what_befalls_a_copy_is_not_told_to_the_next_owner_of_the_number(poller):
    engine = Engine(poller=poller)
    ours, theirs = connected_pair()
    fd = ours.fileno()
    engine.register(fd, Member())
    engine.turn(0)
    copy = os.dup(fd)
    engine.closing(fd)
    ours.close()
    new, far = connected_pair()
    if new.fileno() != fd:
        os.dup2(new.fileno(), fd)
        new.close()
    newcomer = Member()
    engine.register(fd, newcomer)
    engine.turn(0)  # it is writable
    newcomer.events.clear()
    reset_now(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
    for _ in range(3):
        engine.turn(0.01)
    assert newcomer.events == []
    engine.closing(fd)
    os.close(fd)
    os.close(copy)
    far.close()
    engine.close()


@pytest.mark.parametrize("ends", ["cleanly", "by a reset"])
async def test_each_end_is_seen_there_as_anywhere(poller, ends):
    async def target(stream):
        if ends == "cleanly":
            await echo(stream)
        else:
            await stream.receive_some(1)
            reset_now(stream)

    async with open_rig(poller, target, is_alone=False) as rig:
        for _ in range(3):
            async with await rig.visit() as visitor:
                await visitor.send_all(b"x")
                if ends == "cleanly":
                    await visitor.send_eof()
                assert await saw_reset(visitor) is (ends != "cleanly")
        await until(lambda: (rig.tally.visitors, rig.route.tally.visitors) == (0, 0))
