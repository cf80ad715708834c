"""Verdicts on targets: results in a row as a table, the watching tasks in virtual time, checks over real sockets."""

import itertools
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, field
from dial_rig import cancelled_everywhere, http_service, nothing_left_open, trusted_service
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort, Target, parse_target
from tunnel.client import health as health_module
from tunnel.client.health import FIRST_SPREAD, CheckFailed, Health, Verdict, check_target, watch_targets
from tunnel.client.target_dial import dial_target
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.errors import PeerLost
from tunnel.messages import TargetHealth
from tunnel.sockets import listen

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


# The board


def test_the_board_has_a_verdict_for_each_target_and_one_for_all() -> None:
    health = Health(HealthCheck(fall=1), (WEB, SPARE))
    assert (health.healthy(WEB), health.is_up) == (None, None)
    assert health.add(WEB, "refused")
    assert (health.healthy(WEB), health.healthy(SPARE), health.is_up) == (False, None, None)
    assert health.add(SPARE, None)
    assert (health.healthy(SPARE), health.is_up) == (True, True)
    assert health.add(SPARE, "refused")
    assert health.is_up is False


def test_a_target_that_is_not_checked_is_unknown() -> None:
    assert Health(HealthCheck(), (WEB,)).healthy(SPARE) is None


def test_a_backup_is_enough() -> None:
    backup = Target("tcp", "127.0.0.1", 81, backup=True)
    health = Health(HealthCheck(), (WEB, backup))
    health.add(WEB, "refused")
    health.add(backup, None)
    assert health.is_up is True


def test_one_targets_results_do_not_count_for_another() -> None:
    health = Health(HealthCheck(fall=2), (WEB, SPARE))
    for target in (WEB, SPARE):
        health.add(target, None)
    assert [health.add(target, "refused") for target in (WEB, SPARE, WEB)] == [False, False, True]
    assert (health.healthy(WEB), health.healthy(SPARE)) == (False, True)


def test_nothing_is_told_while_a_target_is_unknown_and_none_is_up() -> None:
    health = Health(HealthCheck(), (WEB, SPARE))
    assert health.word("web", 5) is None
    health.add(WEB, "refused")
    assert health.word("web", 5) is None
    health.add(SPARE, "odd")
    assert health.word("web", 5) == TargetHealth("web", False, "127.0.0.1:80: refused; 127.0.0.1:81: odd", 5)


@pytest.mark.parametrize(("count", "named"), [(1, 1), (8, 8), (100, 8)])
def test_however_much_is_wrong_the_server_is_told_five_hundred_characters(count: int, named: int) -> None:
    targets = [Target("tcp", "127.0.0.1", port) for port in range(10_000, 10_000 + count)]
    health = Health(HealthCheck(), targets)
    for target in targets:
        health.add(target, "x" * 5000)
    word = health.word("web", 5)
    assert word is not None
    assert len(word.error_message) == 500
    assert word.error_message.count("127.0.0.1:10") == named


# The watching tasks


@define
class Watched:
    told: list[tuple[float, TargetHealth]] = field(factory=list)
    changed: list[tuple[float, Target, bool, str | None]] = field(factory=list)


@pytest.fixture
def watched(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    """Watch targets whose checks go as `check` says; what is told, and when. Without `rand` nothing is jittered."""

    def watch(
        check: Callable[[Target], Awaitable[None]],
        config: HealthCheck,
        *targets: Target,
        rand: Callable[[], float] = lambda: 0.0,
    ) -> Watched:
        seen = Watched()
        monkeypatch.setattr(health_module, "check_target", lambda target, _config: check(target))
        proxy = ProxyConfig("web", HostPort("0.0.0.0", 8001), targets or (WEB,), health_check=config)

        def changed(target: Target, healthy: bool, problem: str | None) -> None:
            seen.changed.append((trio.current_time(), target, healthy, problem))

        def tell(word: TargetHealth) -> None:
            seen.told.append((trio.current_time(), word))

        nursery.start_soon(partial(watch_targets, proxy, changed=changed, tell=tell, rand=rand))
        return seen

    return watch


def failing_between(
    start: float, end: float, problem: Exception, *, only: tuple[Target, ...] = (WEB, SPARE)
) -> Callable[[Target], Awaitable[None]]:
    async def check(target: Target) -> None:
        if target in only and start <= trio.current_time() < end:
            raise problem

    return check


REFUSED = CheckFailed("refused")
DOWN = TargetHealth("web", False, "127.0.0.1:80: refused", 5)
UP = TargetHealth("web", True, None, None)


async def test_changes_are_told_at_their_check_and_a_target_that_is_down_at_every_check(
    watched, autojump_clock: MockClock
) -> None:
    seen = watched(failing_between(10, 24, REFUSED), HealthCheck())
    await trio.sleep(100)
    assert seen.told == [(0, UP), (15, DOWN), (20, DOWN), (25, UP)]
    assert seen.changed == [(0, WEB, True, None), (15, WEB, False, "refused"), (25, WEB, True, None)]


async def test_a_target_that_never_answers_is_told_from_the_first_check(watched, autojump_clock: MockClock) -> None:
    seen = watched(failing_between(0, 11, REFUSED), HealthCheck())
    await trio.sleep(16)
    assert seen.told == [(0, DOWN), (5, DOWN), (10, DOWN), (15, UP)]


async def test_a_target_that_is_coming_back_is_still_told_with_its_last_problem(
    watched, autojump_clock: MockClock
) -> None:
    seen = watched(failing_between(0, 4, REFUSED), HealthCheck(rise=3))
    await trio.sleep(16)
    assert seen.told == [(0, DOWN), (5, DOWN), (10, DOWN), (15, UP)]
    assert seen.changed == [(0, WEB, False, "refused"), (15, WEB, True, None)]


async def test_a_check_that_hangs_fails_at_its_timeout(watched, autojump_clock: MockClock) -> None:
    async def check(target: Target) -> None:
        await trio.sleep_forever()

    seen = watched(check, HealthCheck(interval=7.5, timeout=2.5))
    await trio.sleep(15)
    down = TargetHealth("web", False, "127.0.0.1:80: no answer within 2.5 s", 8)
    assert seen.told == [(2.5, down), (12.5, down)]


async def test_a_target_that_hangs_delays_no_other_targets_checks(watched, autojump_clock: MockClock) -> None:
    checked: list[float] = []

    async def check(target: Target) -> None:
        if target is WEB:
            await trio.sleep_forever()
        checked.append(trio.current_time())

    seen = watched(check, HealthCheck(interval=5, timeout=3), WEB, SPARE)
    await trio.sleep(12)
    assert checked == [0, 5, 10]
    assert seen.told == [(0, UP)]
    assert seen.changed == [(0, SPARE, True, None), (3, WEB, False, "no answer within 3 s")]


async def test_one_of_two_that_is_down_keeps_the_proxy_healthy_until_the_other_is_down_too(
    watched, autojump_clock: MockClock
) -> None:
    async def check(target: Target) -> None:
        if (10 if target is WEB else 20) <= trio.current_time() < 34:
            raise REFUSED

    seen = watched(check, HealthCheck(), WEB, SPARE)
    await trio.sleep(50)
    both = TargetHealth("web", False, "127.0.0.1:80: refused; 127.0.0.1:81: refused", 5)
    assert [(at, told) for at, told in seen.told if told.healthy] == [(0, UP), (35, UP)]
    assert seen.told[1] == (25, both)
    assert sorted((at, target.port, healthy) for at, target, healthy, _ in seen.changed) == [
        (0, 80, True), (0, 81, True), (15, 80, False), (25, 81, False), (35, 80, True), (35, 81, True),
    ]  # fmt: skip


async def test_while_all_are_down_the_next_check_of_any_of_them_is_what_is_counted_down_to(
    watched, autojump_clock: MockClock
) -> None:
    async def check(target: Target) -> None:
        await trio.sleep(0 if target is WEB else 2)
        raise REFUSED

    seen = watched(check, HealthCheck(interval=5), WEB, SPARE)
    await trio.sleep(11)
    assert [(at, word.retry_after_seconds) for at, word in seen.told] == [(2, 3), (5, 2), (9, 1), (10, 4)]


@pytest.mark.parametrize(
    ("jitter", "rand", "times"),
    [
        (0.1, 0.0, [0, 10, 20, 30]),
        (0.1, 1.0, [0.5, 9.5, 18.5, 27.5]),
        (0.4, 0.5, [0.25, 8.25, 16.25, 24.25]),
        (0.0, 1.0, [0.5, 10.5, 20.5, 30.5]),
    ],
)
async def test_an_interval_is_shorter_by_a_part_of_the_jitter(
    jitter: float, rand: float, times: list[float], watched, autojump_clock: MockClock
) -> None:
    checked: list[float] = []

    async def check(target: Target) -> None:
        checked.append(trio.current_time())

    watched(check, HealthCheck(interval=10, jitter=jitter), rand=lambda: rand)
    await trio.sleep(35)
    assert checked[:4] == pytest.approx(times, abs=1e-9)


async def test_first_checks_are_spread_and_all_begin_within_half_a_second(watched, autojump_clock: MockClock) -> None:
    checked: list[float] = []

    async def check(target: Target) -> None:
        checked.append(trio.current_time())

    targets = [Target("tcp", "127.0.0.1", port) for port in range(1, 101)]
    numbers = itertools.cycle(number / 100 for number in range(100))
    watched(check, HealthCheck(), *targets, rand=lambda: next(numbers))
    await trio.sleep(FIRST_SPREAD)
    assert checked == pytest.approx([FIRST_SPREAD * number / 100 for number in range(100)])


async def test_a_target_that_stands_twice_is_checked_once(watched, autojump_clock: MockClock) -> None:
    checked: list[Target] = []

    async def check(target: Target) -> None:
        checked.append(target)

    watched(check, HealthCheck(), WEB, WEB)
    await trio.sleep(1)
    assert checked == [WEB]


@pytest.mark.parametrize(
    "problem", [PeerLost("p"), OSError("p"), ssl.SSLError("p"), trio.BrokenResourceError("p"), CheckFailed("p")],
    ids=lambda problem: type(problem).__name__,
)  # fmt: skip
async def test_whatever_is_wrong_with_a_target_is_a_verdict_and_no_crash(
    problem: Exception, watched, autojump_clock: MockClock
) -> None:
    seen = watched(failing_between(0, 1, problem), HealthCheck())
    await trio.sleep(1)
    assert [(at, health.healthy) for at, health in seen.told] == [(0, False)]


async def test_an_error_without_words_is_told_by_its_kind(watched, autojump_clock: MockClock) -> None:
    seen = watched(failing_between(0, 1, trio.BrokenResourceError()), HealthCheck())
    await trio.sleep(1)
    assert seen.changed == [(0, WEB, False, "BrokenResourceError")]


# Cancelled


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_check_that_is_cancelled_anywhere_leaves_no_socket(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = trusted_service("service.example", monkeypatch) if kind == "tls" else None
    check = HealthCheck(type="http", path="/healthz")
    async with http_service(context) as port:
        target = Target(kind, "service.example", 443, connect_to=HostPort("127.0.0.1", port))
        with nothing_left_open():
            times = await cancelled_everywhere(partial(check_target, target, check))
            await wait_all_tasks_blocked()  # the service has seen them all go
    assert times > 3


@pytest.mark.parametrize("full", [False, True], ids=["room", "backlog full"])
async def test_a_check_of_a_unix_socket_that_is_cancelled_leaves_no_socket(full: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "service.sock")
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as waiting:
        listener.bind(path)
        listener.listen(0)
        if full:
            waiting.enter_context(await dial_target(Target("unix", path)))
        with nothing_left_open(), trio.move_on_after(0.02) as scope:
            if not full:
                scope.cancel()
            await check_target(Target("unix", path), HealthCheck())
        assert scope.cancelled_caught


async def test_watching_that_is_cancelled_amid_checks_leaves_no_socket() -> None:
    with listen("127.0.0.1", 0) as silent, nothing_left_open():
        port = silent.getsockname()[1]
        targets = tuple(Target("tcp", "127.0.0.1", port, weight=weight) for weight in (1, 2, 3))
        proxy = ProxyConfig("web", HostPort("0.0.0.0", 8001), targets, health_check=HealthCheck(type="http"))
        watch = partial(watch_targets, proxy, changed=print, tell=print, rand=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            accepted = []
            while len(accepted) < 3:
                await trio.lowlevel.wait_readable(silent)
                accepted.append(silent.accept()[0])
            nursery.cancel_scope.cancel()
        trio.lowlevel.notify_closing(silent)
        for sock in accepted:
            sock.close()


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


def test_the_word_names_each_target_once() -> None:
    first, second = parse_target("127.0.0.1:1"), parse_target("unix:/run/web")
    health = Health(HealthCheck(), [first, second])
    health.add(first, "cannot reach 127.0.0.1:1: Connection refused")
    health.add(second, "No such file or directory")
    word = health.word("web", 3)
    assert word is not None
    assert word.error_message == (
        "cannot reach 127.0.0.1:1: Connection refused; unix:/run/web: No such file or directory"
    )
