"""`trio-tunnel top`: rates between two looks, orders, keys, and what a screen, a pipe and a program get."""

import io
import json
import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from tunnel.cli import top as top_command
from tunnel.cli import top_run
from tunnel.cli.main import cli
from tunnel.cli.rates import SORTS, Order, Row, look, total
from tunnel.cli.terminal import QUIT, Keys, ended_gently
from tunnel.cli.top_run import Sampler, Wanted, top
from tunnel.cli.top_table import Look, render_plain, render_screen, to_json
from tunnel.errors import TunnelError
from tunnel.snapshot import ProxyView, SessionView, Snapshot

WHERE = "127.0.0.1:8480"


def view(name: str = "web", **changes: Any) -> ProxyView:
    values: dict[str, Any] = {
        "name": name, "status": "healthy", "reason": None, "error_message": None, "retry_after_seconds": None,
        "attempt": 0, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001, "target": "127.0.0.1:8080",
        "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "since": "then",
    }  # fmt: skip
    return ProxyView(**{**values, **changes})


def stats(*views: ProxyView, client: str = "home") -> dict[str, Any]:
    return Snapshot("server", "1", (SessionView(client, "then", views),)).to_json()


def grown(before: ProxyView, after: ProxyView, seconds: float = 2.0) -> tuple[float | None, ...]:
    (row,) = look(stats(after), look(stats(before)), seconds)
    return row.new_per_second, row.in_per_second, row.out_per_second


# Rates


def test_a_rate_is_what_grew_between_two_looks_by_the_seconds_between_them() -> None:
    before = view(visitors_total=10, bytes_in=1000, bytes_out=5000)
    assert grown(before, view(visitors_total=14, bytes_in=1000, bytes_out=6000)) == (2.0, 0.0, 500.0)


def test_with_one_look_there_are_no_rates() -> None:
    (row,) = look(stats(view(bytes_in=7)))
    assert (row.new_per_second, row.in_per_second, row.out_per_second) == (None, None, None)
    assert row.bytes_per_second == 0.0


def test_a_session_that_began_anew_or_a_new_proxy_grew_from_nothing() -> None:
    before = view(visitors_total=10, bytes_in=1000, bytes_out=5000)
    assert grown(before, view(visitors_total=2, bytes_in=8000, bytes_out=100)) == (1.0, 4000.0, 50.0)
    assert grown(view("other"), view(visitors_total=2)) == (1.0, 0.0, 0.0)


def test_the_totals_are_of_all_proxies() -> None:
    rows = look(
        stats(view("a", visitors=2, bytes_in=10), view("b", visitors=3, bytes_in=20, status="bind_failed")),
        look(stats(view("a"), view("b"))),
        1.0,
    )
    found = total(rows)
    assert (found.visitors, found.in_per_second, found.out_per_second) == (5, 30.0, 0.0)
    assert found.states == {"healthy": 1, "unhealthy": 0, "bind_failed": 1}


ROWS = [
    Row("home", view("a", visitors=1, bytes_in=9), 0.0, 5.0, 0.0),
    Row("home", view("b", visitors=9, bytes_in=1, status="unhealthy"), 1.0, 0.0, 0.0),
    Row("home", view("c", visitors=1, bytes_in=5, status="bind_failed"), 9.0, 1.0, 8.0),
    Row("attic", view("d", visitors=1, bytes_in=9), 0.0, 5.0, 0.0),
]


@pytest.mark.parametrize(
    ("sort", "names"),
    [("rate", "cdab"), ("visitors", "bdac"), ("new", "cbda"), ("total", "dacb"), ("state", "cbda"), ("name", "dabc")],
)
def test_the_highest_come_first_and_equal_ones_by_name(sort: str, names: str) -> None:
    assert "".join(row.view.name for row in Order(sort).of(ROWS)) == names
    assert "".join(row.view.name for row in Order(sort, is_reversed=True).of(ROWS)) == names[::-1]


def test_a_key_chooses_an_order_and_the_same_again_turns_it_round() -> None:
    order = Order().pressed("v")
    assert order == Order("visitors")
    assert order.pressed("v") == Order("visitors", is_reversed=True)
    assert order.pressed("v").pressed("v") == order
    assert order.pressed("x") == order
    letters = [letter for letter, _ in SORTS.values()]
    assert len({*letters, QUIT}) == len(letters) + 1
    assert tuple(SORTS) == top_command.SORTS


# Tables


def seen(*rows: Row, seconds: float | None = 1.0, trouble: str = "") -> Look:
    return Look(WHERE, stats(*(row.view for row in rows)), list(rows), seconds, trouble)


def test_the_plain_table_has_a_line_for_each_proxy_below_what_all_do_together() -> None:
    first, second, header, *lines = render_plain(seen(*ROWS), Order()).splitlines()
    assert first.partition("  ")[2] == (
        f"server 1 at {WHERE}   1 client   4 proxies: 2 healthy, 1 unhealthy, 1 bind_failed"
    )
    assert second == "visitors 12   new 10/s   in 11 B/s   out 8 B/s   over 1.0 s"
    assert header.split() == ["CLIENT", "PROXY", "STATE", "REASON", "VISITORS", "NEW/S", "IN/S", "OUT/S", "TOTAL"]
    assert lines[0].split() == ["home", "c", "bind_failed", "1", "9.0", "1", "B", "8", "B", "5", "B"]
    assert lines[3].split() == ["home", "b", "unhealthy", "9", "1.0", "-", "-", "1", "B"]


def test_without_proxies_it_is_said_how_one_is_added() -> None:
    assert "no proxies; connected, and publishing nothing (any more): home" in render_plain(seen(), Order())
    assert "no proxies" in render_screen(seen(), Order(), width=80, height=24).plain


def test_a_client_without_a_session_says_so_above_its_proxies() -> None:
    found = {**stats(view()), "role": "client", "connection": {"state": "lost", "detail": "x", "servers": []}}
    for state, words in (("lost", "   not connected   "), ("connected", f"client 1 at {WHERE}   1 proxy")):
        found["connection"]["state"] = state
        first, *_ = render_plain(Look(WHERE, found, look(found)), Order()).splitlines()
        assert words in first


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("height", [5, 10, 24])
@pytest.mark.parametrize("trouble", ["", "nothing answers"])
def test_a_screen_is_never_too_high_and_keeps_its_keys(width: int, height: int, trouble: str) -> None:
    rows = [Row("home", view(f"proxy-{number}"), 0.0, 0.0, 0.0) for number in range(1000)]
    lines = render_screen(seen(*rows, trouble=trouble), Order(), width=width, height=height).plain.splitlines()
    assert len(lines) <= max(height, 6 + bool(trouble))
    assert "sort by" in lines[-1]
    assert lines[2].split()[0] in ("CLIENT", "PROXY")
    assert any(f"and {1000 - number:,} more" in line for line in lines for number in range(1, 24))
    assert (trouble in lines[-2]) or not trouble


def test_a_terminal_without_unicode_gets_none() -> None:
    rows = [Row("home", view("a-name-that-is-quite-long-as-names-go" * 3), 0.0, 0.0, 0.0)] * 30
    assert render_screen(seen(*rows), Order(), width=60, height=10, unicode=False).plain.isascii()


def test_names_of_peers_cannot_move_the_cursor() -> None:
    row = look(stats(view("\x1b[2J", reason="\x07"), client="\x1b[31m"))[0]
    for shown in (render_plain(seen(row), Order()), render_screen(seen(row), Order(), width=80, height=9).plain):
        assert "\x1b" not in shown
        assert "\x07" not in shown


def test_programs_get_numbers() -> None:
    body = json.loads(json.dumps(to_json(seen(*ROWS), Order("name"))))
    assert body.pop("at").endswith("Z")
    proxies = body.pop("proxies")
    assert body == {
        "seconds": 1.0, "role": "server", "visitors": 12, "new_per_second": 10.0, "in_per_second": 11.0,
        "out_per_second": 8.0, "states": {"healthy": 2, "unhealthy": 1, "bind_failed": 1},
    }  # fmt: skip
    assert [proxy["name"] for proxy in proxies] == ["d", "a", "b", "c"]
    assert proxies[3] == {
        "client": "home", "name": "c", "status": "bind_failed", "reason": None, "visitors": 1, "visitors_total": 0,
        "bytes_in": 5, "bytes_out": 0, "new_per_second": 9.0, "in_per_second": 1.0, "out_per_second": 8.0,
    }  # fmt: skip


# Looking again and again


class World:
    """Answers, one after the other, each taking `cost` seconds; an exception is raised instead."""

    def __init__(self, *answers: dict[str, Any] | Exception, cost: float = 0.0) -> None:
        self.answers = list(answers)
        self.cost = cost
        self.time = 100.0
        self.pauses: list[float] = []

    def fetch(self) -> dict[str, Any]:
        self.time += self.cost
        if not self.answers:
            raise KeyboardInterrupt
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds

    def run(self, **wanted: Any) -> list[str]:
        out = io.StringIO()
        sampler = Sampler(self.fetch, WHERE, clock=lambda: self.time)
        top(sampler, out, Wanted(**wanted), sleep=self.sleep)
        return out.getvalue().splitlines()


def test_each_look_is_a_line_of_json_after_its_interval_and_trouble_is_one_too() -> None:
    lost = TunnelError("nothing answers")
    world = World(stats(view()), stats(view(bytes_in=500)), lost, stats(view(bytes_in=2000)), stats(view()))
    told = [json.loads(line) for line in world.run(as_json=True, interval=5.0)]
    assert [line.get("in_per_second", line.get("error")) for line in told] == [100.0, "nothing answers", 150.0, 0.0]
    assert [line.get("seconds") for line in told] == [5.0, None, 10.0, 5.0]  # since the look that was answered
    assert world.pauses == [5.0] * 5


def test_so_many_looks_as_were_asked_for() -> None:
    world = World(*[stats(view())] * 9)
    lines = world.run(count=2)
    assert [line.split()[0] for line in lines if line.startswith("home")] == ["home", "home"]
    assert lines.count("") == 1
    assert world.pauses == [1.0, 1.0]


def test_where_answers_take_long_it_asks_less_often_unless_told_how_often() -> None:
    world = World(*[stats(view())] * 9, cost=0.25)
    world.run(count=2)
    assert world.pauses == [5.0, 5.0]
    world = World(*[stats(view())] * 9, cost=0.25)
    world.run(count=2, interval=1.0)
    assert world.pauses == [1.0, 1.0]


def test_what_never_answered_is_an_error() -> None:
    with pytest.raises(TunnelError, match="nothing answers"):
        World(TunnelError("nothing answers")).run()


def test_help_names_every_key() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["top", "-h"]).output.split())
    assert "r, v, w, t, s and n sort by rate, visitors, new visitors, total, state and name" in shown


# The terminal


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(theirs)
        os.close(ours)


def modes(descriptor: int) -> list[Any]:
    import termios

    return termios.tcgetattr(descriptor)


def test_keys_come_one_at_a_time_without_enter_and_the_terminal_is_left_as_it_was() -> None:
    with terminal() as (ours, theirs):
        before = modes(theirs)
        with Keys(theirs) as keys:
            assert modes(theirs) != before
            assert keys.wait(0.0) == ""
            os.write(ours, b"v")
            assert keys.wait(10.0) == "v"
            os.write(ours, b"nq\xc3")
            assert [keys.wait(10.0) for _ in range(3)] == ["n", "q", "\ufffd"]
        assert modes(theirs) == before


def test_without_a_terminal_there_are_no_keys_and_time_passes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with Keys(-1) as keys:
        assert keys.wait(3.0) == ""
    assert slept == [3.0]


def test_a_terminal_that_is_gone_quits() -> None:
    read, write = os.pipe()
    os.close(write)
    keys = Keys(read)
    keys._before = []  # as if it had been one
    assert keys.wait(10.0) == QUIT
    os.close(read)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_ends_as_by_ctrl_c(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ended_gently():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_screen(monkeypatch: pytest.MonkeyPatch, world: World, keys: bytes, **wanted: Any) -> str:
    """What is drawn when these keys were pressed."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")
    with terminal() as (ours, theirs):
        monkeypatch.setattr(top_run, "Keys", lambda: Keys(theirs))
        os.write(ours, keys)
        out = Screen()
        top(Sampler(world.fetch, WHERE, clock=lambda: world.time), out, Wanted(interval=30.0, **wanted))
    return out.getvalue()


def test_on_a_terminal_a_key_sorts_at_once_and_q_leaves_the_screen_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(stats(view("busy", visitors=9), view("alone", visitors=1)))

    drawn = on_screen(monkeypatch, world, b"nq", order=Order("visitors"))
    assert drawn.index("busy") < drawn.index("alone")
    assert drawn.rindex("busy") > drawn.rindex("alone")
    assert "\x1b[?1049h" in drawn
    assert drawn.rindex("\x1b[?1049l") > drawn.rindex("sort by")
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
