"""Attacks on a proxy's public port: what a web service's visitors do to it, and to the tunnel before it."""

import trio

from .assault import Assault, reset, until_end


async def a_visit_then_reset(assault: Assault) -> None:
    stream = await assault.tcp(assault.target.public)
    if assault.dice.random() < 0.5:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
    reset(stream)


async def a_visit_with_garbage(assault: Assault) -> None:
    async with await assault.tcp(assault.target.public) as stream:
        await stream.send_all(assault.garbage() + b"\r\n\r\n")
        await until_end(stream)


async def a_visit_that_ends_first(assault: Assault) -> None:
    """FIN before a word, or behind half a request; the answer, if any, meets a reset."""
    stream = await assault.tcp(assault.target.public)
    await stream.send_all(assault.dice.choice([b"", b"GET /", b"GET / HTTP/1.1\r\n\r\n"]))
    await stream.send_eof()
    await trio.sleep(0.01)
    reset(stream)


VISITS = {a_visit_then_reset: 4, a_visit_with_garbage: 2, a_visit_that_ends_first: 4}
