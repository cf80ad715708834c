"""All cases of one notice, and when each has to be looked at again. Pure."""

import heapq
from collections.abc import Callable, Iterable
from itertools import count
from math import inf

from tunnel.notices.case import Case, Policy
from tunnel.notices.gathering import Gathering
from tunnel.notices.notice import Group, Subject

MAX_CASES = 10_000  # things in trouble, or lately so; ten clients with every proxy they may have, some 10 MiB

VOID_WAKES = 1000  # kept beside those that count, so that they are seldom cleared away

Key = tuple[str, str, str]  # what it is, client, proxy


class Cases:
    def __init__(self, policy: Policy, gathering: Gathering) -> None:
        self.ignored = 0  # troubles of things that were one too many
        self._policy = policy
        self._gathering = gathering
        self._cases: dict[Key, Case] = {}
        self._wakes: list[tuple[float, int, Key]] = []  # a heap; what is not its case's `scheduled_at` is void
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._cases)

    def apply(self, policy: Policy, *, gather: float, wants: Callable[[Key], bool], now: float) -> None:
        """By other rules from now on; what nobody wants to hear of any more is forgotten."""
        self._policy, self._gathering.seconds = policy, gather
        for key, case in list(self._cases.items()):
            if not wants(key):
                del self._cases[key]
                continue
            case.apply(policy)
            self._look(key, case, now)

    def of(self, what: str, client: str) -> list[Key]:
        return [key for key in self._cases if key[0] == what and key[1] == client]

    def subject(self, key: Key) -> Subject | None:
        return self._cases[key].subject if key in self._cases else None

    def trouble(self, key: Key, kind: str, subject: Subject, now: float, *, again: bool = False) -> None:
        case = self._cases.get(key)
        if case is None:
            if len(self._cases) >= MAX_CASES:
                self.ignored += 1
                return
            case = self._cases[key] = Case(subject, self._policy)
        case.trouble(kind, subject, now, again=again)
        self._look(key, case, now)

    def mend(self, keys: Iterable[Key], now: float, *, status: str = "healthy", grace: float = 0.0) -> None:
        for key in keys:
            if (case := self._cases.get(key)) is not None:
                case.mend(now, status=status, grace=grace)
                self._look(key, case, now)

    def suspend(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if (case := self._cases.get(key)) is not None:
                case.suspend()

    @property
    def next_at(self) -> float:
        return min(self._wakes[0][0] if self._wakes else inf, self._gathering.next_at)

    def due(self, now: float) -> list[Group]:
        """What is to be told now; what may still grow is kept until it is."""
        while self._wakes and self._wakes[0][0] <= now:
            at, _, key = heapq.heappop(self._wakes)
            case = self._cases.get(key)
            if case is not None and case.scheduled_at == at:
                case.scheduled_at = inf
                self._look(key, case, now)
        return self._gathering.due(now)

    def flush(self, now: float) -> list[Group]:
        """With all that would still be gathered: this is the end."""
        return [*self.due(now), *self._gathering.flush()]

    def _look(self, key: Key, case: Case, now: float) -> None:
        if (found := case.look(now)) is not None:
            self._gathering.add(key, *found, now)
        if case.is_spent(now):
            del self._cases[key]
        elif case.wake_at < case.scheduled_at:
            case.scheduled_at = case.wake_at
            heapq.heappush(self._wakes, (case.wake_at, next(self._numbers), key))
            if len(self._wakes) > 2 * len(self._cases) + VOID_WAKES:
                self._clear_wakes()

    def _clear_wakes(self) -> None:
        """What comes and goes leaves a void one each time, which would wait for its hour."""
        live = {key: case.scheduled_at for key, case in self._cases.items()}
        self._wakes = [wake for wake in self._wakes if live.get(wake[2]) == wake[0]]
        heapq.heapify(self._wakes)
