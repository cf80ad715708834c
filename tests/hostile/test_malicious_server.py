"""A server gone bad gets nothing from a client: no dial but of its own targets, no memory, no descriptors. B41."""

import os
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, evolve

import tunnel
from tunnel.client.app import Client
from tunnel.client.session import MAX_OUTBOX
from tunnel.config import DATA_CHANNELS, ClientConfig, Limits, ProxyConfig
from tunnel.frames import CREDIT, DATA, MAX_NUMBER, MAX_OPEN_PAYLOAD, MOVE, OPEN, OPEN_PAYLOAD, RST, Abort
from tunnel.messages import Heartbeat, ProxyStatusUpdate, Status, Tickets

from .evil_server import Evil, EvilServer, EvilSession, authority, open_evil_server
from .wire import frame, message, open_frame

pytestmark = pytest.mark.slow
SOON = 30.0
BOUND = 40  # of visitors inside, at the client of these tests


@define(eq=False)
class Victim:
    """The client, the target it publishes, and a service beside that target which nobody told the server of."""

    client: Client
    server: EvilServer
    dialled: Counter[str]
    secret_port: int

    @property
    def streams(self) -> int:
        return self.client.engine.bounds.open_streams

    async def assert_well(self) -> None:
        """It is in session (again), and nothing but its target was ever dialled."""
        with trio.fail_after(SOON):
            while self.client.connection.state != "connected":
                await trio.sleep(0.01)
        assert self.dialled["secret"] == 0


@asynccontextmanager
async def open_victim(evil: Evil, tmp_path: Path, *, target: str = "") -> AsyncIterator[Victim]:
    dialled: Counter[str] = Counter()

    async def serve(name: str, stream: trio.SocketStream) -> None:
        dialled[name] += 1
        try:
            async with stream:
                async for _ in stream:
                    pass
        except trio.BrokenResourceError:
            pass

    ca_file = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca_file)
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery, open_evil_server(evil) as server:
            ports = {}
            for name in ("target", "secret"):
                found = await nursery.start(partial(trio.serve_tcp, partial(serve, name), 0, host="127.0.0.1"))
                ports[name] = found[0].socket.getsockname()[1]
            where = tunnel.parse_target(target or f"127.0.0.1:{ports['target']}")
            config = ClientConfig(
                servers=(tunnel.HostPort("localhost", server.port),),
                token="a secret",
                ca_file=ca_file,
                proxies=(ProxyConfig("web", tunnel.HostPort("127.0.0.1", 0), (where,)),),
                data_channels=evolve(DATA_CHANNELS, min=1, max=2),
                limits=Limits(max_visitors=BOUND, dial_seconds=1.0, heartbeat_seconds=30.0),
            )
            async with tunnel.connect(config) as client:
                yield Victim(client, server, dialled, ports["secret"])
            nursery.cancel_scope.cancel()


@contextmanager
def little_memory(bound_mib: float) -> Iterator[None]:
    """What the body leaves allocated by Python stays under the bound, and so does its peak, four times over."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        left, peak = (figure - before for figure in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert left < bound_mib * 2**20
    assert peak < 4 * bound_mib * 2**20


async def until(condition: object) -> None:
    with trio.fail_after(SOON):
        while not condition():
            await trio.sleep(0.005)


@contextmanager
def hanging_port() -> Iterator[int]:
    """Nobody answers there: the backlog is full, so the kernel drops what comes."""
    with socket.socket() as listener, socket.socket() as one, socket.socket() as two:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (one, two):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# What is dialled


async def test_only_what_the_client_itself_published_is_ever_dialled(tmp_path: Path) -> None:
    asked, ends = trio.Event(), []

    async def evil(session: EvilSession) -> None:
        end = await session.channel()
        ends.append(end)
        await asked.wait()
        version = session.proxies.version
        strangers = [open_frame(sid, index, version) for sid, index in enumerate([1, 7, 2**31, 2**32 - 1], 1)]
        strangers += [open_frame(sid, 0, other) for sid, other in enumerate([0, version + 1, 2**32 - 1], 10)]
        wish = OPEN_PAYLOAD.pack(0, version) + f"127.0.0.1:{victim.secret_port}".encode()
        wish += bytes(MAX_OPEN_PAYLOAD - len(wish))
        await end.stream.send_all(message(b"".join(strangers) + frame(OPEN | len(wish), 20, wish), masked=False))

    async with open_victim(evil, tmp_path) as victim:
        await until(lambda: ends)
        asked.set()
        await until(lambda: len(ends[0].resets) == 7)
        assert set(ends[0].resets.values()) == {Abort.UNKNOWN_PROXY}
        await until(lambda: victim.dialled["target"] == 1)
        assert victim.streams == 1
        await victim.assert_well()


async def test_a_flood_of_visitors_for_a_target_that_hangs_costs_no_more_than_the_bound(tmp_path: Path) -> None:
    ends = []

    async def evil(session: EvilSession) -> None:
        end = await session.channel()
        version = session.proxies.version
        ends.append(end)
        for first in range(1, 10_001, 500):
            opens = b"".join(open_frame(sid, 0, version) for sid in range(first, first + 500))
            await end.stream.send_all(message(opens, masked=False))

    descriptors = len(os.listdir("/proc/self/fd"))
    with hanging_port() as port:
        async with open_victim(evil, tmp_path, target=f"127.0.0.1:{port}") as victim:
            await until(lambda: ends and len(ends[0].resets) >= 10_000 - BOUND)
            assert victim.streams <= BOUND
            assert len(os.listdir("/proc/self/fd")) < descriptors + BOUND + 40
            assert set(ends[0].resets.values()) <= {Abort.OVER_LIMIT, Abort.DIAL_TIMEOUT}
            await until(lambda: len(ends[0].resets) == 10_000)  # the last ones by the dial's deadline
            assert Counter(ends[0].resets.values())[Abort.DIAL_TIMEOUT] >= BOUND
            assert victim.streams == 0
            await victim.assert_well()


# Words


def update(number: int, name: str) -> ProxyStatusUpdate:
    return ProxyStatusUpdate(
        name, Status.UNHEALTHY, f"{number} " + "x" * 1000, 2**53, number, None, number, None, "127.0.0.1", 1, "y" * 1000
    )


async def test_endless_statuses_leave_the_newest_of_what_is_published_and_no_more(tmp_path: Path) -> None:
    said, go = trio.Event(), trio.Event()

    async def evil(session: EvilSession) -> None:
        await go.wait()
        for number in range(1, 2001):
            await session.say(update(number, "web" if number % 2 else f"another{number}"))
        said.set()

    async with open_victim(evil, tmp_path) as victim:
        await victim.assert_well()
        with little_memory(2.0):  # the last 500 events are kept
            go.set()
            await said.wait()
            await until(lambda: victim.client.statuses["web"].attempt == 1999)
        assert set(victim.client.statuses) == {"web"}


async def test_a_giant_message_ends_that_session_and_the_client_comes_back(tmp_path: Path) -> None:
    async def evil(session: EvilSession) -> None:
        if len(victim.server.sessions) == 1:
            await session.say_raw('{"type": "' + "x" * 3_000_000)

    async with open_victim(evil, tmp_path) as victim:
        await until(lambda: victim.server.logins == 2)
        await victim.assert_well()


NONSENSE = [
    "[" * 100_000, '{"type": "Welcome"}', '{"type": "Tickets", "tickets": [' + '"x",' * 100 + '"x"]}',
    '{"type": "ProxySet", "version": 9, "proxies": []}', '{"type": "Heartbeat", "seq": 1e400}', "null",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NONSENSE)))
async def test_nonsense_ends_that_session_and_the_client_comes_back(tmp_path: Path, number: int) -> None:
    async def evil(session: EvilSession) -> None:
        if len(victim.server.sessions) == 1:
            await session.say_raw(NONSENSE[number])

    async with open_victim(evil, tmp_path) as victim:
        await until(lambda: victim.server.logins == 2)
        await victim.assert_well()


async def test_a_server_that_asks_and_does_not_read_is_given_up(tmp_path: Path) -> None:
    longest = [0]

    async def evil(session: EvilSession) -> None:
        if len(victim.server.sessions) > 1:
            return
        for number in range(1_000_000):  # until it is refused
            await session.say(Heartbeat(number))
            ours = victim.client._session
            longest[0] = max(longest[0], len(ours._outbox) if ours else 0)

    async with open_victim(evil, tmp_path) as victim:
        with trio.fail_after(30):
            while victim.server.logins < 2:
                await trio.sleep(0.05)
        assert longest[0] <= MAX_OUTBOX


async def test_more_tickets_than_anybody_can_use_are_forgotten(tmp_path: Path) -> None:
    said, go = trio.Event(), trio.Event()

    async def evil(session: EvilSession) -> None:
        await go.wait()
        for _ in range(1000):
            await session.say(Tickets(("t" * 1000,) * 16))
        said.set()

    async with open_victim(evil, tmp_path) as victim:
        await victim.assert_well()
        with little_memory(2.0):
            go.set()
            await said.wait()
            await trio.sleep(0.1)
        await victim.assert_well()


# Frames


FLOODS = {
    "credit": message(frame(CREDIT | MAX_NUMBER, 1) * 1000, masked=False),
    "resets of nobody": message(frame(RST | 3, 99) * 1000, masked=False),
    "moves of nobody": message(frame(MOVE, 99) * 1000, masked=False),
    "data of nobody": message(frame(DATA | 10_000, 99, bytes(10_000)), masked=False),
    "empty data": message(frame(DATA, 1) * 1000, masked=False),
    "single bytes": message(frame(DATA | 1, 1, b"x") * 100, masked=False),
    "empty messages": message(b"", masked=False) * 1000,
    "fragments of nothing": b"\x02\x00" + b"\x00\x00" * 1000,
    "pings": (b"\x89\x7d" + bytes(125)) * 100,
    "unasked pongs": (b"\x8a\x08" + bytes(8)) * 1000,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_costs_little_memory(tmp_path: Path, kind: str) -> None:
    ready, sent = trio.Event(), trio.Event()

    async def evil(session: EvilSession) -> None:
        if len(victim.server.sessions) > 1:
            return
        end = await session.channel()
        await end.stream.send_all(message(open_frame(1, 0, session.proxies.version), masked=False))
        await ready.wait()
        piece = FLOODS[kind]
        with trio.move_on_after(5):
            try:
                await end.stream.send_all(piece)
                if kind != "fragments of nothing":
                    for _ in range(max(1, 300_000 // len(piece))):
                        await end.stream.send_all(piece)
                else:
                    for _ in range(100):
                        await end.stream.send_all(piece[2:])
            except trio.BrokenResourceError:
                pass  # it would not have it
        sent.set()

    async with open_victim(evil, tmp_path) as victim:
        await until(lambda: victim.dialled["target"] == 1)
        with little_memory(2.0):
            ready.set()
            await sent.wait()
            await trio.sleep(0.05)
        await victim.assert_well()
        assert victim.dialled["target"] == 1


async def test_a_server_that_cuts_every_data_channel_is_not_stormed(tmp_path: Path) -> None:
    """Two or three come at once, then the quarantine's delays count: one a second, doubling."""
    came = [0]

    async def evil(session: EvilSession) -> None:
        while True:
            end = await session.channel()
            came[0] += 1
            end.stream.abort()

    async with open_victim(evil, tmp_path) as victim:
        await until(lambda: came[0] >= 2)
        await trio.sleep(2.0)
        assert came[0] <= 12
        print(f"{came[0]} data channels in 2 s")
        await victim.assert_well()
