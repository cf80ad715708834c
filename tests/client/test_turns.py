"""A dial of the server's addresses: which one first, when the next, what is told, and that no socket is left over."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, field
from dial_rig import cancelled_everywhere
from relay_rig import contexts, descriptors, quiet, start_target, until
from trio.testing import MockClock

from tunnel.addresses import HostPort
from tunnel.client.dialer import Dialer, Reached, Turns
from tunnel.client.resolver import Resolver, ServerAddress
from tunnel.errors import PeerLost, Refused

HANGS = 1000.0
REFUSED = PeerLost("Connection refused", errno=errno.ECONNREFUSED)
UNREACHABLE = PeerLost("Network is unreachable", errno=errno.ENETUNREACH)
BROKE = PeerLost("ended the connection in the TLS handshake", answered=True)


@define(eq=False)
class Socket:
    ip: str
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@define(eq=False)
class World:
    """Addresses 1, 2, 3, …: what their dials meet, and their handshakes (seconds or an exception), again and again."""

    meets: list[float | Exception]
    handshakes: dict[str, float | Exception] = field(factory=dict)
    dials: list[tuple[float, str]] = field(factory=list)
    sockets: list[Socket] = field(factory=list)
    turns: Turns = field(init=False)
    resolver: Resolver = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.resolver = Resolver(HostPort(f"10.0.0.{number}", 1) for number in range(1, len(self.meets) + 1))
        self.turns = Turns(self, self.resolver)  # type: ignore[arg-type]

    async def dial_tcp(self, where: HostPort, *, name: str) -> Socket:
        number = where.host.rpartition(".")[2]
        self.dials.append((round(trio.current_time(), 6), number))
        step = self.meets[int(number) - 1]
        await trio.sleep(0 if isinstance(step, Exception) else step)
        if isinstance(step, Exception):
            raise step
        self.sockets.append(Socket(number))
        return self.sockets[-1]

    async def connect(self, address: ServerAddress) -> Socket:
        """As `Dialer.connect`."""
        return await self.dial_tcp(HostPort(address.ip, address.port), name=str(address))

    async def shake_hands(self, sock: Socket, address: ServerAddress) -> Socket:
        """As `Dialer.shake_hands`."""
        step = self.handshakes.get(sock.ip, 0.0)
        try:
            await trio.sleep(0 if isinstance(step, Exception) else step)
            if isinstance(step, Exception):
                raise step
        except BaseException:
            sock.close()
            raise
        return sock

    def address(self, number: int) -> ServerAddress:
        return self.resolver.addresses[number - 1]

    @property
    def open(self) -> list[str]:
        return [sock.ip for sock in self.sockets if not sock.closed]

    @property
    def began_at(self) -> str:
        """The address that the last dial began at."""
        return self.dials[-1][1]


@pytest.fixture
def make_world() -> Callable[..., World]:
    def make(*meets: float | Exception, **handshakes: Any) -> World:
        return World(list(meets), {key[1:]: value for key, value in handshakes.items()})

    return make


DIALS: dict[str, tuple[tuple[float | Exception, ...], float, str, list[tuple[float, str]]]] = {
    "one address": ((0.1,), 0.1, "1", [(0, "1")]),
    "the first answers in time": ((0.2, 0.0), 0.2, "1", [(0, "1")]),
    "a quarter second each": ((HANGS, HANGS, 0.1), 0.6, "3", [(0, "1"), (0.25, "2"), (0.5, "3")]),
    "the slow first may still win": ((0.4, HANGS, 0.0), 0.4, "1", [(0, "1"), (0.25, "2")]),
    "one that refuses is not waited for": ((REFUSED, 0.1, 0.0), 0.1, "2", [(0, "1"), (0, "2")]),
    "they all may take their time": ((5.0, 4.0), 4.25, "2", [(0, "1"), (0.25, "2")]),
}


@pytest.mark.parametrize(("meets", "seconds", "winner", "dials"), DIALS.values(), ids=DIALS)
async def test_each_address_has_a_start_of_a_quarter_second_over_the_next(
    meets: tuple[float | Exception, ...],
    seconds: float,
    winner: str,
    dials: list[tuple[float, str]],
    make_world: Callable[..., World],
    autojump_clock: MockClock,
) -> None:
    world = make_world(*meets)
    reached = await world.turns.dial()
    assert (trio.current_time(), reached.address) == (pytest.approx(seconds), world.address(int(winner)))
    assert (world.dials, world.open) == (dials, [winner])


async def test_of_two_that_answer_in_one_tick_one_is_closed(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(0.5, 0.25)
    reached = await world.turns.dial()
    assert trio.current_time() == 0.5
    assert world.open == [reached.address.ip.rpartition(".")[2]]


async def test_an_address_that_answered_is_asked_first_again(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(REFUSED, 0.0, 0.0)
    await world.turns.dial()
    world.meets[0] = 0.0
    world.dials.clear()
    reached = await world.turns.dial()
    assert (reached.address, world.dials) == (world.address(2), [(0, "2")])


@pytest.mark.parametrize("problem", [BROKE, Refused("pin_mismatch", "no", trust=True)], ids=str)
async def test_after_a_bad_answer_the_next_dial_begins_at_another_address(
    problem: Exception, make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(0.0, 0.0, 0.0, n1=problem)
    with pytest.raises(type(problem)) as caught:
        await world.turns.dial()
    assert (caught.value, world.open) == (problem, [])
    assert (await world.turns.dial()).address == world.address(2)
    assert (await world.turns.dial()).address == world.address(2)


async def test_a_dial_that_overlaps_another_begins_elsewhere(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    """An address whose handshake hangs costs the others nothing."""
    world = make_world(0.0, 0.0, n1=HANGS)
    reached: list[Reached] = []

    async def dial() -> None:
        reached.append(await world.turns.dial())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await trio.sleep(2)
        await dial()
        nursery.cancel_scope.cancel()
    assert (world.dials, [one.address for one in reached]) == ([(0, "1"), (2, "2")], [world.address(2)])
    assert world.open == ["2"]


async def test_what_is_to_be_left_is_asked_last(make_world: Callable[..., World], autojump_clock: MockClock) -> None:
    world = make_world(REFUSED, 0.0, 0.0)
    assert (await world.turns.dial_other(world.address(2))).address == world.address(3)
    world.meets[2] = REFUSED
    assert (await world.turns.dial_other(world.address(3))).address == world.address(2)
    assert [number for _, number in world.dials] == ["1", "3", "1", "2"]


async def test_who_is_to_go_elsewhere_and_was_not_welcome_there_goes_on_to_the_next(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(0.0, 0.0, 0.0)
    here = (await world.turns.dial()).address
    reached = []
    for _ in range(4):
        reached.append((await world.turns.dial_other(here)).address.ip)
        world.turns.avoid(world.address(int(reached[-1][-1])))
    assert reached == ["10.0.0.2", "10.0.0.3", "10.0.0.2", "10.0.0.3"]


async def test_an_address_that_refused_us_is_left_out_for_half_a_minute_while_there_is_another(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(0.0, 0.0, n1=Refused("pin_mismatch", "no", trust=True))
    turns = world.turns
    with pytest.raises(Refused):
        await turns.dial()
    world.meets[1] = REFUSED
    assert turns.has_another
    with pytest.raises(PeerLost):
        await turns.dial()
    assert [number for _, number in world.dials] == ["1", "2"]

    turns.refuse(world.address(2))
    assert not turns.has_another
    with pytest.raises(Refused):  # all did: they are asked as ever
        await turns.dial()
    await trio.sleep(30)
    assert turns.has_another
    world.dials.clear()
    with pytest.raises(Refused):
        await turns.dial()
    assert [number for _, number in world.dials] == ["2", "1"]


async def test_where_there_is_no_other_it_is_the_same(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(0.0)
    assert (await world.turns.dial_other(world.address(1))).address == world.address(1)


async def test_an_address_that_is_not_the_servers_any_more_is_not_begun_with(
    make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(REFUSED, 0.0, 0.0)
    left = (await world.turns.dial()).address
    world.resolver.replace([HostPort("10.0.0.3", 1), HostPort("10.0.0.1", 1)])
    assert (await world.turns.dial()).address.ip == "10.0.0.3"
    world.turns.avoid(left)
    assert (await world.turns.dial()).address.ip == "10.0.0.3"


@pytest.mark.parametrize("meets", [(UNREACHABLE, REFUSED), (REFUSED, UNREACHABLE)], ids=["last", "first"])
async def test_of_several_problems_the_one_that_gives_most_hope_is_told(
    meets: tuple[Exception, ...], make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    with pytest.raises(PeerLost) as caught:
        await make_world(*meets).turns.dial()
    assert (caught.value, trio.current_time()) == (REFUSED, 0)


async def test_if_all_are_unreachable_that_is_told(make_world: Callable[..., World], autojump_clock: MockClock) -> None:
    with pytest.raises(PeerLost) as caught:
        await make_world(UNREACHABLE, UNREACHABLE).turns.dial()
    assert caught.value is UNREACHABLE


async def test_a_name_that_is_not_known_is_told(make_world: Callable[..., World]) -> None:
    problem = PeerLost("the name cannot be resolved")

    async def look_up(server: HostPort) -> list[str]:
        raise problem

    world = make_world(0.0)
    with pytest.raises(PeerLost) as caught:
        await Turns(world, Resolver((HostPort("home.example", 1),), look_up=look_up)).dial()  # type: ignore[arg-type]
    assert caught.value is problem


@pytest.mark.parametrize("at", [0.0, 0.1, 0.25, 0.3, 0.35, 0.5, 0.6, 0.75, 0.8, 1.0])
async def test_cancelled_at_any_time_it_leaves_no_socket(
    at: float, make_world: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = make_world(HANGS, 0.25, 0.0, n2=0.5, n3=0.5)
    with trio.move_on_after(at) as scope:
        await world.turns.dial()
    assert (world.open, scope.cancelled_caught) == ([], True) or (at, world.open) == (1.0, ["2"])


async def test_cancelled_at_each_await_it_leaves_no_socket(make_world: Callable[..., World]) -> None:
    world = make_world(REFUSED, 0.0, 0.0)

    async def dial() -> None:
        (await world.turns.dial()).close()

    assert await cancelled_everywhere(dial) > 3
    assert world.open == []


# Real sockets


def dialer() -> Dialer:
    return Dialer(contexts()[1], None)


def literal(address: tuple[str, int]) -> ServerAddress:
    return ServerAddress(address[0], address[1], HostPort(*address))


async def test_a_real_dial_that_is_cancelled_at_each_await_leaves_no_socket(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, contexts()[0], server_side=True)
        async with tls:
            await tls.receive_some()

    where = HostPort(*await start_target(nursery, quiet(serve)))
    turns = Turns(dialer(), Resolver((HostPort("127.0.0.1", 9), where)))

    async def dial() -> None:
        reached = await turns.dial()
        assert (reached.address.port, reached.address.server) == (where.port, where)
        reached.close()

    await dial()  # what is loaded at the first use
    before = descriptors()
    assert await cancelled_everywhere(dial) > 5
    await until(lambda: descriptors() <= before)  # the service sees its ends later
    nursery.cancel_scope.cancel()


ANSWERS: dict[str, tuple[bytes | None, type[Exception], str]] = {
    "no TLS": (b"SSH-2.0-OpenSSH\r\n", PeerLost, r"^127\.0\.0\.1:\d+ does not speak our TLS: .*; something else"),
    "a hang-up": (
        None,
        PeerLost,
        r"^127\.0\.0\.1:\d+ ended the connection in the TLS handshake; if it goes on .* too many wrong tokens$",
    ),
}


@pytest.mark.parametrize(("answer", "kind", "words"), ANSWERS.values(), ids=ANSWERS)
async def test_what_answers_and_is_not_the_server_is_told(
    answer: bytes | None, kind: type[Exception], words: str, nursery: trio.Nursery
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if answer is not None:
                await stream.send_all(answer)
                await stream.receive_some()

    address = literal(await start_target(nursery, quiet(serve)))
    with pytest.raises(kind, match=words) as caught:
        await dialer().dial(address)
    assert caught.value.answered  # type: ignore[attr-defined]
    nursery.cancel_scope.cancel()
