"""What a source owes for connections that came to nothing: a wait, as in OpenSSH's PerSourcePenalties. Pure.

Debts add up and pass with time. From `ENFORCED_FROM` seconds on a debt is enforced, until all of it has passed: who
mistypes a token waits for nothing, who guesses has a few guesses in a quarter of a minute.
"""

from attrs import Factory, define

WRONG_TOKEN_SECONDS = 5.0  # as OpenSSH's authfail
TOO_LATE_SECONDS = 5.0  # a deadline passed: silence, half a handshake, a head byte by byte
NO_LOGIN_SECONDS = 1.0  # it spoke, and left or was sent away without a login; as OpenSSH's noauth
ENFORCED_FROM = 15.0
MAX_SECONDS = 600.0
MAX_SOURCES = 65_536  # the one that was quiet for longest goes first


@define
class _Debt:
    ends: float
    is_enforced: bool = False


@define(eq=False)
class Penalties:
    _debts: dict[str, _Debt] = Factory(dict)  # source → its debt, the newest last

    def add(self, source: str, seconds: float, now: float) -> bool:
        """`source` owes so much more; True when its debt is enforced from now on, and was not before."""
        debt = self._debts.pop(source, None)
        if debt is None or debt.ends <= now:
            debt = _Debt(now)
        debt.ends = min(debt.ends + seconds, now + MAX_SECONDS)
        was_enforced, debt.is_enforced = debt.is_enforced, debt.is_enforced or debt.ends - now >= ENFORCED_FROM
        self._debts[source] = debt
        self._forget(now)
        return debt.is_enforced and not was_enforced

    def wait(self, source: str, now: float) -> float:
        """For how many seconds nobody from `source` is heard; 0 if they are."""
        debt = self._debts.get(source)
        return debt.ends - now if debt is not None and debt.is_enforced and debt.ends > now else 0.0

    def __len__(self) -> int:
        """Sources kept; of some the debt may have passed."""
        return len(self._debts)

    def _forget(self, now: float) -> None:
        """Two at most for one that came: what has passed goes by and by, and nothing sweeps."""
        for _ in range(2):
            oldest = next(iter(self._debts))
            if self._debts[oldest].ends > now and len(self._debts) <= MAX_SOURCES:
                return
            del self._debts[oldest]
