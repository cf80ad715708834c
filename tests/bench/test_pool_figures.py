"""What the pool's benchmarks count, and which addresses are faulty: pure, so that a figure means what it says."""

from collections import Counter

from .pool_bench import Part
from .pool_service import Fault, choose_faults, make_addresses
from .pool_tunnel import WAITING_MS, sum_up


def test_the_addresses_are_those_from_127_0_0_1_on() -> None:
    addresses = make_addresses(1631)
    assert (addresses[0], addresses[255], addresses[-1]) == ("127.0.0.1", "127.0.1.0", "127.0.6.95")
    assert len(set(addresses)) == 1631


def test_faults_are_the_same_every_time_and_every_kind_is_as_frequent_as_any_other() -> None:
    addresses = make_addresses(1631)
    chosen = choose_faults(addresses, 2.0)
    assert chosen == choose_faults(addresses, 2.0)
    assert len(chosen) == 33
    assert set(Counter(chosen.values()).values()) == {5, 6}
    assert set(chosen.values()) == set(Fault)


def test_reuse_is_what_the_service_saw_without_a_handshake() -> None:
    rounds = [{"service": {"healthy_handshakes": done, "healthy_requests": 500}} for done in (0, 1)]
    assert Part(rounds).reuse_percent == 99.9


def test_what_a_dead_address_costs_is_told_by_when_visitors_came() -> None:
    visits = [(95.0, 1.0), (98.5, 3.0), (99.9, None), (100.3, None), (100.4, WAITING_MS + 1), (102.0, 7.0)]
    talks = [[(99.0, 1.0), (101.0, 9.0)], [(99.0, 1.0), (99.5, None)]]
    assert sum_up({"visits": visits, "talks": talks}, killed_at=100.0) == {
        "visitors": 6,
        "before_p50_ms": 1.0,
        "before_p99_ms": 3.0,
        "failed_under_way": 1,
        "failed_new_first_second": 1,
        "failed_new_later": 0,
        "waited": 2,
        "nobody_waits_after_s": 100.4 - 100.0,
        "longest_ms": WAITING_MS + 1,
        "longest_after_1s_ms": 7.0,
        "talkers": 2,
        "talkers_cut": 1,
        "talkers_kept_longest_ms": 9.0,
    }
