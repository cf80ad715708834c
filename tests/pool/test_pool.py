"""The running pool: hot and cold, waiting and retrying, at exact virtual times."""

import pytest
import trio
from running_rig import open_rig
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.backoff import LinearPolicy, RetryBudget, RetryPolicy
from tunnel.errors import RemoteProtocolError
from tunnel.faults import Kind, Phase
from tunnel.pool import Unavailable


async def test_a_hot_connection_is_lent_without_waiting(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        rig.service.open_seconds = 1.0
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.was_hot) == (0.0, True)


async def test_a_cold_one_is_opened_and_validated_first(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        rig.service.open_seconds, rig.service.validate_seconds = 1.0, 0.5
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.was_hot) == (1.5, False)
        assert rig.pool.stats()["waits"]["count"] == 1


async def test_what_a_body_leaves_by_an_exception_is_not_used_again(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        with pytest.raises(ValueError, match="body"):
            async with rig.pool.lease("a"):
                raise ValueError("body")
        assert not rig.service.open_values


async def test_an_address_that_fails_is_left_for_another_at_once(autojump_clock: MockClock) -> None:
    async with open_rig("one", "two", "three") as rig:
        rig.service.broken = {"one": ConnectionRefusedError("no"), "two": ConnectionRefusedError("no")}
        lease = await rig.pool.take("a")
        assert lease.address == "three"
        assert rig.service.tries == [(0.0, "one"), (0.0, "two"), (0.0, "three")]
        assert rig.pool.stats()["retries"] == {"handshake.refused": 2}
        lease.release()


async def test_a_failing_address_is_tried_after_the_delays_of_the_policy(autojump_clock: MockClock) -> None:
    async with open_rig("one", retry=LinearPolicy(step=1.0, max_retries=3), quarantine=RetryPolicy(60.0)) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("nobody there")
        with pytest.raises(Unavailable, match="nobody there") as caught:
            await rig.pool.take("a", "one")
        assert [when for when, _ in rig.service.tries] == [0.0, 0.0, 1.0, 3.0]
        assert (caught.value.fault.phase, caught.value.fault.kind) == (Phase.HANDSHAKE, Kind.REFUSED)


async def test_what_trying_again_cannot_help_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        rig.service.broken["one"] = ValueError("no such thing")
        with pytest.raises(Unavailable, match="no such thing"):
            await rig.pool.take("a")
        assert len(rig.service.tries) == 1


async def test_the_budget_bounds_the_retries_of_all_together(autojump_clock: MockClock) -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=1.0)
    async with open_rig("one", retry=LinearPolicy(0.0, 10), quarantine=RetryPolicy(60.0), budget=budget) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("no")
        for _ in range(3):
            with pytest.raises(Unavailable):
                await rig.pool.take("a")
        assert (len(rig.service.tries), rig.pool.stats()["denied_retries"]) == (4, 3)


async def test_a_request_ends_at_its_deadline_and_says_what_went_wrong_last(autojump_clock: MockClock) -> None:
    async with open_rig("one", wait_seconds=4.0, retry=LinearPolicy(3.0), quarantine=RetryPolicy(60.0)) as rig:
        rig.service.broken["one"] = ConnectionRefusedError("nobody there")
        with pytest.raises(Unavailable, match="in 4 s: nobody there"):
            await rig.pool.take("a")
        assert (trio.current_time(), rig.pool.stats()["wait_timeouts"]) == (4.0, 1)


async def test_a_connection_and_its_validation_have_deadlines_of_their_own(autojump_clock: MockClock) -> None:
    async with open_rig("one", open_seconds=2.0, validate_seconds=1.0, retry=LinearPolicy(0.0, 0)) as rig:
        rig.service.open_seconds = 1000.0
        with pytest.raises(Unavailable, match="no answer within 2 s"):
            await rig.pool.take("a", "slow")
        assert trio.current_time() == 2.0
        rig.service.open_seconds, rig.service.validate_seconds = 1.5, 1000.0
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await rig.pool.take("a", "invalid")
        assert trio.current_time() == 4.5
        assert rig.pool.stats()["failures"] == {"handshake.timeout": 1, "validate.timeout": 1}
        assert not rig.service.open_values


async def test_a_member_that_died_while_idle_is_replaced_without_a_sleep(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        rig.service.values[0].dead = "closed by the peer"
        async with rig.pool.lease("a") as lease:
            assert (trio.current_time(), lease.value) == (0.0, rig.service.values[1])
        assert rig.service.values[0].closes == 1


async def test_an_idle_member_is_probed_in_its_time(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1, probe_interval=15.0) as rig:
        rig.service.invalid = ConnectionResetError("reset")
        await trio.sleep(15.5)
        assert rig.service.values[0].closes == 1
        assert rig.pool.stats()["validation_failures"] == {"reset": 2}  # its successor's, too


async def test_a_bad_connection_is_closed_when_it_is_released(autojump_clock: MockClock) -> None:
    async with open_rig("one") as rig:
        lease = await rig.pool.take("a")
        lease.release(good=False)
        assert rig.service.values[0].closes == 1


async def test_a_leak_is_noticed_in_time(autojump_clock: MockClock) -> None:
    async with open_rig("one", lease_seconds=10.0) as rig:
        lease = await rig.pool.take("forgetful")
        await trio.sleep(9.9)
        assert rig.pool.stats()["leaks"] == {}
        await trio.sleep(0.2)
        assert rig.pool.stats()["leaks"] == {"forgetful": 1}
        lease.release()


async def test_a_lost_connection_is_replaced(autojump_clock: MockClock) -> None:
    async with open_rig("one", min=1) as rig:
        await trio.sleep(10.0)
        rig.pool.lost(rig.service.values[0], "the peer is gone")
        await wait_all_tasks_blocked()
        assert [value.closes for value in rig.service.values] == [1, 0]
        rig.pool.lost(rig.service.values[0], "again")  # no news
        assert rig.pool.stats()["retired"] == {"lost": 1}


async def test_what_is_lent_for_good_outlives_the_pool(autojump_clock: MockClock) -> None:
    async with open_rig("one", reusable=False, min=1) as rig:
        lease = await rig.pool.take("a")
        await wait_all_tasks_blocked()
    assert rig.service.open_values == [lease.value]
    lease.release()
    assert rig.service.open_values == [lease.value]


async def test_each_address_is_counted_and_all_together(autojump_clock: MockClock) -> None:
    async with open_rig("one", "two", retry=LinearPolicy(0.5, 1)) as rig:
        rig.service.open_seconds = 0.25
        (await rig.pool.take("a", "one")).release()
        (await rig.pool.take("b", "one")).release()
        rig.service.broken["two"] = ConnectionRefusedError()
        with pytest.raises(Unavailable):
            await rig.pool.take("c", "two")
        stats = rig.pool.stats()
        told = "leases", "hits", "misses", "hit", "reuse", "cold_dials", "handshakes", "retries"
        sites = stats["addresses"]
        one, two, both = ({key: figures[key] for key in told} for figures in (sites["one"], sites["two"], stats))
        assert one == {
            "leases": 2, "hits": 1, "misses": 1, "hit": 0.5, "reuse": 0.5, "cold_dials": 1, "handshakes": 1,
            "retries": {},
        }  # fmt: skip
        assert two == {
            "leases": 0, "hits": 0, "misses": 0, "hit": None, "reuse": None, "cold_dials": 2, "handshakes": 0,
            "retries": {"handshake.refused": 1},
        }  # fmt: skip
        assert both == {
            "leases": 2, "hits": 1, "misses": 2, "hit": 0.33333, "reuse": 0.5, "cold_dials": 3, "handshakes": 1,
            "retries": {"handshake.refused": 1},
        }  # fmt: skip
        assert sites["one"]["waits"] == stats["waits"] == {
            "count": 1, "p50": 0.25, "p95": 0.25, "p99": 0.25, "max": 0.25,
        }  # fmt: skip
        assert sites["two"]["waits"]["count"] == 0


async def test_validation_failures_are_counted_where_they_were(autojump_clock: MockClock) -> None:
    async with open_rig("one", "two") as rig:
        rig.service.invalid = RemoteProtocolError("an answer nobody asked for")
        with pytest.raises(Unavailable):
            await rig.pool.take("a", "two")
        stats = rig.pool.stats()
        assert stats["validation_failures"] == {"protocol": 1}
        told = {address: site["validation_failures"] for address, site in stats["addresses"].items()}
        assert told == {"one": {}, "two": {"protocol": 1}}
