"""Attacks that need no token. Each is one connection, and ends by itself.

`QUICK` ones take milliseconds of a server that answers or hangs up at once; `SLOW` ones stay until they are cut.
"""

import ssl

import trio

from .assault import Assault, careless, reset, until_end
from .wire import CLOSE, client_hello, request

HELLO = client_hello()
OLD_HELLO = client_hello(ssl.TLSVersion.TLSv1_2)
HUGE_HANDSHAKE = b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"  # a handshake message of 16 MiB is announced
SLOW_SECONDS = 20.0  # far above every deadline of the server's
STEP_SECONDS = 0.25  # between the bytes of a slow one


async def comes_and_resets(assault: Assault) -> None:
    reset(await assault.tcp())


async def comes_and_goes(assault: Assault) -> None:
    async with await assault.tcp():
        pass


async def garbage(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await stream.send_all(assault.garbage())
        await until_end(stream)


async def plain_http_then_reset(assault: Assault) -> None:
    """What ends a listener that answers in a task it shares with others."""
    stream = await assault.tcp()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    reset(stream)


async def plain_http(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await until_end(stream)


async def another_protocol(assault: Assault) -> None:
    word = assault.dice.choice([b"SSH-2.0-OpenSSH_9.6\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", b"\x00\x0e\x38"])
    async with await assault.tcp() as stream:
        await stream.send_all(word)
        await until_end(stream)


async def half_a_hello_then_reset(assault: Assault) -> None:
    stream = await assault.tcp()
    await stream.send_all(HELLO[: assault.dice.randint(1, len(HELLO) - 1)])
    await trio.sleep(0.005)
    reset(stream)


async def a_hello_with_bits_flipped(assault: Assault) -> None:
    hello = bytearray(HELLO)
    for _ in range(assault.dice.randint(1, 8)):
        hello[assault.dice.randrange(len(hello))] ^= 1 << assault.dice.randrange(8)
    async with await assault.tcp() as stream:
        await stream.send_all(bytes(hello))
        await until_end(stream, 0.2)  # one whose length grew is waited for


async def an_old_version(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await stream.send_all(OLD_HELLO)
        await until_end(stream)


async def a_handshake_left_half_done(assault: Assault) -> None:
    stream = await assault.tcp()
    await stream.send_all(HELLO)
    await stream.receive_some()
    reset(stream)


async def garbage_in_the_handshake(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await stream.send_all(HELLO)
        await stream.receive_some()
        await stream.send_all(b"\x17\x03\x03\x00\x20" + assault.dice.randbytes(32))
        await until_end(stream)


async def a_handshake_then_reset(assault: Assault) -> None:
    reset(await assault.tls())


async def another_applications_protocol(assault: Assault) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "x" * 200])
    reset(await assault.tls(context))


async def _heads(assault: Assault, head: bytes, *, rude: bool = False) -> None:
    stream = await assault.tls()
    await stream.send_all(head)
    if rude:
        reset(stream)
        return
    await until_end(stream)
    stream.close()


async def a_bad_head(assault: Assault) -> None:
    heads = [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /control HTTP/9.9\r\n\r\n",
        b"GET  /control HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /control HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n",
        b"POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"GET /control HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /control\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
        request("/control", "x", authorization="Bearer y"),
        request("/control", "x", Upgrade=None),
        request("/control?token=x", "", Authorization=None),
        assault.garbage(),
    ]
    await _heads(assault, assault.dice.choice(heads))


async def a_head_too_long(assault: Assault) -> None:
    await _heads(assault, b"GET /control HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 40_000)


async def a_wrong_token(assault: Assault) -> None:
    await _heads(assault, request("/control", f"tt_{assault.dice.getrandbits(256):043x}"[:46]))


async def an_odd_token(assault: Assault) -> None:
    secret = assault.dice.choice(["", "x" * 12_000, "\xe9\xe8", "tt_", "'; drop table", "Bearer Bearer"])
    await _heads(assault, request("/control", secret))


async def a_wrong_ticket(assault: Assault) -> None:
    await _heads(assault, request("/data", f"{assault.dice.getrandbits(128):032x}"))


async def an_upgrade_without_a_token_then_reset(assault: Assault) -> None:
    await _heads(assault, request("/control", "", Authorization=None), rude=True)


async def websocket_bytes_without_a_token(assault: Assault) -> None:
    await _heads(assault, request("/data", "", Authorization=None) + CLOSE * 50)


QUICK = {
    comes_and_resets: 8,
    comes_and_goes: 6,
    garbage: 8,
    plain_http_then_reset: 8,
    plain_http: 4,
    another_protocol: 4,
    half_a_hello_then_reset: 6,
    a_hello_with_bits_flipped: 4,
    an_old_version: 3,
    a_handshake_left_half_done: 4,
    garbage_in_the_handshake: 4,
    a_handshake_then_reset: 4,
    another_applications_protocol: 2,
    a_bad_head: 6,
    a_head_too_long: 2,
    a_wrong_token: 5,
    an_odd_token: 2,
    a_wrong_ticket: 3,
    an_upgrade_without_a_token_then_reset: 3,
    websocket_bytes_without_a_token: 2,
}


# Those that stay


async def silence(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await until_end(stream, SLOW_SECONDS)


async def half_a_hello_then_silence(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await stream.send_all(assault.dice.choice([HELLO[: len(HELLO) // 2], HUGE_HANDSHAKE]))
        await until_end(stream, SLOW_SECONDS)


async def a_hello_byte_by_byte(assault: Assault) -> None:
    async with await assault.tcp() as stream:
        await _drip(stream, HELLO)


async def silence_after_the_handshake(assault: Assault) -> None:
    stream = await assault.tls(careless())
    await until_end(stream, SLOW_SECONDS)
    stream.close()


async def a_head_byte_by_byte(assault: Assault) -> None:
    stream = await assault.tls()
    try:
        await _drip(stream, request("/control", "x" * 200))
    finally:
        stream.abort()


async def _drip(stream: trio.abc.SendStream, data: bytes) -> None:
    with trio.move_on_after(SLOW_SECONDS):
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(STEP_SECONDS)


SLOW = {
    silence: 3,
    half_a_hello_then_silence: 3,
    a_hello_byte_by_byte: 2,
    silence_after_the_handshake: 2,
    a_head_byte_by_byte: 2,
}
