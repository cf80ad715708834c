"""What a person is told of the pools, and that no answer is too odd for it."""

from hypothesis import given
from hypothesis import strategies as st

from tunnel.pool_words import pool_lines

SITE = {"states": {"available": 1}, "failures": 0, "last_failure": None, "down": None}
TIRED = {
    "states": {"quarantined": 1},
    "failures": 3,
    "last_failure": "dial.refused: no\x1b[0m",
    "next_try_seconds": 1.2,
}
DOWN = {**SITE, "down": "GET / answered 500"}


def test_a_client_tells_its_pools_and_each_address_in_trouble() -> None:
    channels = {
        "hits": 0, "misses": 3,
        "states": {"available": 1, "in_use": 2, "connecting": 1}, "hit": None, "leaks": {},
        "addresses": {"192.0.2.1:8443": SITE, "192.0.2.2:8443": TIRED},
    }  # fmt: skip
    web = {
        "states": {"available": 2, "in_use": 5}, "min": 2, "hits": 1200, "misses": 50, "leases": 1250,
        "leaks": {"a visitor of web": 2}, "addresses": {"127.0.0.1:80": DOWN},
    }  # fmt: skip
    assert pool_lines({"connection_pool": {"data_channels": channels, "targets": {"web": web}}}) == [
        "data channels: 1 ready, 2 in use; 1 coming",
        "  192.0.2.2:8443 is in quarantine after 3 failures, tried again in 2 s: dial.refused: no?[0m",
        "targets of web: 2 ready, 5 in use; 96.0% of 1,250 found one ready; 2 kept too long",
        "  127.0.0.1:80 is down: GET / answered 500",
    ]


def test_a_pool_that_keeps_nothing_ready_tells_how_many_visitors_it_connected() -> None:
    once = {**TIRED, "failures": 1, "next_try_seconds": 0.0}
    web = {
        "states": {"available": 0, "in_use": 1}, "min": 0, "hits": 1, "misses": 1999, "leases": 1998,
        "addresses": {"127.0.0.1:80": once},
    }  # fmt: skip
    assert pool_lines({"connection_pool": {"targets": {"web": web, "new": {"states": {}, "min": 0}}}}) == [
        "targets of web: none kept ready, 1 in use; 1,998 of 2,000 visitors connected",
        "  127.0.0.1:80 is in quarantine after 1 failure: dial.refused: no?[0m",
        "targets of new: none kept ready, 0 in use",
    ]


def test_addresses_in_trouble_take_five_lines_at_most() -> None:
    sites = {f"192.0.2.{number}:8443": TIRED for number in range(9)}
    lines = pool_lines({"connection_pool": {"data_channels": {"states": {}, "addresses": sites}}})
    assert len(lines) == 7
    assert lines[-1] == "  and 4 more addresses in trouble"


def test_a_server_tells_the_channels_of_each_client() -> None:
    clients = {
        "home": {"channels": 3, "streams": 12, "suspect": 0, "retiring": 0},
        "lab": {"channels": 2, "streams": 1, "suspect": 1, "retiring": 1},
    }
    assert pool_lines({"connection_pool": {"clients": clients}}) == [
        "data channels of home: 3, 12 streams",
        "data channels of lab: 2, 1 stream, 1 suspect, 1 retiring",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["connection_pool", "data_channels", "targets", "clients", "states", "addresses", "x"]),
            inner,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["connection_pool", "x"]), JSON))
def test_an_answer_of_another_version_is_no_crash(stats: dict[str, object]) -> None:
    assert all(isinstance(line, str) for line in pool_lines(stats))
    assert pool_lines({}) == []
