"""One proxy at the server, in virtual time: when it tries, what it says, and that nothing is left of it."""

import logging
import math
from collections.abc import Callable

import pytest
import trio
from attrs import Factory, define
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.backoff import LinearPolicy, Policy, RetryPolicy, linear
from tunnel.messages import ProxySpec, ProxyStatusUpdate, Reason, Status, TargetHealth
from tunnel.relay import Tally
from tunnel.server.binding import BindFailed
from tunnel.server.proxy import Proxy

IN_USE = "Port 8002 is already in use by another process"
TIMES = [0, 2, 6, 14, 30, 62, 122, 182, 242, 302, 362]
DEFAULT = RetryPolicy()


def in_use() -> BindFailed:
    return BindFailed(Reason.ADDR_IN_USE, IN_USE)


@define(eq=False)
class Holding:
    where: HostPort
    released: int = 0
    _lost: trio.Event = Factory(trio.Event)
    _why: str = ""

    def lose(self, why: str) -> None:
        self._why = why
        self._lost.set()

    async def wait_lost(self) -> str:
        await self._lost.wait()
        return self._why

    def release(self) -> None:
        self.released += 1


class Port:
    """A port that somebody holds until `freed`: what `take` sees of the world. `steps` come first, one an attempt."""

    def __init__(self, *steps: Exception | None, freed: float = math.inf) -> None:
        self.attempts: list[float] = []
        self.holdings: list[Holding] = []
        self.freed = freed
        self._steps = list(steps)

    def take(self, spec: ProxySpec, tally: Tally) -> Holding:
        self.attempts.append(trio.current_time())
        failure = self._steps.pop(0) if self._steps else None if trio.current_time() >= self.freed else in_use()
        if failure is not None:
            raise failure
        assert not self.is_held
        self.holdings.append(Holding(HostPort(spec.publish_addr, spec.publish_port or 40_000)))
        return self.holdings[-1]

    @property
    def is_held(self) -> bool:
        return any(not holding.released for holding in self.holdings)


class Story:
    """What a proxy reported, with the time of each."""

    def __init__(self) -> None:
        self.told: list[tuple[float, ProxyStatusUpdate]] = []

    def report(self, proxy: Proxy) -> None:
        self.told.append((trio.current_time(), proxy.update(len(self.told) + 1)))

    @property
    def lines(self) -> list[tuple[float, str, str | None, int, int | None]]:
        return [
            (at, told.status.value, told.reason and told.reason.value, told.attempt, told.retry_after_seconds)
            for at, told in self.told
        ]


def make(
    port: Port, *, name: str = "proxy2", policy: Policy = DEFAULT, checked: bool = False, publish: int = 8002
) -> tuple[Proxy, Story]:
    story = Story()
    spec = ProxySpec(name, "0.0.0.0", publish, checked=checked, target="127.0.0.1:22")
    return Proxy(spec, policy=lambda spec: policy, take=port.take, report=story.report), story


async def until(time: float) -> None:
    await trio.sleep_until(time)
    await wait_all_tasks_blocked()


# The bind retry


async def test_attempts_happen_at_their_times_then_the_proxy_gives_up(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B7"""
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10_000)
    assert port.attempts == TIMES
    retries = zip(TIMES[:10], [2, 4, 8, 16, 32, 60, 60, 60, 60, 60], strict=True)
    assert story.lines == [
        *((at, "unhealthy", "addr_in_use", number, wait) for number, (at, wait) in enumerate(retries, 1)),
        (362, "bind_failed", "addr_in_use", 11, None),
    ]
    nursery.cancel_scope.cancel()


async def test_a_status_says_all_it_knows(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(7)
    assert proxy.update(99) == ProxyStatusUpdate(
        proxy_name="proxy2", status=Status.UNHEALTHY, error_message=IN_USE, retry_after_seconds=7, seq=99,
        reason=Reason.ADDR_IN_USE, attempt=3, max_retries=10, publish_addr="0.0.0.0", publish_port=8002,
        since=proxy.since,
    )  # fmt: skip
    view = proxy.view()
    assert (view.name, view.status, view.reason, view.error_message, view.retry_after_seconds) == (
        "proxy2", "unhealthy", "addr_in_use", IN_USE, 7,
    )  # fmt: skip
    assert (view.attempt, view.max_retries, view.publish_addr, view.publish_port, view.target, view.visitors) == (
        3, 10, "0.0.0.0", 8002, "127.0.0.1:22", 0,
    )  # fmt: skip
    await until(400)
    last = story.told[-1][1]
    assert (last.status, last.error_message, last.retry_after_seconds) == (Status.BIND_FAILED, IN_USE, None)
    assert proxy.view().retry_after_seconds is None
    nursery.cancel_scope.cancel()


async def test_before_the_first_attempt_a_proxy_is_pending() -> None:
    proxy, story = make(Port())
    update = proxy.update(1)
    assert (update.status, update.reason, update.attempt, update.retry_after_seconds) == (
        Status.UNHEALTHY, Reason.PENDING, 0, None,
    )  # fmt: skip
    assert story.told == []


@pytest.mark.parametrize(
    ("at", "seconds"), [(14, 16), (14.001, 16), (15, 15), (29, 1), (29.5, 1), (29.999, 1), (30, 32), (61.2, 1)]
)
async def test_the_seconds_left_count_down_rounded_up(
    at: float, seconds: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B6"""
    proxy, _ = make(Port())
    nursery.start_soon(proxy.run)
    await until(at)
    assert (proxy.update(1).retry_after_seconds, proxy.view().retry_after_seconds) == (seconds, seconds)
    nursery.cancel_scope.cancel()


async def test_a_port_that_is_freed_is_live_at_the_next_attempt(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B6"""
    port = Port(freed=6.5)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1000)
    assert port.attempts == [0, 2, 6, 14]
    assert story.lines[-1] == (14, "healthy", None, 0, None)
    healthy = story.told[-1][1]
    assert (healthy.error_message, healthy.max_retries, healthy.publish_port) == (None, 10, 8002)
    nursery.cancel_scope.cancel()


async def test_a_port_the_server_chose_is_the_one_reported(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """B12"""
    proxy, story = make(Port(freed=0), publish=0)
    nursery.start_soon(proxy.run)
    await until(1)
    assert [(told.publish_addr, told.publish_port) for _, told in story.told] == [("0.0.0.0", 40_000)]
    assert (proxy.view().publish_addr, proxy.view().publish_port) == ("0.0.0.0", 40_000)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reason", [Reason.NOT_ALLOWED, Reason.MALFORMED_ADDR, Reason.FAMILY_NOT_SUPPORTED])
async def test_what_waiting_cannot_mend_fails_at_once(
    reason: Reason, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """B11"""
    port = Port(BindFailed(reason, "no", final=True))
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1000)
    assert port.attempts == [0]
    assert story.lines == [(0, "bind_failed", reason.value, 1, None)]
    assert caplog.messages == ["Proxy 'proxy2' cannot be published: no"]
    nursery.cancel_scope.cancel()


async def test_a_final_error_ends_a_retry_that_is_under_way(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port(in_use(), BindFailed(Reason.NOT_ALLOWED, "no", final=True))
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1000)
    assert port.attempts == [0, 2]
    assert story.lines[-1] == (2, "bind_failed", "not_allowed", 2, None)
    nursery.cancel_scope.cancel()


POLICIES = [
    (RetryPolicy(max_retries=0), [0], 1),
    (RetryPolicy(max_retries=1), [0, 2], 2),
    (RetryPolicy(initial_delay=0.5, factor=1, max_retries=3), [0, 0.5, 1, 1.5], 4),
    (LinearPolicy(max_retries=0), [0], 1),
    (LinearPolicy(max_retries=1), [0, 0], 2),
    (LinearPolicy(step=0.5, max_retries=3), [0, 0, 0.5, 1.5], 4),
]


@pytest.mark.parametrize(("policy", "times", "attempts"), POLICIES)
async def test_a_proxys_own_policy_counts(
    policy: Policy, times: list[float], attempts: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, story = make(port, policy=policy)
    nursery.start_soon(proxy.run)
    await until(1000)
    assert port.attempts == times
    assert story.lines[-1] == (times[-1], "bind_failed", "addr_in_use", attempts, None)
    assert story.told[-1][1].max_retries == policy.max_retries
    nursery.cancel_scope.cancel()


async def test_a_linear_policy_tries_again_at_once_then_ever_later_and_counts_like_the_other(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = Port()
    proxy, story = make(port, policy=linear(step=1, max_retries=4))
    nursery.start_soon(proxy.run)
    await until(1000)
    assert port.attempts == [0, 0, 1, 3, 6]
    assert story.lines == [
        (0, "unhealthy", "addr_in_use", 1, 0),
        (0, "unhealthy", "addr_in_use", 2, 1),
        (1, "unhealthy", "addr_in_use", 3, 2),
        (3, "unhealthy", "addr_in_use", 4, 3),
        (6, "bind_failed", "addr_in_use", 5, None),
    ]
    assert {told.max_retries for _, told in story.told} == {proxy.view().max_retries} == {4}
    expected = []
    for number in range(1, 5):
        expected += [
            f"Proxy 'proxy2' bind failed (attempt {number}/4): {IN_USE}. Retrying in {number - 1} seconds...",
            f"Waiting {number - 1} seconds before retry attempt {min(number + 1, 4)}/4...",
        ]
    assert caplog.messages == [*expected, f"Proxy 'proxy2' bind failed after 4 retries: {IN_USE}"]
    nursery.cancel_scope.cancel()


async def test_a_linear_policy_that_succeeds_tells_its_retries(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy, story = make(Port(freed=2), policy=linear(step=1, max_retries=4))
    nursery.start_soon(proxy.run)
    await until(1000)
    assert story.lines[-1] == (3, "healthy", None, 0, None)
    assert caplog.messages[-1] == "Proxy 'proxy2' listening on 0.0.0.0:8002 (after 3 retries)"
    nursery.cancel_scope.cancel()


async def test_a_linear_policy_retries_by_hand_from_the_start(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port()
    proxy, _ = make(port, policy=linear(step=1, max_retries=4))
    nursery.start_soon(proxy.run)
    await until(100)
    assert proxy.retry() is True
    await until(1000)
    assert port.attempts == [0, 0, 1, 3, 6, 100, 100, 101, 103, 106]
    nursery.cancel_scope.cancel()


async def test_a_policy_without_end_goes_on(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = Port()
    proxy, _ = make(port, policy=RetryPolicy(factor=1, max_retries=None))
    nursery.start_soon(proxy.run)
    await until(99)
    assert port.attempts == list(range(0, 99, 2))
    assert caplog.messages[:2] == [
        f"Proxy 'proxy2' bind failed (attempt 1): {IN_USE}. Retrying in 2 seconds...",
        "Waiting 2 seconds before retry attempt 2...",
    ]
    nursery.cancel_scope.cancel()


# Log lines


async def test_the_log_tells_each_attempt_and_the_end(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy, _ = make(Port())
    nursery.start_soon(proxy.run)
    await until(1000)
    expected = []
    for number, wait in enumerate([2, 4, 8, 16, 32, 60, 60, 60, 60, 60], 1):
        expected += [
            f"Proxy 'proxy2' bind failed (attempt {number}/10): {IN_USE}. Retrying in {wait} seconds...",
            f"Waiting {wait} seconds before retry attempt {min(number + 1, 10)}/10...",
        ]
    assert caplog.messages == [*expected, f"Proxy 'proxy2' bind failed after 10 retries: {IN_USE}"]
    assert [record.levelname for record in caplog.records] == [*["WARNING", "INFO"] * 10, "ERROR"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("freed", "line"),
    [
        (0, "Proxy 'proxy2' listening on 0.0.0.0:8002"),
        (1, "Proxy 'proxy2' listening on 0.0.0.0:8002 (after 1 retries)"),
        (7, "Proxy 'proxy2' listening on 0.0.0.0:8002 (after 3 retries)"),
        (362, "Proxy 'proxy2' listening on 0.0.0.0:8002 (after 10 retries)"),
    ],
)
async def test_the_log_counts_retries_only_when_there_were_any(
    freed: float, line: str, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy, _ = make(Port(freed=freed))
    nursery.start_soon(proxy.run)
    await until(1000)
    assert caplog.messages[-1] == line
    nursery.cancel_scope.cancel()


# Retrying by hand


async def test_retry_after_giving_up_starts_afresh_with_counters_from_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B7"""
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1000)
    del port.attempts[:], story.told[:]
    assert proxy.retry() is True
    await until(9000)
    assert port.attempts == [1000 + at for at in TIMES]
    assert story.lines[0] == (1000, "unhealthy", "addr_in_use", 1, 2)
    assert story.lines[-1] == (1362, "bind_failed", "addr_in_use", 11, None)
    nursery.cancel_scope.cancel()


async def test_retry_during_a_wait_does_not_wait_longer(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port(freed=50)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(40)
    proxy.retry()
    await until(1000)
    assert port.attempts == [0, 2, 6, 14, 30, 40, 42, 46, 54]
    assert [line[3] for line in story.lines] == [1, 2, 3, 4, 5, 1, 2, 3, 0]
    nursery.cancel_scope.cancel()


async def test_retry_while_listening_touches_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """B6: siblings never blink, nor does it."""
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1)
    assert proxy.retry() is False
    await until(2)
    assert (port.attempts, port.is_held, len(story.told)) == ([0], True, 1)
    nursery.cancel_scope.cancel()


async def test_retry_before_the_task_has_begun_changes_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    proxy.retry()
    await until(1)
    assert (port.attempts, port.is_held) == ([0], True)
    nursery.cancel_scope.cancel()


# The end


@pytest.mark.parametrize("at", [0, 0.5, 2, 100, 361.9, 362, 500])
async def test_stop_ends_all_attempts_and_holds_nothing(
    at: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B8"""
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(at)
    before = list(port.attempts)
    reports = len(story.told)
    port.freed = 0
    proxy.stop("the session ended")
    assert proxy.retry() is True
    await until(2000)
    assert (port.attempts, port.holdings, len(story.told)) == (before, [], reports)


async def test_stop_frees_a_held_port_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """B14"""
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.stop("the session ended")
    assert not port.is_held
    await until(1000)
    assert (port.attempts, len(story.told)) == ([0], 1)


async def test_stopped_before_its_task_began_a_proxy_binds_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B8: two proxy sets in one breath; the first one's proxies must not bind behind the second's back."""
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    proxy.stop("removed from the proxy set")
    await until(1000)
    assert (port.attempts, story.told) == ([], [])


async def test_stopped_in_the_moment_its_listener_is_lost_a_proxy_binds_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    await until(1)
    port.holdings[0].lose("gone")
    proxy.stop("the session ended")
    await until(1000)
    assert (port.attempts, port.is_held) == ([0], False)


@pytest.mark.parametrize("at", [0.5, 2, 14, 300, 362])
async def test_stop_and_the_next_attempt_in_one_tick_make_no_attempt(
    at: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B8"""
    port = Port()
    proxy, _ = make(port)

    async def stop() -> None:
        await trio.sleep_until(at)
        proxy.stop("the session ended")

    nursery.start_soon(stop)
    nursery.start_soon(proxy.run)
    await until(1000)
    made = [time for time in TIMES if time < at]
    assert port.attempts in (made, [*made, at])  # the tick's order is the scheduler's; but never one after
    assert port.holdings == []


AWAITS = {
    "waiting to retry": lambda: Port(),
    "given up": lambda: Port(BindFailed(Reason.NOT_ALLOWED, "no", final=True)),
    "listening": lambda: Port(freed=0),
    "after an internal error": lambda: Port(ZeroDivisionError()),
}


@pytest.mark.parametrize("world", AWAITS.values(), ids=AWAITS)
async def test_cancelled_at_any_await_a_proxy_leaves_nothing_bound(
    world: Callable[[], Port], autojump_clock: MockClock
) -> None:
    port = world()
    proxy, _ = make(port)
    async with trio.open_nursery() as session:
        session.start_soon(proxy.run)
        await until(1)
        session.cancel_scope.cancel()
    assert not port.is_held
    await until(2000)
    assert port.attempts == [0]


# The listener is lost


async def test_a_lost_listener_is_told_and_bound_again_with_fresh_counters(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    port = Port(in_use(), None, freed=106)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(100)
    caplog.clear()
    port.holdings[0].lose("this host no longer has the address")
    await until(1000)
    assert port.holdings[0].released
    assert port.attempts == [0, 2, 100, 102, 106]
    assert story.lines[1:] == [
        (2, "healthy", None, 0, None),
        (100, "unhealthy", "listener_lost", 0, 0),
        (100, "unhealthy", "addr_in_use", 1, 2),
        (102, "unhealthy", "addr_in_use", 2, 4),
        (106, "healthy", None, 0, None),
    ]
    why = "The listener on 0.0.0.0:8002 was lost: this host no longer has the address"
    assert story.told[2][1].error_message == why
    assert caplog.messages[0] == (
        "Proxy 'proxy2' lost its listener on 0.0.0.0:8002: this host no longer has the address"
    )
    nursery.cancel_scope.cancel()


# The target's health


def down(seconds: int | None = 5, message: str | None = "connection refused") -> TargetHealth:
    return TargetHealth("proxy2", False, message, seconds)


async def test_a_target_that_is_down_makes_a_listening_proxy_unhealthy_and_up_again_healthy(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    proxy, story = make(Port(freed=0), checked=True)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(down())
    await until(12.5)
    assert proxy.update(1).retry_after_seconds == 3
    proxy.hear(TargetHealth("proxy2", True))
    assert story.lines == [
        (0, "healthy", None, 0, None),
        (10, "unhealthy", "target_down", 0, 5),
        (12.5, "healthy", None, 0, None),
    ]
    assert story.told[1][1].error_message == "The target does not answer: connection refused"
    nursery.cancel_scope.cancel()


async def test_what_is_said_of_a_target_while_binding_counts_once_it_listens(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    proxy, story = make(Port(freed=2), checked=True)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.hear(down(None, None))
    await until(3)
    assert story.lines == [(0, "unhealthy", "addr_in_use", 1, 2), (2, "unhealthy", "target_down", 0, None)]
    assert story.told[1][1].error_message == "The target does not answer: no reason given"
    nursery.cancel_scope.cancel()


async def test_health_of_a_target_that_is_not_checked_is_not_believed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    proxy, _ = make(Port(freed=0))
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.hear(down())
    assert proxy.status is Status.HEALTHY
    nursery.cancel_scope.cancel()


async def test_a_target_that_is_down_keeps_the_port(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port(freed=0)
    proxy, _ = make(port, checked=True)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.hear(down())
    await until(1000)
    assert (port.is_held, port.attempts) == (True, [0])
    nursery.cancel_scope.cancel()


# Walls


async def test_an_exception_in_an_attempt_stays_in_its_proxy(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = Port(ZeroDivisionError("oops"), freed=0), Port(freed=2)
    proxy, story = make(broken)
    sibling, sibling_story = make(fine, name="proxy3")
    nursery.start_soon(proxy.run)
    nursery.start_soon(sibling.run)
    await until(100)
    assert story.lines == [(0, "bind_failed", "internal_error", 0, None)]
    assert story.told[0][1].error_message == "internal error: ZeroDivisionError('oops'); see the server's log"
    assert sibling_story.lines[-1] == (2, "healthy", None, 0, None)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (record.message, record.exc_info is not None) == ("Proxy 'proxy2' failed", True)
    proxy.retry()
    await until(101)
    assert story.lines[-1] == (100, "healthy", None, 0, None)
    nursery.cancel_scope.cancel()


async def test_of_three_proxies_the_middle_one_fails_and_the_others_serve_at_once(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B6"""
    ports = [Port(freed=0), Port(freed=20), Port(freed=0)]
    made = [make(port, name=f"proxy{number}") for number, port in enumerate(ports, 1)]
    for proxy, _ in made:
        nursery.start_soon(proxy.run)
    await until(0)
    assert [proxy.status for proxy, _ in made] == [Status.HEALTHY, Status.UNHEALTHY, Status.HEALTHY]
    await until(15)
    middle = made[1][0].view()
    assert (middle.attempt, middle.error_message, middle.retry_after_seconds) == (4, IN_USE, 15)
    await until(1000)
    assert ports[1].attempts == [0, 2, 6, 14, 30]
    assert [story.lines[-1] for _, story in made] == [
        (0, "healthy", None, 0, None), (30, "healthy", None, 0, None), (0, "healthy", None, 0, None),
    ]  # fmt: skip
    assert [len(story.told) for _, story in made] == [1, 5, 1]
    nursery.cancel_scope.cancel()


async def test_since_is_when_the_status_was_entered_not_each_attempt(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.server.standing.utc_now", lambda: f"at {trio.current_time():g}")
    proxy, story = make(Port(freed=14))
    nursery.start_soon(proxy.run)
    await until(1000)
    assert [told.since for _, told in story.told] == ["at 0", "at 0", "at 0", "at 14"]
    nursery.cancel_scope.cancel()
