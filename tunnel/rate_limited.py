"""What a flood cannot flood: a logger, by the kind of record; and what many share, such as a log, by who it is."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

from attrs import define, field


@define(eq=False)
class RateLimited:
    """Lets at most `count` records of a key through in an interval, and says later how many more there were.

    The summary of a key comes with the first call, of any key, after its interval has ended, or from `flush()`. Past
    `max_keys` new keys share one, so that a flood of keys is limited too.
    """

    logger: logging.Logger
    clock: Callable[[], float]
    count: int = 5
    interval_seconds: float = 60.0
    max_keys: int = 1000
    _windows: "OrderedDict[str, _Window]" = field(factory=OrderedDict, init=False)  # oldest first

    def log(
        self,
        level: int,
        message: str,
        *args: object,
        key: str,
        extra: Mapping[str, object] | None = None,
        exc_info: BaseException | None = None,
    ) -> None:
        if not self.logger.isEnabledFor(level):
            return
        now = self.clock()
        self._close_windows(before=now - self.interval_seconds)
        if key not in self._windows and len(self._windows) >= self.max_keys:
            key = "(others)"
        window = self._windows.setdefault(key, _Window(now))
        if window.passed < self.count:
            window.passed += 1
            self.logger.log(level, message, *args, extra=extra, exc_info=exc_info)
        else:
            window.suppressed += 1
            window.level = max(window.level, level)

    def flush(self) -> None:
        """Says what was suppressed so far; for the end, or from time to time."""
        self._close_windows(before=math.inf)

    def _close_windows(self, *, before: float) -> None:
        while self._windows and next(iter(self._windows.values())).start <= before:
            key, window = self._windows.popitem(last=False)
            if window.suppressed:
                extra = {"key": key, "suppressed": window.suppressed}
                self.logger.log(window.level, "similar messages were not logged", extra=extra)


@define
class _Window:
    start: float
    passed: int = 0
    suppressed: int = 0
    level: int = 0


@define(eq=False)
class Quota:
    """A share for each of many parties, of the log or of logins: `burst` at once, then `per_second`. Pure.

    Past `max_parties` who was silent longest is forgotten, and begins with a full share.
    """

    burst: int
    per_second: float
    max_parties: int = 1000
    _shares: "OrderedDict[str, _Share]" = field(factory=OrderedDict, init=False)  # who was heard last comes last

    def spend(self, party: str, now: float) -> int | None:
        """Whether one more of this party may pass: how many did not since the last that did; None: this one neither."""
        share = self._shares.setdefault(party, _Share(self.burst, now))
        self._shares.move_to_end(party)
        if len(self._shares) > self.max_parties:
            self._shares.popitem(last=False)
        share.left = min(share.left + (now - share.at) * self.per_second, self.burst)
        share.at = now
        if share.left < 1:
            share.refused += 1
            return None
        share.left -= 1
        refused, share.refused = share.refused, 0
        return refused


@define
class _Share:
    left: float
    at: float
    refused: int = 0
