"""What the soak's visitors make of what befalls them."""

import socket
import struct

import pytest
import trio
from processes import LOOPBACK

from .load import Load
from .transfers import Lie

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


async def serve(nursery, handler):
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    nursery.start_soon(trio.serve_listeners, handler, [listener])
    return listener.socket.getsockname()[1]


async def reset_it(stream):
    await stream.receive_some(1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    stream.socket.close()


async def end_early(stream):
    async with stream:
        async for _ in stream:
            pass


async def echo(stream):
    async with stream:
        async for piece in stream:
            await stream.send_all(piece)


async def test_a_half_closer_that_is_reset_says_so_and_no_group_does(nursery):
    load = Load({"echo": await serve(nursery, reset_it)})
    with pytest.raises(trio.BrokenResourceError):
        await load.half_closer()
    nursery.cancel_scope.cancel()


async def test_a_half_closer_that_hears_less_than_it_said_calls_it_a_lie(nursery):
    load = Load({"echo": await serve(nursery, end_early)})
    with pytest.raises(Lie):
        await load.half_closer()
    nursery.cancel_scope.cancel()


async def test_a_half_closer_is_content_with_its_echo(nursery):
    load = Load({"echo": await serve(nursery, echo)})
    await load.half_closer()
    nursery.cancel_scope.cancel()
