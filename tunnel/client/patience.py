"""How long a client waits before it tries again (design §5). Pure; it only counts.

While nothing answers there is nothing to spare: dials go on every second (`reach`). What is counted here is how often
something answered and did not have us for long. That ends with a session that lasted, and also when between two answers
nobody was there: the process that broke off last time is gone, be it restarted or behind a network that was, and its
successor is owed no more caution than the first one was.
"""

import random
from collections.abc import Callable

from tunnel.backoff import RECONNECT, RECONNECT_REFUSED
from tunnel.errors import Refused, TunnelError

STEADY_SECONDS = 60.0  # a session that lasted longer resets the counters
HELD_SECONDS = 30.0  # between tries while another process has our identity: it may end at any time
ANNOUNCED_SECONDS = 0.7  # after a goodbye that was not the first: as between two dials that nobody answers


class Patience:
    """One a client. `rand` returns [0, 1)."""

    def __init__(self, rand: Callable[[], float] = random.random) -> None:
        self._rand = rand
        self._begin()
        self._refused_delays = RECONNECT_REFUSED.delays(rand)

    def _begin(self) -> None:
        self._delays = RECONNECT.delays(self._rand)
        self._is_first = True

    def after(self, why: TunnelError | None, *, lasted: float, was_away: bool) -> float:
        """Seconds to wait now. `why` the last try or session ended (None: with a goodbye that means: come back), how
        many seconds it `lasted` since the server answered, and whether some dial before that found nobody."""
        if lasted > STEADY_SECONDS:
            self._refused_delays = RECONNECT_REFUSED.delays(self._rand)
        if lasted > STEADY_SECONDS or was_away:
            self._begin()
        if isinstance(why, Refused) and why.trust:
            return HELD_SECONDS if why.reason == "identity_held" else next(self._refused_delays)
        if self._is_first:
            self._is_first = False
            return 0.0
        return ANNOUNCED_SECONDS if why is None else next(self._delays)
