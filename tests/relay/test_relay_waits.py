"""How an engine that is alone waits: what Trio woke it for was not watched for, and watching in vain gets rare."""

import gc
from collections.abc import Iterator

import pytest
import trio

from tunnel.relay import Engine
from tunnel.relay.poller import READ, Entry
from tunnel.relay.tempo import Watch, offer_core

WAKE_UPS = 300


class SparsePoller:
    """One event for each wake-up, and nothing behind it. Its time is what its looks take: 10 µs, or the timeout."""

    tells_errors = waits = True

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.time = 0.0
        self.left = WAKE_UPS
        self.over = trio.Event()
        self._ready: list[tuple[int, int]] = []

    def register(self, fd: int, entry: Entry) -> None:
        self.entries[fd] = entry

    register_level = register

    def unregister(self, fd: int) -> None:
        del self.entries[fd]

    closing = unregister

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        ready, self._ready = self._ready, []
        self.time += 0.000_01 if ready else max(timeout, 0.000_01)
        return ready

    async def wait(self) -> None:
        if not self.left:
            self.over.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.left -= 1
        self.time += 0.005
        self._ready = [(-7, READ)]  # of nobody: gone within this turn

    def close(self) -> None:
        pass


class CountingWatch(Watch):
    in_vain = 0

    def was_in_vain(self) -> None:
        type(self).in_vain += 1
        super().was_in_vain()


@pytest.fixture
def _thawed() -> Iterator[None]:
    """An engine that is alone freezes what exists; other tests want it collected."""
    yield
    gc.unfreeze()


@pytest.mark.skipif(offer_core is None, reason="cores cannot be offered here, so nothing is watched for")
@pytest.mark.usefixtures("_thawed")
async def test_traffic_now_and_then_is_hardly_watched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingWatch, "in_vain", 0)
    poller = SparsePoller()
    async with trio.open_nursery() as nursery:
        engine = Engine(poller=lambda: poller, linger=True)
        engine.now = lambda: poller.time
        engine._watch = CountingWatch()
        await nursery.start(engine.run)
        with trio.fail_after(30):
            await poller.over.wait()
        nursery.cancel_scope.cancel()
    assert 1 <= CountingWatch.in_vain <= 10  # each is followed by twice as many sleeps as the one before
