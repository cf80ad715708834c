"""Validation of a connection by one HTTP request over it, for `open_pool(check=…)`."""

from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import h11
import trio

from tunnel.errors import RemoteProtocolError

MAX_ANSWER_BYTES = 64 * 1024  # head and body: more is no health check's answer, and has to be read to its end
READ_BYTES = 16 * 1024

Check = Callable[[trio.abc.Stream, str], Awaitable[None]]


def http_check(path: str = "/", *, expect: Sequence[int] = (200,)) -> Check:
    """A check that asks for `path` with GET and reads the whole answer, so that the connection is ready for the next.

    It raises `RemoteProtocolError` when the status is not among `expect`, the answer is no HTTP, is longer than 64 KiB,
    or ends the connection, and `BrokenResourceError` when there is no answer. The pool holds its deadline
    (`PoolConfig.validate_seconds`).
    """
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"{path!r} is not a path; write one such as /healthz")

    async def check(stream: trio.abc.Stream, url: str) -> None:
        try:
            status, stays_open = await _ask(stream, path, host=urlsplit(url).netloc)
        except h11.RemoteProtocolError as exc:
            raise RemoteProtocolError(f"{url} does not answer GET {path} as HTTP/1.1 does: {exc}") from exc
        if status not in expect:
            wanted = " or ".join(map(str, expect))
            raise RemoteProtocolError(f"{url} answers GET {path} with status {status}, not {wanted}")
        if not stays_open:
            raise RemoteProtocolError(f"{url} answers GET {path}, and does not keep the connection open")

    return check


async def _ask(stream: trio.abc.Stream, path: str, *, host: str) -> tuple[int, bool]:
    """The answer's status, and whether the connection is good for another request."""
    http = h11.Connection(h11.CLIENT)
    head = http.send(h11.Request(method="GET", target=path, headers=[("Host", host), ("User-Agent", "trio-tunnel")]))
    await stream.send_all((head or b"") + (http.send(h11.EndOfMessage()) or b""))
    status, received = 0, 0
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                data = await stream.receive_some(READ_BYTES)
                received += len(data)
                if not received:
                    raise trio.BrokenResourceError("it ended the connection without an answer")
                if received > MAX_ANSWER_BYTES:
                    raise h11.RemoteProtocolError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
                http.receive_data(bytes(data))
            case h11.Response(status_code=status):
                pass
            case h11.EndOfMessage():
                return status, http.their_state is h11.DONE and not http.trailing_data[0]
            case _:
                pass  # 1xx, or a piece of the body
