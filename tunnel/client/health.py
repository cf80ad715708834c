"""Do a proxy's targets answer? Each is checked on a schedule of its own and has a verdict of its own.

    check_target ──▶ Health (pure: what each target's results in a row say) ──▶ `changed`: who chooses among targets
                                                                           └──▶ `tell`: the server, one word a proxy

A target nobody has a result of counts as usable; so nothing is told before it is clear that one answers, or none.
"""

import math
import random
from collections.abc import Callable, Iterable

import h11
import trio

from tunnel.addresses import Target
from tunnel.client.target_dial import dial_target, shake_hands
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.errors import PeerLost, TunnelError
from tunnel.messages import TargetHealth

MAX_ANSWER_BYTES = 64 * 1024  # of the head; the body is not read
FIRST_SPREAD = 0.5  # seconds over which first checks are spread, so that a thousand proxies do not begin at once
MAX_PROBLEM = 500  # characters that the server is told of all of a proxy's targets
SHORTEST_PROBLEM = 60  # and of each target, however many there are

Changed = Callable[[Target, bool, str | None], None]


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


class Health:
    """What the checks say of each of a proxy's targets, and of all together. Pure."""

    def __init__(self, check: HealthCheck, targets: Iterable[Target]) -> None:
        self._verdicts = {target: Verdict(check) for target in targets}
        self._problems: dict[Target, str] = {}  # the last of each: while one is coming back (`rise`), it still counts

    def add(self, target: Target, problem: str | None) -> bool:
        """Take in a result (None: it passed); True if the target's verdict changed."""
        if problem is not None:
            self._problems[target] = problem
        return self._verdicts[target].add(problem is None)

    def healthy(self, target: Target) -> bool | None:
        """The target's verdict; None while there is no result, or for one that is not checked."""
        verdict = self._verdicts.get(target)
        return None if verdict is None else verdict.healthy

    def problem(self, target: Target) -> str | None:
        """What is wrong with a target that is down."""
        return self._problems.get(target) if self.healthy(target) is False else None

    @property
    def is_up(self) -> bool | None:
        """Whether the proxy can serve: any target is enough, a backup too; None while that is not known."""
        verdicts = [verdict.healthy for verdict in self._verdicts.values()]
        if True in verdicts:
            return True
        return None if None in verdicts else False

    def word(self, proxy_name: str, retry_after_seconds: int) -> TargetHealth | None:
        """What the server should know by now; `retry_after_seconds` is until the next check of a target."""
        if self.is_up is None:
            return None
        if self.is_up:
            return TargetHealth(proxy_name, True)
        share = max(MAX_PROBLEM // len(self._verdicts), SHORTEST_PROBLEM)
        problems = (_naming(target, self._problems[target])[:share] for target in self._verdicts)
        return TargetHealth(proxy_name, False, "; ".join(problems)[:MAX_PROBLEM], retry_after_seconds)


def _naming(target: Target, problem: str) -> str:
    """A dial's own words tell where it went."""
    return problem if str(target.where) in problem else f"{target}: {problem}"


class _Watch:
    """One run of `watch_targets`: the board, and when each target that is not being checked just now is due."""

    def __init__(self, proxy: ProxyConfig, changed: Changed, tell: Callable[[TargetHealth], None]) -> None:
        assert proxy.health_check is not None
        self.check = proxy.health_check
        self._proxy_name = proxy.name
        self._health = Health(self.check, proxy.targets)
        self._due: dict[Target, float] = {}
        self._changed = changed
        self._tell = tell

    async def keep_checking(self, target: Target, rand: Callable[[], float]) -> None:
        await trio.sleep(FIRST_SPREAD * rand())
        while True:
            self._due.pop(target, None)
            problem = await find_problem(target, self.check)
            delay = self.check.interval * (1 - self.check.jitter * rand())
            self._due[target] = trio.current_time() + delay
            self._take_in(target, problem)
            await trio.sleep_until(self._due[target])

    def _take_in(self, target: Target, problem: str | None) -> None:
        """The server is told each change, and while the proxy is down every check's result, as its seconds pass."""
        health = self._health
        before = health.is_up
        if health.add(target, problem):
            self._changed(target, health.healthy(target) is True, health.problem(target))
        if health.is_up is False or health.is_up is not before:
            now = trio.current_time()
            later = [due for due in self._due.values() if due > now]  # what is due this instant has as good as begun
            due = min(later, default=now)
            word = health.word(self._proxy_name, math.ceil(round(due - now, 3)))
            if word is not None:
                self._tell(word)


async def watch_targets(
    proxy: ProxyConfig,
    *,
    changed: Changed,
    tell: Callable[[TargetHealth], None],
    rand: Callable[[], float] = random.random,
) -> None:
    """Check the proxy's targets until cancelled, each on its own, the first time within half a second.

    `changed` is called with each change of a target's verdict: target, whether it is healthy, and what is wrong. `rand`
    gives numbers from 0 to 1: each interval is shorter by a part of the check's `jitter`. Cancelled, it leaves no
    socket.
    """
    watch = _Watch(proxy, changed, tell)
    async with trio.open_nursery() as checks:
        for target in dict.fromkeys(proxy.targets):
            checks.start_soon(watch.keep_checking, target, rand, name=f"health check of {proxy.name}: {target}")


async def find_problem(target: Target, check: HealthCheck) -> str | None:
    """One check within its timeout: None if the target passes, else what is wrong with it."""
    try:
        with trio.fail_after(check.timeout):
            await check_target(target, check)
    except trio.TooSlowError:
        return f"no answer within {check.timeout:g} s"
    except (PeerLost, OSError, CheckFailed, trio.BrokenResourceError, h11.RemoteProtocolError) as exc:
        return str(exc)[:MAX_PROBLEM] or type(exc).__name__
    return None


async def check_target(target: Target, check: HealthCheck) -> None:
    """One check: a connection, a TLS handshake, or an HTTP answer with an expected status. Raises when it fails."""
    sock = await dial_target(target)
    stream: trio.abc.Stream
    if target.kind == "tls" or check.type == "tls":
        stream = await shake_hands(sock, target)
    else:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    async with stream:
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
