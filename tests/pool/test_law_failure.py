"""What the pool's law does about failures: quarantines, probes and losses at exact virtual times."""

from attrs import evolve
from pool_rig import QUIET, REFUSED, RESET, Desk, desk_with

from tunnel.backoff import LinearPolicy, RetryPolicy
from tunnel.faults import Kind
from tunnel.pool.members import Place
from tunnel.pool.quarantine import GIVEN_UP_SECONDS

DOUBLING = RetryPolicy(initial_delay=1.0, factor=2.0, max_delay=30.0, max_retries=None)


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


def test_who_was_sent_to_a_backup_gets_it_though_the_others_have_recovered_meanwhile() -> None:
    """Else it is opened for them again and again, and given to nobody."""
    desk = desk_with("one", Place("spare", backup=True))
    older, waiter = desk.wait("older", to="one"), desk.wait()
    desk.fail()
    for each in waiter, older:
        desk.rules.wait_again(each, desk.now)
        desk.decide()
    to_spare, to_one = desk.opening
    assert (to_spare.address, to_one.address) == ("spare", "one")
    desk.open(to_one)
    assert (older.lease is not None, waiter.lease, desk.roster.sites["one"].is_quarantined) == (True, None, False)
    desk.open(to_spare)
    assert waiter.lease is not None
    assert (waiter.lease.address, desk.opening) == ("spare", [])


def test_a_backup_that_is_free_is_given_to_who_has_tried_the_others() -> None:
    desk = desk_with("one", Place("spare", backup=True))
    spare = desk.wait(to="spare")
    desk.open()
    desk.release(spare.lease)
    waiter = desk.wait()
    desk.open(desk.opening[0])
    desk.release(waiter.lease, good=False)
    waiter.tried.add("one")
    desk.rules.wait_again(waiter, desk.now)
    desk.decide()
    assert waiter.lease is not None
    assert (waiter.lease.address, desk.opening) == ("spare", [])


def lose_all(desk: Desk) -> None:
    for member in list(desk.roster.by_value.values()):
        desk.rules.lost(member, RESET, desk.now)
    desk.act()
    desk.decide()


def test_one_that_lets_us_in_and_soon_throws_us_out_is_tried_ever_more_seldom() -> None:
    desk = desk_with("one", min=2, quarantine=DOUBLING)
    desk.begun.clear()
    lose_all(desk)
    for when in (1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0):
        desk.run_until(when - 0.01)
        assert desk.opening == []
        desk.run_until(when)
        desk.open()
        lose_all(desk)
    assert [when for when, _ in desk.begun] == [at for at in (1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0) for _ in range(2)]


def test_one_that_was_well_for_some_seconds_begins_anew() -> None:
    desk = desk_with("one", min=1, quarantine=DOUBLING)
    for when in (0.0, 1.0, 3.0):
        desk.run_until(when)
        desk.open()
        if when < 3.0:
            lose_all(desk)
    desk.run_until(8.1)
    lose_all(desk)  # it had lasted: no quarantine
    desk.open()
    lose_all(desk)
    desk.begun.clear()
    desk.run_until(9.11)
    assert desk.begun == [(9.1, "one")]


def test_one_that_cannot_be_opened_now_and_then_is_tried_again_soon_each_time() -> None:
    desk = desk_with("one", quarantine=DOUBLING)
    for when in (0.0, 1.0, 2.0, 3.0):
        desk.run_until(when)
        desk.wait(to="one")
        desk.fail()
        desk.wait(to="one")
        desk.open()
        assert not desk.roster.sites["one"].is_quarantined
        desk.roster.evict()
    desk.wait()
    desk.fail()
    desk.begun.clear()
    desk.run_until(4.0)
    assert desk.begun == [(4.0, "one")]


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


def test_a_probe_that_was_put_off_for_somebody_s_own_try_does_not_come_before_the_next_delay_is_over() -> None:
    desk = Desk(evolve(QUIET, min=1, quarantine=RetryPolicy(initial_delay=10.0, factor=2.0)))
    desk.rules.list_places([Place("one")], 0.0)
    desk.decide()
    desk.fail()
    desk.run_until(9.5)
    desk.wait(to="one")
    desk.run_until(10.5)
    desk.fail()
    desk.begun.clear()
    desk.run_until(40.0)
    assert desk.begun == [(30.5, "one")]
