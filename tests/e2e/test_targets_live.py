"""Targets as their users meet them: several, hot, checked, behind TLS, gone and back; with real processes."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import trio
import trustme
from processes import (
    LOOPBACK,
    Client,
    Server,
    Stage,
    ask_echo,
    can_listen,
    dial,
    free_port,
    held_port,
    read_all,
    read_exactly,
)
from services import GREETING, Services, echo, greet_then_echo

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("named_service.py")
QUICK_CHECK = "[proxies.health_check]\ninterval = 0.5\ntimeout = 0.4\nfall = 2\n"
QUICK_SECONDS = 2.0  # by then two checks have failed and the server knows


class Named:
    """A `named_service`, which can be killed and started again."""

    def __init__(self, name: str, port: int = 0, *, idle_seconds: float = 0.0) -> None:
        self.name, self.port, self._idle_seconds = name, port or free_port(), idle_seconds
        self.start()

    def start(self) -> None:
        words = [sys.executable, PROGRAM, self.name, str(self.port), str(self._idle_seconds)]
        self._popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._wait("listening")

    def _wait(self, word: str) -> None:
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline().decode().strip() == word

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(10)
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def close_listener(self) -> None:
        self._popen.send_signal(signal.SIGUSR1)
        self._wait("closed")

    def open_listener(self) -> None:
        self._popen.send_signal(signal.SIGUSR2)
        self._wait("listening")

    @property
    def connections(self) -> int:
        """Open TCP connections that it has accepted, as its process has them."""
        assert self._popen.poll() is None
        return len(sockets_of(self._popen.pid)) - 1  # its listener

    def __enter__(self) -> "Named":
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self.kill()


def sockets_of(pid: int) -> set[str]:
    """TCP sockets among the descriptors of a process, by inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    known = {row[9] for row in rows}
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            word = os.readlink(link)
        except FileNotFoundError:
            continue
        if word.startswith("socket:[") and word[8:-1] in known:
            found.add(word[8:-1])
    return found


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture
def named() -> Iterator[Callable[..., Named]]:
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(Named(*words, **more))


def entry(name: str, port: int, *targets: str, more: str = "") -> str:
    """A proxy with several targets, each as it stands in the file; `more` keys, then tables."""
    return (
        f'[[proxies]]\nname = "{name}"\npublish_addr = "{LOOPBACK}"\npublish_port = {port}\n'
        f"targets = [{', '.join(targets)}]\n{more}"
    )


def at(port: int, more: str = "") -> str:
    return f'{{ target = "{LOOPBACK}:{port}"{more} }}'


def visit(port: int) -> tuple[str, int]:
    """Who served, and the number of the connection there."""
    with dial(port) as visitor:
        visitor.sendall(b"who\n")
        name, number, _ = read_all(visitor).split()
    return name.decode(), int(number)


def served(port: int, visitors: int) -> Counter[str]:
    return Counter(visit(port)[0] for _ in range(visitors))


def pool_of(client: Client, proxy: str = "web") -> dict[str, Any]:
    return client.stats()["connection_pool"]["targets"][proxy]


def shown(stage: Stage, client: Client) -> str:
    return stage.run("status", "--admin", f"{LOOPBACK}:{client.admin}").stdout


def refused_in(port: int) -> float:
    """Seconds until a visitor is closed without a byte."""
    began = time.monotonic()
    with suppress(ConnectionResetError), dial(port, seconds=20) as visitor:  # law 2: an end that is no FIN is an error
        assert visitor.recv(1) == b""
    return time.monotonic() - began


def connect(stage: Stage, config: str, *names: str, env: dict[str, str] | None = None) -> tuple[Server, Client]:
    server = stage.serve()
    client = stage.connect(server, config=config, admin=True, env=env)
    client.wait_healthy(*names)
    return server, client


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
            assert "Connection refused" in text
            before = pool_of(client)
            stage.until(lambda: pool_of(client)["leases"] > before["leases"] + 300, "traffic goes on")
            after = pool_of(client)
            tries = after["failures"]["dial.refused"] - before["failures"]["dial.refused"]
            assert tries <= 3  # those of its prober
            first.start()
            back_at = time.monotonic()
            address = f"{LOOPBACK}:{first.port}"
            stage.until(lambda: not pool_of(client)["addresses"][address]["failures"], "it is well again", 8)
            assert time.monotonic() - back_at < 6
            stage.until(lambda: visit(web)[0] == "first", "it is used again", 2)
        finally:
            over.set()
        visits = [found for thread in visitors for found in thread.result(10)]
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


# Health


def test_checks_of_each_kind_tell_that_a_target_has_fallen_and_that_it_is_back(
    stage: Stage, services: Services, named: Callable[..., Named], trusted: "Trusted"
) -> None:
    plain = named("plain")
    heads: list[bytes] = []

    async def page(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := await stream.receive_some()):
                return
            head += more
        heads.append(head)
        await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)

    status = 204
    web, secure = services.add(page), named("secure without TLS")
    ports = {name: free_port() for name in ("tcp", "tls", "http")}
    http = 'type = "http"\npath = "/healthz"\nexpect_status = [204]\nhost = "www.example.com"\n'
    config = entry("tcp", ports["tcp"], at(plain.port), more=QUICK_CHECK)
    config += entry("http", ports["http"], at(web), more=QUICK_CHECK + http)
    config += entry("tls", ports["tls"], trusted.at, more=QUICK_CHECK + 'type = "tls"\n')
    server, client = connect(stage, config, *ports, env=trusted.env)
    assert stage.until(lambda: heads, "it is asked")[0].startswith(
        b"GET /healthz HTTP/1.1\r\nHost: www.example.com\r\n"
    )
    start, began = len(client.out), time.monotonic()
    plain.close_listener()
    status = 500
    told = {name: client.wait_status(name, start=start, reason="target_down") for name in ("tcp", "http")}
    assert time.monotonic() - began < QUICK_SECONDS
    assert {found["status"] for found in told.values()} == {"unhealthy"}
    assert "Connection refused" in told["tcp"]["error_message"]
    assert "GET /healthz answered 500" in told["http"]["error_message"]
    assert "target_down" in shown(stage, client)
    assert server.proxies()["tcp"]["reason"] == "target_down"
    plain.open_listener()
    status = 204
    client.wait_healthy("tcp", "http", start=len(client.out), seconds=QUICK_SECONDS)
    # TLS: the same port without it.
    path = client.config
    path.write_text(path.read_text().replace(trusted.at, at(secure.port)))
    start = len(client.out)
    client.send(signal.SIGHUP)
    found = client.wait_status("tls", start=start, reason="target_down")
    assert "TLS" in found["error_message"]


def test_while_its_target_is_down_a_proxy_keeps_its_port_or_releases_it(
    stage: Stage, named: Callable[..., Named]
) -> None:
    one, other = named("one"), named("other")
    keep, close, two = free_port(), free_port(), free_port()
    config = entry("keep", keep, at(one.port), more=QUICK_CHECK)
    config += entry("close", close, at(one.port), more='when_down = "close"\n' + QUICK_CHECK)
    config += entry("two", two, at(one.port), at(other.port), more=QUICK_CHECK)
    server, client = connect(stage, config, "keep", "close", "two")
    with dial(close) as inside:
        inside.sendall(b"hold\n")
        assert inside.recv(100).startswith(b"one ")
        start, began = len(client.out), time.monotonic()
        one.close_listener()
        for name in ("keep", "close"):
            client.wait_status(name, start=start, reason="target_down", status="unhealthy")
        assert time.monotonic() - began < QUICK_SECONDS
        stage.until(lambda: pool_of(client, "two")["addresses"][f"{LOOPBACK}:{one.port}"]["down"], "two knows")

        assert max(refused_in(keep) for _ in range(5)) < 0.1
        assert client.proxies()["keep"]["refused"] == server.proxies()["keep"]["refused"] == {"target_down": 5}
        stage.until(lambda: can_listen(close), "the port is released")
        with pytest.raises(ConnectionRefusedError):
            dial(close)
        assert served(two, 20) == {"other": 20}
        assert not any(json.loads(line)["proxy_name"] == "two" for line in client.out[start:])
        assert f"  {LOOPBACK}:{one.port} is down: " in shown(stage, client)

        start = len(client.out)
        with held_port(close):
            one.open_listener()
            taken = client.wait_status("close", start=start, reason="addr_in_use")
            assert taken["error_message"] == f"Port {close} is already in use by another process"
        client.wait_healthy("keep", "close", start=start)
        assert visit(close)[0] == visit(keep)[0] == "one"
        inside.sendall(b"still here")
        assert read_exactly(inside, 10) == b"still here"
    assert server.proxies()["two"]["refused"] == {}


# Hot


class Trusted:
    """A TLS service for `nas.local`, whose CA the client trusts with `env`."""

    def __init__(self, stage: Stage, services: Services, handler: Callable[[Any], Any]) -> None:
        ca = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("nas.local").configure_cert(context)
        path = stage.path("ca.pem")
        ca.cert_pem.write_to_path(str(path))
        self.env = {"SSL_CERT_FILE": str(path)}

        async def closing(stream: trio.SSLStream[trio.SocketStream]) -> None:
            try:
                await handler(stream)
                await stream.aclose()  # TLS tells its end, too
            except ssl.SSLError:
                pass

        self.port = services.add_tls(closing, context)
        self.at = self.named("nas.local")

    def named(self, name: str, more: str = "") -> str:
        return f'{{ target = "tls://{name}:443", connect_to = "{LOOPBACK}:{self.port}"{more} }}'


@pytest.fixture
def trusted(stage: Stage, services: Services) -> Trusted:
    return Trusted(stage, services, greet_then_echo)


def test_a_hot_connection_is_open_before_its_visitor_and_serves_one_only(
    stage: Stage, named: Callable[..., Named]
) -> None:
    service = named("a")
    web = free_port()
    _, client = connect(stage, entry("web", web, at(service.port), more="hot = 4\n"), "web")
    stage.until(lambda: service.connections == 4, "four are open")
    before = descriptors(client.pid)
    numbers = []
    for visits in range(1, 21):
        numbers.append(visit(web)[1])
        stage.until(lambda: pool_of(client)["states"]["available"] == 4, "the next one is open", 2)
        assert pool_of(client)["hits"] == visits
    assert sorted(numbers) == sorted(set(numbers))
    assert set(numbers) <= set(range(1, 25))
    figures = pool_of(client)
    assert (figures["handshakes"], figures["cold_dials"], figures["misses"], figures["hit"]) == (24, 0, 0, 1.0)
    assert "targets of web: 4 ready, 0 in use; 100.0% of 20 found one ready" in shown(stage, client)
    stage.until(lambda: service.connections == 4, "used ones are closed")
    stage.until(lambda: descriptors(client.pid) <= before, "descriptors are flat")

    service.kill()
    service.start()  # nobody came meanwhile: whoever comes now is served all the same
    assert visit(web)[0] == "a"
    stage.until(lambda: service.connections == 4, "hot again", 8)
    client.interrupt()
    assert client.wait() == 0
    stage.until(lambda: service.connections == 0, "nothing is left")


def test_a_service_that_closes_what_is_idle_never_costs_a_visitor(stage: Stage, named: Callable[..., Named]) -> None:
    service = named("a", idle_seconds=0.3)
    web = free_port()
    _, client = connect(stage, entry("web", web, at(service.port), more="hot = 2\n"), "web")
    for _ in range(6):
        time.sleep(0.35)  # what was hot then is dead now
        assert visit(web)[0] == "a"
    figures = pool_of(client)
    assert figures["retired"]["dead"] >= 6
    assert figures["leases"] == figures["hits"] + figures["misses"] == 6
    assert figures["failures"] == figures["retries"] == {}


def test_who_speaks_first_is_heard_whole_over_tcp_tls_and_a_unix_socket(
    stage: Stage, services: Services, trusted: Trusted
) -> None:
    path = stage.path("greeter")
    services.add_unix(greet_then_echo, path)
    targets = {"tcp": at(services.add(greet_then_echo)), "tls": trusted.at, "unix": f'"unix:{path}"'}
    ports = {name: free_port() for name in targets}
    config = "".join(entry(name, ports[name], target, more="hot = 3\n") for name, target in targets.items())
    _, client = connect(stage, config, *targets, env=trusted.env)
    for name, port in ports.items():
        stage.until(lambda name=name: pool_of(client, name)["states"]["available"] == 3, "hot")
        for _ in range(10):
            with dial(port) as visitor:
                assert read_exactly(visitor, len(GREETING)) == GREETING
                visitor.sendall(b"hello")
                assert read_exactly(visitor, 5) == b"hello"
        assert pool_of(client, name)["leases"] == 10


def test_hot_connections_are_replaced_at_their_age_the_new_one_first(stage: Stage, named: Callable[..., Named]) -> None:
    service = named("a")
    web = free_port()
    config = entry("web", web, at(service.port), more="[proxies.pool]\nmin = 3\nmax_age = 0.5\n")
    _, client = connect(stage, config, "web")
    stage.until(lambda: service.connections == 3, "open")
    least = 3
    while pool_of(client)["retired"].get("age", 0) < 6:
        least = min(least, pool_of(client)["states"]["available"])
    assert least == 3
    assert visit(web)[0] == "a"
    figures = pool_of(client)
    assert (figures["hits"], figures["misses"]) == (1, 0)
    assert figures["handshakes"] >= 9
    stage.until(lambda: service.connections <= 4, "those that were replaced are closed")  # one more while one is new


# TLS


def test_a_tls_target_is_verified_by_name_wherever_it_is(stage: Stage, services: Services) -> None:
    trusted = Trusted(stage, services, echo)
    targets = {
        "pinned": trusted.at,
        "renamed": trusted.named("10.9.9.9", ', server_name = "nas.local"'),
        "wrong": trusted.named("other.local"),
    }
    ports = {name: free_port() for name in targets}
    config = "".join(entry(name, ports[name], target) for name, target in targets.items())
    _, client = connect(stage, config, *targets, env=trusted.env)
    ask_echo(ports["pinned"])
    ask_echo(ports["renamed"])
    assert refused_in(ports["wrong"]) < 1
    why = "tls://other.local:443 has a certificate for another name: "
    client.wait_log(why)
    assert why in shown(stage, client)
    assert client.proxies()["wrong"]["refused"] == {"dial_failed": 1}


def test_without_its_authority_a_tls_target_is_refused_with_the_remedy(stage: Stage, trusted: Trusted) -> None:
    web = free_port()
    _, client = connect(stage, entry("web", web, trusted.at), "web")
    assert refused_in(web) < 1
    client.wait_log(
        "not trusted: .*; its CA must be one of the system's, or stand in the file that SSL_CERT_FILE names"
    )


# Reload


def test_a_download_goes_on_to_the_byte_while_all_that_concerns_targets_changes(
    stage: Stage, named: Callable[..., Named], trusted: Trusted
) -> None:
    old, new = named("old"), named("new")
    web = free_port()
    _, client = connect(stage, entry("web", web, at(old.port), more="hot = 2\n"), "web", env=trusted.env)

    def change(*targets: str, more: str = "") -> None:
        client.config.write_text(entry("web", web, *targets, more=more))
        start = len(client.err)
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
        assert served(web, 20) == {"old": 10, "new": 10}
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
        assert new.connections == 0
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
            assert max(visitors.map(visit_once, [port] * 200)) < 1, name
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
            assert time.monotonic() - began < 1
            assert all(1.9 < found.result(10) < 2.5 for found in waiting)
            for visitor in either:
                visitor.result(10)
        began = time.monotonic()
        ask_echo(ports["either"])  # everybody knows by now
        assert time.monotonic() - began < 0.5
        assert client.proxies()["alone"]["refused"] == {"dial_timeout": 5}
        assert "in quarantine after" in shown(stage, client)


def test_when_all_targets_refuse_a_visitor_is_closed_at_once_and_the_log_stays_short(stage: Stage) -> None:
    """B25."""
    web = free_port()
    _, client = connect(stage, entry("web", web, at(free_port()), at(free_port())), "web")
    assert max(refused_in(web) for _ in range(20)) < 0.1
    figures = pool_of(client)
    assert (figures["misses"], figures["leases"], figures["waiting"], figures["quarantines"]) == (20, 0, 0, 2)
    assert client.proxies()["web"]["refused"] == {"dial_refused": 20}
    assert client.stderr.count("a visitor of proxy 'web' was refused") <= 2  # once for each target
