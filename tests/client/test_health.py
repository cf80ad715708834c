"""Verdicts on targets: results in a row as a table, the watching task in virtual time, checks over real sockets."""

import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tunnel.addresses import HostPort, Target
from tunnel.client import health as health_module
from tunnel.client.health import CheckFailed, Verdict, check_target, watch_target
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.errors import PeerLost
from tunnel.messages import TargetHealth

WEB, SPARE = Target("tcp", "127.0.0.1", 80), Target("tcp", "127.0.0.1", 81)

# results, one a letter (+ passed, - failed), and the verdict after each: U up, D down
VERDICTS = [
    (1, 2, "+", "U"),
    (1, 2, "-", "D"),
    (1, 2, "+-+-+", "UUUUU"),
    (1, 2, "+--", "UUD"),
    (1, 2, "+--+", "UUDU"),
    (1, 2, "--+", "DDU"),
    (3, 1, "-++-+++", "DDDDDDU"),
    (3, 1, "+-", "UD"),
    (2, 3, "+--+---++", "UUUUUUDDU"),
]


@pytest.mark.parametrize(("rise", "fall", "results", "verdicts"), VERDICTS)
def test_so_many_results_in_a_row_change_the_verdict(rise: int, fall: int, results: str, verdicts: str) -> None:
    verdict = Verdict(HealthCheck(rise=rise, fall=fall))
    before: bool | None = None
    seen = ""
    for result in results:
        changed = verdict.add(result == "+")
        assert changed == (verdict.healthy is not before)
        before = verdict.healthy
        seen += "U" if verdict.healthy else "D"
    assert seen == verdicts


@pytest.fixture
def watched(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[float, TargetHealth]]]:
    """Watch a target whose checks go as `check` says; what is told, and when."""

    def watch(
        check: Callable[[Target], Awaitable[None]], config: HealthCheck, *targets: Target
    ) -> list[tuple[float, TargetHealth]]:
        told: list[tuple[float, TargetHealth]] = []
        monkeypatch.setattr(health_module, "check_target", lambda target, _config: check(target))
        proxy = ProxyConfig("web", HostPort("0.0.0.0", 8001), targets or (WEB,), health_check=config)
        nursery.start_soon(watch_target, proxy, lambda health: told.append((trio.current_time(), health)))
        return told

    return watch


def failing_between(start: float, end: float, problem: Exception) -> Callable[[Target], Awaitable[None]]:
    async def check(target: Target) -> None:
        if start <= trio.current_time() < end:
            raise problem

    return check


DOWN = TargetHealth("web", False, "127.0.0.1:80: refused", 5)
UP = TargetHealth("web", True, None, None)


async def test_changes_are_told_at_their_check_and_a_target_that_is_down_at_every_check(
    watched, autojump_clock: MockClock
) -> None:
    told = watched(failing_between(10, 24, CheckFailed("refused")), HealthCheck())
    await trio.sleep(100)
    assert told == [(0, UP), (15, DOWN), (20, DOWN), (25, UP)]


async def test_a_target_that_never_answers_is_told_from_the_first_check(watched, autojump_clock: MockClock) -> None:
    told = watched(failing_between(0, 11, CheckFailed("refused")), HealthCheck())
    await trio.sleep(16)
    assert told == [(0, DOWN), (5, DOWN), (10, DOWN), (15, UP)]


async def test_a_target_that_is_coming_back_is_still_told_with_its_last_problem(
    watched, autojump_clock: MockClock
) -> None:
    told = watched(failing_between(0, 4, CheckFailed("refused")), HealthCheck(rise=3))
    await trio.sleep(16)
    assert told == [(0, DOWN), (5, DOWN), (10, DOWN), (15, UP)]


async def test_a_check_that_hangs_fails_at_its_timeout(watched, autojump_clock: MockClock) -> None:
    async def check(target: Target) -> None:
        await trio.sleep_forever()

    told = watched(check, HealthCheck(interval=7.5, timeout=2.5))
    await trio.sleep(15)
    down = TargetHealth("web", False, "127.0.0.1:80: no answer within 2.5 s", 8)
    assert told == [(2.5, down), (12.5, down)]


async def test_one_target_that_answers_is_enough(watched, autojump_clock: MockClock) -> None:
    async def check(target: Target) -> None:
        if target is WEB:
            raise CheckFailed("refused")

    told = watched(check, HealthCheck(), WEB, SPARE)
    await trio.sleep(100)
    assert told == [(0, UP)]


async def test_the_first_targets_problem_is_told(watched, autojump_clock: MockClock) -> None:
    async def check(target: Target) -> None:
        raise CheckFailed("refused" if target is WEB else "odd")

    told = watched(check, HealthCheck(), WEB, SPARE)
    await trio.sleep(1)
    assert told == [(0, DOWN)]


@pytest.mark.parametrize(
    "problem", [PeerLost("p"), OSError("p"), ssl.SSLError("p"), trio.BrokenResourceError("p"), CheckFailed("p")],
    ids=lambda problem: type(problem).__name__,
)  # fmt: skip
async def test_whatever_is_wrong_with_a_target_is_a_verdict_and_no_crash(
    problem: Exception, watched, autojump_clock: MockClock
) -> None:
    told = watched(failing_between(0, 1, problem), HealthCheck())
    await trio.sleep(1)
    assert [(at, health.healthy) for at, health in told] == [(0, False)]


async def test_a_long_problem_is_cut(watched, autojump_clock: MockClock) -> None:
    told = watched(failing_between(0, 1, CheckFailed("x" * 5000)), HealthCheck())
    await trio.sleep(1)
    assert len(told[0][1].error_message or "") == 500


# Checks over a memory stream in place of the target's socket


ANSWERS = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": None,
    b"HTTP/1.0 204 No Content\r\n\r\n": None,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": None,
    b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n": "GET /healthz answered 503",
    b"HTTP/1.1 404 Not Found\r\n\r\n": "GET /healthz answered 404",
    b"": "^GET /healthz was not answered$",
    b"SSH-2.0-OpenSSH_9\r\n": "^GET /healthz was not answered$",
    b"220 mail ESMTP\r\n\r\n": "illegal status line",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000: "Receive buffer too long",
}


@pytest.mark.parametrize(("answer", "problem"), ANSWERS.items(), ids=lambda value: repr(value)[:30])
async def test_http_checks_go_by_the_status(
    answer: bytes, problem: str | None, watched_socket: Callable[[bytes], HealthCheck]
) -> None:
    check = watched_socket(answer)
    if problem is None:
        await check_target(WEB, check)
    else:
        with pytest.raises(Exception, match=problem):
            await check_target(WEB, check)


@pytest.fixture
def watched_socket(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], HealthCheck]:
    """A target that reads a request's head and answers with these bytes."""

    def serve(answer: bytes) -> HealthCheck:
        ours, theirs = trio.socket.socketpair()

        async def answer_once() -> None:
            async with trio.SocketStream(theirs) as stream:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += await stream.receive_some()
                assert head.startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:80\r\n")
                try:
                    await stream.send_all(answer)
                except trio.BrokenResourceError:
                    pass  # it had seen enough

        async def dial_target(target: Target) -> object:
            nursery.start_soon(answer_once)
            return ours

        monkeypatch.setattr(health_module, "dial_target", dial_target)
        monkeypatch.setattr(trio.socket, "from_stdlib_socket", lambda sock: sock)
        return HealthCheck(type="http", path="/healthz")

    return serve
