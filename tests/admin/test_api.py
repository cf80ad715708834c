"""What programs ask the admin address: figures by name, the last events, and that a session be closed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import asdict
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.admin import stats as stats_module
from tunnel.admin.http import Request, Response
from tunnel.admin.recent import recent_route
from tunnel.admin.site import AdminSource, Site
from tunnel.snapshot import RECENT_EVENTS, EventStream, ProxyView, SessionView

TOKEN = "s3cret-admin-token"
HOST = {"host": "localhost"}


def proxy(name: str) -> ProxyView:
    return ProxyView(name, "healthy", None, None, None, 0, 10, "0.0.0.0", 8001, "127.0.0.1:80", 1, 2, 3, 4, "then")


SESSIONS = (
    SessionView("home", "then", (proxy("web"), proxy("ssh"))),
    SessionView("lab", "then", (proxy("web"),)),
    SessionView("new", "then", ()),
)


def site(events: EventStream | None = None, **more: Any) -> Site:
    source = AdminSource("server", lambda: iter(SESSIONS), lambda: True, lambda name: [], TOKEN, **more)
    return Site(source, [recent_route(events or EventStream())])


async def get(site: Site, path: str) -> Response:
    path, _, query = path.partition("?")
    return await site.answer(Request("GET", path, query, HOST, b""))


async def get_json(site: Site, path: str) -> Any:
    response = await get(site, path)
    assert (response.status, response.content_type) == (200, "application/json")
    return json.loads(response.body)


async def post(site: Site, path: str, body: Any, token: str = TOKEN) -> tuple[int, Any]:
    headers = {**HOST, "authorization": f"Bearer {token}"}
    response = await site.answer(Request("POST", path, "", headers, json.dumps(body).encode()))
    return response.status, json.loads(response.body)


# /stats


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {"home": ["web", "ssh"], "lab": ["web"], "new": []}),
        ("?name=home", {"home": ["web", "ssh"]}),
        ("?name=web", {"home": ["web"], "lab": ["web"]}),
        ("?name=lab/web", {"lab": ["web"]}),
        ("?name=lab%2Fweb", {"lab": ["web"]}),
        ("?name=lab/ssh", {}),
        ("?name=nobody", {}),
        ("?other=1", {"home": ["web", "ssh"], "lab": ["web"], "new": []}),
    ],
)
async def test_stats_of_what_has_a_name(query: str, shown: dict[str, list[str]]) -> None:
    body = await get_json(site(extra_stats=lambda: {"gate": {}}), f"/stats{query}")
    assert {each["client"]: [view["name"] for view in each["proxies"]] for each in body["sessions"]} == shown
    assert list(body) == ["role", "version", "sessions", "gate"]


async def test_stats_say_all_that_is_known_of_a_session() -> None:
    assert (await get_json(site(), "/stats"))["sessions"] == json.loads(json.dumps([asdict(each) for each in SESSIONS]))


async def test_stats_without_further_figures_are_whole_too() -> None:
    assert list(await get_json(site(), "/stats")) == ["role", "version", "sessions"]


async def test_making_stats_of_many_sessions_lets_others_have_their_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nursery: Any
) -> None:
    monkeypatch.setattr(stats_module, "SLICE", 1)
    turns: list[str] = []

    def views() -> Iterator[SessionView]:
        for session in SESSIONS:
            turns.append(session.client)
            yield session

    async def other() -> None:
        turns.append("other")

    async def ask() -> None:
        await stats_module.stats_body({}, views(), {})

    nursery.start_soon(ask)
    nursery.start_soon(other)
    await wait_all_tasks_blocked()
    assert turns.index("other") <= 1
    assert set(turns) == {"home", "lab", "new", "other"}


# /events.json


async def test_the_last_events_are_a_document_with_what_is_needed_to_ask_for_the_next_ones() -> None:
    events = EventStream()
    here = site(events)
    assert await get_json(here, "/events.json") == {"since": events.since, "last": 0, "missed": 0, "events": []}
    for number in range(3):
        events.publish("session.started", client="home", peer=f"192.0.2.{number}")
    body = await get_json(here, "/events.json?after=1")
    assert (body["last"], body["missed"]) == (3, 0)
    assert body["events"] == [event.to_json() for event in events.recent][1:]
    assert (await get_json(here, "/events.json?after=3"))["events"] == []


async def test_who_asks_too_late_is_told_how_many_events_are_gone() -> None:
    events = EventStream()
    here = site(events)
    for _ in range(RECENT_EVENTS + 5):
        events.publish("session.started")
    assert (await get_json(here, "/events.json"))["missed"] == 5
    assert (await get_json(here, "/events.json?after=2"))["missed"] == 3
    assert (await get_json(here, "/events.json?after=5"))["missed"] == 0
    assert (await get_json(here, "/events.json?after=9999"))["missed"] == 0


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "\u0661", "9" * 20, ""])
async def test_an_id_that_is_none_is_refused(after: str) -> None:
    response = await get(site(), f"/events.json?after={after}")
    assert response.status == (200 if after == "" else 400)


# /close


def close(client: str) -> list[str]:
    if client == "home":
        return ["home"]
    if client == "busy":
        raise ValueError("it is being closed")
    raise LookupError("no client 'nobody' is connected, only home, lab")


async def test_close_tells_whose_session_it_ended_or_why_not() -> None:
    here = site(close=close)
    assert await post(here, "/close", {"client": "home"}) == (200, {"closed": ["home"]})
    status, body = await post(here, "/close", {"client": "nobody"})
    assert (status, body["error"]) == (404, "no client 'nobody' is connected, only home, lab")
    assert await post(here, "/close", {"client": "busy"}) == (409, {"error": "it is being closed"})
    for nonsense in ({}, [], "home", {"client": 1}, {"client": ""}, {"name": "home"}):
        status, body = await post(here, "/close", nonsense)
        assert (status, body["error"]) == (400, 'send a JSON object such as {"client": "home"}')
    assert (await post(here, "/close", {"client": "home"}, token="wrong"))[0] == 401
    assert (await get(here, "/close")).status == 405
