"""What the pool's law decides, and exactly when; time is a number here."""

import pytest
from attrs import evolve
from pool_rig import REFUSED, RESET, Desk

from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.config import PoolConfig
from tunnel.faults import Kind
from tunnel.pool.members import Place, State
from tunnel.pool.quarantine import GIVEN_UP_SECONDS
from tunnel.pool.statistics import describe

QUIET = PoolConfig(max_age=None, idle_limit=None, probe_interval=None)  # nothing happens by itself
DOUBLING = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None)


def desk_with(
    *places: Place[str] | str, capacity: int = 1, reusable: bool = True, rand: float = 0.0, **config: object
) -> Desk:
    """All that is opened at the start is ready."""
    desk = Desk(evolve(QUIET, **config), capacity=capacity, reusable=reusable, rand=lambda: rand)
    desk.rules.list_places([p if isinstance(p, Place) else Place(p) for p in places], desk.now)
    desk.decide()
    desk.open()
    return desk


def in_service(desk: Desk) -> dict[str, int]:
    return {site.address: site.in_service for site in desk.roster.sites.values()}


# Filling


def test_filling_keeps_to_its_rate_after_a_second_s_worth() -> None:
    desk = Desk(evolve(QUIET, min=6, fill_rate=2.0))
    desk.rules.list_places([Place("one")], 0.0)
    desk.run_until(10.0)
    assert [when for when, _ in desk.begun] == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_filling_opens_so_many_at_a_time_and_goes_on_when_one_ends() -> None:
    desk = Desk(evolve(QUIET, min=5, fill_concurrency=2))
    desk.rules.list_places([Place("one")], 0.0)
    desk.run_until(5.0)
    assert len(desk.opening) == 2
    desk.open(desk.opening[0])
    assert len(desk.begun) == 3
    desk.open()
    assert in_service(desk) == {"one": 5}


def test_members_are_spread_by_weight_and_each_address_has_its_least() -> None:
    desk = desk_with(Place("one", weight=3), Place("two"), Place("three", weight=2), min=12, min_per_address=1)
    assert in_service(desk) == {"one": 6, "two": 2, "three": 4}


def test_a_backup_is_filled_only_with_what_it_must_have() -> None:
    desk = desk_with("one", Place("two", backup=True), min=4, min_per_address=1)
    assert in_service(desk) == {"one": 3, "two": 1}


def test_nothing_is_opened_ahead_without_a_least_number() -> None:
    desk = desk_with("one", "two")
    for _ in range(50):
        desk.wait()
        desk.open()
    assert len(desk.begun) == 50


def test_the_number_follows_arrivals_and_opening_time() -> None:
    desk = Desk(evolve(QUIET, min=1, max=10, fill_rate=1000.0), reusable=False)
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    desk.now = 0.1  # one takes a tenth of a second to open
    desk.open()
    desk.rules.arrived(100, desk.now)  # 20 a second over five
    assert desk.rules.wanted(desk.now) == 4  # 2 * 20/s * 0.1 s
    desk.decide()
    desk.open()
    assert in_service(desk) == {"one": 4}
    desk.now += 60.0
    assert desk.rules.wanted(desk.now) == 1


def test_members_in_use_count_towards_the_wanted_number_up_to_the_most() -> None:
    desk = desk_with("one", min=1, max=3)
    lease = desk.take()
    for _ in range(3):
        desk.wait()
    desk.open()
    desk.now = 1000.0  # the arrivals are forgotten
    assert (desk.rules.lent, desk.rules.wanted(desk.now)) == (3, 3)
    desk.release(lease)  # to the last of those who wait
    assert (desk.rules.lent, desk.rules.waiting) == (3, 0)


# Age


def test_a_member_is_replaced_at_its_jittered_age_and_stays_until_its_successor_is_ready() -> None:
    desk = desk_with("one", min=1, max_age=100.0, age_jitter=0.2, rand=0.5)  # 100 s * (1 - 0.2 * 0.5)
    desk.run_until(89.0)
    assert len(desk.begun) == 1
    desk.run_until(95.0)
    assert desk.begun == [(0.0, "one"), (90.0, "one")]
    assert [value.closes for value in desk.values] == [0]
    desk.open()
    assert [value.closes for value in desk.values] == [1, 0]


def test_members_of_one_address_are_replaced_one_by_one_and_addresses_do_not_wait_for_each_other() -> None:
    desk = desk_with("one", "two", min=4, min_per_address=2, max=4, max_age=100.0)
    desk.begun.clear()
    desk.run_until(100.5)
    assert sorted(desk.begun) == [(100.0, "one"), (100.0, "two")]
    assert desk.roster.total == 6
    desk.open()
    assert desk.roster.total == 4
    desk.run_until(101.0)
    assert sorted(desk.begun[2:]) == [(101.0, "one"), (101.0, "two")]
    desk.open()
    assert (desk.roster.total, sum(value.closes for value in desk.values)) == (4, 4)


def test_an_aged_member_in_use_is_closed_when_its_user_is_done() -> None:
    desk = desk_with("one", min=1, max_age=100.0)
    lease = desk.take()
    desk.run_until(100.0)
    desk.open()
    assert desk.values[0].closes == 0
    desk.release(lease)
    assert desk.values[0].closes == 1
    assert desk.rules.figures.retired == {"age": 1}


def test_age_is_no_reason_to_keep_a_member_where_the_wanted_number_cannot_be_reached() -> None:
    desk = desk_with("one", min=4, max_per_address=2, max_age=100.0)
    desk.run_until(100.0)
    desk.open()
    assert [value.closes for value in desk.values] == [1, 0, 0]


def test_an_aged_member_outlives_its_age_while_its_successor_cannot_be_opened() -> None:
    desk = desk_with("one", min=1, max_age=100.0)
    desk.run_until(100.0)
    desk.fail()
    desk.run_until(100.5)
    assert desk.values[0].closes == 0
    assert desk.take() is not None


# Idleness


def test_the_idle_limit_closes_only_what_is_surplus() -> None:
    desk = desk_with("one", min=2, idle_limit=10.0)
    leases = [desk.take() for _ in range(2)]
    waiter = desk.wait()
    desk.open()
    desk.now = 60.0  # the arrivals are forgotten
    for lease in [*leases, waiter.lease]:
        desk.release(lease)
    desk.run_until(69.9)
    closed_before = sum(value.closes for value in desk.values)
    desk.run_until(200.0)
    assert (closed_before, in_service(desk)) == (0, {"one": 2})


def test_a_member_asked_for_by_address_alone_is_closed_after_its_idle_limit() -> None:
    desk = desk_with(idle_limit=10.0)
    waiter = desk.wait(to="one")
    desk.open()
    desk.now = 5.0
    desk.release(waiter.lease)
    desk.run_until(14.9)
    assert desk.values[0].closes == 0
    desk.run_until(15.0)
    assert desk.values[0].closes == 1
    assert not desk.roster.sites


def test_an_idle_member_is_validated_again_and_nobody_is_lent_it_meanwhile() -> None:
    desk = desk_with("one", min=1, probe_interval=15.0)
    desk.run_until(14.9)
    assert not desk.probing
    desk.run_until(15.0)
    assert [member.state for member in desk.probing] == [State.VALIDATING]
    assert desk.take() is None
    desk.validate(desk.probing[0])
    assert desk.take() is not None


def test_a_probe_peeks_first_and_what_is_dead_is_replaced_without_being_asked() -> None:
    desk = desk_with("one", min=1, probe_interval=15.0)
    desk.values[0].dead = "closed by the peer"
    desk.run_until(15.0)
    assert not desk.probing
    assert desk.values[0].closes == 1
    assert desk.begun[1:] == [(15.0, "one")]


def test_a_failed_probe_closes_the_member_and_is_no_quarantine() -> None:
    desk = desk_with("one", min=1, probe_interval=15.0)
    desk.run_until(15.0)
    desk.fail(desk.probing[0], fault=RESET)
    assert desk.begun[1:] == [(15.0, "one")]
    assert desk.rules.figures.validation_failures == {Kind.RESET: 1}
    assert not desk.roster.sites["one"].is_quarantined


def test_a_taker_gets_the_next_member_where_the_first_has_died_and_the_dead_is_replaced_at_once() -> None:
    desk = desk_with("one", min=2)
    desk.values[0].dead = "closed by the peer"
    lease = desk.take()
    assert lease is not None
    assert lease.value is desk.values[1]
    assert desk.values[0].closes == 1
    assert desk.begun[2:] == [(0.0, "one")]


# Failure


def test_an_address_that_fails_is_tried_by_one_prober_after_the_delays_of_the_policy() -> None:
    desk = Desk(evolve(QUIET, min=3, quarantine=DOUBLING))
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    assert len(desk.opening) == 3
    desk.fail()
    for when in (1.0, 3.0, 7.0, 15.0):
        desk.run_until(when - 0.01)
        assert desk.opening == []
        desk.run_until(when)
        desk.fail()
    assert [when for when, _ in desk.begun[3:]] == [1.0, 3.0, 7.0, 15.0]


def test_an_address_recovers_with_its_prober_and_is_filled_again() -> None:
    desk = Desk(evolve(QUIET, min=3))
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    desk.fail()
    desk.run_until(1.0)
    assert len(desk.opening) == 1
    desk.open()
    site = desk.roster.sites["one"]
    assert (site.in_service, site.failures, site.fault, site.is_quarantined) == (3, 0, None, False)


def test_a_policy_without_more_retries_leaves_an_address_alone_for_an_hour() -> None:
    desk = Desk(evolve(QUIET, min=1, quarantine=LinearPolicy(step=1.0, max_retries=1)))
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    desk.fail()
    desk.run_until(0.0)
    desk.fail()
    desk.run_until(5000.0)
    assert [when for when, _ in desk.begun] == [0.0, 0.0, GIVEN_UP_SECONDS]


def test_who_asks_for_an_address_in_quarantine_shares_the_outcome_of_one_opening() -> None:
    desk = desk_with("one")
    desk.wait()
    desk.fail()
    waiters = [desk.wait(to="one") for _ in range(5)]
    assert len(desk.opening) == 1
    desk.fail()
    assert [waiter.fault for waiter in waiters] == [REFUSED] * 5
    waiters = [desk.wait(to="one") for _ in range(5)]
    desk.open(desk.opening[0])
    assert [waiter.lease is not None for waiter in waiters] == [True, False, False, False, False]
    assert len(desk.opening) == 4  # it is well again: each has an opening of its own


def test_those_who_ask_do_not_put_off_the_probe() -> None:
    desk = Desk(evolve(QUIET, min=1, quarantine=LinearPolicy(step=10.0, max_retries=None)))
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    desk.fail()
    desk.run_until(0.0)
    desk.fail()  # the next probe is due at 10 s
    for when in (3.0, 9.0):
        desk.run_until(when)
        desk.wait(to="one")
        desk.fail()
    desk.begun.clear()
    desk.run_until(12.0)
    assert desk.begun == [(10.0, "one")]


def test_a_connection_lost_soon_counts_as_one_that_could_not_be_opened_and_a_steady_one_does_not() -> None:
    desk = desk_with("one", "two", min=2, min_per_address=1)
    first, second = (desk.roster.by_value[id(value)] for value in desk.values)
    desk.now = 4.0
    desk.rules.lost(first, RESET, 4.0)
    desk.now = 6.0
    desk.rules.lost(second, RESET, 6.0)
    assert [desk.roster.sites[member.address].is_quarantined for member in (first, second)] == [True, False]


def test_leases_of_a_lost_connection_are_not_those_of_its_successor() -> None:
    desk = desk_with("one", capacity=2, min=1)
    lease = desk.take()
    assert lease is not None
    desk.rules.lost(lease.member, RESET, desk.now)
    desk.run_until(1.0)
    desk.open()
    desk.release(lease, good=False)
    assert [value.closes for value in desk.values] == [1, 0]
    assert [desk.take() is not None for _ in range(3)] == [True, True, False]


def test_what_closes_right_after_its_validation_is_a_failure_and_not_a_loop() -> None:
    desk = desk_with("one")
    waiter = desk.wait()
    member = desk.opening[0]
    desk.connect(member).dead = "closed by the peer"
    desk.validate(member)
    assert waiter.fault is not None
    assert (waiter.fault.kind, desk.values[0].closes) == (Kind.RESET, 1)
    assert desk.roster.sites["one"].is_quarantined


# Choice


def test_least_load_and_weights_say_who_is_next() -> None:
    desk = desk_with(Place("one", weight=2), Place("two"), min=6, max=6)
    taken = [lease.address for _ in range(6) if (lease := desk.take()) is not None]
    assert sorted(taken[:3]) == ["one", "one", "two"]
    assert (taken.count("one"), taken.count("two")) == (4, 2)


def test_round_robin_takes_turns_whatever_the_load() -> None:
    desk = desk_with("one", "two", "three", min=9, choice="round_robin")
    held = [lease.address for _ in range(2) if (lease := desk.take()) is not None]
    taken = []
    for _ in range(6):
        lease = desk.take()
        assert lease is not None
        taken.append(lease.address)
        desk.release(lease)
    assert held + taken == ["one", "two", "three", "one", "two", "three", "one", "two"]


def test_a_burst_on_cold_addresses_is_spread() -> None:
    desk = desk_with("one", Place("two", weight=2))
    for _ in range(6):
        desk.wait()
    assert sorted(address for _, address in desk.begun) == ["one"] * 2 + ["two"] * 4


def test_who_finds_the_best_address_full_is_sent_to_the_next() -> None:
    desk = desk_with("one", "two", max_per_address=1)
    waiters = [desk.wait() for _ in range(3)]
    assert sorted(address for _, address in desk.begun) == ["one", "two"]
    desk.open()
    assert [waiter.is_over for waiter in waiters] == [True, True, False]
    desk.release(waiters[1].lease)
    assert waiters[2].lease is not None


def test_a_backup_is_used_while_no_other_is_well_and_not_longer() -> None:
    desk = desk_with("one", Place("two", backup=True), min=2, min_per_address=1)
    first = desk.take()
    assert first is not None
    assert first.address == "one"
    assert desk.take() is None  # "two" has one ready, but "one" is well
    desk.wait(to="one")
    desk.fail()
    second = desk.take()
    assert second is not None
    assert second.address == "two"
    desk.run_until(1.0)
    desk.open()
    third = desk.take()
    assert third is not None
    assert third.address == "one"


def test_the_least_used_member_is_lent() -> None:
    desk = desk_with("one", min=3)
    for _ in range(6):
        desk.release(desk.take())
    lent = [member.lent_total for member in desk.roster.sites["one"].members.values()]
    assert lent == [2, 2, 2]


def test_users_without_a_lease_count_as_load() -> None:
    desk = desk_with("one", capacity=2, min=2, max=2)
    desk.values[0].users = 1
    taken = [desk.take() for _ in range(3)]
    assert [lease and lease.value for lease in taken] == [desk.values[1], desk.values[0], desk.values[1]]
    waiter = desk.wait()
    desk.values[0].users = 0
    desk.decide()
    assert waiter.lease is not None


# Told from outside


def test_a_down_address_loses_its_idle_members_at_once_and_those_in_use_when_they_are_done() -> None:
    desk = desk_with("one", "two", min=4, min_per_address=2, max_per_address=2)
    lease = desk.take()
    assert lease is not None
    desk.rules.mark(lease.address, "no answer", desk.now)
    desk.decide()
    assert sum(value.closes for value in desk.values if value.address == lease.address) == 1
    desk.release(lease)
    assert sum(value.closes for value in desk.values if value.address == lease.address) == 2
    taken = [desk.take() for _ in range(3)]
    assert {one.address for one in taken if one} == {"one", "two"} - {lease.address}
    desk.rules.mark(lease.address, None, desk.now)
    desk.decide()
    desk.open()
    assert in_service(desk)[lease.address] == 2


def test_who_waits_for_a_down_address_s_opening_is_sent_elsewhere_at_once() -> None:
    desk = desk_with("one", "two")
    waiter = desk.wait()
    desk.rules.mark(desk.begun[0][1], "no answer", desk.now)
    desk.decide()
    assert {address for _, address in desk.begun} == {"one", "two"}
    desk.open(desk.opening[1])
    assert waiter.lease is not None


def test_where_all_is_down_a_wait_fails_with_the_reasons() -> None:
    desk = desk_with("one", "two")
    for address in ("one", "two"):
        desk.rules.mark(address, "no answer", desk.now)
    waiter = desk.wait()
    assert waiter.fault is not None
    assert (waiter.fault.message, waiter.fault.retryable) == ("one: no answer; two: no answer", False)


def test_at_the_most_what_is_idle_elsewhere_makes_room() -> None:
    desk = desk_with("one", min=2, max=2)
    desk.now = 1.0
    desk.release(desk.take())  # the first is used later than the second
    waiter = desk.wait(to="two")
    assert [value.closes for value in desk.values] == [0, 1]
    desk.open()
    assert waiter.lease is not None
    assert desk.wait(to="three") is not None
    assert [value.closes for value in desk.values] == [1, 1, 0]
    blocked = desk.wait(to="four")
    assert blocked.member is None
    assert desk.roster.total == 2


def test_a_lowered_most_holds_as_soon_as_users_let_it() -> None:
    desk = desk_with("one", min=4, max=4)
    leases = [desk.take() for _ in range(3)]
    desk.rules.apply(evolve(QUIET, min=1, max=1), desk.now)
    desk.decide()
    assert desk.roster.total == 3
    waiter = desk.wait(to="two")
    desk.release(leases[0], good=False)
    desk.release(leases[1])
    assert (waiter.member, desk.begun[4:]) == (None, [])
    desk.release(leases[2], good=False)
    assert waiter.member is not None


def test_a_removed_address_lives_on_with_its_users_only() -> None:
    desk = desk_with("one", "two", min=2, min_per_address=1)
    lease = desk.take(to="one")
    desk.rules.list_places([Place("two")], desk.now)
    desk.decide()
    assert "one" in desk.roster.sites
    desk.release(lease)
    assert set(desk.roster.sites) == {"two"}
    assert sum(value.closes for value in desk.values if value.address == "one") == 1


# Leases


def test_a_bad_connection_given_back_is_closed_without_waiting_for_the_next_occasion() -> None:
    desk = desk_with("one", min=1)
    lease = desk.take()
    assert lease is not None
    lease.release(good=False)
    desk.act()
    assert desk.values[0].closes == 1


def test_what_is_lent_for_good_makes_room_and_is_forgotten() -> None:
    desk = desk_with("one", reusable=False, min=1, max=1)
    lease = desk.take()
    assert desk.roster.total == 1  # the next is being opened
    assert desk.roster.by_value == {}
    desk.release(lease)
    assert desk.values[0].closes == 0
    desk.open()
    bad = desk.take()
    desk.release(bad, good=False)
    assert desk.values[1].closes == 1


def test_those_who_waited_longest_are_served_first_and_one_who_comes_back_has_its_old_place() -> None:
    desk = desk_with("one", max=2, fill_concurrency=1, min=1)
    lease = desk.take()
    first = desk.wait("first")
    desk.fail()
    assert first.fault is not None
    second, third = desk.wait("second"), desk.wait("third")
    desk.rules.wait_again(first, desk.now)
    served = []
    for _ in range(3):
        desk.release(lease)
        lease = next(w.lease for w in (first, second, third) if w.lease is not None and not w.lease.is_released)
        served.append(lease.owner)
    assert served == ["first", "second", "third"]


def test_a_leak_is_counted_once_under_its_owner_and_owners_are_bounded() -> None:
    desk = desk_with("one", max=100, max_per_address=100, lease_seconds=10.0)
    waiters = [desk.wait(f"task {i}") for i in range(60)]
    desk.open()
    desk.run_until(9.9)
    desk.release(waiters[0].lease)
    assert desk.leaked == []
    desk.run_until(50.0)
    leaks = desk.rules.figures.leaks
    assert len(desk.leaked) == 59
    assert "task 0" not in leaks
    assert (leaks["task 1"], leaks["others"], len(leaks)) == (1, 9, 51)


def test_after_closing_nothing_is_left_and_who_waits_is_told() -> None:
    desk = desk_with("one", "two", min=2, min_per_address=1, max=2)
    lease = desk.take()
    waiting = desk.wait(to=lease.address) if lease else None
    desk.rules.close()
    desk.act()
    late = desk.rules.wait("late", None, desk.now, lambda: None)
    assert waiting is not None
    assert (waiting.fault, late.fault) == (late.fault, waiting.fault)
    assert late.fault is not None
    assert desk.rules.take("late", None, desk.now) is None
    desk.release(lease)
    assert (desk.roster.total, desk.rules.lent) == (0, 0)
    assert all(value.closes == 1 for value in desk.values)


@pytest.mark.parametrize(
    ("reusable", "states"), [(True, {"available": 1, "in_use": 1}), (False, {"available": 2, "in_use": 1})]
)
def test_statistics_tell_of_each_address(reusable: bool, states: dict[str, int]) -> None:
    desk = desk_with("one", min=2, max=2, reusable=reusable)
    desk.take()
    desk.open()
    told = describe(desk.rules, desk.now)
    assert {state: number for state, number in told["states"].items() if number} == states
    assert told["addresses"]["one"]["states"] == states
    assert (told["hits"], told["misses"], told["hit"], told["lent"]) == (1, 0, 1.0, 1)
