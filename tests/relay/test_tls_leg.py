"""`TlsLeg` by itself, at the edges that whole transfers meet only by chance."""

import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from relay_rig import arrived_bytes, read_to_end, tls_pair, until

from tunnel.relay.tls_leg import TlsLeg

RECORD_BYTES = 16 * 1024  # of plaintext, at most
ANSWER = bytes(range(256)) * (3 * RECORD_BYTES // 256)
REST = b"and the rest"


@asynccontextmanager
async def open_leg():
    """(the target, the leg that leads to it)"""
    target, client = await tls_pair()
    leg = TlsLeg(client.detach(), SimpleNamespace(ending=False))
    try:
        yield target, leg
    finally:
        leg.close()
        target.close()


def read_available(leg, size):
    buffer = memoryview(bytearray(size))
    try:
        return bytes(buffer[: leg.recv_into(buffer)])
    except BlockingIOError:
        return b""


async def read_length(leg, size):
    data = bytearray()

    def is_there():
        data.extend(read_available(leg, size))
        return len(data) >= size

    await until(is_there)
    return bytes(data)


async def test_records_that_nobody_has_read_survive_our_end():
    """`unwrap()` alone would end the connection with an error at the first of them."""
    async with open_leg() as (target, leg):
        await target.send_all(ANSWER)
        await until(lambda: arrived_bytes(leg._sock) > len(ANSWER))
        first = read_available(leg, 1)
        assert leg._incoming.pending > 2 * RECORD_BYTES
        leg.shutdown(socket.SHUT_WR)
        await target.send_all(REST)
        assert first + await read_length(leg, len(ANSWER) + len(REST) - 1) == ANSWER + REST


@pytest.mark.parametrize("part", [1, 5, RECORD_BYTES, RECORD_BYTES + 100, 2 * RECORD_BYTES + 100])
async def test_a_record_that_came_in_part_survives_our_end(part):
    async with open_leg() as (target, leg):
        target._tls.write(ANSWER)
        ciphertext = target._outgoing.read()
        target.socket.send(ciphertext[:part])
        await until(lambda: arrived_bytes(leg._sock) == part)
        first = read_available(leg, len(ANSWER))
        leg.shutdown(socket.SHUT_WR)
        target.socket.send(ciphertext[part:])
        assert first + await read_length(leg, len(ANSWER) - len(first)) == ANSWER


async def test_the_end_is_not_told_before_the_kernel_has_it_all():
    """A target that does not read: closing the socket at a shutdown that "worked" would lose what TLS still holds."""
    async with open_leg() as (target, leg), trio.open_nursery() as nursery:
        sent = fill(leg)
        with pytest.raises(BlockingIOError):
            leg.shutdown(socket.SHUT_WR)
        heard = []

        @nursery.start_soon
        async def read_at_last():
            heard.append(len(await read_to_end(target)))

        await until(lambda: is_shut(leg))
        await until(lambda: heard == [sent])


def fill(leg):
    """Send until it would block; how much it took."""
    sent = 0
    try:
        while True:
            sent += leg.send(ANSWER)
    except BlockingIOError:
        return sent


def is_shut(leg):
    try:
        leg.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        return False
    return True
