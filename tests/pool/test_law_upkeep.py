"""How many members there are, and how long: exact virtual times."""

from attrs import evolve
from pool_rig import QUIET, RESET, Desk, desk_with, in_service

from tunnel.backoff import RetryPolicy
from tunnel.faults import Kind
from tunnel.pool.members import Place, State

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


def test_an_aged_member_in_use_keeps_its_place_once_its_successor_is_there() -> None:
    desk = desk_with("one", min=1, max=1, max_age=100.0)
    lease = desk.take()
    desk.run_until(100.0)
    desk.open()
    waiter = desk.wait(to="two")
    assert (desk.roster.total, waiter.member) == (2, None)
    desk.release(lease)
    assert waiter.member is not None
    assert desk.roster.total == 1


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
    assert sum(value.closes for value in desk.values) == 1


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


def test_an_opening_that_takes_over_a_second_leaves_its_slot_to_other_addresses() -> None:
    desk = Desk(evolve(QUIET, min_per_address=2, fill_concurrency=2))
    desk.rules.list_places([Place("silent"), Place("one")], 0.0)
    desk.run_until(0.9)
    silent = desk.opening
    assert [member.address for member in silent] == ["silent", "silent"]
    desk.run_until(1.0)
    assert [member.address for member in desk.opening] == ["silent", "silent", "one", "one"]
    desk.run_until(9.0)
    assert len(desk.opening) == 4
    assert desk.rules.roster.opening_ahead == 0


def find_all_dead(desk: Desk, when: float) -> None:
    """They end at this moment, and somebody comes who finds that out and opens one of his own."""
    desk.run_until(when)
    for value in desk.values:
        value.dead = "ended"
    waiter = desk.wait(to="one")
    own = next(member for member in desk.opening if member.sponsor is waiter)
    desk.open(own)
    assert waiter.lease is not None
    desk.release(waiter.lease)


def test_where_connections_never_last_until_they_are_used_there_are_pauses_but_for_who_needs_one() -> None:
    policy = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None)
    desk = desk_with("one", reusable=False, min=3, fill_rate=1000.0, quarantine=policy)
    find_all_dead(desk, 10.0)
    assert len(desk.opening) == 3  # once may be chance: they are replaced at once
    desk.now = 10.1
    desk.open()
    begun = []
    for when, pause in (10.2, 1.0), (11.3, 2.0), (13.4, 4.0):
        desk.begun.clear()
        find_all_dead(desk, when)
        assert [at for at, _ in desk.begun] == [when]  # the one that somebody needed
        desk.run_until(when + pause - 0.01)
        assert desk.opening == []
        desk.run_until(when + pause)
        begun.append(len(desk.opening))
        desk.now += 0.01
        desk.open()
    assert begun == [3, 3, 3]


def test_where_they_lasted_until_a_probe_the_dead_are_replaced_at_once_each_time() -> None:
    desk = desk_with("one", min=2, probe_interval=5.0)
    for _ in range(3):
        desk.run_until(desk.now + 5.0)
        for member in list(desk.probing):
            desk.validate(member)
        desk.now += 1.0
        for value in desk.values:
            value.dead = "ended"
        assert desk.take() is None
        assert len(desk.opening) == 2
        desk.now += 0.1
        desk.open()
