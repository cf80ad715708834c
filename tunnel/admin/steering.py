"""Changes that are asked for by name: POST a JSON object, and a list of the names that were changed comes back.

`Site` lets a request here only with the admin token.
"""

import json
from collections.abc import Awaitable, Callable

from tunnel.admin.http import Request, Response, error_response, json_response


def change_by_name(
    key: str, change: Callable[[str], list[str]], *, done: str, example: str
) -> Callable[[Request], Awaitable[Response]]:
    """A handler that takes ``{key: NAME}``, calls `change(NAME)` and answers ``{done: [names]}``.

    `change` raises LookupError for a name that is not there (404), ValueError where the name says too little or it
    cannot be done now (409).
    """

    async def handle(request: Request) -> Response:
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            body = None
        name = body.get(key) if isinstance(body, dict) else None
        if not isinstance(name, str) or not name:
            return error_response(400, f'send a JSON object such as {{"{key}": "{example}"}}')
        try:
            return json_response({done: change(name)})
        except LookupError as exc:
            return error_response(404, _words(exc, f"there is no {name!r:.100}"))
        except ValueError as exc:
            return error_response(409, _words(exc, f"{name!r:.100} cannot be changed now"))

    return handle


def _words(exc: Exception, otherwise: str) -> str:
    return str(exc.args[0]) if exc.args and str(exc.args[0]) else otherwise  # str() of a KeyError would add quotes
