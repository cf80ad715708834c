"""What `connect` shows: through pipes, a pseudo terminal, and readers that stop reading."""

import json
import logging
import os
import pty
import re
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest
import trio
from rich.text import Text
from trio.testing import MockClock

from tunnel.client import table as table_module
from tunnel.client import view as view_module
from tunnel.client.make_view import make_view
from tunnel.client.table import FRAME_SECONDS, TableView, _Painter
from tunnel.client.view import (
    JsonView,
    Output,
    PlainView,
    SessionState,
    View,
)
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import ProxyView, SessionView, Snapshot

WIDE = os.terminal_size((120, 30))
IN_USE = "Port 8022 is already in use by another process"


@pytest.fixture(autouse=True)
def _slow_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose thread gets the CPU late on a busy machine, and has all written before a test reads it."""
    monkeypatch.setattr(view_module, "FLUSH_SECONDS", 30.0)
    monkeypatch.setattr(table_module, "FLUSH_SECONDS", 30.0)


def healthy(name: str = "web", **changes: Any) -> ProxyStatusUpdate:
    values: dict[str, Any] = {
        "proxy_name": name, "status": Status.HEALTHY, "error_message": None, "retry_after_seconds": None, "seq": 1,
        "reason": None, "attempt": 0, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001,
        "since": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    return ProxyStatusUpdate(**{**values, **changes})


def retrying(name: str = "ssh", seconds: int = 2, attempt: int = 1) -> ProxyStatusUpdate:
    return healthy(name, status=Status.UNHEALTHY, error_message=IN_USE, retry_after_seconds=seconds, attempt=attempt,
                   reason=Reason.ADDR_IN_USE, publish_port=8022)  # fmt: skip


def counters(bytes_in: int = 0, bytes_out: int = 0, *, names: tuple[str, ...] = ("web",)) -> Snapshot:
    views = tuple(
        ProxyView(
            name, "healthy", None, None, None, 0, 10, "0.0.0.0", 8001, "127.0.0.1:8080", 3, 120, bytes_in, bytes_out, ""
        )
        for name in names
    )
    return Snapshot("client", "1", (SessionView("home", "", views),))


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


async def show(view: View, *, settle: float = 0.0) -> None:
    """Run `view` until it has said what it was told, then cancel it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        await trio.sleep(settle)
        nursery.cancel_scope.cancel(reason="seen enough")


def read(fd: int) -> str:
    return os.read(fd, 1 << 20).decode()


async def read_until(fd: int, words: str) -> str:
    got = b""
    while words.encode() not in got:
        got += await trio.to_thread.run_sync(os.read, fd, 1 << 20)
    return got.decode()


def fill(fd: int) -> None:
    """Write until the descriptor takes no more."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


# Plain lines


async def test_plain_lines_tell_states_and_sessions() -> None:
    with pipe() as (reading, writing):
        view = PlainView(Output(writing), server="tunnel.example.com:8443")
        view.proxies({"web": "127.0.0.1:8080", "ssh": "127.0.0.1:22"})
        view.session(SessionState.CONNECTING)
        view.session(SessionState.CONNECTED, "home")
        view.status(healthy())
        view.status(retrying())
        view.session(SessionState.LOST, "control channel: connection reset", retry_in=3.2)
        await show(view)
        assert read(reading).splitlines() == [
            "connecting to tunnel.example.com:8443",
            "connected to tunnel.example.com:8443 as home",
            "web: healthy at 0.0.0.0:8001 -> 127.0.0.1:8080",
            f"ssh: unhealthy (addr_in_use): {IN_USE}; retry 1/10 in 2 s",
            "no session with tunnel.example.com:8443: control channel: connection reset; retrying in 4 s",
        ]


async def test_a_dial_every_second_does_not_print_a_line_every_second() -> None:
    with pipe() as (reading, writing):
        view = PlainView(Output(writing), server="s:1")
        for _ in range(100):
            view.session(SessionState.CONNECTING)
            view.session(SessionState.LOST, "connection refused", retry_in=1)
        view.session(SessionState.CONNECTED)
        await show(view)
        assert read(reading).splitlines() == [
            "connecting to s:1", "no session with s:1: connection refused; retrying in 1 s", "connected to s:1",
        ]  # fmt: skip


async def test_what_a_peer_sent_cannot_move_the_cursor() -> None:
    with pipe() as (reading, writing):
        view = PlainView(Output(writing), server="s:1")
        view.status(healthy("web\x1b[2J", status=Status.BIND_FAILED, error_message="x\r\n\x1b]0;pwned\x07\u202e"))
        view.session(SessionState.LOST, "\x1b[H")
        await show(view)
        assert re.fullmatch(r"[ -~\n]+", read(reading))


async def test_a_locale_without_a_character_gets_a_question_mark() -> None:
    with pipe() as (reading, writing):
        view = PlainView(Output(writing, "latin-1"), server="s:1")
        view.status(healthy(status=Status.UNHEALTHY, error_message="größer → 漢"))
        await show(view)
        assert os.read(reading, 1000) == b"web: unhealthy: gr\xf6\xdfer ? ?\n"


# JSON lines


async def test_each_status_is_one_flat_json_line_in_order() -> None:
    with pipe() as (reading, writing):
        view = JsonView(Output(writing))
        view.session(SessionState.CONNECTED)
        for attempt in (1, 2, 3):
            view.status(retrying(attempt=attempt))
        await show(view)
        lines = [json.loads(line) for line in read(reading).splitlines()]
    assert [line["attempt"] for line in lines] == [1, 2, 3]
    assert lines[0] == {
        "proxy_name": "ssh", "status": "unhealthy", "error_message": IN_USE, "retry_after_seconds": 2, "seq": 1,
        "reason": "addr_in_use", "attempt": 1, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8022,
        "since": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


async def test_a_line_is_out_before_the_next_status_comes() -> None:
    with pipe() as (reading, writing):
        view = JsonView(Output(writing))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            for attempt in (1, 2):
                view.status(retrying(attempt=attempt))
                line = await trio.to_thread.run_sync(read, reading)
                assert json.loads(line)["attempt"] == attempt
            nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_reader_that_stops_costs_bounded_memory_and_gets_the_newest_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view_module, "MAX_WAITING_LINES", 20)
    with pipe() as (reading, writing):
        view = JsonView(Output(writing))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            for seq in range(500):  # 125 KiB a proxy; a pipe holds 64
                view.status(healthy("a", seq=seq, error_message="x" * 250))
                view.status(healthy("b", seq=seq))
                await trio.lowlevel.checkpoint()
                assert len(view._lines._waiting) <= 20
            got = bytearray()
            while not (got.endswith(b"\n") and b'"seq": 499' in got.splitlines()[-1]):
                got += await trio.to_thread.run_sync(os.read, reading, 1 << 20)
            nursery.cancel_scope.cancel(reason="seen enough")
    lines = [json.loads(line) for line in got.splitlines()]
    newest = {line["proxy_name"]: line["seq"] for line in lines}
    assert newest == {"a": 499, "b": 499}
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)


async def test_a_stopped_reader_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "FLUSH_SECONDS", 0.05)
    with pipe() as (reading, writing):
        fill(writing)
        view = JsonView(Output(writing))
        view.status(healthy())
        began = time.monotonic()
        await show(view, settle=0.01)
        assert time.monotonic() - began < 30  # it would be for ever
        while not read(reading).endswith("}\n"):  # lets the abandoned thread finish before its descriptor is closed
            pass


async def test_a_reader_that_left_ends_only_the_output(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reading, writing = os.pipe()
    os.close(reading)
    view = JsonView(Output(writing))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        with trio.fail_after(30):
            while not caplog.messages:
                view.status(healthy())
                await trio.sleep(0.01)
        for seq in range(3):
            view.status(healthy(seq=seq))
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel(reason="seen enough")
    os.close(writing)
    assert caplog.messages == ["nothing is shown any more (Broken pipe); the proxies are served as before"]


# The table


def make_table(snapshot: Snapshot | None = None, *, fd: int = -1, encoding: str = "utf-8") -> TableView:
    return TableView(Output(fd, encoding), server="tunnel.example.com:8443", snapshot=lambda: snapshot or counters())


def frame(view: TableView, size: os.terminal_size = WIDE) -> list[str]:
    return view.render(size).plain.splitlines()


async def test_the_table_shows_session_states_and_reasons(autojump_clock: MockClock) -> None:
    view = make_table()
    view.proxies({"web": "127.0.0.1:8080", "ssh": "127.0.0.1:22"})
    view.session(SessionState.CONNECTED, "home")
    view.status(healthy())
    view.status(retrying(seconds=12, attempt=3))
    await trio.sleep(200)
    view.status(retrying(seconds=12, attempt=4))
    await trio.sleep(2.5)
    lines = [re.sub("  +", "|", line.strip()) for line in frame(view)]
    assert lines == [
        "● connected to tunnel.example.com:8443 as home for 3 min|1 of 2 healthy",
        "",
        "PROXY|STATE|PUBLIC|TARGET|VISITORS|IN/S|OUT/S|IN|OUT",
        "web|● healthy|0.0.0.0:8001|→ 127.0.0.1:8080|3/120|0 B|0 B",
        "ssh|● unhealthy|0.0.0.0:8022|→ 127.0.0.1:22",
        f"addr_in_use: {IN_USE}; retry 4/10 in 10 s",
    ]


async def test_a_lost_session_counts_down(autojump_clock: MockClock) -> None:
    view = make_table()
    view.session(SessionState.LOST, "connection reset", retry_in=7)
    await trio.sleep(3)
    assert frame(view)[0] == "● no session with tunnel.example.com:8443: connection reset; retrying in 4 s"
    narrow = frame(view, os.terminal_size((70, 24)))[0]
    assert narrow == "● no session with tunnel.example.com:8443: connectio…; retrying in 4 s"
    await trio.sleep(30)
    assert frame(view)[0].endswith("connection reset; retrying")


async def test_rates_are_what_the_counters_grew_by(autojump_clock: MockClock) -> None:
    now = [counters(0, 500), counters(3_000_000, 500), counters(10, 0)]
    view = TableView(Output(-1), server="s:1", snapshot=lambda: now.pop(0))
    view.proxies({"web": "8080"})
    shown = []
    for _ in range(3):
        shown.append(re.sub("  +", "|", frame(view)[3]).split("|")[4:])
        assert frame(view)  # looked at again within the second: the counters are not read again
        await trio.sleep(2)
    assert shown == [["3/120", "0 B", "500 B"], ["3/120", "1.5 MB/s", "3.0 MB", "500 B"], ["3/120", "10 B", "0 B"]]


async def test_no_proxies_says_how_to_add_one(autojump_clock: MockClock) -> None:
    assert "add one with -p NAME=PUBLISH:TARGET" in frame(make_table())[2]


async def test_a_proxy_without_a_status_yet_and_a_forgotten_one(autojump_clock: MockClock) -> None:
    view = make_table(Snapshot("client", "1", ()))
    view.proxies({"web": "127.0.0.1:8080"})
    assert "unhealthy" in frame(view)[3]
    assert frame(view)[4] == "  connecting"
    view.status(retrying("gone"))
    view.proxies({"web": "127.0.0.1:8080"})
    assert not any("gone" in line for line in frame(view))


@pytest.mark.parametrize("size", [(10, 3), (20, 5), (40, 10), (62, 14), (80, 24), (300, 60)])
@pytest.mark.parametrize("count", [0, 1, 200])
async def test_any_size_of_terminal_gets_a_frame_that_fits(
    autojump_clock: MockClock, size: tuple[int, int], count: int
) -> None:
    view = make_table()
    view.proxies({f"proxy-{number}": "127.0.0.1:8080" for number in range(count)})
    for number in range(count):
        view.status(retrying(f"proxy-{number}") if number == 150 else healthy(f"proxy-{number}"))
    lines = frame(view, os.terminal_size(size))
    assert len(lines) <= max(3, size[1])
    if count == 200:
        assert re.fullmatch(r"… and \d+ more", lines[-1])
        if size[1] >= 10:
            assert "proxy-150" in lines[3]  # what needs attention comes first


async def test_a_terminal_without_the_symbols_gets_ascii(autojump_clock: MockClock) -> None:
    view = make_table(encoding="latin-1")
    view.proxies({f"proxy-{number}": "127.0.0.1:8080" for number in range(50)})
    assert view.render(WIDE).plain.isascii()


@contextmanager
def terminal() -> Iterator[tuple[int, TextIO]]:
    """A pseudo terminal: the master's descriptor, and the slave as a text stream."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as stream:
            yield master, stream
    finally:
        os.close(master)


async def test_on_a_terminal_the_table_lives_logs_go_above_it_and_the_cursor_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(table_module, "FRAME_SECONDS", 0.01)
    with terminal() as (master, stream):
        monkeypatch.setattr(sys, "stderr", stream)
        view = make_view("auto", server="s:1", snapshot=counters, stdout=stream)
        assert isinstance(view, TableView)
        handler: logging.StreamHandler[Any] = logging.StreamHandler(view.log_stream)
        view.proxies({"web": "127.0.0.1:8080"})
        view.status(healthy())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            first = await read_until(master, "● healthy")
            handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a record\x1b[2J", None, None))
            second = await read_until(master, "● healthy")
            termios.tcsetwinsize(stream, (24, 60))
            third = await read_until(master, "● healthy")
            nursery.cancel_scope.cancel(reason="seen enough")
        last = await read_until(master, "\x1b[?25h")
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "afterwards", None, None))
        assert (last + await read_until(master, "afterwards\r\n")).endswith("\x1b[?25hafterwards\r\n")
    assert "\x1b[?25l" in first
    assert second.index("a record?[2J\r\n") < second.index("● healthy")
    assert "\x1b[2J\x1b[H" in third


async def test_a_bug_in_drawing_ends_only_the_view(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_module, "FRAME_SECONDS", 0.01)
    with terminal() as (master, stream):
        view = TableView(Output(stream.fileno()), server="s:1", snapshot=counters)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            await read_until(master, "no proxies yet")
            view.proxies({"web": "8080"})
            monkeypatch.setattr(table_module, "lay_out", None)
        assert "\x1b[?25h" in await read_until(master, "\x1b[?25h")
    assert caplog.messages == ["view.crashed"]


async def test_a_frame_is_written_only_if_it_differs(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    async def write(_self: Output, text: str) -> None:
        written.extend([text] if text else [])

    monkeypatch.setattr(Output, "write", write)
    view = make_table()
    view.proxies({"web": "127.0.0.1:8080"})
    view.status(healthy())
    with trio.move_on_after(10 * FRAME_SECONDS):
        await view.run()
    assert len(written) == 2  # the first frame, and the cursor at the end


async def test_the_kind_of_view_follows_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(stream: TextIO, asked: Any = "auto") -> type[object]:
        return type(make_view(asked, server="s:1", snapshot=counters, stdout=stream))

    monkeypatch.setenv("TERM", "xterm")
    with terminal() as (_, stream):
        assert kind(stream) is TableView
        assert kind(stream, "plain") is PlainView
        assert kind(stream, "json") is JsonView
        monkeypatch.setenv("TERM", "dumb")
        assert kind(stream) is PlainView
    with pipe() as (_, writing), os.fdopen(os.dup(writing), "w") as stream:
        assert kind(stream) is PlainView


def test_a_frame_that_changes_together_with_a_log_line_is_painted_at_once():
    size = os.terminal_size((80, 24))
    painter = _Painter(size)
    painter.paint(Text("no proxies yet"), [], size)
    shown = painter.paint(Text("web unhealthy"), ["cannot reach the server"], size)
    assert shown.index("cannot reach the server") < shown.index("web unhealthy")
    assert painter.paint(Text("web unhealthy"), [], size) == ""
