"""Who may have how many of the process's sockets; and that listeners and channels count."""

from relay_rig import POLLERS, open_rig, read_exactly, until

from tunnel.limits import socket_bound
from tunnel.relay import Room
from tunnel.relay.room import FEW


def test_visitors_have_what_listeners_and_channels_leave():
    room = Room(100, fixtures=30)
    assert not room.is_full(69)
    assert room.is_full(70)


def test_a_session_has_a_quarter_of_a_half_in_all_and_a_few_in_any_case():
    assert [Room(100, fixtures=10).allows(own) for own in (0, 24, 25)] == [True, True, False]
    assert [Room(100, fixtures=49).allows(own) for own in (0, FEW, 24)] == [True, True, True]
    assert [Room(100, fixtures=50).allows(own) for own in (0, FEW - 1, FEW, 24)] == [True, True, False, False]


def test_where_nobody_knows_a_limit_there_is_none():
    room = Room(None, fixtures=10**6)
    assert not room.is_full(10**6)
    assert room.allows(10**6)


def test_what_is_apart_from_the_relay_is_no_more_than_half_of_few_descriptors():
    assert [socket_bound(limit) for limit in (2, 256, 1024, 4096)] == [1, 128, 832, 3904]


async def test_listeners_and_channels_take_room_from_visitors_and_give_it_back():
    async with open_rig(POLLERS[0], channels=2) as rig:
        room = rig.server_engine.bounds.room
        assert room.fixtures == 4  # a session, its listener, two channels
        room.most = 6
        visitors = [await rig.visit() for _ in range(3)]
        for visitor in visitors:
            await visitor.send_all(b"x")
        await until(lambda: rig.listener in rig.server_engine.bounds.waiting)
        assert rig.server_engine.bounds.open_streams == 2
        rig.server.channels[1].close()
        for visitor in visitors:
            assert await read_exactly(visitor, 1) == b"x"
        assert room.fixtures == 3
        for visitor in visitors:
            await visitor.aclose()
    assert (room.fixtures, rig.client_engine.bounds.room.fixtures) == (0, 0)
