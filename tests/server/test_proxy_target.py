"""A proxy and its target, in virtual time: the address is released while the target is down, and taken back."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from test_proxy import TIMES, Port, Story, in_use, until
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.backoff import Policy, RetryPolicy
from tunnel.messages import ProxySpec, Reason, Retry, Status, TargetHealth
from tunnel.server.binding import BindFailed
from tunnel.server.proxy import Proxy

UP = TargetHealth("proxy2", True)
DOWN = TargetHealth("proxy2", False, "connection refused", 5)
RELEASED = "The port is released until the target answers: connection refused"
CLOSES = ProxySpec("proxy2", "0.0.0.0", 8002, checked=True, target="127.0.0.1:22", when_down="close")
KEEPS = evolve(CLOSES, when_down="keep")
QUICK = Retry(initial_delay=1, factor=1, max_delay=1, max_retries=3, jitter=0)


def policy_of(spec: ProxySpec) -> Policy:
    asked = spec.bind_retry
    return RetryPolicy() if asked is None else RetryPolicy(asked.initial_delay, asked.factor, max_retries=3)


def make(
    port: Port, spec: ProxySpec = CLOSES, *, heard: TargetHealth | None = UP, policy: Callable[..., Policy] = policy_of
) -> tuple[Proxy, Story]:
    story = Story()
    proxy = Proxy(spec, policy=policy, take=port.take, report=story.report)
    proxy.target_health = heard
    return proxy, story


# Released and taken back


async def test_a_target_that_falls_releases_the_port_at_once_and_takes_it_back_when_it_rises(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    assert (port.is_held, proxy.status, proxy.reason) == (False, Status.UNHEALTHY, Reason.TARGET_DOWN)  # no await since
    await until(12.5)
    assert proxy.update(1).retry_after_seconds == 3
    await until(100)
    proxy.hear(UP)
    await until(200)
    assert port.is_held
    assert port.attempts == [0, 100]
    assert story.lines == [
        (0, "healthy", None, 0, None),
        (10, "unhealthy", "target_down", 0, 5),
        (100, "healthy", None, 0, None),
    ]
    assert story.told[1][1].error_message == RELEASED
    assert caplog.messages == ["Proxy 'proxy2' releases 0.0.0.0:8002: its target does not answer"]
    nursery.cancel_scope.cancel()


async def test_the_port_is_taken_back_by_a_bind_retry_with_fresh_counters(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(in_use(), in_use(), None, freed=1007)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    await until(1000)
    proxy.hear(UP)
    await until(2000)
    assert port.attempts == [0, 2, 6, 1000, 1002, 1006, 1014]
    assert story.lines[-4:] == [
        (1000, "unhealthy", "addr_in_use", 1, 2),
        (1002, "unhealthy", "addr_in_use", 2, 4),
        (1006, "unhealthy", "addr_in_use", 3, 8),
        (1014, "healthy", None, 0, None),
    ]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("word", "line", "message"),
    [
        (
            None,
            (0, "unhealthy", "pending", 0, None),
            "The port is bound as soon as the target has passed its first check",
        ),
        (DOWN, (0, "unhealthy", "target_down", 0, 5), RELEASED),
    ],
)
async def test_nothing_is_bound_before_the_target_is_known_to_answer(
    word: TargetHealth | None, line: object, message: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port, heard=None)
    nursery.start_soon(proxy.run)
    if word is not None:
        proxy.hear(word)
    await until(50)
    assert (port.attempts, story.lines, story.told[0][1].error_message) == ([], [line], message)
    proxy.hear(UP)
    await until(100)
    assert port.attempts == [50]
    assert story.lines[1:] == [(50, "healthy", None, 0, None)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "spec", [KEEPS, evolve(CLOSES, when_down="shout"), evolve(CLOSES, when_down=""), evolve(CLOSES, checked=False)]
)
async def test_only_a_checked_target_and_a_known_word_release_the_port(
    spec: ProxySpec, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, _ = make(port, spec, heard=None)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.hear(DOWN)
    await until(1000)
    assert (port.attempts, port.is_held) == ([0], True)
    nursery.cancel_scope.cancel()


async def test_a_target_that_rises_and_falls_all_the_time_does_not_flood_the_log(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = Port(freed=0)
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    for tenth in range(500):
        await until(1 + tenth / 10)
        proxy.hear(DOWN if tenth % 2 else UP)
    assert len(caplog.messages) == 20
    nursery.cancel_scope.cancel()


async def test_each_further_word_that_it_is_down_is_passed_on_and_releases_nothing_more(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    await until(15)
    proxy.hear(evolve(DOWN, error_message="no answer", retry_after_seconds=7))
    await until(16)
    assert story.lines[1:] == [(10, "unhealthy", "target_down", 0, 5), (15, "unhealthy", "target_down", 0, 7)]
    assert story.told[-1][1].error_message == "The port is released until the target answers: no answer"
    assert len(caplog.messages) == 1
    nursery.cancel_scope.cancel()


async def test_a_released_port_the_server_chose_is_still_the_one_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    proxy, story = make(Port(freed=0), evolve(CLOSES, publish_port=0))
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.hear(DOWN)
    assert [told.publish_port for _, told in story.told] == [40_000, 40_000]
    nursery.cancel_scope.cancel()


# While it is being bound


async def test_a_target_that_falls_during_a_bind_retry_ends_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(7)
    proxy.hear(DOWN)
    await until(1000)
    assert port.attempts == [0, 2, 6]
    assert story.lines[3:] == [(7, "unhealthy", "target_down", 0, 5)]
    proxy.hear(UP)
    await until(9000)
    assert port.attempts == [0, 2, 6, *(1000 + at for at in TIMES)]
    assert story.lines[4] == (1000, "unhealthy", "addr_in_use", 1, 2)
    nursery.cancel_scope.cancel()


async def test_down_up_and_down_again_in_one_moment_of_a_bind_retry_is_down(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    await until(7)
    for word in (DOWN, UP, DOWN):
        proxy.hear(word)
    await until(1000)
    assert (port.attempts, proxy.reason) == ([0, 2, 6], Reason.TARGET_DOWN)
    for word in (UP, DOWN, UP):
        proxy.hear(word)
    await until(1003)
    assert (port.attempts, proxy.reason) == ([0, 2, 6, 1000, 1002], Reason.ADDR_IN_USE)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", [2, 14, 300])
async def test_the_word_down_and_the_next_attempt_in_one_tick_leave_nothing_bound(
    at: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, _ = make(port)

    async def fall() -> None:
        await trio.sleep_until(at)
        port.freed = 0
        proxy.hear(DOWN)

    nursery.start_soon(fall)
    nursery.start_soon(proxy.run)
    await until(1000)
    made = [time for time in TIMES if time < at]
    assert port.attempts in (made, [*made, at])  # the tick's order is the scheduler's; but never one after
    assert (port.is_held, proxy.reason) == (False, Reason.TARGET_DOWN)
    nursery.cancel_scope.cancel()


async def test_what_was_given_up_stays_so_when_the_target_falls_and_rises(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """`bind_failed` is for a person to mend; only then does the target count again."""
    port = Port(BindFailed(Reason.NOT_ALLOWED, "no", final=True), freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    for word in (DOWN, UP, DOWN):
        proxy.hear(word)
    await until(100)
    assert story.lines == [(0, "bind_failed", "not_allowed", 1, None)]
    assert proxy.retry() is True
    await until(200)
    assert story.lines[1:] == [(100, "unhealthy", "target_down", 0, 5)]
    proxy.hear(UP)
    await until(300)
    assert port.attempts == [0, 200]
    nursery.cancel_scope.cancel()


# Other things that happen while it is down


async def test_retry_while_it_is_down_changes_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    assert proxy.retry() is False
    await until(20)
    assert proxy.retry() is False
    await until(1000)
    assert (port.attempts, len(story.told)) == ([0], 2)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("leave", [lambda proxy: proxy.stop("the session ended"), lambda proxy: proxy.drain()])
@pytest.mark.parametrize("waits", [0, 1])
async def test_stopped_while_it_is_down_nothing_is_bound_or_told_ever_after(
    leave: Callable[[Proxy], None], waits: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    await until(10 + waits)
    leave(proxy)
    reason = proxy.reason
    for word in (UP, DOWN, UP):
        proxy.hear(word)
        proxy.revise(CLOSES)
    await until(1000)
    assert (port.attempts, port.is_held, len(story.told), proxy.reason) == ([0], False, 2, reason)


async def test_cancelled_while_it_waits_for_its_target_a_proxy_leaves_nothing_bound(autojump_clock: MockClock) -> None:
    port = Port(freed=0)
    proxy, _ = make(port, heard=None)
    async with trio.open_nursery() as session:
        session.start_soon(proxy.run)
        await until(1)
        session.cancel_scope.cancel()
    await until(1000)
    assert port.attempts == []


@pytest.mark.parametrize("first", ["lost", "down"])
async def test_a_listener_lost_in_the_moment_its_target_falls_is_released_and_stays_so(
    first: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(10)
    steps = [lambda: port.holdings[0].lose("gone"), lambda: proxy.hear(DOWN)]
    for step in steps if first == "lost" else reversed(steps):
        step()
    await until(100)
    assert (port.attempts, port.is_held) == ([0], False)
    assert story.lines[1:] == [(10, "unhealthy", "target_down", 0, 5)]
    proxy.hear(UP)
    await until(200)
    assert port.attempts == [0, 100]
    nursery.cancel_scope.cancel()


async def test_a_target_that_falls_while_a_lost_listener_pauses_is_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(0.5)
    port.holdings[0].lose("gone")
    await until(1)
    proxy.hear(DOWN)
    await until(100)
    assert story.lines[1:] == [(0.5, "unhealthy", "listener_lost", 0, 2), (1, "unhealthy", "target_down", 0, 5)]
    proxy.hear(UP)
    await until(200)
    assert port.attempts == [0, 100]
    nursery.cancel_scope.cancel()


# Revised in place


@pytest.mark.parametrize(
    "change",
    [{"target": "127.0.0.1:23"}, {"when_down": "keep"}, {"checked": False}, {"bind_retry": QUICK}, {"when_down": "?"}],
)
async def test_a_listener_does_not_notice_what_is_revised_beside_its_address(
    change: dict[str, Any], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.revise(evolve(CLOSES, **change))
    await until(1000)
    assert (port.attempts, port.is_held, len(story.told)) == ([0], True, 1)
    assert proxy.view().target == change.get("target", "127.0.0.1:22")
    nursery.cancel_scope.cancel()


async def test_a_bind_retry_goes_on_counting_when_the_targets_change(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    await until(7)
    proxy.revise(evolve(CLOSES, target="127.0.0.1:23"))
    await until(33)
    proxy.revise(KEEPS)
    await until(1000)
    assert port.attempts == TIMES
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", [7, 1000], ids=["waiting", "given up"])
async def test_a_new_policy_starts_afresh_what_is_not_listening(
    at: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port()
    proxy, story = make(port)
    nursery.start_soon(proxy.run)
    await until(at)
    told = len(story.told)
    proxy.revise(evolve(CLOSES, bind_retry=QUICK))
    await until(5000)
    assert port.attempts == [*(time for time in TIMES if time < at), at, at + 1, at + 2, at + 3]
    assert story.lines[told:] == [
        *((at + number, "unhealthy", "addr_in_use", number + 1, 1) for number in range(3)),
        (at + 3, "bind_failed", "addr_in_use", 4, None),
    ]
    assert {update.max_retries for _, update in story.told[told:]} == {3}
    nursery.cancel_scope.cancel()


async def test_a_new_policy_of_a_listener_counts_from_its_next_round(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(None)
    proxy, _ = make(port)
    nursery.start_soon(proxy.run)
    await until(1)
    proxy.revise(evolve(CLOSES, bind_retry=QUICK))
    await until(100)
    port.holdings[0].lose("gone")
    await until(1000)
    assert port.attempts == [0, 100, 101, 102, 103]
    nursery.cancel_scope.cancel()


async def test_a_new_default_policy_counts_from_the_next_round_and_leaves_the_one_under_way_alone(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    policies: list[Policy] = [RetryPolicy(max_retries=4)]
    port = Port()
    proxy, story = make(port, policy=lambda spec: policies[-1])
    nursery.start_soon(proxy.run)
    await until(7)
    policies.append(RetryPolicy(initial_delay=1, factor=1, max_retries=1))
    await until(100)
    assert port.attempts == [0, 2, 6, 14, 30]
    assert {told.max_retries for _, told in story.told} == {4}
    proxy.retry()
    await until(200)
    assert port.attempts[5:] == [100, 101]
    assert story.told[-1][1].max_retries == 1
    nursery.cancel_scope.cancel()


async def test_keep_becomes_close_and_close_keep_while_the_target_is_down(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port, KEEPS, heard=DOWN)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.revise(CLOSES)
    assert not port.is_held
    await until(20)
    proxy.revise(KEEPS)
    await until(30)
    assert port.attempts == [0, 20]
    assert [(at, told.reason, told.error_message) for at, told in story.told] == [
        (0, "target_down", "The target does not answer: connection refused"),
        (10, "target_down", RELEASED),
        (20, "target_down", "The target does not answer: connection refused"),
    ]
    nursery.cancel_scope.cancel()


async def test_a_target_that_is_checked_no_more_is_not_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """And when it is checked again, the old word on it is forgotten."""
    port = Port(freed=0)
    proxy, story = make(port, heard=DOWN)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.revise(evolve(CLOSES, checked=False))
    await until(20)
    assert (port.attempts, story.lines[-1]) == ([10], (10, "healthy", None, 0, None))
    proxy.revise(CLOSES)
    await until(30)
    assert (port.is_held, proxy.status) == (True, Status.HEALTHY)
    proxy.hear(DOWN)
    assert not port.is_held
    nursery.cancel_scope.cancel()


async def test_a_listener_whose_target_is_newly_checked_stays_until_the_first_word(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, story = make(port, evolve(CLOSES, checked=False), heard=None)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.revise(CLOSES)
    await until(20)
    assert port.is_held
    proxy.hear(UP)
    await until(30)
    assert (port.attempts, len(story.told)) == ([0], 1)
    nursery.cancel_scope.cancel()


async def test_a_late_word_on_a_target_that_is_not_checked_is_no_word_on_the_next_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    port = Port(freed=0)
    proxy, _ = make(port, evolve(CLOSES, checked=False), heard=None)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    proxy.revise(CLOSES)
    await until(20)
    assert (port.attempts, port.is_held) == ([0], True)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("spec", [KEEPS, CLOSES])
async def test_other_targets_are_no_news_of_a_proxy_that_is_down(
    spec: ProxySpec, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    proxy, story = make(Port(freed=0), spec)
    nursery.start_soon(proxy.run)
    await until(10)
    proxy.hear(DOWN)
    await until(12)
    proxy.revise(evolve(spec, target="127.0.0.1:23"))
    await until(13)
    assert (len(story.told), proxy.retry_after_seconds) == (2, 2)  # the next check is due when it was
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", [{"name": "web"}, {"publish_addr": "::"}, {"publish_port": 8003}])
def test_another_address_is_not_revised_in_place(change: dict[str, Any]) -> None:
    proxy, _ = make(Port())
    assert proxy.is_at(evolve(CLOSES, target="another", when_down="keep", checked=False, bind_retry=QUICK))
    assert not proxy.is_at(evolve(CLOSES, **change))


# Whatever comes, in whatever order

STEPS = ["down", "up", "retry", "lose", "take", "free", "keep", "close", "uncheck", "policy", "wait", "tick"]


@given(st.lists(st.sampled_from(STEPS), max_size=25))
def test_the_port_is_held_when_it_may_be_and_never_when_it_may_not(steps: list[str]) -> None:
    """Steps without "wait" or "tick" between them are of one moment."""
    logging.disable()
    try:
        trio.run(live_through, steps, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)


async def live_through(steps: list[str]) -> None:
    port = Port(freed=0)
    proxy, story = make(port, heard=None)
    act: dict[str, Callable[[], object]] = {
        "down": lambda: proxy.hear(DOWN),
        "up": lambda: proxy.hear(UP),
        "retry": proxy.retry,
        "lose": lambda: [holding.lose("gone") for holding in port.holdings],
        "take": lambda: setattr(port, "freed", math.inf),
        "free": lambda: setattr(port, "freed", 0),
        "keep": lambda: proxy.revise(evolve(proxy.spec, when_down="keep", checked=True)),
        "close": lambda: proxy.revise(evolve(proxy.spec, when_down="close", checked=True)),
        "uncheck": lambda: proxy.revise(evolve(proxy.spec, checked=False)),
        "policy": lambda: proxy.revise(evolve(proxy.spec, bind_retry=None if proxy.spec.bind_retry else QUICK)),
    }
    async with trio.open_nursery() as session:
        session.start_soon(proxy.run)
        for step in steps:
            if step == "wait":
                await trio.sleep(3)
            elif step == "tick":
                await wait_all_tasks_blocked()
            else:
                act[step]()
            assert not (port.is_held and is_closed(proxy))
        await trio.sleep(1000)  # all retries are over
        if story.told:
            assert (story.told[-1][1].status, story.told[-1][1].reason) == (proxy.status, proxy.reason)
        port.freed = 0
        proxy.retry()
        await wait_all_tasks_blocked()
        if is_closed(proxy):
            assert (port.is_held, proxy.reason) == (False, Reason.TARGET_DOWN)
        elif proxy.target_health is not None or not proxy.spec.checked or proxy.spec.when_down == "keep":
            assert port.is_held
            assert proxy.status is (Status.UNHEALTHY if proxy.target_health == DOWN else Status.HEALTHY)
        session.cancel_scope.cancel()
    assert not port.is_held


def is_closed(proxy: Proxy) -> bool:
    return proxy.spec.checked and proxy.spec.when_down == "close" and proxy.target_health == DOWN
