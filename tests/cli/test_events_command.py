"""`trio-tunnel events`: what lines say, and a feed that outlives the process it listens to."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import Any

import pytest
from click.testing import CliRunner

from tunnel.addresses import HostPort
from tunnel.cli import feed
from tunnel.cli.event_lines import event_line, is_wanted
from tunnel.cli.events_print import Printer, show_events
from tunnel.cli.feed import Place, fetch_recent, follow_feed
from tunnel.cli.main import cli
from tunnel.errors import PeerLost, TunnelError
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import KINDS, EventStream

AT = "2026-01-31T12:00:00.000Z"
IN_USE = "Port 8022 is already in use by another process"


def made(kind: str, client: str = "", proxy: str = "", number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": number, "kind": kind, "at": AT, "client": client, "proxy": proxy, "fields": fields}


def status(**changes: Any) -> dict[str, Any]:
    """As a process tells it."""
    values: dict[str, Any] = {
        "proxy_name": "web", "status": Status.HEALTHY, "error_message": None, "retry_after_seconds": None, "seq": 1,
        "reason": None, "attempt": 0, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8001, "since": AT,
    }  # fmt: skip
    events = EventStream()
    events.publish("proxy.status", client="home", proxy="web", update=ProxyStatusUpdate(**{**values, **changes}))
    return {**json.loads(json.dumps(events.recent[0].to_json())), "at": AT}


# Lines


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (status(), "home/web: healthy at 0.0.0.0:8001"),
        (
            status(status=Status.UNHEALTHY, reason=Reason.ADDR_IN_USE, error_message=IN_USE, retry_after_seconds=2,
                   attempt=1),
            f"home/web: unhealthy (addr_in_use): {IN_USE}; retry 1/10 in 2 s",
        ),
        (made("proxy.removed", "home", "web"), "home/web: published no longer"),
        (made("session.started", "home", peer="192.0.2.7"), "home: session started, from 192.0.2.7"),
        (
            made("session.ended", "home", reason="closed", message="by its operator", seconds=754.2),
            "home: session ended after 12 min (closed): by its operator",
        ),
        (made("session.connecting", detail=""), "this client: connecting"),
        (made("session.connecting", detail="nobody is there"), "this client: connecting; so far: nobody is there"),
        (made("session.connected", "home", detail="home"), "home: connected"),
        (
            made("session.lost", "home", detail="the server is stopping", retry_in=3.2),
            "home: no session: the server is stopping; tries again in 3 s",
        ),
        (made("session.lost", "home", detail="the server is stopping", retry_in=0.0),
         "home: no session: the server is stopping"),
        (made("config.reloaded", changes=["a", "b"]), "configuration read again: a; b"),
        (made("config.refused", mistakes=["x:1: no"]), "configuration refused, nothing has changed: x:1: no"),
        (made("certificate.loaded", not_after=AT), f"another certificate is in use, until {AT}"),
        (made("certificate.expiring", not_after=AT, days=6), f"the certificate ends in 6 days, at {AT}"),
        (made("certificate.expiring", not_after=AT, days=-1), f"the certificate has ended, at {AT}"),
        (made("proxy.hot", "home", "web", degrees=40), "home/web: proxy.hot degrees=40"),
        ({"kind": "session.ended", "client": "\x1b[2J", "fields": 7}, "?[2J: session ended ()"),
        ({}, ""),
    ],
)  # fmt: skip
def test_each_event_is_a_line_of_plain_words(event: dict[str, Any], line: str) -> None:
    assert event_line(event) == line


def test_every_kind_has_words_of_its_own() -> None:
    for kind in KINDS:
        assert kind not in event_line(made(kind, "home", "web"))


def test_events_are_chosen_by_kind_by_its_group_and_by_name() -> None:
    lost, web = made("session.lost", "home"), made("proxy.status", "home", "web")
    assert [is_wanted(lost, kinds=kinds, name="") for kinds in ((), ("session",), ("session.lost",), ("proxy",))] == [
        True, True, True, False,
    ]  # fmt: skip
    assert not is_wanted(made("sessions.x"), kinds=("session",), name="")
    assert [is_wanted(web, kinds=(), name=name) for name in ("home", "web", "home/web", "lab", "lab/web")] == [
        True, True, True, False, False,
    ]  # fmt: skip


# The feed, against a stand-in


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


class StandIn:
    """An admin address that answers each connection with what is `told` by then, and ends it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.where = HostPort("127.0.0.1", self._listener.getsockname()[1])
        self.asked: list[str] = []
        self.since = "first"
        self.told: list[dict[str, Any]] = []
        self.more = b""  # behind the events of a stream
        self.stays_open: threading.Event | None = None  # a stream does, until it is set
        self.head = STREAM + b"retry: 2000\n\n"
        self.threads = [threading.Thread(target=self._serve)]
        self.threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # an accept that waits returns
        self._listener.close()
        for thread in self.threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(10)
                path = peer.recv(65536).split(b" ")[1].decode()
                self.asked.append(path)
                after = int(path.rpartition("after=")[2])
                events = [event for event in self.told if event["id"] > after]
                if path.startswith("/events.json"):
                    body = json.dumps({"since": self.since, "last": len(self.told), "missed": 0, "events": events})
                    peer.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
                    continue
                reader = threading.Thread(target=self._stream, args=(peer.dup(), events))
                self.threads.append(reader)
                reader.start()

    def _stream(self, peer: socket.socket, events: list[dict[str, Any]]) -> None:
        with peer, suppress(OSError):  # the reader has heard enough
            said = b"".join(b"event: event\nid: %d\ndata: %s\n\n" % (e["id"], json.dumps(e).encode()) for e in events)
            peer.sendall(self.head + said + self.more)
            if self.stays_open is not None:
                self.stays_open.wait(10)


@contextmanager
def standing_in() -> Iterator[StandIn]:
    with closing(StandIn()) as stand_in:
        yield stand_in


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [made("proxy.removed", "home", "web", number) for number in numbers]


def test_a_feed_begins_behind_its_place_and_comes_back_there_when_the_connection_ends() -> None:
    with standing_in() as stand_in:
        stand_in.told = numbered(1, 2)
        said: list[str] = []
        found = follow_feed(stand_in.where, Place("first", 1), tell=said.append, sleep=lambda _: None)
        assert next(found) == stand_in.told[1]
        stand_in.told = numbered(1, 2, 3)
        assert next(found)["id"] == 3
        found.close()
        assert said == []  # a connection that ends is nothing to talk about
        assert [path for path in stand_in.asked if "only" in path] == [
            "/events?only=events&after=1", "/events?only=events&after=2",
        ]  # fmt: skip


def test_another_process_is_told_and_read_from_its_first_event_on() -> None:
    with standing_in() as stand_in:
        stand_in.told = numbered(1, 2, 3)
        said: list[str] = []
        found = follow_feed(stand_in.where, Place("first", 2), tell=said.append, sleep=lambda _: None)
        assert next(found)["id"] == 3
        stand_in.since, stand_in.told = "second", numbered(1, 2, 3, 4)  # more than we have seen of the first
        assert [event["id"] for event in islice(found, 4)] == [1, 2, 3, 4]
        found.close()
        assert said == [f"{stand_in.where} is another process now; its events from the first one on"]


def test_an_address_that_is_gone_is_told_once_and_waited_for() -> None:
    with standing_in() as stand_in:
        stand_in.told = numbered(1)
        said: list[str] = []
        pauses: list[float] = []
        trouble = iter([None, "gone", "gone", "gone", None])
        real = feed._open

        def flaky(where: HostPort, after: int) -> Any:
            if next(trouble):
                raise PeerLost("nothing answers")
            return real(where, after)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(feed, "_open", flaky)
            found = follow_feed(stand_in.where, Place("first", 0), tell=said.append, sleep=pauses.append)
            assert next(found)["id"] == 1
            stand_in.told = numbered(1, 2)
            assert next(found)["id"] == 2
            found.close()
        assert said == [f"{stand_in.where} is gone; waiting for it to come back", f"{stand_in.where} answers again"]
        assert pauses == [feed.AGAIN_SECONDS] * 4


def test_events_that_were_too_many_are_told_as_missing_and_comments_are_nothing() -> None:
    with standing_in() as stand_in:
        said: list[str] = []
        last = json.dumps(numbered(9)[0]).encode()
        stand_in.more = (
            b': still here\n\nevent: missed\ndata: {"count": 7}\n\nevent: change\ndata: {}\n\n'
            b"event: event\ndata: " + last[:9] + b"\ndata: " + last[9:] + b"\n\n"
        )
        found = follow_feed(stand_in.where, Place("first", 0), tell=said.append, sleep=lambda _: None)
        assert next(found)["id"] == 9
        found.close()
        assert said == ["7 events are missing here: too many came at once"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"HTTP/1.1 404 No\r\ncontent-type: application/json\r\n\r\n{}", "it answered /events with 404"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP with JSON"),
        (
            STREAM + b"event: event\ndata: [1]\n\n",
            "are not JSON objects",
        ),
        (STREAM + b"data: " + b"x" * 2**20, "has no end"),
    ],
    ids=["404", "ssh", "list", "endless"],
)
def test_what_is_no_stream_of_events_is_an_error(head: bytes, words: str) -> None:
    with standing_in() as stand_in:
        stand_in.head = head
        found = follow_feed(stand_in.where, Place("first", 0), tell=pytest.fail, sleep=pytest.fail)
        with pytest.raises(TunnelError, match=words):
            next(found)
        found.close()


def test_a_stream_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SILENCE_SECONDS", 0.05)
    with standing_in() as stand_in:
        stand_in.stays_open = threading.Event()
        with closing(feed._open(stand_in.where, 0)) as stream, pytest.raises(PeerLost, match="did not answer in time"):
            next(stream.messages())
        stand_in.stays_open.set()


def test_strange_recent_events_are_an_error() -> None:
    with standing_in() as stand_in:
        stand_in.since = 7  # type: ignore[assignment]
        with pytest.raises(TunnelError, match=r"it answered /events\.json with 200"):
            fetch_recent(stand_in.where)


# Printing


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_the_whole_time_and_a_terminal_a_short_one_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    pipe, terminal, plain = io.StringIO(), Terminal(), Terminal()
    Printer(pipe).show(status())
    Printer(terminal).show(status())
    monkeypatch.setenv("NO_COLOR", "1")
    Printer(plain).show(status())
    assert pipe.getvalue() == f"{AT}  home/web: healthy at 0.0.0.0:8001\n"
    assert terminal.getvalue() == "01-31 12:00:00Z  \x1b[32mhome/web: healthy at 0.0.0.0:8001\x1b[0m\n"
    assert plain.getvalue() == "01-31 12:00:00Z  home/web: healthy at 0.0.0.0:8001\n"


def test_what_an_encoding_has_no_character_for_does_not_end_it() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Printer(out).show(made("session.started", "h\u00f6me", peer="x"))
    out.flush()
    assert raw.getvalue().endswith(b"  h?me: session started, from x\n")


def test_the_last_ones_of_those_wanted_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in() as stand_in:
        stand_in.told = [*numbered(1, 2, 3), made("session.lost", "home", "", 4, detail="x", retry_in=None)]

        def shown(**options: Any) -> list[int]:
            out = io.StringIO()
            given = {"kinds": (), "name": "", "last": 20, "follow": False, **options}
            show_events(stand_in.where, Printer(out, as_json=True), **given)
            return [json.loads(line)["id"] for line in out.getvalue().splitlines()]

        assert shown() == [1, 2, 3, 4]
        assert shown(last=2) == [3, 4]
        assert shown(kinds=("proxy",), last=2) == [2, 3]
        assert shown(last=0) == []
        assert capsys.readouterr().err == ""
        assert shown(name="lab") == []
        assert capsys.readouterr().err == "none of the last 4 events is one of these\n"


def test_a_kind_that_there_is_not_is_a_usage_error_and_help_names_all() -> None:
    assert CliRunner().invoke(cli, ["events", "--kind", "sesion"], standalone_mode=True).exit_code == 2
    shown = CliRunner().invoke(cli, ["events", "-h"]).output
    assert all(kind in shown for kind in KINDS)
