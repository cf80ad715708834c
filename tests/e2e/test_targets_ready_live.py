"""Targets that are checked, kept hot and behind TLS, as their users meet them; with real processes."""

import json
import signal
import time
from collections.abc import Callable
from statistics import median

import pytest
import trio
from addresses import pool
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
from services import GREETING, Services, echo, greet_then_echo
from target_services import Named, Trusted, at, connect, descriptors, entry, pool_of, refused_in, served, shown, visit

from tunnel.config import DATA_CHANNELS

pytestmark = pytest.mark.slow
QUICK_CHECK = "[proxies.health_check]\ninterval = 0.5\ntimeout = 0.4\nfall = 2\n"
QUICK_SECONDS = 2.0  # by then two checks have failed and the server knows


# Health


def test_checks_of_each_kind_tell_that_a_target_has_fallen_and_that_it_is_back(
    stage: Stage, services: Services, named: Callable[..., Named], trusted: Trusted
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
    assert time.monotonic() - began < allowed(QUICK_SECONDS)
    assert {found["status"] for found in told.values()} == {"unhealthy"}
    assert "Connection refused" in told["tcp"]["error_message"]
    assert "GET /healthz answered 500" in told["http"]["error_message"]
    assert "target_down" in shown(stage, client)
    assert server.proxies()["tcp"]["reason"] == "target_down"
    start = len(client.out)  # before they are back: a check may be the first to know
    plain.open_listener()
    status = 204
    client.wait_healthy("tcp", "http", start=start, seconds=QUICK_SECONDS)
    # TLS: the same port without it.
    path, start = client.config, len(client.out)
    path.write_text(path.read_text().replace(trusted.at, at(secure.port)))
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
        assert time.monotonic() - began < allowed(QUICK_SECONDS)
        stage.until(lambda: pool_of(client, "two")["addresses"][f"{LOOPBACK}:{one.port}"]["down"], "two knows")

        assert median(refused_in(keep) for _ in range(5)) < allowed(0.1)
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


def test_a_hot_connection_is_open_before_its_visitor_and_serves_one_only(
    stage: Stage, named: Callable[..., Named]
) -> None:
    service = named("a")
    web = free_port()
    _, client = connect(stage, entry("web", web, at(service.port), more="hot = 4\n"), "web")
    stage.until(lambda: service.connections == 4, "four are open")
    channels = DATA_CHANNELS.min_per_address
    stage.until(lambda: pool(client)["states"]["available"] == channels, "so are all channels to the server")
    stage.until((client.state / "history.sqlite-wal").exists, "and the history")
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
        stage.until(lambda: service.connections == 0, "a busy machine's service has closed it, too")
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
    stage.until(lambda: pool_of(client)["states"]["available"] == 3, "open")
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
    assert refused_in(ports["wrong"]) < allowed(1)
    why = "tls://other.local:443 has a certificate for another name: "
    client.wait_log(why)
    assert why in shown(stage, client)
    assert client.proxies()["wrong"]["refused"] == {"dial_failed": 1}


def test_without_its_authority_a_tls_target_is_refused_with_the_remedy(stage: Stage, trusted: Trusted) -> None:
    web = free_port()
    _, client = connect(stage, entry("web", web, trusted.at), "web")
    assert refused_in(web) < allowed(1)
    client.wait_log(
        "not trusted: .*; its CA must be one of the system's, or stand in the file that SSL_CERT_FILE names"
    )
