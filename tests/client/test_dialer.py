"""Reaching the server in virtual time: how often it is dialled, how many dials overlap, and that none is left over."""

import math
import ssl
from collections.abc import Iterator
from itertools import accumulate

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.certificates import make_self_signed
from tunnel.client.dialer import SeenCertificate, make_dialer
from tunnel.client.reach import DIAL_SECONDS, MAX_DIALS, reach
from tunnel.config import ClientConfig
from tunnel.errors import PeerLost, Refused, RemoteProtocolError, TunnelError

REFUSED = PeerLost("cannot reach server.example:8443: Connection refused")


@define(eq=False)
class Connection:
    name: str = ""
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


@define(eq=False)
class World:
    """What each dial meets: (seconds until, then what). The last one is met by all that follow."""

    meets: list[tuple[float, Connection | Exception]]
    dials: list[float] = field(factory=list)
    ends: list[float] = field(factory=list)
    failures: list[tuple[float, str]] = field(factory=list)
    open: int = 0
    most_open: int = 0

    async def dial(self) -> Connection:
        seconds, what = self.meets[min(len(self.dials), len(self.meets) - 1)]
        self.dials.append(trio.current_time())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await trio.sleep(seconds)
        finally:
            self.open -= 1
            self.ends.append(trio.current_time())
        if isinstance(what, Exception):
            raise what
        return what

    def failed(self, problem: PeerLost) -> None:
        self.failures.append((trio.current_time(), str(problem)))


def dice(*rolls: float) -> Iterator[float]:
    yield from rolls
    while True:
        yield rolls[-1]


@pytest.mark.parametrize("rolls", [(0.0,), (0.999,), (0.5, 0.0, 1.0, 0.25)])
async def test_refused_at_once_it_dials_every_07_to_1_seconds(
    rolls: tuple[float, ...], autojump_clock: MockClock
) -> None:
    """B1"""
    world = World([(0, REFUSED)] * 20 + [(0, Connection())])
    await reach(world.dial, failed=world.failed, rand=dice(*rolls).__next__)
    pauses = [0.7 + 0.3 * roll for roll, _ in zip(dice(*rolls), range(20), strict=False)]
    assert world.dials == pytest.approx(list(accumulate(pauses, initial=0)))
    assert [words for _, words in world.failures] == [str(REFUSED)] * 20
    assert [at for at, _ in world.failures] == world.dials[:20]


async def test_it_never_stops_dialling(autojump_clock: MockClock) -> None:
    world = World([(0, REFUSED)])
    with trio.move_on_after(600):
        await reach(world.dial, failed=world.failed, rand=lambda: 0.5)
    assert len(world.dials) == math.ceil(600 / 0.85)
    assert world.open == 0


async def test_an_answer_in_under_two_seconds_needs_one_dial(autojump_clock: MockClock) -> None:
    connection = Connection()
    world = World([(1.9, connection)])
    assert await reach(world.dial, failed=world.failed) is connection
    assert (world.dials, trio.current_time(), connection.closed, world.failures) == ([0], 1.9, 0, [])


async def test_unanswered_for_two_seconds_it_is_joined_by_another_three_at_most_each_ended_at_ten(
    autojump_clock: MockClock,
) -> None:
    """B1, B15"""
    world = World([(math.inf, Connection())])
    with trio.move_on_after(31):
        await reach(world.dial, failed=world.failed)
    assert world.dials == [0, 2, 4, 10, 12, 14, 20, 22, 24, 30]
    assert world.ends == [*(start + DIAL_SECONDS for start in world.dials[:7]), 31, 31, 31]
    assert world.most_open == MAX_DIALS
    assert world.failures == [(end, "no answer within 10 s") for end in world.ends[:7]]


async def test_a_lost_first_packet_costs_two_seconds(autojump_clock: MockClock) -> None:
    late, prompt = Connection("late"), Connection("prompt")
    world = World([(math.inf, late), (0.1, prompt)])
    assert await reach(world.dial, failed=world.failed) is prompt
    assert (trio.current_time(), world.dials, world.open) == (2.1, [0, 2], 0)


async def test_the_first_dial_may_still_win_while_the_next_one_is_paused_for(autojump_clock: MockClock) -> None:
    slow = Connection()
    world = World([(2.2, slow), (0, REFUSED)])
    assert await reach(world.dial, failed=world.failed, rand=lambda: 0.5) is slow
    assert (trio.current_time(), world.dials) == (2.2, [0, 2])


async def test_of_two_that_answer_in_one_tick_the_second_is_closed(autojump_clock: MockClock) -> None:
    connections = [Connection("first"), Connection("second")]
    world = World([(3, connections[0]), (1, connections[1])])
    found = await reach(world.dial, failed=world.failed)
    assert trio.current_time() == 3
    assert [connection.closed for connection in connections] == [int(found is not other) for other in connections]


@pytest.mark.parametrize(
    "answer",
    [
        PeerLost("ended the connection in the TLS handshake", answered=True),
        Refused("certificate_untrusted", "no", trust=True),
        RemoteProtocolError("nonsense"),
        OSError("odd"),
    ],
    ids=lambda answer: type(answer).__name__,
)
async def test_what_answered_and_failed_is_raised_and_not_told_as_nobody(
    answer: Exception, autojump_clock: MockClock
) -> None:
    world = World([(0, REFUSED), (0.5, answer)])
    with pytest.raises(type(answer)) as caught:
        await reach(world.dial, failed=world.failed, rand=lambda: 0.0)
    assert caught.value is answer
    assert (trio.current_time(), world.failures) == (1.2, [(0, str(REFUSED))])


async def test_a_failed_answer_ends_the_other_dials(autojump_clock: MockClock) -> None:
    world = World([(math.inf, Connection()), (0.5, PeerLost("broke", answered=True))])
    with pytest.raises(PeerLost, match="broke"):
        await reach(world.dial, failed=world.failed)
    assert (trio.current_time(), world.open) == (2.5, 0)


async def test_a_connection_beside_a_failed_answer_is_not_left_open(autojump_clock: MockClock) -> None:
    connection = Connection()
    world = World([(3, connection), (1, PeerLost("broke", answered=True))])
    try:
        found = await reach(world.dial, failed=world.failed)
    except PeerLost:
        assert connection.closed == 1  # which of the two is first is the scheduler's choice
    else:
        assert (found.closed, found) == (0, connection)


@pytest.mark.parametrize("meets", [(0, REFUSED), (1, REFUSED), (0, PeerLost("broke", answered=True))])
async def test_once_raises_the_first_failure(meets: tuple[float, Exception], autojump_clock: MockClock) -> None:
    world = World([meets])
    with pytest.raises(PeerLost) as caught:
        await reach(world.dial, failed=world.failed, once=True)
    assert caught.value is meets[1]
    assert (world.dials, trio.current_time(), world.failures) == ([0], meets[0], [])


async def test_once_gives_a_silent_server_ten_seconds(autojump_clock: MockClock) -> None:
    world = World([(math.inf, Connection())])
    with pytest.raises(PeerLost, match="no answer within 10 s"):
        await reach(world.dial, failed=world.failed, once=True)
    assert (trio.current_time(), world.open) == (10, 0)


@pytest.mark.parametrize("at", [0, 0.1, 1, 2.5, 5, 10, 13])
async def test_cancelled_at_any_time_it_leaves_no_dial(at: float, autojump_clock: MockClock) -> None:
    world = World([(math.inf, Connection())])
    with trio.move_on_after(at):
        await reach(world.dial, failed=world.failed)
    assert world.open == 0
    dials = len(world.dials)
    await trio.sleep(100)
    assert len(world.dials) == dials


async def test_cancelled_in_the_moment_of_an_answer_it_closes_the_connection(autojump_clock: MockClock) -> None:
    connection = Connection()
    release = trio.Event()

    async def dial() -> Connection:
        await release.wait()
        scope.cancel()  # before `reach` can hear of the answer
        return connection

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def let_go() -> None:
                await wait_all_tasks_blocked()
                release.set()

            await reach(dial, failed=lambda problem: None)
    assert scope.cancelled_caught
    assert connection.closed == 1


def test_a_ca_file_that_cannot_be_used_is_told_by_name(tmp_path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(TunnelError, match=r"cannot use the CA file .*ca\.pem"):
        make_dialer(ClientConfig((HostPort("server.example", 8443),), "token", ca_file=path))


def test_when_the_servers_certificate_ends_is_known_once_one_was_seen() -> None:
    seen = SeenCertificate()
    assert seen.ends is None
    seen.der = ssl.PEM_cert_to_DER_cert(make_self_signed(["server.example"])[0].decode())
    assert seen.ends is not None
    assert seen.ends.year >= 2035
    seen.der = b"\x30\x03 no certificate"
    assert seen.ends is None
