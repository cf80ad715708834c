"""What the server may ask of a client: the proxy sets sent lately, and nothing else; and what a reload leaves alone."""

import logging
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from target_rig import Targets, begin, hot, proxy, published, visit
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.client import target_pool
from tunnel.client import targets as targets_module
from tunnel.client.routes import SETS_KEPT, RouteTable
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.frames import Abort
from tunnel.messages import ProxySpec, Retry, decode, encode
from tunnel.pool.rules import Rules


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    world = Targets()
    monkeypatch.setattr(target_pool, "open_connection", world.open)
    monkeypatch.setattr(targets_module, "open_connection", world.open)
    return world


def table(*names: str) -> RouteTable:
    return RouteTable(tuple(proxy(name) for name in names), dial_seconds=10.0)


def found(routes: RouteTable, index: int, version: int) -> str | None:
    route = routes.find(index, version)
    return route and route.config.name


def test_a_set_tells_the_server_what_it_must_know_and_the_target_only_as_text() -> None:
    routes = RouteTable(
        (
            proxy("web", "tls://nas:443", "8080", bind_retry=RetryPolicy(1, 3, 9, 4, 0.5)),
            proxy("ssh", health_check=HealthCheck(), when_down="close"),
            proxy("dns", bind_retry=LinearPolicy(2.0, 3)),
        ),
        dial_seconds=10.0,
    )
    sent = routes.next_set()
    assert sent.version == 1
    assert sent.proxies == (
        ProxySpec("web", "0.0.0.0", 8001, Retry(1, 3, 9, 4, 0.5), False, "tls://nas:443, 127.0.0.1:8080"),
        ProxySpec("ssh", "0.0.0.0", 8001, None, True, "127.0.0.1:80", when_down="close"),
        ProxySpec("dns", "0.0.0.0", 8001, Retry(2.0, 2.0, 20.0, 3, 0.0, 2.0), False, "127.0.0.1:80"),
    )


def test_a_stream_names_a_proxy_by_index_and_version() -> None:
    routes = table("web", "ssh")
    routes.next_set()
    assert [found(routes, index, 1) for index in range(3)] == ["web", "ssh", None]


@pytest.mark.parametrize(
    ("index", "version"), [(2, 1), (0, 0), (0, 2), (2**32 - 1, 1), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)]
)
def test_anything_else_is_unknown(index: int, version: int) -> None:
    """B41: a malicious server that names other targets."""
    routes = table("web", "ssh")
    routes.next_set()
    assert routes.find(index, version) is None


def test_before_a_set_was_sent_nothing_is_known() -> None:
    assert table("web").find(0, 0) is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_no_number_from_the_wire_leads_elsewhere(index: int, version: int) -> None:
    routes = table("web")
    routes.next_set()
    assert found(routes, index, version) == ("web" if (index, version) == (0, 1) else None)


def test_a_change_of_the_set_does_not_race_streams_under_way() -> None:
    routes = table("web", "ssh")
    routes.next_set()
    routes.replace((proxy("ssh"), proxy("dns")))
    routes.next_set()
    assert [found(routes, index, 1) for index in (0, 1)] == [None, "ssh"]
    assert [found(routes, index, 2) for index in (0, 1)] == ["ssh", "dns"]


def test_old_sets_are_forgotten_after_a_while() -> None:
    routes = table("web")
    for _ in range(SETS_KEPT):
        routes.next_set()
    assert found(routes, 0, 1) == "web"
    routes.next_set()
    assert [found(routes, 0, version) for version in (1, 2, SETS_KEPT + 1)] == [None, "web", "web"]


def test_the_empty_set_has_a_version_of_its_own_and_streams_under_way_still_find_theirs() -> None:
    """B21"""
    routes = table("web")
    routes.next_set()
    last = routes.empty_set()
    assert (last.version, last.proxies) == (2, ())
    assert [found(routes, 0, version) for version in (1, 2)] == ["web", None]
    assert routes.next_set().version == 3


def test_a_set_with_many_targets_is_no_longer_than_a_message_may_be() -> None:
    many = table("web").routes["web"].config.targets * 100
    routes = RouteTable((ProxyConfig("web", HostPort("0.0.0.0", 8001), many),), dial_seconds=10.0)
    decode(encode(routes.next_set()))


# Reload


def test_a_proxy_published_where_it_was_keeps_its_route_and_figures_whatever_else_changes() -> None:
    """B35"""
    routes = table("web", "ssh")
    web, ssh = routes.routes["web"], routes.routes["ssh"]
    web.tally.visitors_total = 7
    routes.replace((evolve(proxy("ssh"), publish=HostPort("0.0.0.0", 2222)), proxy("web", "nas:80")))
    assert routes.routes["web"] is web
    assert (web.config.targets, web.tally.visitors_total) == (proxy("web", "nas:80").targets, 7)
    assert routes.routes["ssh"] is not ssh


async def test_after_a_reload_visitors_go_to_the_new_targets_and_those_inside_stay(
    targets: Targets, autojump_clock: MockClock
) -> None:
    """B35"""
    async with published(proxy("web", "old:80", **hot(1))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        inside = begin(route)
        await wait_all_tasks_blocked()
        assert [one.target for one in targets.unused] == ["old:80"]
        routes.replace((proxy("web", "new:80", **hot(1)),))
        await wait_all_tasks_blocked()
        assert [one.target for one in targets.unused] == ["new:80"]
        late = begin(route)
        assert (inside.connection.target, inside.connection.closed, inside.alive) == ("old:80", 0, True)
        assert (late.connection.target, trio.current_time()) == ("new:80", 0)


async def test_a_reload_that_changes_nothing_of_the_targets_keeps_the_hot_connections(
    targets: Targets, autojump_clock: MockClock
) -> None:
    before = proxy("web", "nas:80", **hot(3))
    async with published(before) as routes:
        await wait_all_tasks_blocked()
        kept = targets.unused
        routes.replace((evolve(before, bind_retry=LinearPolicy(1.0, 1)),))
        await wait_all_tasks_blocked()
        assert (len(kept), targets.unused, len(targets.dials)) == (3, kept, 3)


@pytest.mark.parametrize(("number", "left"), [(1, 3), (5, 5)])
async def test_a_reload_with_another_number_of_hot_connections_opens_what_lacks_and_lets_the_rest_grow_idle(
    number: int, left: int, targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(3))) as routes:
        await wait_all_tasks_blocked()
        routes.replace((proxy("web", "nas:80", **hot(number)),))
        await wait_all_tasks_blocked()
        assert (len(targets.unused), trio.current_time()) == (left, 0)
        await trio.sleep(21)
        assert len(targets.unused) == number


async def test_a_reload_may_turn_a_pool_into_a_literal_address_and_back(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(2))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        routes.replace((proxy("web", "127.0.0.1:80"),))
        await wait_all_tasks_blocked()
        assert (route.pool, targets.unused, routes.stats()) == (None, [], {})
        assert begin(route).asked[0][0] == "dial"
        routes.replace((proxy("web", "nas:80", **hot(2)),))
        await wait_all_tasks_blocked()
        assert (len(targets.unused), list(routes.stats())) == (2, ["web"])
        assert begin(route).asked == [("connected", 0)]


async def test_what_health_checks_said_outlives_a_reload_of_other_targets(
    targets: Targets, autojump_clock: MockClock
) -> None:
    check = {"health_check": HealthCheck()}
    async with published(proxy("web", "a:80", "b:80", **check)) as routes:
        route = routes.routes["web"]
        route.hear(route.config.targets[0], False, "no answer")
        routes.replace((proxy("web", "a:80", "b:80", "c:80", **check),))
        assert {(await visit(route)).connection.target for _ in range(6)} == {"b:80", "c:80"}


async def test_without_its_health_check_a_target_is_not_down_any_more(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "a:80", health_check=HealthCheck())) as routes:
        route = routes.routes["web"]
        route.hear(route.config.targets[0], False, "no answer")
        assert begin(route).asked == [("refuse", Abort.TARGET_DOWN, 0)]
        routes.replace((proxy("web", "a:80"),))
        assert (await visit(route)).asked == [("connected", 0)]


async def test_checks_that_begin_anew_forget_what_they_said(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "a:80", health_check=HealthCheck())) as routes:
        route = routes.routes["web"]
        route.hear(route.config.targets[0], False, "no answer")
        route.forget_verdicts()
        assert (await visit(route)).asked == [("connected", 0)]


async def test_a_proxy_that_goes_closes_its_unused_connections_and_leaves_its_visitors_alone(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(2)), proxy("ssh", "nas:22", **hot(1))) as routes:
        await wait_all_tasks_blocked()
        web = routes.routes["web"]
        inside = begin(web)
        routes.replace((proxy("ssh", "nas:22", **hot(1)),))
        await wait_all_tasks_blocked()
        assert [one.target for one in targets.unused] == ["nas:22"]
        assert (inside.connection.closed, inside.alive) == (0, True)
        assert begin(web).asked == [("refuse", Abort.SESSION_ENDED, 0)]


CHANGES: dict[str, tuple[Any, ...]] = {
    "the proxy goes": (),
    "it is published elsewhere": (evolve(proxy("web", "nas:80"), publish=HostPort("0.0.0.0", 9001)),),
    "its target is a literal address now": (proxy("web", "127.0.0.1:80"),),
}


@pytest.mark.parametrize("after", CHANGES.values(), ids=CHANGES)
async def test_a_visitor_that_waits_when_its_pool_ends_is_not_left_waiting(
    after: tuple[ProxyConfig, ...], targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [1000.0]
    async with published(proxy("web", "nas:80")) as routes:
        stream = begin(routes.routes["web"])
        await trio.sleep(1)
        routes.replace(after)
        await stream.over.wait()
        assert trio.current_time() == 1
        assert targets.dialling == 0


async def test_routes_that_stop_close_all_unused_connections_and_refuse_from_then_on(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(2))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
    assert [one.closed for one in targets.connections] == [1, 1]
    assert begin(route).asked == [("refuse", Abort.SESSION_ENDED, 0)]


async def test_routes_may_run_again(targets: Targets, autojump_clock: MockClock) -> None:
    routes = RouteTable((proxy("web", "nas:80", **hot(1)),), dial_seconds=10.0)
    for opened in (1, 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(routes.run)
            await wait_all_tasks_blocked()
            assert ([one.closed for one in targets.connections[opened - 1 :]], len(targets.connections)) == (
                [0],
                opened,
            )
            nursery.cancel_scope.cancel()


async def test_a_pool_that_fails_by_a_bug_is_logged_and_begins_again_after_a_second(
    targets: Targets, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with published(proxy("web", "nas:80", **hot(1)), proxy("ssh", "nas:22", **hot(1))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        assert route.pool is not None

        def bug(now: float) -> None:
            raise ZeroDivisionError("a bug")

        route.pool.rules.roster.timers.at(10.0, bug)
        route.pool.mark(next(iter(route.pool.rules.roster.sites)), None)  # so that it looks at its timers again
        await trio.sleep(10.5)
        assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
            "the pool of proxy 'web' failed"
        ]
        assert [one.target for one in targets.unused] == ["nas:22"]
        early = begin(route)
        assert begin(routes.routes["ssh"]).asked == [("connected", 10.5)]
        await early.over.wait()
        assert (early.asked, trio.current_time()) == ([("connected", 11.0)], 11.0)
        await wait_all_tasks_blocked()
        assert begin(route).asked == [("connected", 11.0)]


async def test_between_two_sessions_the_hot_connections_stay(targets: Targets, autojump_clock: MockClock) -> None:
    """A visitor's dial lives with the routes, not with a session."""
    async with published(proxy("web", "nas:80", **hot(1))) as routes:
        await trio.sleep(9)  # not at the moment of a probe
        assert (len(targets.dials), begin(routes.routes["web"]).asked) == (1, [("connected", 9)])


async def test_a_visitor_does_not_wait_for_ever_for_a_pool_that_fails_again_and_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    def bug(self: object, now: float) -> float:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Rules, "decide", bug)
    async with published(proxy("web", "nas:80")) as routes:
        stream = await visit(routes.routes["web"])
        assert stream.asked == [("refuse", Abort.DIAL_FAILED, 10.0)]
