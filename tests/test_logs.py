import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import trio

from tunnel import log_lines, logs
from tunnel.log_lines import escape, redact
from tunnel.logs import log_fields
from tunnel.rate_limited import Quota, RateLimited

log = logging.getLogger("tunnel.test")
TOKEN = "tt_" + "aB3-_x9Z" * 5 + "abc"
STUCK_SECONDS = 30.0  # for what takes milliseconds, or for ever
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def no_journal(monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("INVOCATION_ID", raising=False)


@pytest.fixture(autouse=True)
def slow_writer(monkeypatch):
    """Whose thread gets the CPU late on a busy machine, and has all written before a test reads it."""
    monkeypatch.setattr(logs, "FLUSH_SECONDS", STUCK_SECONDS)


@contextmanager
def pipe():
    source, sink = os.pipe()
    try:
        yield source, sink
    finally:
        for descriptor in (source, sink):
            with suppress(OSError):  # the test closed it
                os.close(descriptor)


@contextmanager
def configure(*args, **kwargs):
    """The real one, without pytest's own handlers: they would format each record in the caller, and refuse some."""
    root = logging.getLogger()
    theirs, root.handlers[:] = root.handlers[:], []
    try:
        with logs.configure(*args, **kwargs):
            yield
    finally:
        root.handlers[:] = theirs


def lines_of(act, verbosity=0, format="text"):
    """What `act` logs, as lines; little enough to fit in a pipe."""
    with pipe() as (source, sink):
        with configure(verbosity, format, descriptor=sink):
            act()
        os.close(sink)
        with open(source, "rb", closefd=False) as reader:
            return reader.read().decode().splitlines()


def line_of(act, format="text"):
    [line] = lines_of(act, format=format)
    return line


def object_of(act):
    return json.loads(line_of(act, "json"))


# What a line looks like


def test_a_text_line_has_time_level_message_and_fields():
    line = line_of(lambda: log.info("Proxy %r listening on %s:%d", "ssh", "0.0.0.0", 8022, extra={"port": 8022}))
    assert re.fullmatch(STAMP + r" INFO Proxy 'ssh' listening on 0\.0\.0\.0:8022 port=8022", line)


@pytest.mark.parametrize("variable", ["JOURNAL_STREAM", "INVOCATION_ID"])
def test_the_journal_stamps_lines_itself(monkeypatch, variable):
    monkeypatch.setenv(variable, "9:12345")
    assert line_of(lambda: log.warning("port is taken")) == "WARNING port is taken"


def test_a_file_wants_stamps_also_under_systemd(monkeypatch, tmp_path):
    monkeypatch.setenv("INVOCATION_ID", "0123")
    with (tmp_path / "log").open("wb") as file, configure(descriptor=file.fileno()):
        log.info("hello")
    assert re.fullmatch(STAMP + " INFO hello\n", (tmp_path / "log").read_text())


def test_a_json_line_is_one_flat_object():
    body = object_of(lambda: log.info("retrying in %s s", 2, extra={"attempt": 1, "ratio": 0.5, "last": None}))
    assert re.fullmatch(STAMP, body.pop("ts"))
    assert body == {
        "level": "info", "logger": "tunnel.test", "msg": "retrying in 2 s", "attempt": 1, "ratio": 0.5, "last": None,
    }  # fmt: skip


def test_a_field_cannot_hide_what_the_record_itself_says():
    body = object_of(lambda: log.info("hello", extra={"level": "fatal", "ts": 1}))
    assert (body["level"], body["level_"], body["ts_"]) == ("info", "fatal", 1)


def test_fields_that_json_does_not_know_become_text():
    body = object_of(lambda: log.info("x", extra={"ratio": float("nan"), "ports": [1, 2], "raw": b"\0"}))
    assert (body["ratio"], body["ports"], body["raw"]) == ("nan", "[1, 2]", "b'\\x00'")


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [(0, ["our info", "others: a warning"]), (1, ["our debug", "our info", "others: a warning"]), (2, None)],
)
def test_verbosity_opens_our_records_first_and_then_all(verbosity, shown):
    def act():
        log.debug("our debug")
        log.info("our info")
        for level, text in ((logging.DEBUG, "a debug"), (logging.INFO, "an info"), (logging.WARNING, "a warning")):
            logging.getLogger("others").log(level, text)

    everything = ["our debug", "our info", "others: a debug", "others: an info", "others: a warning"]
    assert [line.split(" ", 2)[2] for line in lines_of(act, verbosity)] == (shown or everything)


@pytest.mark.parametrize(
    ("level", "verbosity", "wanted"),
    [
        ("debug", 0, (logging.DEBUG, logging.WARNING)), (None, 0, (logging.INFO, logging.WARNING)),
        ("warning", 0, (logging.WARNING, logging.WARNING)), ("error", 0, (logging.ERROR, logging.ERROR)),
        ("error", 1, (logging.DEBUG, logging.WARNING)), ("error", 2, (logging.DEBUG, logging.DEBUG)),
    ],
)  # fmt: skip
def test_a_level_counts_from_now_on_and_v_goes_over_it(level, verbosity, wanted):
    with logs.configure(verbosity):
        logs.set_level(level, verbosity)
        assert (logging.getLogger("tunnel").level, logging.getLogger().level) == wanted


def test_afterwards_logging_is_as_it_was():
    root, ours = logging.getLogger(), logging.getLogger("tunnel")
    before = root.level, ours.level, list(root.handlers)
    lines_of(lambda: None, verbosity=2)
    assert (root.level, ours.level, list(root.handlers)) == before


def test_a_traceback_is_indented_below_its_line():
    def act():
        try:
            raise ValueError("first\nERROR second")
        except ValueError:
            log.exception("peer crashed")

    head, *rest = lines_of(act)
    assert head.endswith("ERROR peer crashed")
    assert rest[-2:] == ["  | ValueError: first", "  | ERROR second"]
    assert all(line.startswith("  | ") for line in rest)
    assert object_of(act)["traceback"].endswith("ValueError: first\nERROR second")


# Fields


def test_context_fields_are_those_of_the_caller_and_extras_go_before_them():
    def act():
        with log_fields(client="lab"):
            with log_fields(proxy="ssh"):
                log.info("a")
                log.info("b", extra={"proxy": "web"})
            log.info("c")
        log.info("d")

    ends = [line.split(" ", 2)[2] for line in lines_of(act)]
    assert ends == ["a client=lab proxy=ssh", "b client=lab proxy=web", "c client=lab", "d"]


async def test_tasks_log_with_the_fields_of_where_they_were_started():
    with pipe() as (source, sink):
        with configure(descriptor=sink):

            async def visit(name):
                with log_fields(visitor=name):
                    await trio.lowlevel.checkpoint()
                    log.info("hello")

            async with trio.open_nursery() as visitors:
                with log_fields(client="lab"):
                    visitors.start_soon(visit, "x")
                visitors.start_soon(visit, "y")
        text = os.read(source, 10_000).decode()
    assert sorted(line.split(" ", 2)[2] for line in text.splitlines()) == [
        "hello client=lab visitor=x",
        "hello visitor=y",
    ]


def test_what_changes_after_the_call_does_not_change_the_record():
    def act():
        ports = [8001]
        log.info("holding %s", ports, extra={"ports": ports})
        ports.append(8002)

    assert line_of(act).endswith("holding [8001] ports=[8001]")


# One client's share


def test_a_client_cannot_flood_the_log_and_what_it_caused_is_counted(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logs, "CLIENT_BURST", 3)

    def act():
        with log_fields(client="loud"):
            for number in range(10):
                log.error("flood %d", number)
            log.debug("asked for, so shown")
        with log_fields(client="quiet"):
            log.info("still heard")
        log.info("the server's own")
        now[0] += 0.21  # one record's worth
        with log_fields(client="loud"):
            log.info("again")
            log.info("too soon")

    words = [line.split(" ", 2)[2] for line in lines_of(act, verbosity=1)]
    assert words == [
        *(f"flood {number} client=loud" for number in range(3)),
        "asked for, so shown client=loud",
        "still heard client=quiet",
        "the server's own",
        "log records of this client were left out: it causes more than anybody reads client=loud left_out=7",
        "again client=loud",
    ]


def test_a_share_of_the_log_fills_again_to_its_bound_and_no_higher():
    quota = Quota(burst=2, per_second=0.5)
    passed = [quota.spend("a", now) for now in (0.0, 0.0, 0.0, 1.9, 2.0, 100.0, 100.0, 100.0)]
    assert passed == [0, 0, None, None, 2, 0, 0, None]


def test_who_was_silent_longest_is_forgotten_when_there_are_too_many():
    quota = Quota(burst=1, per_second=0.0, max_parties=2)
    assert [quota.spend(party, 0.0) for party in "abbaca"] == [0, 0, None, None, 0, None]
    assert [quota.spend(party, 0.0) for party in "b"] == [0]


# Mistakes of callers


def test_a_format_that_does_not_fit_its_arguments_still_gives_a_line():
    assert line_of(lambda: log.info("port %d", "http")).endswith("INFO port %d ('http',)")
    assert line_of(lambda: log.info("port %d of %s", [1])).endswith("INFO port %d of %s ([1],)")


def test_an_object_that_cannot_be_shown_costs_its_own_record_and_no_more():
    class Broken:
        def __str__(self):
            raise RuntimeError("no words")

    def act():
        log.info("this is %s", Broken())
        log.info("next")

    broken, following = [line.split(" ", 1)[1] for line in lines_of(act)]
    assert re.fullmatch(r"INFO log record of .*test_logs\.py:\d+ cannot be formatted: RuntimeError", broken)
    assert following == "INFO next"


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_number_too_long_to_be_written_costs_its_own_record_and_no_more(format):
    first, second = lines_of(lambda: [log.info("x", extra={"n": 10**5000}), log.info("next")], format=format)
    assert "log record cannot be formatted: ValueError" in first
    assert "next" in second


# What peers may try


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    "attack",
    [
        "x\nERROR all is lost",
        "x\r\x1b[2K",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\u2028line",
        "\u202eevil",
        "\x00\x7f",
        "\ud800",
    ],
)
def test_a_peer_can_inject_neither_lines_nor_terminal_escapes(attack, format):
    line = line_of(lambda: log.info("peer says %s", attack, extra={"agent": attack}), format)
    assert line.isprintable()
    if format == "json":
        assert json.loads(line)["agent"] == attack


def test_a_peer_cannot_add_fields_by_a_value():
    line = line_of(lambda: log.info("hello", extra={"agent": 'x" client="root'}))
    assert line.endswith(r'hello agent="x\" client=\"root"')


def test_of_all_characters_only_printable_ones_come_through():
    for first in range(0, 0x11_0000, 0x1000):
        text = "".join(map(chr, range(first, first + 0x1000, 1 if first < 0x1_0000 else 97)))
        assert escape(text).isprintable()
        assert escape("".join(filter(str.isprintable, text))) == "".join(filter(str.isprintable, text))


def test_long_values_are_cut():
    body = object_of(lambda: log.info("a%s", "b" * 100_000, extra={"agent": "c" * 100_000}))
    assert body["msg"] == "a" + "b" * log_lines.MAX_VALUE_CHARS + "…"
    assert body["agent"] == "c" * log_lines.MAX_VALUE_CHARS + "…"


# Secrets


@pytest.mark.parametrize("format", ["text", "json"])
def test_tokens_are_shown_nowhere(format):
    def act():
        log.info(f"made {TOKEN}")  # noqa: G004  what is to be caught
        log.info("made %s", TOKEN)
        log.info("made %s", [TOKEN])
        log.info("made %d", TOKEN)
        log.info("made", extra={"token": TOKEN, "nested": {"deep": (TOKEN,)}})
        with log_fields(token=TOKEN):
            log.info("made")
        try:
            raise ValueError(f"bad token {TOKEN!r}")
        except ValueError:
            log.exception("failed")

    text = "\n".join(lines_of(act, format=format))
    assert TOKEN not in text
    assert TOKEN[3:20] not in text
    assert text.count("tt_…") + text.count("tt_\\u2026") == 8


def test_no_cut_of_a_traceback_lays_a_token_open(monkeypatch):
    def act():
        try:
            raise ValueError(TOKEN + "!")
        except ValueError:
            log.exception("failed")

    for length in range(1, 60):
        monkeypatch.setattr(log_lines, "MAX_TRACEBACK_CHARS", length)
        assert TOKEN[-6:] not in "\n".join(lines_of(act))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"TRIO_TUNNEL_TOKEN={TOKEN} trio-tunnel", "TRIO_TUNNEL_TOKEN=tt_… trio-tunnel"),
        (f"query=%3D{TOKEN}", "query=%3Dtt_…"),
        (TOKEN[:9], "tt_…"),
        ("(b'authorization', b'Bearer s3cret')", "(b'authorization', b'Bearer …')"),
        ("Authorization: Basic Zm9vOmJhcg==\r\nHost: x", "Authorization: Basic …\r\nHost: x"),
        ("header Bearer 0123456789abcdef0123", "header Bearer …"),
        ("mqtt_bridge listens", "mqtt_bridge listens"),
        ("no bearer token was sent", "no bearer token was sent"),
        ("the tt_ prefix", "the tt_ prefix"),
    ],
)
def test_secrets_are_told_from_ordinary_words(text, shown):
    assert redact(text) == shown


# A standard error that does not take lines


def read_until(source, is_enough):
    text = ""
    while not is_enough(text):
        text += os.read(source, 65536).decode()
    return text


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_pipe_nobody_reads_stops_no_caller_and_the_loss_is_told(monkeypatch, format):
    monkeypatch.setattr(logs, "MAX_QUEUED", 500)
    monkeypatch.setattr(logs, "DROP_REPORT_SECONDS", 1000.0)
    with pipe() as (source, sink), configure(format=format, descriptor=sink):
        started = time.perf_counter()
        for i in range(5000):
            log.info("record %d %s", i, "x" * 100)
        assert time.perf_counter() - started < STUCK_SECONDS
        text = read_until(source, lambda text: text.count("record ") + dropped(text) == 5000)
        assert dropped(text) > 1000


def dropped(text):
    report = "log records were dropped, as standard error did not take them"
    numbers = re.findall(rf'{report} dropped=(\d+)|{report}", "dropped": (\d+)', text)
    return sum(int(number or other) for number, other in numbers)


def test_leaving_with_a_pipe_nobody_reads_takes_no_longer_than_the_flush(monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.05)
    with pipe() as (source, sink):
        started = time.perf_counter()
        with configure(descriptor=sink):
            for _ in range(2000):
                log.info("x" * 100)
            [writer] = [thread for thread in threading.enumerate() if thread.name == "log writer"]
        assert 0.05 <= time.perf_counter() - started < STUCK_SECONDS
        os.close(source)  # lets the writer go
        writer.join(STUCK_SECONDS)
        assert not writer.is_alive()


def test_a_process_whose_pipe_nobody_reads_still_exits():
    script = (
        "import logging; from tunnel import logs; logs.FLUSH_SECONDS = 0.05\n"
        "with logs.configure():\n"
        "    for _ in range(3000): logging.getLogger('tunnel').info('x' * 100)"
    )
    with pipe() as (_, sink):
        assert subprocess.run([sys.executable, "-c", script], stderr=sink, timeout=60, check=False).returncode == 0


def test_all_that_was_logged_is_written_before_leaving():
    lines = lines_of(lambda: [log.info("record %d", i) for i in range(1000)])
    assert [line.rpartition(" ")[2] for line in lines] == [str(i) for i in range(1000)]


def test_after_a_full_disk_the_loss_is_told_on_a_line_of_its_own(monkeypatch):
    is_full = threading.Event()
    asked = threading.Semaphore(0)
    write = os.write

    def write_or_fail(descriptor, data):
        if threading.current_thread().name != "log writer":
            return write(descriptor, data)
        asked.release()
        if is_full.is_set():
            if len(data) > 20:
                return write(descriptor, data[:20])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    def act():
        is_full.set()
        monkeypatch.setattr(os, "write", write_or_fail)
        log.info("lost, cut short")
        for _ in range(3):  # two that fit, one that fails
            assert asked.acquire(timeout=STUCK_SECONDS)
        is_full.clear()
        log.info("back")

    lines = lines_of(act)
    assert lines[1].endswith("INFO back")
    assert lines[2].endswith("WARNING log records were dropped, as standard error did not take them dropped=1")
    assert len(lines) == 3


def test_a_non_blocking_pipe_is_waited_for():
    with pipe() as (source, sink):
        os.set_blocking(sink, False)
        with configure(descriptor=sink):
            for i in range(3000):
                log.info("record %d %s", i, "x" * 100)
            text = read_until(source, lambda text: "record 2999 " in text)
    assert text.count("record") == 3000


def test_a_process_started_without_standard_error_writes_to_no_other_descriptor(tmp_path):
    script = (
        "import logging, os, sys; from tunnel.logs import configure\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "assert file == 2, file\n"
        "with configure(): logging.getLogger('tunnel').info('hello')"
    )
    command = f'exec "{sys.executable}" -c "$0" "$1" 2>&-'
    subprocess.run(["sh", "-c", command, script, str(tmp_path / "other")], check=True, timeout=60)
    assert (tmp_path / "other").read_bytes() == b""


# Too many of one kind


@pytest.fixture
def limited(caplog):
    caplog.set_level(logging.INFO, "tunnel")
    now = [0.0]
    rate = RateLimited(log, lambda: now[0], count=2, interval_seconds=60.0, max_keys=3)

    def seen():
        records = [(r.getMessage(), getattr(r, "key", None), getattr(r, "suppressed", None)) for r in caplog.records]
        caplog.clear()
        return records

    return rate, now, seen


SUMMARY = "similar messages were not logged"


def test_a_key_is_logged_a_few_times_and_then_counted(limited):
    rate, now, seen = limited
    for i in range(5):
        rate.log(logging.INFO, "login failed %d", i, key="192.0.2.1")
    rate.log(logging.INFO, "login failed", key="192.0.2.2")
    assert seen() == [("login failed 0", None, None), ("login failed 1", None, None), ("login failed", None, None)]
    now[0] = 59.9
    rate.log(logging.INFO, "login failed", key="192.0.2.1")
    assert seen() == []
    now[0] = 60.0
    rate.log(logging.INFO, "login failed", key="192.0.2.1")
    assert seen() == [(SUMMARY, "192.0.2.1", 4), ("login failed", None, None)]


def test_a_flush_tells_what_no_later_call_would(limited):
    rate, _, seen = limited
    for _ in range(5):
        rate.log(logging.INFO, "x", key="a")
    seen()
    rate.flush()
    rate.flush()
    assert seen() == [(SUMMARY, "a", 3)]


def test_a_flood_of_keys_shares_one_limit(limited):
    rate, now, seen = limited
    for i in range(100):
        rate.log(logging.INFO, "from %d", i, key=str(i))
    assert [message for message, _, _ in seen()] == ["from 0", "from 1", "from 2", "from 3", "from 4"]
    now[0] = 60.0
    rate.log(logging.INFO, "from new", key="new")
    assert seen() == [(SUMMARY, "(others)", 95), ("from new", None, None)]


def test_a_level_that_is_not_shown_is_not_counted(limited):
    rate, _, seen = limited
    for _ in range(5):
        rate.log(logging.DEBUG, "x", key="a")
    rate.log(logging.INFO, "y", key="a")
    rate.flush()
    assert seen() == [("y", None, None)]


def test_the_summary_has_the_gravest_level_it_stands_for(limited, caplog):
    rate, _, _ = limited
    for level in (logging.INFO, logging.INFO, logging.ERROR, logging.INFO):
        rate.log(level, "x", key="a")
    caplog.clear()
    rate.flush()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
