"""The dashboard's page and its files, from `static/`. They are read when first asked for, in a thread.

The page is the same for a server and a client and gets all it shows from `/events`. Everything is ours: its policy
lets it load, run and connect to nothing else, and inline scripts and styles neither.
"""

import hashlib
from pathlib import Path

import trio
from attrs import frozen

from tunnel.admin.http import Request, Response
from tunnel.admin.site import Route

STATIC = Path(__file__).with_name("static")
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def dashboard_routes() -> list[Route]:
    """`/` and everything under `/static/`."""
    names = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.suffix in _TYPES)
    routes = [Route("GET", f"/static/{name}", _File(STATIC / name).answer) for name in names if name != "index.html"]
    return [Route("GET", "/", _File(STATIC / "index.html").answer), *routes]


@frozen
class _Content:
    body: bytes
    tag: str


class _File:
    """One of them, kept once it was asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: _Content | None = None

    async def answer(self, request: Request) -> Response:
        if self._content is None:
            body = await trio.to_thread.run_sync(self._path.read_bytes)
            self._content = _Content(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        content = self._content
        # no-cache: kept, and asked for again each time, so that a new version is a new page at once
        headers = {"etag": content.tag, "cache-control": "no-cache", "content-security-policy": POLICY}
        kind = _TYPES[self._path.suffix]
        if _names(request.headers.get("if-none-match", ""), content.tag):
            return Response(304, b"", kind, {**headers, "content-length": str(len(content.body))})
        return Response(200, content.body, kind, headers)


def _names(if_none_match: str, tag: str) -> bool:
    return any(one.strip().removeprefix("W/") in (tag, "*") for one in if_none_match.split(","))
