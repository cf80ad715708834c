"""The bind-retry policy that a client asks for, kept within reason."""

from tunnel.backoff import LinearPolicy, Policy, RetryPolicy
from tunnel.messages import Retry

MIN_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.1, 86_400.0


def policy_of(asked: Retry) -> Policy:
    """A server's port is not tried a thousand times a second for anybody."""
    retries = None if asked.max_retries is None else max(asked.max_retries, 0)
    if asked.step is not None:
        return LinearPolicy(_within(asked.step), retries)
    return RetryPolicy(
        initial_delay=_within(asked.initial_delay),
        factor=min(max(asked.factor, 1.0), 100.0),
        max_delay=_within(asked.max_delay),
        max_retries=retries,
        jitter=min(max(asked.jitter, 0.0), 1.0),
    )


def _within(delay: float) -> float:
    return min(max(delay, MIN_DELAY_SECONDS), MAX_DELAY_SECONDS)
