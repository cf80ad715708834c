"""When a peer that fell silent is given up, in virtual time: B15, B20."""

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from tunnel.heartbeat import keep_beating


@define
class Peer:
    """`words`: when it is heard, in seconds."""

    words: list[float]
    beats: list[float] = field(factory=list)
    last: float = 0.0

    async def talk(self) -> None:
        for at in self.words:
            await trio.sleep_until(at)
            self.last = at

    async def outlive(self, seconds: float = 10.0) -> tuple[float, float]:
        """When it was given up, and how long it had been silent by then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.talk)
            silent = await keep_beating(
                seconds, beat=lambda: self.beats.append(trio.current_time()), heard=lambda: self.last
            )
            nursery.cancel_scope.cancel()
        return trio.current_time(), silent


@pytest.mark.parametrize("last", [0.0, 0.001, 3.0, 9.999, 10.0, 10.001, 25.0])
async def test_a_peer_is_given_up_26_s_after_its_last_word_wherever_our_beats_are(
    last: float, autojump_clock: MockClock
) -> None:
    """B15: 30 s at most, on both sides."""
    peer = Peer([last])
    assert await peer.outlive() == (pytest.approx(last + 26), pytest.approx(26))
    assert peer.beats == [10.0 * number for number in range(1, int((last + 25) // 10) + 1)]


async def test_one_that_speaks_every_25_seconds_is_never_given_up(autojump_clock: MockClock) -> None:
    words = [24.9 * number for number in range(40)]
    assert (await Peer(words).outlive())[0] == pytest.approx(words[-1] + 26)


async def test_a_word_within_the_last_second_saves_it(autojump_clock: MockClock) -> None:
    assert (await Peer([25.9]).outlive())[0] == pytest.approx(25.9 + 26)


@pytest.mark.parametrize(("seconds", "given_up"), [(1.0, 3.0), (0.05, 0.15), (60.0, 151.0)])
async def test_the_last_look_is_a_second_or_half_a_beat(
    seconds: float, given_up: float, autojump_clock: MockClock
) -> None:
    assert await Peer([]).outlive(seconds) == (pytest.approx(given_up), pytest.approx(given_up))


async def test_after_we_were_stopped_there_is_a_second_to_read_what_came_meanwhile(mock_clock: MockClock) -> None:
    """B20: SIGSTOP for a minute and SIGCONT, and the peer's words wait in the kernel."""
    peer, ended = Peer([]), False

    async def be_there() -> None:
        nonlocal ended
        await keep_beating(10, beat=lambda: peer.beats.append(trio.current_time()), heard=lambda: peer.last)
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_there)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(60)
        await trio.testing.wait_all_tasks_blocked()
        assert (ended, peer.beats) == (False, [60])
        peer.last = 60.0  # our reader had its turn
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert not ended
        mock_clock.jump(25)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert ended
        nursery.cancel_scope.cancel()


async def test_a_beat_that_cannot_be_said_ends_it_at_once(autojump_clock: MockClock) -> None:
    def beat() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await keep_beating(10, beat=beat, heard=lambda: 0.0)
    assert trio.current_time() == 10
