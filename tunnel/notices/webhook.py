"""POSTs a notice to a webhook, once. The adapter of httpx2; imported only where a webhook is configured.

Whatever the receiver does costs at most the attempt's time and 64 KiB: it may refuse, hang, drip, answer a gigabyte,
redirect. A redirect is followed where it keeps method and origin, as a service that moved behind its own host does; a
receiver cannot point us elsewhere. Nothing is said of the URL but its origin.
"""

import logging
import ssl
import time
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2
import httpx2
import trio

from tunnel.config.receivers import Webhook
from tunnel.notices.bodies import Request, request
from tunnel.notices.notice import Notice
from tunnel.notices.outcome import Outcome, hide, reason, retry_after
from tunnel.tls import client_context

MAX_ANSWER_BYTES = 64 * 1024  # of an answer, only its beginning is ever shown
MAX_REDIRECTS = 3
MIN_HIDDEN = 8  # characters; a shorter part of a path is a word, and no secret
_KEEPS_METHOD = (307, 308)
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_REMEDIES = {
    400: "the receiver does not understand it: see `format`",
    401: "give the header that it wants in headers_file",
    403: "see whether its secret, or the header in headers_file, is still good",
    404: "see whether url is still the right one",
    405: "it takes no POST: see whether url is the right one",
    410: "the receiver has been removed: give another url",
    413: "it takes nothing of that size",
}


async def post(notice: Notice, to: Webhook) -> Outcome:
    """One attempt, of `to.timeout` seconds at most. Never raises for what the receiver does."""
    origin = _origin(urlsplit(to.url))
    try:
        with trio.fail_after(to.timeout):
            return await _post(notice, to)
    except trio.TooSlowError:
        said = f"{origin} gave no whole answer within {to.timeout:g} s"
        return Outcome(False, said, "see whether it is up, and can be reached from here", retry=True)


async def _post(notice: Notice, to: Webhook) -> Outcome:
    _hush()
    made = request(notice, to, time.time())
    if to.url.startswith("http:") and not (to.proxy or "").startswith("https:"):
        context: ssl.SSLContext | Outcome = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is not asked
    else:
        context = await trio.to_thread.run_sync(partial(_context, to), abandon_on_cancel=True)
    if isinstance(context, Outcome):
        return context
    transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, proxy=to.proxy)
    sockets = _Sockets()
    transport._pool._network_backend = sockets  # there is no public way
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
            return await _exchange(client, sockets, made, to)
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError) as exc:  # UnicodeError: no host name
        return _failed(exc, to)
    finally:
        await sockets.close()


class _Sockets(httpcore2.AsyncNetworkBackend):
    """Closes what it opened: httpcore2 leaves a socket to the garbage collector when a handshake is cancelled."""

    def __init__(self) -> None:
        self._backend = httpcore2.TrioBackend()
        self._opened: list[httpcore2.AsyncNetworkStream] = []

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        self._opened.append(await self._backend.connect_tcp(*args, **options))
        return self._opened[-1]

    async def close(self) -> None:
        """Again is nothing. If cancelled, all are closed all the same."""
        with trio.CancelScope(shield=True):  # a plain socket's close waits for nothing
            for stream in self._opened:
                await stream.aclose()


async def _exchange(client: httpx2.AsyncClient, sockets: "_Sockets", made: Request, to: Webhook) -> Outcome:
    headers = {
        **dict(to.headers),
        "User-Agent": "trio-tunnel",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **made.headers,
    }
    url = to.url
    for _ in range(MAX_REDIRECTS + 1):
        async with client.stream(
            "POST", url, content=made.content, headers=headers, follow_redirects=False
        ) as response:
            if response.is_success:
                return Outcome(True, f"{_origin(urlsplit(url))} answered {response.status_code}")
            if not response.has_redirect_location:
                return await _refused(response, to, sockets)
            elsewhere = _joined(url, response.headers["location"])
            status = response.status_code
        if status not in _KEEPS_METHOD or _origin(urlsplit(elsewhere)) != _origin(urlsplit(url)):
            where = hide(_origin(urlsplit(elsewhere)), ())
            said = f"{_origin(urlsplit(to.url))} answered {status}, a redirect to {where}, which is not followed"
            return Outcome(False, said, "write the address that it wants in url, if you trust it")
        url = elsewhere
    said = f"{_origin(urlsplit(to.url))} redirected more than {MAX_REDIRECTS} times"
    return Outcome(False, said, "write the address that it wants in url")


def _joined(url: str, location: str) -> str:
    """Where a redirect leads; nowhere, if it is nonsense."""
    try:
        found = urljoin(url, location)
        urlsplit(found)
    except ValueError:
        return ""
    return found


async def _refused(response: httpx2.Response, to: Webhook, sockets: "_Sockets") -> Outcome:
    """It answered, and not that all is well. How it explains that may tell the reader what to mend."""
    status = response.status_code
    begun = hide((await _beginning(response, sockets)).decode("utf-8", "replace"), _secrets(to))
    said = f"{_origin(urlsplit(to.url))} answered {status}" + (f": {begun}" if begun else "")
    if status in _MAY_PASS:
        wanted = retry_after(response.headers.get("retry-after"))
        return Outcome(False, said, "see what is wrong with the receiver", retry=True, retry_after=wanted)
    return Outcome(False, said, _REMEDIES.get(status, "see the receiver's log"))


async def _beginning(response: httpx2.Response, sockets: "_Sockets") -> bytes:
    """As much of the answer as anybody reads.

    The rest is cut off by closing the connection under the reader: leaving its loop would leave its generators to the
    garbage collector.
    """
    found = bytearray()
    try:
        async for chunk in response.aiter_raw():
            found += chunk[: MAX_ANSWER_BYTES - len(found)]
            if len(found) >= MAX_ANSWER_BYTES:
                await sockets.close()
    except httpx2.TransportError:  # it was cut, by them or by us: what there is will do
        pass
    return bytes(found)


def _failed(exc: Exception, to: Webhook) -> Outcome:
    """No answer. What went wrong stands at the end of the chain of causes."""
    origin = _origin(urlsplit(to.url))
    cause = _root(exc)
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = "have its certificate mended, or name its CA in ca_file"
        return Outcome(False, f"the certificate of {origin} cannot be trusted: {cause.verify_message}", remedy)
    why = hide(reason(cause) or str(exc), _secrets(to))
    through = f" through the proxy {to.proxy}" if to.proxy else ""
    remedy = "see whether it is up, and can be reached from here"
    return Outcome(False, f"{origin} could not be asked{through}: {why}", remedy, retry=True)


def _root(exc: BaseException) -> BaseException:
    """What went wrong first: at the end of the chain of causes, or a TLS error before it."""
    while not isinstance(exc, ssl.SSLError):
        deeper = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc.__context__
        if deeper is None:
            break
        exc = deeper
    return exc


def _context(to: Webhook) -> ssl.SSLContext | Outcome:
    """Reads the CAs, which takes some ten milliseconds: for a thread."""
    try:
        return client_context(ca_file=to.ca_file, pinned=False, min_version="1.2")
    except (OSError, ssl.SSLError) as exc:
        why = exc.strerror or str(exc)
        return Outcome(False, f"ca_file {to.ca_file} cannot be used: {why}", "put the CA's certificate there, PEM")


def _origin(url: SplitResult) -> str:
    """All of a URL that may be shown."""
    try:
        port = url.port
    except ValueError:
        port = None
    host = url.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80}.get(url.scheme)
    return f"{url.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")


def _secrets(to: Webhook) -> list[str]:
    split = urlsplit(to.url)
    found = [to.url, split.path, split.query, *(part for part in split.path.split("/") if len(part) >= MIN_HIDDEN)]
    found += [part for _, value in to.headers for part in (value, *value.split())]
    return [*found, "" if to.secret is None else to.secret.decode("latin-1")]


def _hush() -> None:
    """These log each request's whole URL, and its headers, for who asks for all that libraries log."""
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
