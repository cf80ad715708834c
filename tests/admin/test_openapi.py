"""/openapi.json is true: it describes exactly what is served, and what is served is as described."""

import http.client
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, fields
from home_rig import Home, open_home
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tunnel.addresses import HostPort
from tunnel.admin.openapi import description
from tunnel.config import HOT_TARGETS, ProxyConfig
from tunnel.messages import Farewell, ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import KINDS, ProxyView, SessionView
from tunnel.version import __version__

SIDES = ("server", "client")


def strict(schema: Any) -> Any:
    """The same schema, but what an object may hold is closed: an undescribed key is a mistake here."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


DESCRIPTION = description()
COMPONENTS = strict(DESCRIPTION["components"])


def check(value: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator({**strict(schema), "components": COMPONENTS}).validate(value)


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: Any = DESCRIPTION
    for step in node["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


class Asker:
    """Asks one admin address, and holds each answer against the description."""

    def __init__(self, where: HostPort, token: str) -> None:
        self.where, self.token = where, token

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, bytes]:
        return await trio.to_thread.run_sync(self._ask, method, path, body, headers)

    def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.where.host, self.where.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read()
        finally:
            connection.close()

    async def checked(self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        """The answer's JSON or text, which is as described."""
        found, kind, raw = await self.ask(method, path, body, **headers)
        assert found == status, raw
        operation = DESCRIPTION["paths"][path.partition("?")[0]][method.lower()]
        if body is not None and status == 200:
            check(body, operation["requestBody"]["content"]["application/json"]["schema"])
        responses = operation["responses"]
        content = resolved(responses.get(str(found), responses["default"]))["content"]
        assert kind in content, f"{method} {path} answered {found} with {kind}"
        value = json.loads(raw) if kind == "application/json" else raw.decode()
        check(value, content[kind]["schema"])
        return value

    async def change(self, path: str, body: Any, *, status: int = 200) -> Any:
        return await self.checked("POST", path, body, status=status, Authorization=f"Bearer {self.token}")

    async def served(self) -> set[tuple[str, str]]:
        """Every (method, path) there is, as the address itself says in its refusals."""
        _, _, raw = await self.ask("GET", "/no-such-path")
        paths = re.findall(r"/[^, ]*", json.loads(raw)["error"].partition("there are ")[2])
        found = set()
        for path in paths:
            status, _, said = await self.ask("TRACE", path)
            assert status == 405
            words = json.loads(said)["error"].removeprefix("use ").removesuffix(" here").split(" or ")
            found |= {(method.lower(), path) for method in words if method != "HEAD"}
        return found


def asker(home: Home, side: str) -> Asker:
    return Asker(home.admin[side], home.token)


def described() -> Iterator[tuple[str, str]]:
    for path, operations in DESCRIPTION["paths"].items():
        yield from ((method, path) for method in operations)


def test_it_is_a_valid_description_of_this_version() -> None:
    validate(deepcopy(DESCRIPTION))
    assert DESCRIPTION["openapi"].startswith("3.1.")
    assert DESCRIPTION["info"]["version"] == __version__
    names = [operation["operationId"] for path in DESCRIPTION["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_a_key_that_is_not_described_is_found() -> None:
    schema = {"$ref": "#/components/schemas/Error"}
    check({"error": "x"}, schema)
    with pytest.raises(Exception, match="'more' was unexpected"):
        check({"error": "x", "more": 1}, schema)


def test_its_closed_lists_and_fields_are_those_of_the_code() -> None:
    schemas = DESCRIPTION["components"]["schemas"]
    assert tuple(schemas["Event"]["properties"]["kind"]["enum"]) == KINDS
    assert [rule["if"]["properties"]["kind"]["const"] for rule in schemas["Event"]["allOf"]] == list(KINDS)
    for name, cls in (("Proxy", ProxyView), ("Session", SessionView), ("ProxyStatusUpdate", ProxyStatusUpdate)):
        assert set(schemas[name]["properties"]) == {field.name for field in fields(cls)}
        assert schemas[name]["properties"].keys() == set(schemas[name]["required"])
    for name in ("Proxy", "ProxyStatusUpdate"):
        assert schemas[name]["properties"]["status"]["enum"] == list(Status)
        assert schemas[name]["properties"]["reason"]["enum"] == [*Reason, None]
    (ended,) = (
        rule["then"]["properties"]["fields"]
        for rule in schemas["Event"]["allOf"]
        if rule["if"]["properties"]["kind"]["const"] == "session.ended"
    )
    assert ended["properties"]["reason"]["enum"] == [*Farewell, "goodbye", "lost", "closed"]


@pytest.mark.slow
async def test_what_is_served_is_described_and_the_reverse(tmp_path: Path) -> None:
    async with open_home(tmp_path, admin=True) as home:
        for side in SIDES:
            served = await asker(home, side).served()
            files = {(method, path) for method, path in served if path.startswith("/static/")}
            assert {("get", "/static/{file}"), *(served - files)} == set(described())
            _, _, raw = await asker(home, side).ask("GET", "/openapi.json")
            assert json.loads(raw) == DESCRIPTION


@pytest.mark.slow
async def test_what_a_server_and_a_client_answer_is_as_described(tmp_path: Path) -> None:
    hot = ProxyConfig("hot", HostPort("127.0.0.1", 0), pool=evolve(HOT_TARGETS, min=1), targets=())
    async with open_home(tmp_path, admin=True) as home:
        (web,) = home.client.config.proxies
        busy = evolve(web, name="busy", publish=home.server.where)
        home.client.publish(web, evolve(hot, targets=web.targets), busy)
        await home.client.wait_healthy("web", "hot")
        while home.client.statuses["busy"].reason != "addr_in_use":
            await trio.sleep(0.005)
        await (await home.visit()).aclose()
        for side in SIDES:
            ask = asker(home, side)
            stats = await ask.checked("GET", "/stats")
            assert [proxy["name"] for proxy in stats["sessions"][0]["proxies"]] == ["web", "hot", "busy"]
            assert ("gate" in stats, "connection" in stats) == ((side == "server"), (side == "client"))
            events = await ask.checked("GET", "/events.json?after=1")
            assert "proxy.status" in {event["kind"] for event in events["events"]}
            await ask.checked("GET", "/events.json?after=x", status=400)
            assert await ask.checked("GET", "/healthz") == "ok\n"
            assert await ask.checked("GET", "/readyz") == "ready\n"
            assert await ask.checked("GET", "/openapi.json") == DESCRIPTION
            await ask.checked("GET", "/stats", status=421, Host="evil.example")
            for path, key in (("/retry", "name"), ("/close", "client")):
                await ask.checked("POST", path, {key: "home"}, status=401)
                await ask.checked("POST", path, {key: "home"}, status=403, Origin="https://evil.example")
                await ask.change(path, {}, status=400)
                await ask.change(path, {key: "nobody"}, status=404)
            assert "busy" in (await ask.change("/retry", {"name": "busy"}))["restarted"][0]
        assert await asker(home, "server").change("/close", {"client": "home"}) == {"closed": ["home"]}
        await home.until_back()
        assert await asker(home, "client").change("/close", {"client": "home"}) == {"closed": ["home"]}
        await home.until_back(2)
        for side in SIDES:
            events = await asker(home, side).checked("GET", "/events.json")
            assert {"server": "session.ended", "client": "session.lost"}[side] in str(events)


@pytest.mark.slow
async def test_the_stream_of_events_is_as_described(tmp_path: Path) -> None:
    async with open_home(tmp_path, admin=True) as home:
        for side in SIDES:
            where = home.admin[side]
            async with await trio.open_tcp_stream(where.host, where.port) as stream:
                await stream.send_all(b"GET /events?only=events&after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                heard = b""
                while heard.count(b'"status":"healthy"') < 1:
                    heard += await stream.receive_some()
            assert b"content-type: text/event-stream\r\n" in heard
            found = re.findall(rb"event: event\nid: (\d+)\ndata: (\{.*\})\n\n", heard)
            assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
            for number, data in found:
                check(json.loads(data), {"$ref": "#/components/schemas/Event"})
                assert json.loads(data)["id"] == int(number)
