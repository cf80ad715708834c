"""Several targets as their users meet them: shared, killed, reloaded, in bursts, hanging; with real processes."""

import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from threading import Event

import pytest
from processes import (
    LOOPBACK,
    Stage,
    allowed,
    ask_echo,
    can_listen,
    dial,
    free_port,
    held_port,
    read_exactly,
)
from services import Services, echo
from target_services import Named, Trusted, at, connect, entry, pool_of, refused_in, served, shown, visit

pytestmark = pytest.mark.slow
QUICK_CHECK = "[proxies.health_check]\ninterval = 0.5\ntimeout = 0.4\nfall = 2\n"


# Several


def test_visitors_are_shared_by_weight_or_in_turn_and_a_backup_gets_none(
    stage: Stage, named: Callable[..., Named]
) -> None:
    a, b, c = (named(name).port for name in "abc")
    web, turn = free_port(), free_port()
    config = entry("web", web, at(a, ", weight = 3"), at(b), at(c, ", backup = true"))
    config += entry("turn", turn, at(a), at(b), at(c), more='balance = "round_robin"\n')
    _, client = connect(stage, config, "web", "turn")
    shares = served(web, 300)
    assert set(shares) == {"a", "b"}
    assert 215 <= shares["a"] <= 235
    assert served(turn, 300) == {"a": 100, "b": 100, "c": 100}
    with ExitStack() as inside:  # those who stay count, too
        names = Counter[str]()
        for _ in range(40):
            visitor = inside.enter_context(dial(web))
            visitor.sendall(b"hold\n")
            names[visitor.recv(100).split()[0].decode()] += 1
        assert names == {"a": 30, "b": 10}
        figures = pool_of(client)
        assert figures["lent"] == figures["states"]["in_use"] == 40
        assert {key: site["users"] for key, site in figures["addresses"].items()} == {
            f"{LOOPBACK}:{a}": 30, f"{LOOPBACK}:{b}": 10, f"{LOOPBACK}:{c}": 0,
        }  # fmt: skip
    figures = stage.until(lambda: (found := pool_of(client))["lent"] == 0 and found, "nobody is inside")
    assert figures["leases"] == figures["cold_dials"] == figures["misses"] == figures["retired"]["used"] == 340
    assert "targets of web: none kept ready, 0 in use; 340 of 340 visitors connected" in shown(stage, client)


def test_a_service_killed_under_traffic_costs_no_visitor_and_is_used_again(
    stage: Stage, named: Callable[..., Named]
) -> None:
    first, second, spare = (named(name) for name in ("first", "second", "spare"))
    web = free_port()
    config = entry("web", web, at(first.port, ", weight = 3"), at(second.port), at(spare.port, ", backup = true"))
    _, client = connect(stage, config, "web")
    over = Event()

    def come_and_go() -> list[tuple[float, str]]:
        visits = []
        while not over.is_set():
            began = time.monotonic()
            try:
                visits.append((began, visit(web)[0]))
            except (OSError, ValueError) as exc:
                visits.append((began, f"failed: {exc}"))
        return visits

    with ThreadPoolExecutor(3) as threads:
        visitors = [threads.submit(come_and_go) for _ in range(3)]
        try:
            stage.until(lambda: pool_of(client)["leases"] > 100, "traffic")
            first.kill()
            killed_at = time.monotonic()
            stage.until(lambda: pool_of(client)["quarantines"] == 1, "the quarantine")
            text = shown(stage, client)
            assert f"{LOOPBACK}:{first.port} is in quarantine after " in text
            assert re.search(r"Connection (refused|reset)|validate\.reset", text)  # inside its backlog
            before = pool_of(client)
            stage.until(lambda: pool_of(client)["leases"] > before["leases"] + 300, "traffic goes on")
            after = pool_of(client)
            refused = [figures["failures"].get("dial.refused", 0) for figures in (before, after)]
            # Those of its prober, after 1, 2, 4, 8, 16 s: on a fast machine it has not been there yet.
            assert refused[1] - refused[0] <= 5
            first.start()
            back_at = time.monotonic()
            address = f"{LOOPBACK}:{first.port}"
            stage.until(lambda: not pool_of(client)["addresses"][address]["failures"], "it is well again", 8)
            assert time.monotonic() - back_at < allowed(6)
            stage.until(lambda: visit(web)[0] == "first", "it is used again", 2)
        finally:
            over.set()
        visits = [found for thread in visitors for found in thread.result(30)]
    failed = [(began - killed_at, word) for began, word in visits if word.startswith("failed")]
    assert [when for when, _ in failed if when > 0] == []
    assert len(failed) <= 3  # inside when it was killed
    assert not any(word == "spare" for _, word in visits)


def test_when_all_others_have_failed_the_backup_serves_and_they_come_back(
    stage: Stage, named: Callable[..., Named]
) -> None:
    main, spare = named("main"), named("spare")
    web = free_port()
    _, client = connect(stage, entry("web", web, at(main.port), at(spare.port, ", backup = true")), "web")
    main.kill()
    assert served(web, 30) == {"spare": 30}
    main.start()
    stage.until(lambda: visit(web)[0] == "main", "the main one is back", 6)
    assert served(web, 30) == {"main": 30}
    figures = pool_of(client)
    assert figures["leases"] == figures["hits"] + figures["misses"]


# Reload


def test_a_download_goes_on_to_the_byte_while_all_that_concerns_targets_changes(
    stage: Stage, named: Callable[..., Named], trusted: Trusted
) -> None:
    old, new = named("old"), named("new")
    web = free_port()
    _, client = connect(stage, entry("web", web, at(old.port), more="hot = 2\n"), "web", env=trusted.env)

    def change(*targets: str, more: str = "") -> None:
        start = len(client.err)
        client.config.write_text(entry("web", web, *targets, more=more))
        client.send(signal.SIGHUP)
        client.wait_log("read again: [0-9]+ change", start=start)

    block = os.urandom(256 * 1024)
    with dial(web) as inside:
        inside.sendall(b"hold\n")
        assert inside.recv(100).startswith(b"old ")

        def exchange() -> None:
            with ThreadPoolExecutor(1) as thread:
                sent = thread.submit(inside.sendall, block)
                assert read_exactly(inside, len(block)) == block
                sent.result(10)

        exchange()
        change(at(old.port), at(new.port), more='hot = 6\nbalance = "round_robin"\n')
        stage.until(lambda: old.connections + new.connections == 7, "six hot ones and a visitor")
        shares = served(web, 20)  # what is ready goes before whose turn it is
        assert min(shares["old"], shares["new"]) >= 7
        exchange()
        change(at(new.port), more="hot = 1\n" + QUICK_CHECK)  # the visitor's target is removed
        assert served(web, 10) == {"new": 10}
        stage.until(lambda: old.connections == 1, "the unused are closed, the visitor's is not")
        exchange()
        start = len(client.out)
        new.close_listener()
        client.wait_status("web", start=start, reason="target_down")
        assert not can_listen(web)
        change(at(new.port), more='hot = 1\nwhen_down = "close"\n' + QUICK_CHECK)
        stage.until(lambda: can_listen(web), "the port is released")
        exchange()
        change(at(new.port), more="hot = 0\n")  # nobody asks any more whether it is down
        stage.until(lambda: not can_listen(web), "the port is bound")
        client.wait_healthy("web", start=len(client.out) - 1)
        new.open_listener()
        assert served(web, 10) == {"new": 10}
        change(trusted.at, more="hot = 2\n")
        stage.until(lambda: pool_of(client)["states"]["available"] == 2, "TLS, hot")
        stage.until(lambda: new.connections == 0, "the one before has nobody")
        exchange()
    stage.until(lambda: old.connections == 0, "the last visitor has gone")
    assert client.proxies()["web"]["status"] == "healthy"
    assert "Traceback" not in client.stderr


# Many at once, and targets that hang or refuse


def test_a_burst_of_cold_visitors_is_served_within_a_second(stage: Stage, services: Services) -> None:
    """B26."""
    trusted = Trusted(stage, services, echo)
    one, two = services.add(echo), services.add(echo)
    targets = {"name": [f'"localhost:{one}"'], "tls": [trusted.at], "two": [at(one), at(two)]}
    ports = {name: free_port() for name in targets}
    config = "".join(entry(name, ports[name], *where) for name, where in targets.items())
    _, client = connect(stage, config, *targets, env=trusted.env)

    def visit_once(port: int) -> float:
        began = time.monotonic()
        ask_echo(port)
        return time.monotonic() - began

    for name, port in ports.items():
        with ThreadPoolExecutor(200) as visitors:
            assert max(visitors.map(visit_once, [port] * 200)) < allowed(1), name
        figures = stage.until(
            lambda name=name: (found := pool_of(client, name))["lent"] == 0 and found, "all have gone"
        )
        assert (figures["leases"], figures["hits"] + figures["misses"], figures["failures"]) == (200, 200, {})
        assert client.proxies()[name]["refused"] == {}


def test_a_target_that_hangs_ends_at_its_deadline_and_delays_nobody_else(stage: Stage, echo_port: int) -> None:
    with held_port() as silent, ExitStack() as backlog:
        silent.listen(0)
        for _ in range(4):  # it is full now, and SYNs go unanswered
            late = backlog.enter_context(socket.socket())
            late.setblocking(False)
            late.connect_ex(silent.getsockname())
        hangs = silent.getsockname()[1]
        ports = {name: free_port() for name in ("alone", "either", "well")}
        config = entry("alone", ports["alone"], at(hangs)) + entry("either", ports["either"], at(hangs), at(echo_port))
        config += entry("well", ports["well"], at(echo_port), f'"localhost:{echo_port}"')
        config += "[limits]\ndial_seconds = 2\n"
        _, client = connect(stage, config, *ports)
        with ThreadPoolExecutor(12) as visitors:
            waiting = [visitors.submit(refused_in, ports["alone"]) for _ in range(5)]
            either = [visitors.submit(ask_echo, ports["either"]) for _ in range(6)]
            began = time.monotonic()
            for _ in range(20):
                ask_echo(ports["well"])
            assert time.monotonic() - began < allowed(1)
            assert all(1.9 < found.result(30) < allowed(2.5) for found in waiting)
            for visitor in either:
                visitor.result(30)
        began = time.monotonic()
        ask_echo(ports["either"])  # everybody knows by now
        assert time.monotonic() - began < allowed(0.5)
        assert client.proxies()["alone"]["refused"] == {"dial_timeout": 5}
        assert "in quarantine after" in shown(stage, client)


def test_when_all_targets_refuse_a_visitor_is_closed_at_once_and_the_log_stays_short(stage: Stage) -> None:
    """B25."""
    web = free_port()
    _, client = connect(stage, entry("web", web, at(free_port()), at(free_port())), "web")
    assert median(refused_in(web) for _ in range(20)) < allowed(0.1)  # a busy machine keeps one or the other waiting
    figures = pool_of(client)
    assert (figures["misses"], figures["leases"], figures["waiting"], figures["quarantines"]) == (20, 0, 0, 2)
    assert client.proxies()["web"]["refused"] == {"dial_refused": 20}
    assert client.stderr.count("a visitor of proxy 'web' was refused") <= 2  # once for each target
