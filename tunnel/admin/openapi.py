"""GET /openapi.json: the description of all that the admin address serves, in OpenAPI 3.1, for whoever programs it."""

import json
from pathlib import Path
from typing import Any

import trio

from tunnel.admin.http import Request, Response, json_response
from tunnel.admin.site import Route
from tunnel.version import __version__

_FILE = Path(__file__).with_name("openapi.json")


def description() -> dict[str, Any]:
    """The document, of this version. Reads its file each time: few ask, and fewer ask twice."""
    found: dict[str, Any] = json.loads(_FILE.read_bytes())
    found["info"]["version"] = __version__
    return found


def openapi_route() -> Route:
    async def describe(_request: Request) -> Response:
        return json_response(await trio.to_thread.run_sync(description))

    return Route("GET", "/openapi.json", describe)
