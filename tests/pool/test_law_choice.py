"""Who is lent what, of which address, and what becomes of leases."""

import pytest
from attrs import evolve
from pool_rig import QUIET, desk_with, in_service

from tunnel.pool.members import Place
from tunnel.pool.statistics import describe

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


def test_a_burst_makes_up_for_the_load_there_is() -> None:
    desk = desk_with("one", "two")
    for _ in range(2):
        desk.wait(to="one")
    desk.open()
    desk.begun.clear()
    for _ in range(4):
        desk.wait()
    assert sorted(address for _, address in desk.begun) == ["one", "two", "two", "two"]


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


def test_a_down_address_s_connection_is_kept_for_nobody() -> None:
    desk = desk_with("one")
    desk.rules.mark("one", "no answer", desk.now)
    by_name = desk.wait(to="one")
    desk.open()
    desk.release(by_name.lease)
    assert desk.values[0].closes == 1


def test_a_connection_that_opens_after_its_address_was_removed_is_closed() -> None:
    desk = desk_with("one")
    desk.wait()
    desk.rules.list_places([Place("two")], desk.now)
    desk.decide()
    desk.open(desk.opening[0])
    assert [(value.address, value.closes) for value in desk.values] == [("one", 1)]


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


def test_who_comes_back_to_the_line_takes_what_has_become_free_meanwhile() -> None:
    desk = desk_with("one", "two", min=1, max_per_address=1)
    first = desk.take()
    assert first is not None
    waiter = desk.wait()
    desk.fail()  # at the other address
    assert waiter.fault is not None
    desk.release(first)
    desk.rules.wait_again(waiter, desk.now)
    assert waiter.lease is not None
    assert waiter.lease.value is first.value


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
