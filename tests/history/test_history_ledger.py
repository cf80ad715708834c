"""Events become intervals: what began, what ended, and what is no change at all."""

from typing import Any

import pytest
from history_rig import event, status, taken

from tunnel.history import ledger as ledger_module
from tunnel.history.ledger import SETTLE_SECONDS, SPLIT_SECONDS, Ledger, Span
from tunnel.snapshot import Event, ProxyView, SessionView, Snapshot


def told(*events: tuple[float, Event], role: str = "server") -> Ledger:
    ledger = Ledger(role)
    for now, one in events:
        ledger.hear(one, now)
    return ledger


def shown(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [(one.proxy, one.began, one.ended, one.status, one.failed, one.binds) for one in ledger.spans.values()]


def test_each_status_lasts_until_the_next_one() -> None:
    ledger = told(
        (1.0, status(1)), (5.0, status(5, "web", "unhealthy", "target_down", error_message="refused")), (7.5, status(7))
    )
    assert shown(ledger) == [
        ("web", 1.0, 5.0, "healthy", 0, 1),
        ("web", 5.0, 7.5, "unhealthy", 0, 0),
        ("web", 7.5, None, "healthy", 0, 0),  # a target that is back binds nothing
    ]
    assert ledger.spans[2].message == "refused"


def test_failed_attempts_of_one_reason_are_one_interval_with_their_number() -> None:
    ledger = told((0.0, taken(0, 1)), (2.0, taken(2, 2)), (6.0, taken(6, 3)), (14.0, status(14)))
    assert shown(ledger) == [("web", 0.0, 14.0, "unhealthy", 3, 0), ("web", 14.0, None, "healthy", 0, 1)]


def test_the_attempt_that_was_the_last_is_told_apart() -> None:
    ledger = told((0.0, taken(0, 1)), (2.0, taken(2, 2)), (6.0, taken(6, 3, state="bind_failed")))
    assert shown(ledger) == [("web", 0.0, 6.0, "unhealthy", 2, 0), ("web", 6.0, None, "bind_failed", 1, 0)]


def test_a_port_that_is_taken_for_a_day_is_a_row_an_hour() -> None:
    ledger = told(*((60.0 * n, taken(60 * n, n + 1)) for n in range(24 * 60)))
    assert [one.failed for one in ledger.spans.values()] == [60] * 24
    assert {(one.ended or 86_400.0) - one.began for one in ledger.spans.values()} == {SPLIT_SECONDS}


def test_a_server_s_proxies_are_away_when_their_session_is_lost_and_removed_when_it_said_goodbye() -> None:
    started = (0.0, event(0, "session.started", peer="192.0.2.1"))
    for reason, word in (("lost", "away"), ("replaced", "away"), ("goodbye", "removed"), ("revoked", "removed")):
        ended = event(9, "session.ended", reason=reason, message="so it is")
        ledger = told(started, (1.0, status(1)), (9.0, ended))
        web, after = ledger.spans[2], ledger.spans[3]
        assert (web.ended, after.began, after.status, after.message) == (9.0, 9.0, word, "so it is")
        session = ledger.sessions[1]
        assert (session.peer, session.began, session.ended, session.reason) == ("192.0.2.1", 0.0, 9.0, reason)


def test_who_comes_back_is_healthy_again_from_then_on() -> None:
    ledger = told(
        (0.0, event(0, "session.started")), (1.0, status(1)), (9.0, event(9, "session.ended", reason="lost")),
        (12.0, event(12, "session.started")), (12.5, status(12)),
    )  # fmt: skip
    assert shown(ledger) == [
        ("web", 1.0, 9.0, "healthy", 0, 1), ("web", 9.0, 12.5, "away", 0, 0), ("web", 12.5, None, "healthy", 0, 1)
    ]  # fmt: skip


def test_a_newer_session_that_is_told_before_the_end_of_the_older_keeps_its_proxies() -> None:
    ledger = told(
        (0.0, event(0, "session.started")), (1.0, status(1)), (5.0, event(5, "session.started")), (5.1, status(5)),
        (5.2, event(5, "session.ended", reason="replaced")),
    )  # fmt: skip
    assert shown(ledger)[-1] == ("web", 5.1, None, "healthy", 0, 1)
    assert [(one.began, one.ended) for one in ledger.sessions.values()] == [(0.0, 5.2), (5.0, None)]


def test_what_a_client_that_came_back_has_not_published_is_wanted_no_more() -> None:
    ledger = told(
        (0.0, event(0, "session.started")), (1.0, status(1)), (1.0, status(1, "ssh")),
        (9.0, event(9, "session.ended", reason="lost")), (20.0, event(20, "session.started")), (20.1, status(20)),
    )  # fmt: skip
    ledger.tidy(20.0 + SETTLE_SECONDS - 1)
    assert [one.ended for one in ledger.spans.values() if one.status == "away"] == [20.1, None]
    ledger.tidy(20.0 + SETTLE_SECONDS)
    assert [one[:4] for one in shown(ledger) if one[0] == "ssh"] == [
        ("ssh", 1.0, 9.0, "healthy"), ("ssh", 9.0, 20.0, "away"), ("ssh", 20.0, 20.0, "removed")
    ]  # fmt: skip


def test_clients_that_publish_ever_new_names_and_go_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PROXIES", 20)
    ledger = Ledger("server")
    for n in range(70):
        client = f"c{n}"
        for one in (event(n, "session.started", client), status(n, client=client)):
            ledger.hear(one, float(n))
        ledger.hear(event(n, "session.ended", client, reason="lost"), n + 0.5)
    ledger.tidy(1e6)
    assert sum(one.ended is None for one in ledger.spans.values()) == 20


def test_a_client_s_record_has_its_name_from_the_first_moment_on_and_the_tries_it_took() -> None:
    waiting = status(0, "web", "unhealthy", "connecting", client="", error_message="not connected yet")
    ledger = told(
        (0.0, waiting), (0.0, event(0, "session.connecting", "", detail="", retry_in=None)),
        (1.0, event(1, "session.connecting", "", detail="refused", retry_in=None)),
        (2.0, event(2, "session.connected", detail="home", retry_in=None)), (2.5, status(2)),
        (9.0, event(9, "session.lost", detail="silent", retry_in=1.0)),
        role="client",
    )  # fmt: skip
    assert [(one.client, one.began, one.ended, one.status) for one in ledger.spans.values()] == [
        ("home", 0.0, 2.5, "unhealthy"), ("home", 2.5, None, "healthy")
    ]  # fmt: skip
    (session,) = ledger.sessions.values()
    assert (session.tries, session.began, session.ended, session.reason, session.message) == (
        1, 2.0, 9.0, "lost", "silent"
    )  # fmt: skip


def test_a_proxy_that_is_removed_is_so_once() -> None:
    gone = event(3, "proxy.removed", "home", "web")
    ledger = told((1.0, status(1)), (3.0, gone), (4.0, gone))
    assert shown(ledger) == [("web", 1.0, 3.0, "healthy", 0, 1), ("web", 3.0, 3.0, "removed", 0, 0)]


def view(name: str, state: str) -> ProxyView:
    return ProxyView(name, state, None, None, None, 0, None, "0.0.0.0", 8001, "", 0, 0, 0, 0, "")


def test_a_look_at_all_makes_up_for_what_was_not_heard() -> None:
    ledger = told((0.0, event(0, "session.started")), (1.0, status(1)), (1.0, status(1, "ssh")))
    ledger.look(Snapshot("server", "1", (SessionView("home", "", (view("web", "bind_failed"),)),)), 50.0, 1e9)
    assert [(one.proxy, one.began, one.status) for one in ledger.spans.values() if one.ended is None] == [
        ("web", 50.0, "bind_failed"), ("ssh", 50.0, "away")
    ]  # fmt: skip


def test_sessions_whose_beginning_or_end_was_not_heard_are_put_right_by_a_look_at_all() -> None:
    started = [event(0, "session.started", client) for client in ("gone", "back")]
    ledger = told(*((0.0, one) for one in started), (1.0, status(1, client="back")))
    ledger.hear(event(5, "session.started", "back"), 5.0)  # the end of its first one was dropped
    sessions = tuple(SessionView(client, "", (view("web", "healthy"),)) for client in ("back", "new"))
    ledger.look(Snapshot("server", "1", sessions), 50.0, 1e9, missed=True)
    for client in ("back", "new"):
        ledger.hear(event(60, "session.ended", client, reason="lost"), 60.0)
    assert [(one.client, one.began, one.ended) for one in ledger.sessions.values()] == [
        ("gone", 0.0, 50.0), ("back", 0.0, 50.0), ("back", 5.0, 60.0), ("new", 50.0, 60.0)
    ]  # fmt: skip
    assert {span.client: span.status for span in ledger.spans.values()} == {"back": "away", "new": "away"}


def test_what_was_saved_is_not_told_again_and_what_lasts_goes_into_a_new_file() -> None:
    ledger = told((0.0, event(0, "session.started")), (1.0, status(1)))
    ledger.saved(dict(ledger.spans), dict(ledger.sessions))
    assert not ledger.has_news
    ledger.begin_file()
    assert [(one.proxy, one.status) for one in ledger.spans.values()] == [("web", "healthy")]
    assert len(ledger.sessions) == 1


def test_only_what_has_ended_is_shed_the_oldest_first_and_counted() -> None:
    flips: list[tuple[float, Event]] = []
    for n in range(0, 10, 2):
        flips += [(n, status(n)), (n + 1.0, status(n + 1, "web", "unhealthy", "target_down"))]
    ledger = told(*flips)
    ledger.shed(4)
    assert ([one.began for one in ledger.spans.values()], ledger.lost) == ([6.0, 7.0, 8.0, 9.0], 6)
    ledger.shed(0)
    (last,) = ledger.spans.values()
    assert isinstance(last, Span)
    assert (last.ended, ledger.lost) == (None, 9)
