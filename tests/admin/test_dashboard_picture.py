"""What a dashboard is told: a state, and then only what differs, as JSON Merge Patches (RFC 7396)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.admin.picture import MAX_POOLS, Picture, merge_patch, row, summary
from tunnel.admin.sse import ROWS_A_PIECE, message, state_message
from tunnel.snapshot import ProxyView, SessionView

SINCE = "2026-01-01T00:00:00.000Z"


def proxy(name: str = "web", **changes: Any) -> ProxyView:
    values: dict[str, Any] = {
        "name": name, "status": "healthy", "reason": None, "error_message": None, "retry_after_seconds": None,
        "attempt": 1, "max_retries": None, "publish_addr": "0.0.0.0", "publish_port": 8001, "target": "127.0.0.1:80",
        "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "since": SINCE, "refused": {},
    }  # fmt: skip
    return ProxyView(**{**values, **changes})


ROW = {
    "status": "healthy", "attempt": 1, "publish_addr": "0.0.0.0", "publish_port": 8001, "target": "127.0.0.1:80",
    "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "since": SINCE, "refused": {},
}  # fmt: skip


def look(picture: Picture, *sessions: tuple[str, tuple[ProxyView, ...]], now: float = 0.0, since: str = SINCE) -> Any:
    for client, views in sessions:
        picture.see(SessionView(client, since, views), now)
    return picture.finish()


def test_the_first_look_is_everything_and_the_next_nothing() -> None:
    picture = Picture()
    assert look(picture, ("home", (proxy(),))) == {
        "sessions": {"home": {"since": SINCE, "proxies": {"web": ROW}}},
    }
    assert look(picture, ("home", (proxy(),))) == {}


def test_only_the_fields_that_differ_are_told() -> None:
    picture = Picture()
    look(picture, ("home", (proxy(), proxy("ssh"))))
    now = proxy(visitors=2, bytes_in=10, refused={"target_refused": 1})
    assert look(picture, ("home", (now, proxy("ssh")))) == {
        "sessions": {"home": {"proxies": {"web": {"visitors": 2, "bytes_in": 10, "refused": {"target_refused": 1}}}}},
    }


def test_what_is_gone_is_null() -> None:
    picture = Picture()
    look(picture, ("home", (proxy(), proxy("ssh"))), ("lab", ()))
    assert look(picture, ("home", (proxy("ssh"), proxy("git")))) == {
        "sessions": {"home": {"proxies": {"web": None, "git": ROW}}, "lab": None},
    }
    assert look(picture, ("home", (proxy("ssh"), proxy("git")))) == {}


def test_a_reason_that_is_gone_is_null_and_left_out_of_the_state() -> None:
    picture = Picture()
    ill = proxy(status="unhealthy", reason="target_down", error_message="refused")
    look(picture, ("home", (ill,)))
    assert look(picture, ("home", (proxy(),))) == {
        "sessions": {"home": {"proxies": {"web": {"status": "healthy", "reason": None, "error_message": None}}}},
    }
    [(_, _, rows)] = picture.sessions(0.0)
    assert list(rows) == [("web", ROW)]


def test_a_session_that_began_afresh_has_another_since() -> None:
    picture = Picture()
    look(picture, ("home", (proxy(),)))
    assert look(picture, ("home", (proxy(),)), since="later") == {"sessions": {"home": {"since": "later"}}}


def test_a_countdown_is_told_once_and_not_each_second() -> None:
    picture = Picture()

    def see(now: float, retry: int | None, attempt: int = 1) -> Any:
        status = "healthy" if retry is None else "unhealthy"
        view = proxy(status=status, retry_after_seconds=retry, attempt=attempt)
        return (
            look(picture, ("home", (view,)), now=now).get("sessions", {}).get("home", {}).get("proxies", {}).get("web")
        )

    assert see(100.0, 8) == {**ROW, "status": "unhealthy", "retry_after_seconds": 8}
    assert [see(100.9, 8), see(102.5, 6), see(107.9, 1)] == [None, None, None]  # each rounded up: the same moment
    assert see(108.1, 16, attempt=2) == {"attempt": 2, "retry_after_seconds": 16}
    [(_, _, rows)] = picture.sessions(110.0)
    assert dict(rows)["web"]["retry_after_seconds"] == 15  # of who comes later
    assert see(124.2, None, attempt=2) == {"status": "healthy", "retry_after_seconds": None}


def test_the_state_is_as_it_was_when_it_was_asked_for() -> None:
    picture = Picture()
    look(picture, ("home", (proxy(visitors=1),)))
    asked = picture.sessions(0.0)
    look(picture, ("home", (proxy(visitors=2),)))
    [(client, since, rows)] = asked
    assert (client, since, list(rows)) == ("home", SINCE, [("web", {**ROW, "visitors": 1})])


def test_a_row_of_the_state_has_the_seconds_to_its_retry() -> None:
    assert row(proxy(), 12.2, 10.0) == {**ROW, "retry_after_seconds": 3}
    assert row(proxy(), 9.0, 10.0) == {**ROW, "retry_after_seconds": 0}


def test_the_state_in_pieces_is_one_message_of_whole_json() -> None:
    rows = [(f"p{i}", {"n": i}) for i in range(2 * ROWS_A_PIECE + 1)]
    pieces = list(state_message({"role": "server"}, [("home", SINCE, iter(rows)), ("lab", SINCE, iter([]))]))
    assert len(pieces) > 5
    whole = b"".join(pieces).decode()
    assert whole.startswith("event: state\ndata: ")
    assert whole.endswith("\n\n")
    assert "\n\n" not in whole[:-2]
    assert parse(whole)["sessions"] == {
        "home": {"since": SINCE, "proxies": dict(rows)},
        "lab": {"since": SINCE, "proxies": {}},
    }
    assert parse(b"".join(state_message({}, [])).decode()) == {"sessions": {}}


def parse(text: str) -> Any:
    return json.loads("\n".join(line.removeprefix("data: ") for line in text.splitlines()[1:]))


def test_text_of_a_peer_cannot_end_a_message() -> None:
    hostile = "a\n\nevent: state\r\ndata: {}\u2028\ud800"
    raw = message("event", {"message": hostile}, number=7)
    assert raw.startswith(b"event: event\nid: 7\ndata: ")
    assert raw.count(b"\n") == 4
    assert b"\r" not in raw
    assert parse(raw.decode().partition("id: 7\n")[2].join(["x\n", ""])) == {"message": hostile}


values = st.recursive(
    st.integers() | st.text(), lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(st.text(max_size=2), values, max_size=4)


@pytest.mark.slow
@settings(max_examples=50)
@given(tables, tables)
def test_a_merge_patch_makes_the_new_out_of_the_old(before: dict[str, Any], after: dict[str, Any]) -> None:
    patch = merge_patch(before, after)
    assert apply(before, patch) == after
    assert apply(after, patch) == after  # twice does no harm
    assert (patch == {}) == (before == after)


def apply(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, to the letter."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = apply(target.get(name), value)
    return target


def pool(**changes: Any) -> dict[str, Any]:
    return {
        "states": {"available": 2, "in_use": 1, "retired": 40}, "min": 2, "max": 8, "waiting": 0, "lent": 1, "hits": 9,
        "misses": 1, "waits": {"p95": 0.01, "count": 10}, "failures": {"dial.refused": 2, "dial.timeout": 1},
        "leaks": {"x": 1}, "addresses": {}, "oldest_seconds": 12.3, "arrivals_per_second": 0.2, **changes,
    }  # fmt: skip


SHOWN = {
    "states": {"available": 2, "in_use": 1}, "min": 2, "max": 8, "waiting": 0, "hits": 9, "misses": 1, "wait_p95": 0.01,
    "failures": 3, "leaks": 1, "troubles": {}, "troubles_in_all": 0,
}  # fmt: skip


def test_of_a_pool_only_what_does_not_tick_by_itself_is_shown() -> None:
    stats = {"connection_pool": {"data_channels": pool(), "targets": {"web": pool()}}, "connection": {"state": "lost"}}
    assert summary(stats) == {
        "connection": {"state": "lost"}, "data_channels": SHOWN, "targets": {"web": SHOWN}, "targets_in_all": 1,
    }  # fmt: skip
    assert summary({"connection_pool": {"data_channels": None, "targets": {}}}) == {}
    assert summary({"connection_pool": {"clients": {"home": {"channels": 2}}}, "gate": {"logins": 1}, "other": 1}) == {
        "channels": {"home": {"channels": 2}}, "gate": {"logins": 1},
    }  # fmt: skip


def test_pools_in_trouble_come_first_where_there_are_too_many() -> None:
    ill = {"states": {"quarantined": 1}, "failures": 3, "down": None, "last_failure": "dial.refused: no"}
    down = {"states": {}, "failures": 0, "down": "refused", "last_failure": None}
    targets = {f"p{i}": pool() for i in range(MAX_POOLS)} | {
        "ill": pool(addresses={"10.0.0.1:1": ill, "[::1]:2": down})
    }
    shown = summary({"connection_pool": {"targets": targets}})
    assert len(shown["targets"]) == MAX_POOLS
    assert shown["targets_in_all"] == MAX_POOLS + 1
    assert shown["targets"]["ill"]["troubles"] == {
        "10.0.0.1:1": "in quarantine after 3 failures: dial.refused: no", "[::1]:2": "down: refused",
    }  # fmt: skip
