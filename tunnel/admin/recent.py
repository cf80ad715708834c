"""The last events as one JSON document, for whoever wants no stream of them: GET /events.json."""

from urllib.parse import parse_qsl

from tunnel.admin.http import Request, Response, error_response, json_response
from tunnel.admin.site import Route
from tunnel.snapshot import EventStream


def recent_route(events: EventStream) -> Route:
    """``?after=N`` leaves out what has an id up to N. `missed` counts those after N that are not kept any more; `since`
    changes with the process, whose ids count from 1."""

    async def recent(request: Request) -> Response:
        asked = dict(parse_qsl(request.query)).get("after", "0")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 20):
            return error_response(400, "after is the id of an event, such as /events.json?after=17")
        found = events.after(int(asked))
        first = found[0].id if found else events.last_id + 1
        return json_response({
            "since": events.since,
            "last": events.last_id,
            "missed": max(0, first - 1 - int(asked)),
            "events": [event.to_json() for event in found],
        })  # fmt: skip

    return Route("GET", "/events.json", recent)
