"""A client's bind-retry policy on its way to the server, and what the server makes of nonsense."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import HostPort, Target
from tunnel.backoff import LinearPolicy, Policy, RetryPolicy
from tunnel.client.routes import RouteTable
from tunnel.config import ProxyConfig
from tunnel.messages import ProxySet, Retry, decode, encode
from tunnel.server.asked_policy import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, policy_of

DAY = 86_400.0


def asked(policy: Policy | None) -> Retry | None:
    """`policy` as the server reads it."""
    config = ProxyConfig("web", HostPort("0.0.0.0", 8001), (Target("tcp", "127.0.0.1", 80),), policy)
    message = decode(encode(RouteTable((config,), dial_seconds=10.0).next_set()))
    assert isinstance(message, ProxySet)
    return message.proxies[0].bind_retry


RETRIES = st.none() | st.integers(0, 10_000_000)
POLICIES: st.SearchStrategy[Policy] = st.builds(
    RetryPolicy,
    st.floats(MIN_DELAY_SECONDS, DAY),
    st.floats(1, 100),
    st.floats(MIN_DELAY_SECONDS, DAY),
    RETRIES,
    st.floats(0, 1),
) | st.builds(LinearPolicy, st.floats(MIN_DELAY_SECONDS, DAY), RETRIES)


@given(POLICIES)
def test_a_reasonable_policy_arrives_as_it_was_sent(policy: Policy) -> None:
    retry = asked(policy)
    assert retry is not None
    assert policy_of(retry) == policy


def test_no_policy_of_its_own_leaves_the_servers() -> None:
    assert asked(None) is None


def test_a_server_that_knows_no_steps_gets_a_policy_much_like_it() -> None:
    assert asked(LinearPolicy(2.0, 4)) == Retry(2.0, 2.0, 20.0, 4, 0.0, step=2.0)
    assert asked(LinearPolicy(0.0, None)) == Retry(0.1, 2.0, 0.1, None, 0.0, step=0.0)


@pytest.mark.parametrize("step", [0.0, 1e-9, -5.0])
def test_a_tiny_step_is_no_storm(step: float) -> None:
    """Only the first retry is made at once."""
    policy = policy_of(Retry(1, 2, 60, None, 0, step=step))
    assert list(islice(policy.delays(), 4)) == pytest.approx([0, 0.1, 0.2, 0.3])


@given(*[st.floats(allow_nan=False, allow_infinity=False)] * 4, st.none() | st.integers(), st.none() | st.floats(
    allow_nan=False, allow_infinity=False))  # fmt: skip
def test_whatever_a_client_asks_for_the_server_has_a_policy_that_spares_it(
    initial: float, factor: float, ceiling: float, jitter: float, retries: int | None, step: float | None
) -> None:
    policy = policy_of(Retry(initial, factor, ceiling, retries, jitter, step))
    delays = list(islice(policy.delays(lambda: 0.0), 20))
    later = delays[1:] if step is not None else delays
    assert all(MIN_DELAY_SECONDS <= delay <= MAX_DELAY_SECONDS * 20 for delay in later)
    assert policy.max_retries is None or policy.max_retries >= 0
