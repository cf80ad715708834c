"""What SIGINT, SIGTERM and SIGHUP ask of a process, with real signals and a real pseudo-terminal."""

import os
import pty
import signal
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.stopping import LOOKS, Stopping


class Terminal:
    """Until `hang_up`, `descriptor` is a terminal."""

    def __init__(self) -> None:
        self._master, self.descriptor = pty.openpty()
        self._is_open = True

    def hang_up(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.hang_up()
    os.close(terminal.descriptor)


class Watched:
    """A `Stopping` that is watching, and how often it asked for a reload."""

    def __init__(self, *terminals: Terminal) -> None:
        self.stopping = Stopping(terminals=[terminal.descriptor for terminal in terminals])
        self.reloads = 0

    def reload(self) -> None:
        self.reloads += 1

    async def send(self, number: signal.Signals) -> tuple[bool, bool, int]:
        """Whether it then drains, whether it then cuts, and the reloads so far."""
        signal.raise_signal(number)
        await wait_all_tasks_blocked()
        return self.stopping.drain.is_set(), self.stopping.forced, self.reloads


async def watched(nursery: trio.Nursery, *terminals: Terminal) -> Watched:
    found = Watched(*terminals)
    await nursery.start(found.stopping.watch, found.reload)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_drains_and_the_second_cuts(nursery: trio.Nursery, number: signal.Signals) -> None:
    process = await watched(nursery)
    assert await process.send(number) == (True, False, 0)
    assert await process.send(number) == (True, True, 0)
    assert process.stopping.scope.cancel_called
    nursery.cancel_scope.cancel()


async def test_without_a_terminal_sighup_is_a_reload(nursery: trio.Nursery) -> None:
    process = await watched(nursery)
    assert await process.send(signal.SIGHUP) == (False, False, 1)
    assert await process.send(signal.SIGHUP) == (False, False, 2)
    nursery.cancel_scope.cancel()


async def test_with_its_terminal_still_there_sighup_is_a_reload(nursery: trio.Nursery, terminal: Terminal) -> None:
    process = await watched(nursery, terminal)
    assert await process.send(signal.SIGHUP) == (False, False, 1)
    nursery.cancel_scope.cancel()


async def test_when_its_terminal_has_hung_up_sighup_drains_and_never_cuts(
    nursery: trio.Nursery, terminal: Terminal
) -> None:
    process = await watched(nursery, terminal, terminal)
    terminal.hang_up()
    assert await process.send(signal.SIGHUP) == (True, False, 0)
    assert await process.send(signal.SIGHUP) == (True, False, 0)  # the shell's, after the terminal's own
    assert await process.send(signal.SIGTERM) == (True, True, 0)
    nursery.cancel_scope.cancel()


async def test_a_second_terminal_that_is_still_there_counts(nursery: trio.Nursery, terminal: Terminal) -> None:
    other = Terminal()
    process = await watched(nursery, terminal, other)
    other.hang_up()
    assert await process.send(signal.SIGHUP) == (False, False, 1)
    terminal.hang_up()
    assert await process.send(signal.SIGHUP) == (True, False, 1)
    os.close(other.descriptor)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_terminal_that_goes_soon_after_sighup_is_noticed_without_another(
    nursery: trio.Nursery, terminal: Terminal, autojump_clock: MockClock, looks: int
) -> None:
    """A shell that ends sends SIGHUP to its jobs first."""
    process = await watched(nursery, terminal)
    assert await process.send(signal.SIGHUP) == (False, False, 1)
    seen = trio.current_time() + sum(LOOKS[:looks])
    await trio.sleep_until(seen - 0.01)
    terminal.hang_up()
    await process.stopping.drain.wait()
    assert trio.current_time() == pytest.approx(seen)
    assert (process.stopping.forced, process.reloads) == (False, 1)
    nursery.cancel_scope.cancel()


async def test_the_looks_after_a_sighup_start_anew_with_the_next(
    nursery: trio.Nursery, terminal: Terminal, autojump_clock: MockClock
) -> None:
    process = await watched(nursery, terminal)
    await process.send(signal.SIGHUP)
    await trio.sleep(sum(LOOKS) - 0.01)
    await process.send(signal.SIGHUP)
    again = trio.current_time()
    await trio.sleep_until(again + sum(LOOKS) - 0.01)
    terminal.hang_up()
    await process.stopping.drain.wait()
    assert trio.current_time() == pytest.approx(again + sum(LOOKS))
    nursery.cancel_scope.cancel()


async def test_a_terminal_that_goes_without_sighup_stops_nothing(
    nursery: trio.Nursery, terminal: Terminal, autojump_clock: MockClock
) -> None:
    """The process was detached from it, by `disown` or `setsid`."""
    process = await watched(nursery, terminal)
    terminal.hang_up()
    with trio.move_on_after(3600) as patience:
        await process.stopping.drain.wait()
    assert patience.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_sighup_stays_ignored_where_it_was_ignored_from_the_start(
    nursery: trio.Nursery, terminal: Terminal
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = await watched(nursery, terminal)
        terminal.hang_up()
        assert await process.send(signal.SIGHUP) == (False, False, 0)
        assert await process.send(signal.SIGTERM) == (True, False, 0)
    finally:
        signal.signal(signal.SIGHUP, before)
    nursery.cancel_scope.cancel()
