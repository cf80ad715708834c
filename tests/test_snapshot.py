"""Seeing: followers are bounded and told what they missed; publishing never fails."""

import inspect
import json
import re
from pathlib import Path

import tunnel
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import (
    FOLLOWER_EVENTS,
    KINDS,
    RECENT_EVENTS,
    Event,
    EventStream,
    ProxyView,
    SessionView,
    Snapshot,
    utc_now,
)


def test_followers_hear_what_happens_while_they_follow() -> None:
    events = EventStream()
    events.publish("before")
    with events.follow() as one:
        events.publish("session.started", client="lab")
        with events.follow() as two:
            events.publish("proxy.status", client="lab", proxy="ssh", attempt=1)
        events.publish("after", client="lab")
    events.publish("later")
    assert [event.kind for event in one.drain()] == ["session.started", "proxy.status", "after"]
    (event,) = two.drain()
    assert event == Event("proxy.status", event.at, "lab", "ssh", {"attempt": 1}, 3)


def test_a_follower_that_does_not_read_loses_the_oldest_and_is_told_how_many() -> None:
    events = EventStream()
    with events.follow() as slow, events.follow() as quick:
        for number in range(FOLLOWER_EVENTS + 7):
            events.publish("n", number=number)
            assert [event.fields for event in quick.drain()] == [{"number": number}]
        assert (slow.missed, quick.missed) == (7, 0)
        kept = [event.fields["number"] for event in slow.drain()]
        assert kept == list(range(7, FOLLOWER_EVENTS + 7))
        events.publish("n")
        assert (len(slow.events), slow.missed) == (1, 7)


def test_a_follower_is_woken_after_each_event() -> None:
    events, seen = EventStream(), []
    with events.follow() as follower:
        follower.wake = lambda: seen.append(len(follower.events))
        events.publish("one")
        events.publish("two")
    events.publish("three")
    assert seen == [1, 2]


def test_who_looks_afterwards_finds_what_was_last() -> None:
    events = EventStream()
    for number in range(RECENT_EVENTS + 2):
        events.publish("n", number=number)
    assert [event.id for event in events.recent] == list(range(3, RECENT_EVENTS + 3))


def test_an_event_as_json_is_flat() -> None:
    events = EventStream()
    update = ProxyStatusUpdate(
        proxy_name="web", status=Status.UNHEALTHY, error_message="taken", retry_after_seconds=2, seq=1,
        reason=Reason.ADDR_IN_USE, attempt=1, max_retries=10, publish_addr="0.0.0.0", publish_port=8001, since="now",
    )  # fmt: skip
    events.publish("proxy.status", client="lab", proxy="web", update=update)
    (event,) = events.recent
    told = json.loads(json.dumps(event.to_json()))
    assert {key: told[key] for key in ("id", "kind", "client", "proxy")} == {
        "id": 1, "kind": "proxy.status", "client": "lab", "proxy": "web",
    }  # fmt: skip
    assert told["fields"]["status"] == "unhealthy"
    assert told["fields"]["reason"] == "addr_in_use"
    assert "update" not in told["fields"]


def test_times_are_utc_with_milliseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", utc_now())


def test_a_snapshot_as_json_has_the_documented_keys() -> None:
    """B32"""
    proxy = ProxyView(
        "web", "healthy", None, None, None, 0, 10, "0.0.0.0", 8001, "127.0.0.1:80", 1, 2, 3, 4, "now", {"dial": 1}
    )
    told = json.loads(json.dumps(Snapshot("server", "1", (SessionView("lab", "then", (proxy,)),)).to_json()))
    assert set(told) == {"role", "version", "sessions"}
    (session,) = told["sessions"]
    assert set(session) == {"client", "since", "proxies"}
    assert session["proxies"] == [
        {
            "name": "web", "status": "healthy", "reason": None, "error_message": None, "retry_after_seconds": None,
            "attempt": 0, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001,
            "target": "127.0.0.1:80", "visitors": 1, "visitors_total": 2, "bytes_in": 3, "bytes_out": 4,
            "since": "now", "refused": {"dial": 1},
        }
    ]  # fmt: skip


def test_what_came_after_an_event_is_found_by_its_id_as_far_as_it_is_kept() -> None:
    events = EventStream()
    assert (events.last_id, events.after(0)) == (0, [])
    for _ in range(RECENT_EVENTS + 2):
        events.publish("n")
    assert events.last_id == RECENT_EVENTS + 2
    assert [event.id for event in events.after(RECENT_EVENTS)] == [RECENT_EVENTS + 1, RECENT_EVENTS + 2]
    assert len(events.after(0)) == RECENT_EVENTS


def test_the_kinds_of_events_are_a_closed_list_and_each_is_described() -> None:
    described = re.findall(r"^``([a-z.]+)``", inspect.getdoc(Event) or "", re.MULTILINE)
    assert tuple(described) == KINDS
    written = [
        match
        for path in Path(tunnel.__file__).parent.rglob("*.py")
        for match in re.findall(r"\.publish\(\s*\"([^\"]+)\"", path.read_text())
    ]
    assert len(written) > 4
    assert set(written) <= set(KINDS)
