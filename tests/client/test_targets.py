"""Where a visitor goes at the client: which target, when, and what it is told if there is none. In virtual time."""

import errno
import logging
import socket
from collections import Counter
from typing import Any

import pytest
import trio
from attrs import evolve
from target_rig import Connection, Meeting, Stream, Targets, begin, hot, proxy, published, visit
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort, Target, parse_target
from tunnel.backoff import RetryPolicy
from tunnel.client import target_dial, target_pool
from tunnel.client import targets as targets_module
from tunnel.client.targets import ProxyRoute
from tunnel.config import HOT_TARGETS, HealthCheck
from tunnel.errors import PeerLost
from tunnel.frames import Abort

CHECKED = {"health_check": HealthCheck()}


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    world = Targets()
    monkeypatch.setattr(target_pool, "open_connection", world.open)
    monkeypatch.setattr(targets_module, "open_connection", world.open)
    return world


LITERALS = {
    "127.0.0.1:80": (socket.AF_INET, ("127.0.0.1", 80)),
    "[::1]:80": (socket.AF_INET6, ("::1", 80)),
    "unix:/run/web": (socket.AF_UNIX, "/run/web"),
}


@pytest.mark.parametrize(("target", "address"), LITERALS.items())
def test_a_literal_address_is_dialled_in_the_relay(target: str, address: tuple[int, object]) -> None:
    route = ProxyRoute(proxy("web", target), dial_seconds=10.0)
    assert (begin(route).asked, route.pool) == ([("dial", *address)], None)


def test_a_name_that_is_pinned_to_an_address_is_dialled_in_the_relay() -> None:
    pinned = Target("tcp", "nas", 80, connect_to=HostPort("10.0.0.7", 8080))
    assert begin(ProxyRoute(proxy("web", pinned), dial_seconds=10.0)).asked == [
        ("dial", socket.AF_INET, ("10.0.0.7", 8080))
    ]


@pytest.mark.parametrize("wanted", [("nas:80",), ("tls://10.0.0.7:443",), ("127.0.0.1:80", "127.0.0.2:80")], ids=str)
async def test_anything_else_comes_from_a_pool(
    wanted: tuple[str, ...], targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", *wanted)) as routes:
        stream = await visit(routes.routes["web"])
        assert (stream.connection.target, targets.dialled) == (str(parse_target(wanted[0])), [stream.connection.target])


async def test_without_routes_that_run_a_dial_that_waits_is_refused(autojump_clock: MockClock) -> None:
    assert begin(ProxyRoute(proxy("web", "nas:80"), dial_seconds=10.0)).asked == [("refuse", Abort.SESSION_ENDED, 0)]


async def test_a_unix_socket_whose_backlog_is_full_is_dialled_again_by_a_task(
    targets: Targets, autojump_clock: MockClock
) -> None:
    """B26"""
    targets.meets["unix:/run/web"] = [0.03]
    async with published(proxy("web", "unix:/run/web")) as routes:
        stream = Stream()
        stream.dial = lambda family, address: False  # type: ignore[method-assign]
        routes.routes["web"].dial(stream)  # type: ignore[arg-type]
        await stream.over.wait()
        assert stream.asked == [("connected", 0.03)]


# How a dial ends


def lost(number: int) -> PeerLost:
    cause = OSError(number, "Connection refused" if number == errno.ECONNREFUSED else "No route to host")
    return PeerLost(f"cannot reach nas:80: {cause.strerror}", errno=number)


REFUSED, UNREACHABLE, HANGS = lost(errno.ECONNREFUSED), lost(errno.EHOSTUNREACH), 1000.0
DIALS: dict[str, tuple[list[list[Meeting]], tuple[Any, ...], int]] = {
    "answers": ([[1.0]], ("connected", 1.0), 1),
    "refuses": ([[REFUSED]], ("refuse", Abort.DIAL_REFUSED, 0.02), 3),
    "unreachable": ([[UNREACHABLE]], ("refuse", Abort.DIAL_FAILED, 0.02), 3),
    "tls breaks": ([[trio.BrokenResourceError()]], ("refuse", Abort.DIAL_FAILED, 0.02), 3),
    "hangs": ([[HANGS]], ("refuse", Abort.DIAL_TIMEOUT, 10.0), 1),
    "refuses once": ([[REFUSED, 0.5]], ("connected", 0.5), 2),
    "refuses twice": ([[REFUSED, REFUSED, 0.5]], ("connected", 0.52), 3),
    "the first that answers": ([[REFUSED], [2.0]], ("connected", 2.0), 2),
    "the first hangs": ([[HANGS], [2.0]], ("connected", 7.0), 2),
    "two of three hang": ([[HANGS], [HANGS], [1.0]], ("connected", pytest.approx(10 / 3 * 2 + 1)), 3),
    "both hang": ([[HANGS], [HANGS]], ("refuse", Abort.DIAL_TIMEOUT, 10.0), 2),
    "none of two": ([[UNREACHABLE], [REFUSED]], ("refuse", Abort.DIAL_REFUSED, 0.02), 6),
}


@pytest.mark.parametrize(("meets", "end", "dials"), DIALS.values(), ids=DIALS)
async def test_a_dial_that_waits_ends_in_a_connection_or_a_reason(
    meets: list[list[Meeting]], end: tuple[Any, ...], dials: int, targets: Targets, autojump_clock: MockClock
) -> None:
    """B25"""
    targets.meets = {f"nas-{number}:80": list(steps) for number, steps in enumerate(meets)}
    pool = evolve(HOT_TARGETS, quarantine=RetryPolicy(initial_delay=60.0))  # no probe meanwhile
    async with published(proxy("web", *targets.meets, pool=pool)) as routes:
        stream = await visit(routes.routes["web"])
        assert (stream.asked, len(targets.dials), targets.dialling) == ([end], dials, 0)
        assert stream.engine.woken == 1


async def test_of_very_many_targets_each_has_the_time_that_a_long_way_takes(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets = {f"nas-{number}:80": [1.5] for number in range(50)}
    async with published(proxy("web", *targets.meets)) as routes:
        stream = await visit(routes.routes["web"])
        assert (stream.asked, len(targets.dials)) == ([("connected", 1.5)], 1)


@pytest.mark.parametrize("name", ["a..b:80", "tls://.example:443", "tls://" + "a" * 64 + ":443"])
async def test_a_name_that_cannot_be_is_told_like_one_that_is_not_there(name: str) -> None:
    with pytest.raises(PeerLost, match="no name can be spelled like that"):
        await target_dial.dial_target(parse_target(name))


async def test_a_name_that_cannot_be_is_not_tried_again(targets: Targets, autojump_clock: MockClock) -> None:
    problem = PeerLost("cannot reach a..b:80: no name can be spelled like that")
    problem.__cause__ = UnicodeError("label empty")
    targets.meets["a..b:80"] = [problem]
    async with published(proxy("web", "a..b:80")) as routes:
        stream = await visit(routes.routes["web"])
        assert (stream.asked, len(targets.dials)) == ([("refuse", Abort.DIAL_FAILED, 0)], 1)


async def test_a_storm_of_visitors_of_a_dead_target_is_no_storm_of_dials(
    targets: Targets, autojump_clock: MockClock
) -> None:
    """Once it is known to be dead, they share the outcome of one dial at a time, and all of them one retry budget."""
    targets.meets["nas:80"] = [REFUSED]
    async with published(proxy("web", "nas:80")) as routes:
        for number, most in (1, 3), (300, 10), (300, 10):
            began, dials = trio.current_time(), len(targets.dials)
            streams = [begin(routes.routes["web"]) for _ in range(number)]
            for stream in streams:
                await stream.over.wait()
            assert {stream.asked[0][1] for stream in streams} == {Abort.DIAL_REFUSED}
            assert trio.current_time() - began <= 0.1
            assert len(targets.dials) - dials <= most


async def test_the_log_has_a_line_for_each_new_cause_and_not_for_each_visitor(
    targets: Targets, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    targets.meets["nas:80"] = [REFUSED]
    async with published(proxy("web", "nas:80")) as routes:
        for _ in range(3):
            await visit(routes.routes["web"])
        targets.meets["nas:80"] = [UNREACHABLE]
        await visit(routes.routes["web"])
        targets.meets["nas:80"] = [0.0]
        await visit(routes.routes["web"])
        targets.meets["nas:80"] = [UNREACHABLE]
        await visit(routes.routes["web"])
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.rpartition(": ")[2] for line in told] == ["Connection refused", "No route to host", "No route to host"]


async def test_a_dial_ends_with_its_visitor(targets: Targets, autojump_clock: MockClock) -> None:
    """Else visitors that come and go leave more dials behind than there may be streams."""
    targets.meets["nas:80"] = [HANGS]
    async with published(proxy("web", "nas:80")) as routes:
        route = routes.routes["web"]
        for _ in range(50):
            stream = begin(route)
            await trio.sleep(0.01)
            stream.leave()
        await wait_all_tasks_blocked()
        assert (stream.asked, route.pool.stats()["waiting"]) == ([], 0)  # type: ignore[union-attr]
        assert targets.most_dialling == 1  # the next visitor takes over what the last one has begun
        await trio.sleep(10)
        assert targets.dialling == 0


async def test_what_was_dialled_for_one_who_left_is_the_next_ones(targets: Targets, autojump_clock: MockClock) -> None:
    targets.meets["nas:80"] = [1.0]
    async with published(proxy("web", "nas:80")) as routes:
        stream = begin(routes.routes["web"])
        await trio.sleep(0.5)
        stream.leave()
        await trio.sleep(1)
        assert begin(routes.routes["web"]).asked == [("connected", 1.5)]
        assert len(targets.dials) == 1


async def test_a_stream_that_ended_in_the_moment_of_its_connection_gets_none(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [1.0]
    async with published(proxy("web", "nas:80")) as routes:
        route = routes.routes["web"]
        stream = begin(route)
        stream.dialling = None  # its end cancels nothing
        await trio.sleep(0.5)
        stream.leave()
        await trio.sleep(1)
        (connection,) = targets.connections
        assert (stream.asked, connection.closed, route.pool.stats()["lent"]) == ([], 1, 0)  # type: ignore[union-attr]


async def test_a_bug_in_a_dial_ends_its_stream_only(
    targets: Targets, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over(connection: Connection, stream: Stream) -> None:
        raise ZeroDivisionError("a bug")

    async with published(proxy("web", "nas:80")) as routes:
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "hand_over", hand_over)
            stream = await visit(routes.routes["web"])
        assert stream.asked == [("wall", "ZeroDivisionError")]
        assert (await visit(routes.routes["web"])).asked == [("connected", 0)]


async def test_a_bug_in_opening_is_logged_and_refuses_the_visitor(
    targets: Targets, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    targets.meets["nas:80"] = [ZeroDivisionError("a bug"), 0.0]
    async with published(proxy("web", "nas:80")) as routes:
        assert (await visit(routes.routes["web"])).asked == [("refuse", Abort.DIAL_FAILED, 0)]
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
        assert (await visit(routes.routes["web"])).asked == [("connected", 0)]


# Which target


async def visitors(route: ProxyRoute, count: int, *, stay: bool = True) -> str:
    """One after another: the letters of their targets."""
    letters = ""
    for _ in range(count):
        stream = await visit(route)
        letters += stream.connection.target[0] if stream.connection else "-"
        if not stay:
            stream.leave()
    return letters


async def test_by_default_the_target_with_the_fewest_visitors_is_next(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "a:80", "b:80")) as routes:
        route = routes.routes["web"]
        first, second, third = [await visit(route) for _ in range(3)]
        assert [one.connection.target for one in (first, second, third)] == ["a:80", "b:80", "a:80"]
        first.leave()
        third.leave()
        assert (await visit(route)).connection.target == "a:80"
        assert Counter(await visitors(route, 40)) == {"a": 20, "b": 20}


async def test_a_weight_is_a_targets_share_of_the_visitors(targets: Targets, autojump_clock: MockClock) -> None:
    heavy, light = evolve(parse_target("a:80"), weight=3), parse_target("b:80")
    async with published(proxy("web", heavy, light)) as routes:
        assert Counter(await visitors(routes.routes["web"], 40)) == {"a": 30, "b": 10}


@pytest.mark.parametrize(("weight", "turns"), [(1, "abababab"), (3, "abaaabaa")])
async def test_round_robin_goes_by_turns_whoever_has_visitors(
    weight: int, turns: str, targets: Targets, autojump_clock: MockClock
) -> None:
    heavy, light = evolve(parse_target("a:80"), weight=weight), parse_target("b:80")
    by_turns = evolve(HOT_TARGETS, choice="round_robin")
    async with published(proxy("web", heavy, light, pool=by_turns)) as routes:
        assert await visitors(routes.routes["web"], 8, stay=False) == turns
        assert Counter(await visitors(routes.routes["web"], 40)) == {
            "a": 40 * weight // (weight + 1),
            "b": 40 // (weight + 1),
        }


async def test_a_backup_is_used_only_while_no_other_can_be_had(targets: Targets, autojump_clock: MockClock) -> None:
    spare = evolve(parse_target("s:80"), backup=True)
    async with published(proxy("web", spare, "a:80", "b:80", **CHECKED)) as routes:
        route = routes.routes["web"]
        assert Counter(await visitors(route, 10)) == {"a": 5, "b": 5}
        route.hear(parse_target("a:80"), False, "down")
        assert await visitors(route, 5) == "bbbbb"
        targets.meets["b:80"] = [REFUSED]
        assert await visitors(route, 5) == "sssss"
        route.hear(parse_target("a:80"), True, None)
        assert await visitors(route, 5) == "aaaaa"


async def test_a_target_that_failed_is_avoided_until_it_is_well_again(
    targets: Targets, autojump_clock: MockClock
) -> None:
    """B25: the second visitor does not even try it."""
    targets.meets["a:80"] = [REFUSED]
    async with published(proxy("web", "a:80", "b:80")) as routes:
        route = routes.routes["web"]
        assert await visitors(route, 5) == "bbbbb"
        assert targets.dialled == ["a:80", *["b:80"] * 5]
        targets.meets["a:80"] = [0.0]
        await trio.sleep(1)  # the quarantine's first try
        assert (targets.dialled[6:], "a" in await visitors(route, 2)) == (["a:80"], True)


async def test_with_all_targets_down_a_visitor_is_refused_at_once_and_nothing_is_dialled(
    targets: Targets, autojump_clock: MockClock
) -> None:
    """B25"""
    async with published(proxy("web", "a:80", "b:80", **CHECKED, **hot(2))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        targets.dials.clear()
        for target in route.config.targets:
            route.hear(target, False, "HTTP 500")
        assert begin(route).asked == [("refuse", Abort.TARGET_DOWN, 0)]
        await trio.sleep(100)
        assert (targets.dials, targets.unused) == ([], [])
        route.hear(route.config.targets[1], True, None)
        assert (await visit(route)).connection.target == "b:80"


def test_a_literal_target_that_is_down_is_not_dialled_either(autojump_clock: MockClock) -> None:
    route = ProxyRoute(proxy("web", "127.0.0.1:80", **CHECKED), dial_seconds=10.0)
    route.hear(route.config.targets[0], False, None)
    stream = Stream()
    stream.refuse = lambda reason: stream.end(reason)  # type: ignore[method-assign]
    route.dial(stream)  # type: ignore[arg-type]
    route.hear(route.config.targets[0], True, None)
    assert stream.asked == [(Abort.TARGET_DOWN,)]
    assert begin(route).asked[0][0] == "dial"


@pytest.mark.parametrize("ready", [0, 2])
async def test_with_one_target_down_only_the_other_is_used(
    ready: int, targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "a:80", "b:80", **CHECKED, **hot(ready))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        route.hear(route.config.targets[0], False, "HTTP 500")
        await wait_all_tasks_blocked()
        assert await visitors(route, 6) == "bbbbbb"
        assert {one.target for one in targets.unused} <= {"b:80"}


async def test_a_visitor_that_waits_for_a_target_that_falls_goes_to_the_other(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["a:80"] = [HANGS]
    async with published(proxy("web", "a:80", "b:80", **CHECKED)) as routes:
        route = routes.routes["web"]
        stream = begin(route)
        await trio.sleep(1)
        route.hear(route.config.targets[0], False, "no answer")
        await stream.over.wait()
        assert (stream.connection.target, trio.current_time()) == ("b:80", 1)


@pytest.mark.parametrize(
    ("dial_seconds", "number", "share"),
    [(10.0, 1, 10.0), (10.0, 2, 5.0), (10.0, 50, 2.0), (3.0, 3, 1.5), (1.0, 2, 0.5)],
)
def test_a_silent_target_leaves_time_for_another_however_short_the_deadline_is(
    dial_seconds: float, number: int, share: float
) -> None:
    config = target_pool.pool_config(proxy("web", *(f"nas{each}:80" for each in range(number))), dial_seconds)
    assert (config.open_seconds, config.wait_seconds) == (share, dial_seconds)
