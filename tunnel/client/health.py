"""Does a target answer? A small task for each proxy with a health check tells the server each change of verdict."""

import math
from collections.abc import Callable

import h11
import trio

from tunnel.addresses import Target
from tunnel.client.targets import dial_target
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.errors import PeerLost, TunnelError
from tunnel.messages import TargetHealth
from tunnel.tls import TlsStream, target_context

MAX_ANSWER_BYTES = 64 * 1024  # of the head; the body is not read


class CheckFailed(TunnelError):
    """The target did not pass; the text says why."""


class Verdict:
    """Counts results in a row: `rise` good ones make it healthy, `fall` bad ones not. None until the first result."""

    def __init__(self, check: HealthCheck) -> None:
        self.healthy: bool | None = None
        self._check = check
        self._streak = 0

    def add(self, passed: bool) -> bool:
        """Take in a result; True if the verdict changed. The first result decides by itself."""
        if self.healthy is None:
            self.healthy = passed
            return True
        if passed is self.healthy:
            self._streak = 0
            return False
        self._streak += 1
        if self._streak < (self._check.rise if passed else self._check.fall):
            return False
        self.healthy, self._streak = passed, 0
        return True


async def watch_target(proxy: ProxyConfig, tell: Callable[[TargetHealth], None]) -> None:
    """Check the proxy's targets until cancelled; one that answers is enough."""
    check = proxy.health_check
    assert check is not None
    verdict = Verdict(check)
    after = math.ceil(check.interval)
    last: str | None = None
    while True:
        problem = await _first_problem(proxy.targets, check)
        changed = verdict.add(problem is None)
        last = problem or last  # while it is coming back (`rise`), what was wrong still is
        if verdict.healthy is False:
            tell(TargetHealth(proxy.name, False, last, after))
        elif changed:
            tell(TargetHealth(proxy.name, True))
        await trio.sleep(check.interval)


async def _first_problem(targets: tuple[Target, ...], check: HealthCheck) -> str | None:
    """None if a target passes, else what was wrong with the first."""
    problems: list[str] = []
    for target in targets:
        try:
            with trio.fail_after(check.timeout):
                await check_target(target, check)
        except trio.TooSlowError:
            problems.append(f"{target}: no answer within {check.timeout:g} s")
        except (PeerLost, OSError, CheckFailed, trio.BrokenResourceError, h11.RemoteProtocolError) as exc:
            problems.append(f"{target}: {exc}"[:500])
        else:
            return None
    return problems[0]


async def check_target(target: Target, check: HealthCheck) -> None:
    """One check: a connection, a TLS handshake, or an HTTP answer with an expected status. Raises when it fails."""
    sock = await dial_target(target)
    stream: trio.abc.Stream
    if target.kind == "tls" or check.type == "tls":
        stream = TlsStream(sock, target_context(), server_side=False, server_hostname=target.host)
    else:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    async with stream:
        if isinstance(stream, TlsStream):
            await stream.do_handshake()
        if check.type == "http":
            await _check_http(stream, target, check)


async def _check_http(stream: trio.abc.Stream, target: Target, check: HealthCheck) -> None:
    host = check.host or (str(target).removeprefix("tls://") if target.kind != "unix" else "localhost")
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
    headers = [("Host", host), ("User-Agent", "trio-tunnel health check"), ("Connection", "close")]
    await stream.send_all(client.send(h11.Request(method="GET", target=check.path, headers=headers)) or b"")
    client.send(h11.EndOfMessage())
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            if event.status_code not in check.expect_status:
                raise CheckFailed(f"GET {check.path} answered {event.status_code}")
            return
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(MAX_ANSWER_BYTES))
            if not data:  # h11's own words for it would tell nobody anything
                raise CheckFailed(f"GET {check.path} was not answered")
            client.receive_data(data)
