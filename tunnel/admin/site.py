"""The admin address: what it answers, and to whom; the same for a server and a client. `admin_http` speaks for it.

It shows what `AdminSource` hands it and knows neither sessions nor relay. Reading needs no credentials and is meant for
loopback; writing needs the admin token. Browsers are kept out by checks of Host (DNS rebinding) and Origin, and by
answering no CORS request.
"""

import errno
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import trio
from attrs import field, frozen

from tunnel.addresses import HostPort, is_ip, parse_host_port
from tunnel.admin.http import Request, Response, error_response, serve_http
from tunnel.admin.stats import only, stats_body
from tunnel.admin.steering import change_by_name
from tunnel.errors import TunnelError
from tunnel.snapshot import SessionView
from tunnel.version import __version__

_SAFE = ("GET", "HEAD")
log = logging.getLogger(__name__)


@frozen
class AdminSource:
    """What the admin address shows and may do. All callables are synchronous and quick; `views` gives one session at a
    time.

    `retry` takes NAME or CLIENT/NAME and returns what it restarted, `close` a client's name and returns whose sessions
    it ended; LookupError: nothing has that name, ValueError: several have, or it cannot be done now. An empty `token`
    refuses every write. `hosts` are further Hosts that are ours, beside IPs and localhost; none by default.
    """

    role: str  # "server" or "client"
    views: Callable[[], Iterator[SessionView]]
    ready: Callable[[], bool]
    retry: Callable[[str], list[str]]
    token: str = field(repr=False)
    extra_stats: Callable[[], dict[str, Any]] = dict
    hosts: tuple[str, ...] = ()
    close: Callable[[str], list[str]] = lambda client: _no_session(client)
    why_not_ready: Callable[[], str] = lambda: ""


def _no_session(client: str) -> list[str]:
    raise LookupError(f"no client {client!r} is connected")


@frozen
class Route:
    """`method` is GET (HEAD comes with it) or one that writes; a writer is called only after token and Origin."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]


async def bind_admin(where: HostPort, *, asked_for: bool) -> list[trio.SocketListener]:
    """Listen at `where`. An address nobody asked for that cannot be had costs a warning and gives no listeners."""
    try:
        listeners = await trio.open_tcp_listeners(where.port, host=where.host)
    except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that IDNA cannot encode
        why = _why(exc, where)
        if asked_for:
            raise TunnelError(f"{why}; choose another with --admin HOST:PORT, or --admin off") from exc
        log.warning("admin.not_listening", extra={"address": str(where), "error": f"{why}; going on without it"})
        return []
    if not where.host.startswith("127.") and where.host not in ("localhost", "::1"):
        log.warning("admin.exposed", extra={"address": str(where), "hint": "anyone who reaches it can read all states"})
    return listeners


def _why(exc: OSError | UnicodeError, where: HostPort) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        return f"admin address {where} is already in use by another process"
    if isinstance(exc, OSError) and exc.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to listen at admin address {where}"
    return f"cannot listen at admin address {where}: {exc}"


async def serve_admin(
    listeners: list[trio.SocketListener],
    *,
    source: AdminSource,
    more: Iterable[Route] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at `listeners` until cancelled, then close them; without listeners, return at once.

    `more` routes stand beside our own. No request can make this raise.
    """
    await serve_http(listeners, Site(source, more).answer, task_status=task_status)


class Site:
    """The routes and the checks before them; no I/O but what a handler does."""

    def __init__(self, source: AdminSource, more: Iterable[Route] = ()) -> None:
        self._source = source
        self._hosts = frozenset(host.rstrip(".").lower() for host in source.hosts)
        self._routes = (*_own_routes(source), *more)

    async def answer(self, request: Request) -> Response:
        if not self._is_our_host(request.headers.get("host")):
            hint = "this Host is not served here; use the IP address or localhost, or put its name into [admin] hosts"
            return error_response(421, hint)
        methods = {route.method: route.handler for route in self._routes if route.path == request.path}
        if not methods:
            paths = ", ".join(sorted({route.path for route in self._routes if not route.path.startswith("/static/")}))
            return error_response(404, f"nothing at this path; there are {paths}")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = sorted({*methods, "HEAD"} if "GET" in methods else methods)
            return error_response(405, f"use {' or '.join(allowed)} here", headers={"allow": ", ".join(allowed)})
        if request.method not in _SAFE and (refusal := self._refuse_write(request)):
            return refusal
        try:
            return await handler(request)
        except Exception:
            log.exception("admin.handler_failed", extra={"path": request.path})
            return error_response(500, "internal error; the log has the details")

    def _is_our_host(self, host: str | None) -> bool:
        if host is None:  # h11 lets only HTTP/1.0 do without: probes, never a browser
            return True
        try:
            name = parse_host_port(host, default_port=80).host.rstrip(".").lower()
        except ValueError:
            return False
        return is_ip(name) or name == "localhost" or name in self._hosts

    def _refuse_write(self, request: Request) -> Response | None:
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return error_response(403, "requests of another origin are refused")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        ours, theirs = self._source.token.encode(), token.strip().encode()
        if scheme.lower() != "bearer" or not ours or not hmac.compare_digest(ours, theirs):
            return error_response(
                401,
                "this needs the admin token: Authorization: Bearer and the content of admin.token",
                headers={"www-authenticate": 'Bearer realm="trio-tunnel admin"'},
            )
        return None


def _own_routes(source: AdminSource) -> tuple[Route, ...]:
    one_at_a_time = trio.Lock()  # who asks too often waits, and memory holds one that is being made

    async def stats(request: Request) -> Response:
        name = dict(parse_qsl(request.query)).get("name")
        head = {"role": source.role, "version": __version__}
        async with one_at_a_time:
            views = source.views() if name is None else only(source.views(), name)
            return Response(200, await stats_body(head, views, source.extra_stats()), "application/json")

    async def alive(_request: Request) -> Response:
        return Response(200, b"ok\n")

    async def ready(_request: Request) -> Response:
        if source.ready():
            return Response(200, b"ready\n")
        why = source.why_not_ready()
        return Response(503, f"not ready: {why}\n".encode() if why else b"not ready\n")

    return (
        Route("GET", "/stats", stats),
        Route("GET", "/healthz", alive),
        Route("GET", "/readyz", ready),
        Route("POST", "/retry", change_by_name("name", source.retry, done="restarted", example="web")),
        Route("POST", "/close", change_by_name("client", source.close, done="closed", example="home")),
    )
