"""The reading side: against a real admin server, against strangers, and the columns it draws."""

import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from attrs import evolve
from click.testing import CliRunner

from tunnel import wording
from tunnel.addresses import HostPort
from tunnel.admin.site import AdminSource, bind_admin, serve_admin
from tunnel.cli import asking
from tunnel.cli import watch as watching
from tunnel.cli.asking import fetch_stats, request_retry
from tunnel.cli.main import cli
from tunnel.cli.status_table import print_status, render_plain, render_table
from tunnel.cli.watch import watch
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.snapshot import ProxyView, SessionView, Snapshot, utc_now
from tunnel.version import __version__
from tunnel.wording import clean, countdown, explain, human_bytes, human_seconds, listed, no_such_proxy, plain_line

SINCE = (datetime.now(UTC) - timedelta(days=2.5)).isoformat()


def view(name: str = "web", **changes: Any) -> ProxyView:
    values: dict[str, Any] = {
        "name": name, "status": "healthy", "reason": None, "error_message": None, "retry_after_seconds": None,
        "attempt": 0, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001, "target": "127.0.0.1:8080",
        "visitors": 3, "visitors_total": 120, "bytes_in": 1_500_000, "bytes_out": 999, "since": SINCE,
    }  # fmt: skip
    return ProxyView(**{**values, **changes})


IN_USE = "Port 8022 is already in use by another process"
SSH = view("ssh", status="unhealthy", reason="addr_in_use", error_message=IN_USE, retry_after_seconds=12, attempt=3,
           publish_port=8022, target="127.0.0.1:22")  # fmt: skip
LOW = view("low", status="bind_failed", reason="permission_denied", error_message="Permission denied", attempt=11)


def stats(*views: ProxyView, client: str = "home") -> dict[str, Any]:
    return Snapshot("server", "1", (SessionView(client, utc_now(), views),)).to_json()


@contextmanager
def answering(raw: bytes) -> Iterator[HostPort]:
    """One connection at a port of our own gets `raw`, whatever it says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        yield HostPort("127.0.0.1", listener.getsockname()[1])
        thread.join()


# Fetching


async def test_stats_and_retry_against_a_real_admin_server(nursery: trio.Nursery) -> None:
    def retry(name: str) -> list[str]:
        if name == "web":
            return ["home/web"]
        raise LookupError(f"no proxy {name!r}")

    source = AdminSource("server", lambda: iter(()), lambda: True, retry, token="right")
    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    where = HostPort("127.0.0.1", listeners[0].socket.getsockname()[1])
    nursery.start_soon(lambda: serve_admin(listeners, source=source))
    found = await trio.to_thread.run_sync(fetch_stats, where)
    assert found == {"role": "server", "version": __version__, "sessions": []}
    assert await trio.to_thread.run_sync(request_retry, where, "web", "right") == ["home/web"]
    with pytest.raises(TunnelError, match=r"no proxy 'nope'; `trio-tunnel status` lists the names"):
        await trio.to_thread.run_sync(request_retry, where, "nope", "right")
    for token in ("wrong", ""):
        with pytest.raises(Refused, match=r"refused the admin token; it is in admin\.token"):
            await trio.to_thread.run_sync(request_retry, where, "web", token)


def test_where_nothing_listens_the_error_names_the_next_step() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        where = HostPort("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(PeerLost, match=rf"nothing answers at {where} .*is `trio-tunnel serve` running.*--admin"):
            fetch_stats(where)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP with JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "not HTTP with JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "not HTTP with JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "not a JSON object"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"sessions": 1}', "it answered /stats with 200"),
        (b'HTTP/1.1 421 No\r\n\r\n{"error": "this \\u001b[31mHost"}', r"with this \?\[31mHost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{", "not HTTP with JSON"),
        (b"", "closed the connection without an answer"),
    ],
)
def test_a_stranger_at_the_address_is_said_to_be_one(raw: bytes, words: str) -> None:
    with answering(raw) as where, pytest.raises(TunnelError, match=words):
        fetch_stats(where)


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_ANSWER_BYTES", 1000)
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 5000) as where, pytest.raises(TunnelError, match="larger than"):
        fetch_stats(where)


def test_silence_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = HostPort("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(PeerLost, match="did not answer in time"):
            fetch_stats(where)


# Words


def test_a_plain_line_says_state_reason_and_what_comes_next() -> None:
    assert plain_line("web", view(), "127.0.0.1:8080") == "web: healthy at 0.0.0.0:8001 -> 127.0.0.1:8080"
    assert plain_line("ssh", SSH) == f"ssh: unhealthy (addr_in_use): {IN_USE}; retry 3/10 in 12 s"
    assert plain_line("low", LOW) == "low: bind_failed (permission_denied): Permission denied; gave up after 10 retries"
    assert plain_line("new", view(status="unhealthy", reason="pending")) == "new: unhealthy (pending)"
    assert plain_line("v6", view(publish_addr="::")) == "v6: healthy at [::]:8001"


def test_the_countdown_runs_and_knows_endless_policies() -> None:
    assert countdown(SSH, elapsed=2.5) == "retry 3/10 in 10 s"
    assert countdown(SSH, elapsed=99) == "retry 3/10 now"
    assert (
        countdown(view(status="unhealthy", retry_after_seconds=300, attempt=3, max_retries=None)) == "retry 3 in 5 min"
    )
    assert countdown(view(status="unhealthy", retry_after_seconds=5)) == "retry in 5 s"
    assert countdown(view(status="bind_failed", attempt=1)) == "given up"
    assert countdown(view()) == ""


def test_a_long_explanation_is_cut_before_its_next_step() -> None:
    assert explain(SSH, width=50) == "addr_in_use: Port 8022 is alr…; retry 3/10 in 12 s"
    assert explain(SSH, width=200) == explain(SSH)
    assert explain(view()) == ""


def test_texts_of_peers_are_stripped_and_bounded() -> None:
    assert clean("a\x1b[2J\x07\r\nb\u202ec\x9bd\ud800") == "a?[2J?  b?c?d?"
    assert len(clean("x" * 5000)) == wording.MAX_SHOWN


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_600, "1.0 MB"), (23e9, "23 GB"), (5e15, "5 PB")],
)
def test_bytes_are_told_in_units_people_use(count: float, words: str) -> None:
    assert human_bytes(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (1e6, "11 d")]
)
def test_durations_are_told_in_units_people_use(seconds: float, words: str) -> None:
    assert human_seconds(seconds) == words


# Tables


def test_the_plain_table_has_a_line_per_proxy_with_everything_on_it() -> None:
    header, web, ssh = render_plain(stats(view(), SSH)).splitlines()
    titles, cells = re.sub("  +", "|", header), re.sub("  +", "|", web)
    assert titles == "CLIENT|PROXY|STATE|PUBLIC|TARGET|VISITORS|IN|OUT|SINCE|EXPLANATION"
    assert cells == "home|web|healthy|0.0.0.0:8001|127.0.0.1:8080|3/120|1.5 MB|999 B|2 d"
    assert ssh.endswith(f"2 d  addr_in_use: {IN_USE}; retry 3/10 in 12 s")
    assert render_plain(stats()).startswith("no proxies")


def test_a_client_that_stops_and_has_visitors_inside_is_not_asked_to_add_proxies() -> None:
    nobody = {"role": "server", "sessions": []}
    assert (
        render_plain(nobody) == "no proxies; a client adds one with `trio-tunnel connect SERVER -p NAME=PUBLISH:TARGET`"
    )
    draining = {**nobody, "sessions": [{"client": "home", "proxies": []}, {"client": "lab", "proxies": []}]}
    words = "no proxies; connected, and publishing nothing (any more): home, lab"
    assert render_plain(draining) == words
    assert render_table(draining, width=80).plain == words


def test_a_client_says_below_its_proxies_how_it_stands_to_its_server() -> None:
    def below(**connection: Any) -> str:
        found = {"role": "client", "connection": connection, "sessions": []}
        (line,) = render_plain(found).splitlines()[2:]
        assert render_table(found, width=200).plain.splitlines()[2:] == [line]
        return line

    servers = ["a:8443", "b:8443"]
    assert below(state="connected", detail="home", servers=servers) == "connected to a:8443, b:8443 as home"
    assert below(state="connecting", detail="", servers=servers) == "not connected to a:8443, b:8443"
    lost = below(state="lost", detail="it is stopping\x1b", servers=servers, retry_after_seconds=30)
    assert lost == "not connected to a:8443, b:8443: it is stopping?; tries again in 30 s"
    assert below(state=7, detail=None, servers="x") == "not connected"


def test_another_version_and_hostile_values_do_not_break_the_table() -> None:
    odd = {
        "sessions": [
            7,
            {"proxies": None},
            {"client": "\x1b[2J", "proxies": [{"name": "x\ny", "bytes_in": "a", "new": 1}, 3]},
        ]
    }
    _, line = render_plain(odd).splitlines()
    assert line.startswith("?[2J    x y")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_terminal_table_keeps_name_and_state_in_any_width(width: int) -> None:
    lines = render_table(stats(view("a-name-that-is-quite-long-as-names-go"), SSH, LOW), width=width).plain.splitlines()
    rows = [line for line in lines if not line.startswith("  ")]
    assert all("STATE" in row or "health" in row or "bind_failed" in row for row in rows)
    assert max(map(len, rows)) <= max(width, 31)  # name and state are never dropped; the terminal crops what is over
    assert ("TARGET" in lines[0]) == (width >= 80)


def test_a_table_too_high_says_how_many_more_there_are() -> None:
    lines = render_table(stats(*(view(f"p{number}") for number in range(200))), width=80, height=10).plain.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "… and 192 more: 192 healthy"


def test_in_a_table_too_high_those_in_trouble_come_first() -> None:
    many = [view(f"p{number}") for number in range(50)]
    lines = render_table(stats(*many, SSH), width=80, height=10).plain.splitlines()
    assert [line.split()[1] for line in lines[1:2]] == ["ssh"]
    assert lines[2].startswith("  addr_in_use")
    few = render_table(stats(view("p1"), SSH), width=80, height=10).plain.splitlines()
    assert [line.split()[1] for line in few[1:3]] == ["p1", "ssh"]


async def test_only_what_has_a_name_is_shown_and_a_name_that_nothing_has_is_an_error(nursery: trio.Nursery) -> None:
    views = (SessionView("home", SINCE, (view("web"), SSH)), SessionView("lab", SINCE, (view("web"),)))
    source = AdminSource("server", lambda: iter(views), lambda: True, lambda name: [], "")
    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    where = HostPort("127.0.0.1", listeners[0].socket.getsockname()[1])
    nursery.start_soon(lambda: serve_admin(listeners, source=source))

    async def ask(*words: str) -> Any:
        return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["status", *words, "--admin", str(where)]))

    assert [line.split()[:2] for line in (await ask("web")).output.splitlines()[1:]] == [
        ["home", "web"],
        ["lab", "web"],
    ]
    assert [line.split()[:2] for line in (await ask("home/ssh")).output.splitlines()[1:]] == [["home", "ssh"]]
    assert [each["client"] for each in json.loads((await ask("lab", "--json")).output)["sessions"]] == ["lab"]
    assert str((await ask("no & such")).exception) == (
        "no proxy and no client is named 'no & such'; `trio-tunnel status` lists the names"
    )


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_status_prints_a_table_on_a_terminal_and_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    print_status(stats(SSH), terminal)
    print_status(stats(SSH), pipe)
    assert "● unhealthy" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert pipe.getvalue() == render_plain(stats(SSH)) + "\n"


def script(*steps: dict[str, Any] | Exception) -> Callable[[], dict[str, Any]]:
    """A fetch that returns or raises each step in turn; then Ctrl-C."""
    left = list(steps)

    def fetch() -> dict[str, Any]:
        if not left:
            raise KeyboardInterrupt
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return fetch


def test_watching_without_a_terminal_prints_changes_only() -> None:
    out, pauses = io.StringIO(), []
    lost = TunnelError("nothing answers")
    steps = script(stats(view(), SSH), stats(view(visitors=9), SSH), lost, lost, stats(view()))
    watch(steps, out, sleep=pauses.append)
    assert out.getvalue().splitlines() == [
        "home/web: healthy at 0.0.0.0:8001 -> 127.0.0.1:8080",
        f"home/ssh: unhealthy (addr_in_use): {IN_USE}; retry 3/10 in 12 s",
        "nothing answers",
        "it answers again",
        "home/ssh: gone",
    ]
    assert pauses == [watching.REFRESH_SECONDS] * 5


def test_watching_for_programs_is_a_line_of_json_for_each_change_and_none_for_figures_that_grow() -> None:
    out = io.StringIO()
    lost = TunnelError("nothing answers")
    states = [stats(view(), SSH), stats(view(), LOW), stats()]
    later = stats(view(visitors=9, bytes_in=2**40), evolve(SSH, retry_after_seconds=11))
    later["sessions"][0]["since"] = states[0]["sessions"][0]["since"]
    watch(script(states[0], later, lost, lost, states[1], states[2]), out, as_json=True, sleep=lambda _: None)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    expected = [states[0], {"error": "nothing answers"}, states[1], states[2]]
    assert told == json.loads(json.dumps(expected))


def test_watching_a_terminal_ends_with_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    watch(script(stats(view()), TunnelError("nothing answers"), stats()), out, sleep=lambda _: None)
    assert "nothing answers" in out.getvalue()
    assert out.getvalue().rstrip("\n").endswith("\x1b[?25h")


def test_watching_what_never_answered_is_an_error() -> None:
    with pytest.raises(TunnelError, match="nothing"):
        watch(script(TunnelError("nothing")), io.StringIO())


def test_names_that_there_are_are_told_as_far_as_a_line_can_hold() -> None:
    assert no_such_proxy("x", ()) == "no proxy is named 'x', and there is none"
    assert no_such_proxy("x", ["home/a", "home/b\x1b"]) == "no proxy is named 'x'; there are home/a, home/b?"
    assert listed([f"p{number}" for number in range(30)]).endswith("p18, p19 and 10 more")
