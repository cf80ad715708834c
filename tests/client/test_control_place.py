"""When the control channel moves to another address of the server, in virtual time."""

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import MockClock

from tunnel.addresses import HostPort
from tunnel.client.control_place import keep_control_placed
from tunnel.client.dialer import Reached
from tunnel.client.resolver import Resolver, ServerAddress
from tunnel.config import DATA_CHANNELS, PoolConfig
from tunnel.errors import PeerLost, Refused, RemoteProtocolError

HERE, THERE = HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)
A, B = (ServerAddress(server.host, server.port, server) for server in (HERE, THERE))
LOST = PeerLost("nobody there")


class Stream:
    def close(self) -> None: ...


@define(eq=False)
class World:
    """`meets` are the outcomes of dials and of changes, in their order: seconds until done, or an exception."""

    resolver: Resolver = field(factory=lambda: Resolver((HERE, THERE)))
    config: PoolConfig = evolve(DATA_CHANNELS, max_age=3600.0, age_jitter=0.1)
    dials: list[float | Exception] = field(factory=list)
    changes: list[float | Exception] = field(factory=list)
    tries: list[tuple[float, str]] = field(factory=list)  # when it was dialled, and from where
    avoided: list[tuple[str, str]] = field(factory=list)
    moves: list[tuple[float, str]] = field(factory=list)  # when it was there

    async def dial_other(self, than: ServerAddress) -> Reached:
        self.tries.append((trio.current_time(), than.ip))
        await self.meet(self.dials)
        others = [address for address in self.resolver.addresses if address != than] or [than]
        return Reached(Stream(), others[0])  # type: ignore[arg-type]

    def avoid(self, address: ServerAddress) -> None:
        self.avoided.append(("avoided", address.ip))

    def refuse(self, address: ServerAddress) -> None:
        self.avoided.append(("refused", address.ip))

    async def change(self, reached: Reached) -> None:
        await self.meet(self.changes)
        self.moves.append((trio.current_time(), reached.address.ip))

    async def meet(self, outcomes: list[float | Exception]) -> None:
        outcome = outcomes.pop(0) if outcomes else 0.0
        if isinstance(outcome, Exception):
            raise outcome
        await trio.sleep(outcome)

    @asynccontextmanager
    async def placed(self, rand: Callable[[], float] = lambda: 0.0) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def keep() -> None:
                await keep_control_placed(
                    A, self.change, turns=self, resolver=self.resolver, config=lambda: self.config, rand=rand  # type: ignore[arg-type]
                )  # fmt: skip

            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def world() -> World:
    return World()


async def test_it_stays_while_its_address_does(world: World, autojump_clock: MockClock) -> None:
    async with world.placed():
        await trio.sleep(10)
        world.resolver.replace((THERE, HERE))
        world.resolver.replace((HERE,))
        await trio.sleep(3000)
    assert world.tries == []


async def test_it_moves_at_once_when_its_address_is_none_of_the_servers_any_more(
    world: World, autojump_clock: MockClock
) -> None:
    world.dials, world.changes = [0.5], [0.25]
    async with world.placed():
        await trio.sleep(10)
        world.resolver.replace((THERE,))
        await trio.sleep(3000)
    assert (world.tries, world.moves) == ([(10, A.ip)], [(10.75, B.ip)])


async def test_an_address_that_left_before_it_began_is_left_at_once(world: World, autojump_clock: MockClock) -> None:
    world.resolver.replace((THERE,))
    async with world.placed():
        await trio.sleep(1)
    assert world.moves == [(0, B.ip)]


@pytest.mark.parametrize(("roll", "seconds"), [(0.0, 3600.0), (0.5, 3420.0), (0.999, 3240.36)])
async def test_it_moves_in_time_and_again_from_there(
    roll: float, seconds: float, world: World, autojump_clock: MockClock
) -> None:
    async with world.placed(lambda: roll):
        await trio.sleep(3 * seconds + 1)
    times = pytest.approx([seconds, 2 * seconds, 3 * seconds])
    assert [at for at, _ in world.moves] == times
    assert [ip for _, ip in world.moves] == [B.ip, A.ip, B.ip]
    assert [ip for _, ip in world.tries] == [A.ip, B.ip, A.ip]


async def test_clients_that_began_together_do_not_move_together(world: World, autojump_clock: MockClock) -> None:
    dice = random.Random(7)
    async with world.placed(dice.random):
        await trio.sleep(7200)
    assert len({round(at % 3600) for at, _ in world.moves}) == len(world.moves) == 2


async def test_with_one_address_it_moves_to_a_new_connection_there(world: World, autojump_clock: MockClock) -> None:
    world.resolver.replace((HERE,))
    async with world.placed():
        await trio.sleep(3601)
    assert world.moves == [(3600, A.ip)]


async def test_without_an_age_it_never_grows_old(world: World, autojump_clock: MockClock) -> None:
    world.config = evolve(world.config, max_age=None)
    async with world.placed():
        await trio.sleep(24 * 3600)
    assert world.tries == []


FAILURES: dict[str, Callable[[World, list[Any]], None]] = {
    "nobody answers the dial": lambda world, outcomes: world.dials.extend(outcomes),
    "the change comes to nothing": lambda world, outcomes: world.changes.extend(outcomes),
}
PROBLEMS = [LOST, Refused("attach_unsupported", "too old", trust=False), RemoteProtocolError("nonsense")]


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: type(problem).__name__)
async def test_what_comes_to_nothing_is_tried_after_5_s_doubling_to_60_while_the_session_goes_on(
    fail: Callable[[World, list[Any]], None], problem: Exception, world: World, autojump_clock: MockClock
) -> None:
    fail(world, [problem] * 7)
    async with world.placed():
        await trio.sleep(10)
        world.resolver.replace((THERE,))
        await trio.sleep(1000)
    assert world.tries == [(at, A.ip) for at in (10, 15, 25, 45, 85, 145, 205, 265)]
    assert world.moves == [(265, B.ip)]


async def test_a_move_for_its_age_is_tried_again_as_soon(world: World, autojump_clock: MockClock) -> None:
    world.dials = [LOST, LOST]
    async with world.placed():
        await trio.sleep(3700)
    assert [at for at, _ in world.tries] == [3600, 3605, 3615]
    assert world.moves == [(3615, B.ip)]


async def test_a_move_that_went_well_resets_the_delays(world: World, autojump_clock: MockClock) -> None:
    world.dials = [LOST, LOST, 0.0, LOST]
    async with world.placed():
        await trio.sleep(7300)
    assert [at for at, _ in world.tries] == [3600, 3605, 3615, 7215, 7220]


async def test_a_dial_has_ten_seconds(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.dials = [1000.0]
    async with world.placed():
        world.resolver.replace((THERE,))
        await trio.sleep(20)
    assert (world.tries, world.moves) == ([(0, A.ip), (15, A.ip)], [(15, B.ip)])
    assert caplog.messages == [
        "the control channel stays at 10.0.0.1:8443 for now: no answer",
        "the control channel moved from 10.0.0.1:8443 to 10.0.0.2:8443",
    ]


async def test_an_address_that_comes_back_in_time_is_not_left(world: World, autojump_clock: MockClock) -> None:
    world.dials = [LOST]
    async with world.placed():
        world.resolver.replace((THERE,))
        await trio.sleep(2)
        world.resolver.replace((THERE, HERE))
        await trio.sleep(100)
    assert (len(world.tries), world.moves) == (1, [])


async def test_a_bug_is_not_taken_for_a_peer_that_is_away(world: World, autojump_clock: MockClock) -> None:
    world.changes = [ZeroDivisionError("a bug")]
    world.resolver.replace((THERE,))
    with pytest.RaisesGroup(ZeroDivisionError):
        async with world.placed():
            await trio.sleep(1)


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        (LOST, "avoided"),
        (RemoteProtocolError("nonsense"), "avoided"),
        (Refused("server_busy", "later", trust=False), "avoided"),
        (Refused("token_refused", "who?", trust=True), "refused"),
    ],
    ids=str,
)
async def test_after_a_change_that_came_to_nothing_the_next_dial_begins_elsewhere(
    problem: Exception, what: str, world: World, autojump_clock: MockClock
) -> None:
    world.changes = [problem]
    async with world.placed():
        await trio.sleep(3601)
    assert (world.moves, world.avoided) == ([], [(what, B.ip)])
