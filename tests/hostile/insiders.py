"""Attacks with a good token: hand-made messages, fragments and frames. One token holds one session at a time, so each
attacker has its own."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from tunnel.frames import CREDIT, DATA, FIN, FIRST_WINDOW, MAX_NUMBER, MOVE, RETIRE, RST
from tunnel.messages import Heartbeat, Hello, Message, ProxySet, ProxySpec, RetryProxy, TargetHealth, TicketRequest
from tunnel.messages import encode as encode_message
from tunnel.tls import TlsStream

from .assault import Assault, Refused, reset, until_end
from .wire import CLOSE, PING, fragment, frame, message, open_frame, text

FLOOD_BYTES = 256 * 1024
FLOOD_SECONDS = 1.0
LONG_SECONDS = 5.0


@asynccontextmanager
async def logged_in(assault: Assault, rest: bytes = b"") -> AsyncIterator[TlsStream]:
    stream = await assault.upgraded("/control", assault.token, rest)
    try:
        yield stream
    finally:
        stream.abort()


def words(*messages: Message) -> bytes:
    return b"".join(text(encode_message(message)) for message in messages)


HELLO = words(Hello(1, "hostile"))


async def greet(stream: TlsStream) -> dict[str, Any]:
    """Say hello; the server's Welcome."""
    await stream.send_all(HELLO)
    data = b""
    while True:
        data += await stream.receive_some()
        try:
            return dict(json.loads(data[data.index(b"{") :]))
        except ValueError:
            continue  # not whole


async def flood(stream: TlsStream, piece: bytes) -> None:
    """Send it again and again, and read nothing."""
    with trio.move_on_after(FLOOD_SECONDS):
        for _ in range(0, FLOOD_BYTES, len(piece)):
            await stream.send_all(piece)


# The control channel


async def an_upgrade_then_reset(assault: Assault) -> None:
    reset(await assault.upgraded("/control", assault.token))


async def a_byte_behind_the_upgrade(assault: Assault) -> None:
    async with logged_in(assault, b"\x81") as stream:
        await until_end(stream)


async def garbage_after_the_login(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(assault.garbage())
        await until_end(stream)


async def pings_behind_a_close(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO + CLOSE + PING * 3 + CLOSE)
        await until_end(stream)


async def fragments_of_nothing(assault: Assault) -> None:
    """A message that never ends, and never is too long."""
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO + fragment(b"", first=True))
        await flood(stream, fragment(b"") * 500)


async def fragments_of_one_byte(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO + fragment(b"{", first=True))
        await flood(stream, fragment(b" ") * 500)


async def a_giant_message(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO)
        with trio.move_on_after(FLOOD_SECONDS):
            await stream.send_all(text('{"type":"' + "x" * 3_000_000))
        await until_end(stream)


async def nonsense_in_json(assault: Assault) -> None:
    nonsense = [
        "[" * 100_000,
        '{"type": "ProxySet", "version": 1e999, "proxies": []}',
        '{"type": "Hello", "version": true}',
        '{"type": "Welcome"}',
        '{"type": "ProxySet", "version": 1, "proxies": [{"name": "' + "a" * 5000 + '"}]}',
        '{"type": ["Hello"]}',
        '"Hello"',
        "{}" * 10_000,
    ]
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO + text(assault.dice.choice(nonsense)))
        await until_end(stream)


async def ten_thousand_proxies(assault: Assault) -> None:
    specs = tuple(ProxySpec(f"p{number}", "127.0.0.1", 0) for number in range(10_000))
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO + words(ProxySet(1, specs)))
        await until_end(stream)


async def others_addresses(assault: Assault) -> None:
    """The server's own port, the healthy client's, privileged ones, what is no address; and others' names."""
    target = assault.target
    ports = [target.port, target.public, 22, 80, 65_536, -1]
    specs = [ProxySpec(f"p{port}", addr, port) for port in ports for addr in ("127.0.0.1", "0.0.0.0")]
    unique = {spec.name + spec.publish_addr[0]: spec for spec in specs}
    named = tuple(
        ProxySpec(name.replace("-", "m"), spec.publish_addr, spec.publish_port) for name, spec in unique.items()
    )
    async with logged_in(assault) as stream:
        more = words(RetryProxy("web"), TargetHealth("web", False, "down"), RetryProxy("home/web"))
        await stream.send_all(HELLO + words(ProxySet(1, named)) + more)
        await until_end(stream, 0.2)


async def a_flood_of_messages(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO)
        kinds = [Heartbeat(1), TicketRequest(16), RetryProxy("web"), TargetHealth("web", True)]
        await flood(stream, words(assault.dice.choice(kinds)) * 50)


async def a_flood_of_proxy_sets(assault: Assault) -> None:
    async with logged_in(assault) as stream:
        await stream.send_all(HELLO)
        with trio.move_on_after(FLOOD_SECONDS):
            for version in range(1, 200):
                await stream.send_all(words(ProxySet(version, (ProxySpec(f"p{version}", "127.0.0.1", 0),))))


CONTROL = {
    an_upgrade_then_reset: 4,
    a_byte_behind_the_upgrade: 3,
    garbage_after_the_login: 3,
    pings_behind_a_close: 4,
    fragments_of_nothing: 1,
    fragments_of_one_byte: 1,
    a_giant_message: 1,
    nonsense_in_json: 3,
    ten_thousand_proxies: 1,
    others_addresses: 2,
    a_flood_of_messages: 1,
    a_flood_of_proxy_sets: 1,
}


# Data channels


@asynccontextmanager
async def data_channel(assault: Assault, rest: bytes = b"") -> AsyncIterator[TlsStream]:
    """One of a session of ours; both end with the body."""
    async with logged_in(assault) as control:
        welcome = await greet(control)
        stream = await assault.upgraded("/data", welcome["tickets"][0], rest)
        try:
            yield stream
        finally:
            stream.abort()


async def a_crime_on_a_data_channel(assault: Assault) -> None:
    crimes = [
        open_frame(1),
        frame(DATA | (FIRST_WINDOW + 1), 1, bytes(FIRST_WINDOW + 1)) * 2,
        frame(9 << 24, 1),
        frame(RETIRE, 7),
        frame(MOVE, 1) + frame(FIN, 1) + frame(FIN, 1),
        frame(CREDIT | MAX_NUMBER, 1) * 100,
        assault.garbage(),
    ]
    async with data_channel(assault, message(assault.dice.choice(crimes))) as stream:
        await until_end(stream, 0.1)


async def a_flood_of_small_frames(assault: Assault) -> None:
    kinds = [frame(DATA, 1), frame(DATA | 1, 1, b"x"), frame(RST, 1), frame(MOVE, 1), frame(CREDIT | 1, 1), PING]
    piece = assault.dice.choice(kinds)
    async with data_channel(assault) as stream:
        await flood(stream, piece * 100 if piece is PING else message(piece * 500))


async def messages_of_no_bytes(assault: Assault) -> None:
    async with data_channel(assault) as stream:
        await flood(stream, message(b"") * 1000)


async def a_ticket_used_twice(assault: Assault) -> None:
    async with logged_in(assault) as control:
        ticket = (await greet(control))["tickets"][0]
        (await assault.upgraded("/data", ticket)).abort()
        (await assault.upgraded("/data", ticket)).abort()  # refused, which the tally shows


DATA_CHANNEL = {
    a_crime_on_a_data_channel: 4,
    a_flood_of_small_frames: 2,
    messages_of_no_bytes: 1,
    a_ticket_used_twice: 2,
}


# Not in the mix: who means to slow the others down, with a handful of data channels; see `--only long_flood`.


async def _long_flood(assault: Assault, piece: bytes, channels: int) -> None:
    async with logged_in(assault) as control, trio.open_nursery() as nursery:
        tickets = (await greet(control))["tickets"][:channels]

        async def one(ticket: str) -> None:
            stream = await assault.upgraded("/data", ticket)
            try:
                while True:
                    await stream.send_all(piece)
            finally:
                stream.abort()

        for ticket in tickets:
            nursery.start_soon(_until_cut, one, ticket)
        await trio.sleep(LONG_SECONDS)
        nursery.cancel_scope.cancel()


async def _until_cut(flood: Callable[[str], Awaitable[None]], ticket: str) -> None:
    try:
        await flood(ticket)
    except (Refused, trio.BrokenResourceError):
        pass


async def a_long_flood_of_single_bytes(assault: Assault) -> None:
    await _long_flood(assault, message(frame(DATA | 1, 1, b"x") * 5000), 4)


async def a_long_flood_of_empty_frames(assault: Assault) -> None:
    await _long_flood(assault, message(frame(DATA, 1) * 5000), 4)


async def a_long_flood_of_credit(assault: Assault) -> None:
    await _long_flood(assault, message(frame(CREDIT | 1, 1) * 5000), 4)


async def a_long_flood_of_empty_messages(assault: Assault) -> None:
    await _long_flood(assault, message(b"") * 5000, 4)


async def a_long_flood_of_heartbeats(assault: Assault) -> None:
    """Whenever the server has had enough, from the beginning."""
    piece = words(Heartbeat(1)) * 50
    with trio.move_on_after(LONG_SECONDS):
        while True:
            assault.epoch += 1_000_000
            async with logged_in(assault) as stream:
                await stream.send_all(HELLO)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(until_end, stream, LONG_SECONDS)
                        while True:
                            await stream.send_all(piece)
                except* (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass


LONG = dict.fromkeys((
    a_long_flood_of_single_bytes, a_long_flood_of_empty_frames, a_long_flood_of_credit,
    a_long_flood_of_empty_messages, a_long_flood_of_heartbeats,
), 0)  # fmt: skip
INSIDE = {**CONTROL, **DATA_CHANNEL, **LONG}
