"""Reaching somebody who may not be there: dials go on, a second apart, until one is answered (design §5)."""

import random
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import trio

from tunnel.errors import PeerLost

PAUSE_SECONDS = (0.7, 1.0)  # from one dial's start to the next while nothing answers
OVERLAP_SECONDS = 2.0  # a dial unanswered for so long is joined by another: a lost SYN or a dead route costs no more
MAX_DIALS = 3  # at a time
DIAL_SECONDS = 10.0  # each


class Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


async def reach(
    dial: Callable[[], Awaitable[T]],
    *,
    failed: Callable[[PeerLost], None],
    rand: Callable[[], float] = random.random,
    once: bool = False,
) -> T:
    """Dial until something answers, for ever; `failed` is told of each dial that found nobody.

    With `once`, the first failure is raised. Also raises what an answer brought: `Refused`, or `PeerLost` with
    `answered`. If cancelled, every dial under way is ended.
    """
    race = _Race(dial, failed, once=once)
    try:
        async with trio.open_nursery() as dials:
            while not race.answers:
                started = trio.current_time()
                race.running += 1
                dials.start_soon(race.attempt)
                with trio.move_on_after(OVERLAP_SECONDS):
                    await race.wait_end()
                while race.running >= MAX_DIALS and not race.answers:
                    await race.wait_end()
                low, high = PAUSE_SECONDS
                with trio.move_on_at(started + low + (high - low) * rand()):
                    await race.answered.wait()
            dials.cancel_scope.cancel(reason="something answered")
    except BaseException:
        race.close_all_but(None)  # cancelled in the very moment of an answer
        raise
    answer = race.answers[0]
    race.close_all_but(answer)
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Race(Generic[T]):
    """The dials under way, and what they brought: connections and exceptions, in their order."""

    def __init__(self, dial: Callable[[], Awaitable[T]], failed: Callable[[PeerLost], None], *, once: bool) -> None:
        self.answers: list[T | Exception] = []
        self.answered = trio.Event()
        self.running = 0
        self._dial = dial
        self._failed = failed
        self._once = once
        self._end = trio.Event()

    async def attempt(self) -> None:
        problem = PeerLost(f"no answer within {DIAL_SECONDS:g} s")
        try:
            with trio.move_on_after(DIAL_SECONDS):
                self._answer(await self._dial())
                return
        except PeerLost as exc:
            problem = exc
        except Exception as exc:
            self._answer(exc)
            return
        finally:
            self.running -= 1
            self._end.set()
        if problem.answered or self._once:
            self._answer(problem)
        else:
            self._failed(problem)

    def _answer(self, answer: T | Exception) -> None:
        self.answers.append(answer)
        self.answered.set()

    async def wait_end(self) -> None:
        """Until the next dial ends, whatever it brought."""
        self._end = trio.Event()
        await self._end.wait()

    def close_all_but(self, winner: T | Exception | None) -> None:
        for answer in self.answers:
            if answer is not winner and not isinstance(answer, Exception):
                answer.close()
