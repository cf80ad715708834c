"""Connections to targets that are ready before their visitors: handed over, found dead, replaced; in virtual time."""

import weakref

import pytest
import trio
from target_rig import Stream, Targets, begin, hot, proxy, published, visit
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.client import target_pool
from tunnel.client import targets as targets_module
from tunnel.errors import PeerLost


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    world = Targets()
    monkeypatch.setattr(target_pool, "open_connection", world.open)
    monkeypatch.setattr(targets_module, "open_connection", world.open)
    return world


async def test_a_hot_connection_is_handed_over_at_once_without_a_task(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [0.5]
    async with published(proxy("web", "nas:80", **hot(3))) as routes:
        await trio.sleep(1)
        streams = [begin(routes.routes["web"]) for _ in range(3)]
        assert [(stream.asked, stream.dialling) for stream in streams] == [([("connected", 1)], None)] * 3
        late = begin(routes.routes["web"])
        assert (late.asked, late.dialling is None) == ([], False)
        await late.over.wait()
        assert late.asked == [("connected", 1.5)]


async def test_a_literal_address_is_kept_hot_too(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "127.0.0.1:80", **hot(1)), proxy("sock", "unix:/run/web", **hot(1))) as routes:
        await wait_all_tasks_blocked()
        assert [begin(route).asked for route in routes.routes.values()] == [[("connected", 0)]] * 2


async def test_what_was_taken_is_opened_again_before_the_next_visitor(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(2))) as routes:
        for second in range(20):
            await trio.sleep_until(second)
            await wait_all_tasks_blocked()
            assert begin(routes.routes["web"]).asked == [("connected", second)]
        await wait_all_tasks_blocked()
        assert len(targets.unused) == 2


async def test_who_has_to_wait_is_counted_once(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "nas:80", "nas:81")) as routes:
        route = routes.routes["web"]
        for _ in range(3):
            await visit(route)
        assert route.pool is not None
        stats = route.pool.stats()
        assert {key: stats[key] for key in ("hits", "misses", "leases", "cold_dials")} == {
            "hits": 0, "misses": 3, "leases": 3, "cold_dials": 3,
        }  # fmt: skip
        assert route.pool.rules.arrivals_per_second(trio.current_time()) == pytest.approx(3 / 5.0)


async def test_what_becomes_ready_before_a_visitor_s_task_begins_is_the_visitor_s(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(1))) as routes:
        await wait_all_tasks_blocked()
        pool = routes.routes["web"].pool
        assert pool is not None
        lease = pool.take_nowait("somebody")
        assert lease is not None
        assert pool.take_nowait("a visitor") is None
        await wait_all_tasks_blocked()  # the next one is ready now
        (await pool.wait("a visitor")).release()
        assert pool.stats()["cold_dials"] == 0


async def test_a_connection_is_never_used_twice(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "nas:80", **hot(2))) as routes:
        route = routes.routes["web"]
        used = set()
        for _ in range(50):
            stream = await visit(route)  # handing over a second time fails
            stream.leave()
            used.add(stream.connection)
        await wait_all_tasks_blocked()
        assert (len(used), route.pool.stats()["reuse"], route.pool.stats()["lent"]) == (50, 0.0, 0)  # type: ignore[union-attr]
    assert {one.closed for one in used} == {0}  # they are their streams', to the end


async def test_dead_ones_are_dropped_and_the_visitor_gets_the_next_one_at_once(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(3))) as routes:
        await wait_all_tasks_blocked()
        first, second, _third = targets.unused
        first.is_dead = second.is_dead = True
        stream = begin(routes.routes["web"])
        assert (stream.asked, stream.connection.is_dead) == ([("connected", 0)], False)
        await wait_all_tasks_blocked()
        assert ([first.closed, second.closed], len(targets.unused)) == ([1, 1], 3)


async def test_with_all_of_them_dead_a_new_one_is_dialled_without_a_sleep(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "nas:80", **hot(3))) as routes:
        await wait_all_tasks_blocked()
        targets.meets["nas:80"] = [0.25]
        for one in targets.unused:
            one.is_dead = True
        assert (await visit(routes.routes["web"])).asked == [("connected", 0.25)]
        await trio.sleep(1)
        assert [one.is_dead for one in targets.unused] == [False] * 3


async def test_dead_ones_are_found_by_a_probe_while_nobody_comes(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "nas:80", **hot(2))):
        await wait_all_tasks_blocked()
        for one in targets.unused:
            one.is_dead = True
        await trio.sleep(5.5)  # `probe_interval`
        assert [(one.closed, one.is_dead) for one in targets.connections] == [(1, True)] * 2 + [(0, False)] * 2


async def test_they_are_replaced_in_time_the_new_one_first(targets: Targets, autojump_clock: MockClock) -> None:
    targets.meets["nas:80"] = [0.5]
    async with published(proxy("web", "nas:80", **hot(1))) as routes:
        await trio.sleep(50.4)  # 50 s after the first was open it is past its age
        assert len(targets.unused) == 1
        await trio.sleep(0.5)
        assert len(targets.unused) == 1
        assert (targets.dials, [one.closed for one in targets.connections]) == ([(0, "nas:80"), (50.5, "nas:80")], [0])
        await trio.sleep(0.5)
        assert [one.closed for one in targets.connections] == [1, 0]
        assert begin(routes.routes["web"]).connection is targets.connections[1]


async def test_after_a_burst_there_are_more_and_later_as_many_as_before(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [1.0]
    async with published(proxy("web", "nas:80", **hot(2, max_age=None))) as routes:
        await trio.sleep(5)
        for _ in range(20):
            await visit(routes.routes["web"])
        await trio.sleep(2)
        assert len(targets.unused) > 2
        await trio.sleep(60)
        assert len(targets.unused) == 2


async def test_with_none_hot_what_is_left_over_is_closed_after_the_idle_limit(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [1.0]
    async with published(proxy("web", "nas:80")) as routes:
        stream = begin(routes.routes["web"])
        await trio.sleep(0.5)
        stream.leave()
        await trio.sleep_until(20.9)
        assert len(targets.unused) == 1
        await trio.sleep_until(21.1)
        assert [one.closed for one in targets.connections] == [1]


async def test_a_target_that_refuses_is_asked_again_by_one_dial_at_a_time_ever_more_rarely(
    targets: Targets, autojump_clock: MockClock
) -> None:
    targets.meets["nas:80"] = [PeerLost("Connection refused", errno=111)]
    async with published(proxy("web", "nas:80", **hot(5))):
        await trio.sleep(300)
        pauses = [later - at for (at, _), (later, _) in zip(targets.dials[5:], targets.dials[6:], strict=False)]
        assert (len(targets.dials) <= 25, 24 <= pauses[-1] <= 30) == (True, True)
        targets.meets["nas:80"] = [0.0]
        await trio.sleep(31)
        assert len(targets.unused) == 5


async def test_hot_connections_are_shared_out_over_the_targets(targets: Targets, autojump_clock: MockClock) -> None:
    async with published(proxy("web", "a:80", "b:80", "c:80", **hot(6))):
        await wait_all_tasks_blocked()
        assert sorted(one.target for one in targets.unused) == ["a:80"] * 2 + ["b:80"] * 2 + ["c:80"] * 2


async def test_a_target_that_falls_has_no_connections_and_gets_them_back(
    targets: Targets, autojump_clock: MockClock
) -> None:
    async with published(proxy("web", "a:80", "b:80", **hot(4))) as routes:
        await wait_all_tasks_blocked()
        route = routes.routes["web"]
        inside = [begin(route), begin(route)]
        route.hear(route.config.targets[0], False, "HTTP 500")
        await wait_all_tasks_blocked()
        assert [one.target for one in targets.unused] == ["b:80"] * 4
        assert [one.connection.closed for one in inside] == [0, 0]
        route.hear(route.config.targets[0], True, None)
        await trio.sleep(60)  # by their age at the latest
        assert sorted(one.target for one in targets.unused) == ["a:80"] * 2 + ["b:80"] * 2


async def test_a_visitors_tls_is_not_held_by_the_pool_when_the_visitor_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool's timers remember a member for some seconds, and a TLS object is tens of kilobytes."""

    class Tls:
        def detach(self) -> object:
            return object()

    monkeypatch.setattr(target_pool, "TlsLeg", lambda parts, stream: parts)
    tls = Tls()
    held = weakref.ref(tls)
    connection = target_pool.TargetConnection(None, tls)  # type: ignore[arg-type]
    del tls
    connection.hand_over(Stream())  # type: ignore[arg-type]
    assert held() is None
    assert connection.peek() == "ended"
    connection.close()
