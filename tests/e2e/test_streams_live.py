"""What passes through: exact bytes, their ends, their counters, and what visitors cost. B22 to B26, B29, B31."""

import contextlib
import hashlib
import random
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio
from conftest import Pair
from processes import (
    LOOPBACK,
    Client,
    Server,
    Stage,
    allowed,
    ask_echo,
    dial,
    free_port,
    http_get,
    proxy_toml,
    read_all,
    read_exactly,
    resident_kib,
)
from services import GREETING, Services, echo, hold, reset_on_close

MIB = 1024 * 1024
BULK = 64 * MIB
IDLE_VISITORS = 2000
KIB_EACH = 8


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    """Visitors and targets of the larger tests are all ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settled(stage: Stage, side: Server | Client, name: str) -> dict[str, object]:
    """The proxy's figures once nobody is inside."""
    return stage.until(
        lambda: next((one for one in [side.proxies()[name]] if one["visitors"] == 0), None), f"nobody inside {name}"
    )


# Bytes


def payload(seed: int, size: int = BULK) -> bytes:
    return random.Random(seed).randbytes(MIB) * (size // MIB - 1) + random.Random(seed + 1).randbytes(MIB)


@pytest.mark.slow
def test_64_mib_each_way_at_once_while_fifty_others_come_and_go(pair: Pair, services: Services) -> None:
    up, down = payload(1), payload(3)

    async def both_ways(stream: trio.SocketStream) -> None:
        found = hashlib.sha256()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(down)
                await stream.send_eof()

            nursery.start_soon(send)
            while data := await stream.receive_some(262144):
                found.update(data)
        services.seen.put(found.hexdigest())

    client = pair.stage.connect(
        pair.server, f"bulk=127.0.0.1:0:{services.add(both_ways)}", f"small=127.0.0.1:0:{services.add(echo)}",
        token=pair.stage.run("token", "new", "bulk", "--state-dir", pair.server.state).stdout, admin=True,
    )  # fmt: skip
    bulk, _small = client.wait_healthy("bulk", "small")
    others: list[float] = []

    def come_and_go() -> None:
        for _ in range(10):
            began = time.monotonic()
            ask_echo(pair.ports["echo"], random.randbytes(1000))
            ask_small = dial(client.wait_healthy("small")[0])
            with ask_small:
                ask_small.sendall(b"x")
                assert read_exactly(ask_small, 1) == b"x"
            others.append(time.monotonic() - began)

    def send(visitor: socket.socket) -> None:
        visitor.sendall(up)
        visitor.shutdown(socket.SHUT_WR)

    began = time.monotonic()
    with dial(bulk, seconds=60) as visitor, ThreadPoolExecutor(6) as pool:
        work = [pool.submit(send, visitor), *(pool.submit(come_and_go) for _ in range(5))]
        found = hashlib.sha256()
        while data := visitor.recv(262144):
            found.update(data)
        for one in work:
            one.result(60)
        received = services.seen.get(timeout=20)  # the target has the last byte only now
    seconds = time.monotonic() - began
    assert found.digest() == hashlib.sha256(down).digest()
    assert received == hashlib.sha256(up).hexdigest()
    assert len(others) == 50
    print(
        f"64 MiB each way in {seconds:.2f} s ({2 * BULK / seconds / 1e6:.0f} MB/s), others at most {max(others):.2f} s"
    )
    for side in (client, pair.server):
        figures = settled(pair.stage, side, "bulk")
        assert (figures["bytes_in"], figures["bytes_out"]) == (BULK, BULK)
    client.terminate()
    assert client.wait() == 0


def test_a_server_that_speaks_first_is_heard_before_the_visitor_speaks(pair: Pair) -> None:
    with dial(pair.ports["greeter"]) as visitor:
        assert read_exactly(visitor, len(GREETING)) == GREETING
        visitor.sendall(b"and back")
        assert read_exactly(visitor, 8) == b"and back"


def test_single_bytes_arrive_as_they_are_sent(pair: Pair) -> None:
    with dial(pair.ports["echo"]) as visitor:
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"one by one":
            visitor.sendall(bytes([byte]))
            assert read_exactly(visitor, 1) == bytes([byte])


# Ends


def test_the_visitor_ends_first_and_still_gets_the_answer(pair: Pair) -> None:
    """B23: data after FIN, and 3 MiB in front of it."""
    data = random.Random(5).randbytes(3 * MIB)
    with dial(pair.ports["digest"]) as visitor:
        visitor.sendall(data)
        visitor.shutdown(socket.SHUT_WR)
        assert read_all(visitor).decode() == hashlib.sha256(data).hexdigest()


def test_the_target_ends_first_and_still_hears_the_visitor(pair: Pair, services: Services) -> None:
    with dial(pair.ports["first_to_end"]) as visitor:
        assert read_all(visitor) == b"my last word"
        visitor.sendall(b"but I have one more")
        visitor.shutdown(socket.SHUT_WR)
        assert services.seen.get(timeout=30) == b"but I have one more"


def test_a_reset_by_the_target_is_a_reset_for_the_visitor(pair: Pair) -> None:
    """B24."""
    with dial(pair.ports["resets"]) as visitor:
        began = time.monotonic()
        visitor.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(visitor)
    assert time.monotonic() - began < allowed(1)


def test_a_reset_by_the_visitor_is_a_reset_for_the_target(pair: Pair, services: Services) -> None:
    visitor = dial(pair.ports["reports_end"])
    assert read_exactly(visitor, 5) == b"hello"
    reset_on_close(visitor)
    visitor.close()
    began = time.monotonic()
    assert services.seen.get(timeout=30) is ConnectionResetError
    assert time.monotonic() - began < allowed(1)
    with dial(pair.ports["reports_end"]) as visitor:
        assert read_exactly(visitor, 5) == b"hello"
        began = time.monotonic()
        visitor.shutdown(socket.SHUT_WR)
        assert services.seen.get(timeout=30) == "fin"
        assert time.monotonic() - began < allowed(1)


@pytest.mark.slow
def test_a_client_killed_under_traffic_resets_its_visitors(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}")
    (port,) = client.wait_healthy("web")
    with dial(port) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
        client.kill()
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            read_all(visitor)
    assert time.monotonic() - began < allowed(2)


@pytest.mark.slow
def test_a_server_killed_under_traffic_resets_its_visitors_and_targets(stage: Stage, services: Services) -> None:
    """B24: what the kernel ends for a process that is gone must not look like a clean end either."""
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{services.add(services.reports_end)}")
    (port,) = client.wait_healthy("web")
    with dial(port) as visitor:
        assert read_exactly(visitor, 5) == b"hello"
        server.kill()
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            read_all(visitor)
        assert services.seen.get(timeout=30) is ConnectionResetError
    assert time.monotonic() - began < allowed(2)


# Targets


@pytest.mark.slow
def test_a_target_that_refuses_costs_the_visitor_no_time_and_is_counted(stage: Stage) -> None:
    """B25."""
    server = stage.serve()
    client = stage.connect(
        server, f"literal=127.0.0.1:0:{free_port()}", f"named=127.0.0.1:0:localhost:{free_port()}",
        f"unix=127.0.0.1:0:unix:{stage.path('none.sock')}", f"tls=127.0.0.1:0:tls://localhost:{free_port()}",
        admin=True,
    )  # fmt: skip
    names = ("literal", "named", "unix", "tls")
    for name, port in zip(names, client.wait_healthy(*names), strict=True):
        ends = []
        for _ in range(3):
            with dial(port) as visitor:
                began = time.monotonic()
                with contextlib.suppress(ConnectionResetError):
                    assert read_all(visitor) == b""
                ends.append(time.monotonic() - began)
        print(f"{name}: closed after {', '.join(f'{1000 * end:.1f}' for end in ends)} ms")
        assert min(ends) < allowed(0.1)
        reason = "dial_failed" if name == "unix" else "dial_refused"
        for side in (server, client):
            figures = settled(stage, side, name)
            assert figures["refused"] == {reason: 3}, f"{name} at {side.name}"
            assert figures["visitors_total"] == 3
            assert (figures["bytes_in"], figures["bytes_out"]) == (0, 0)


@pytest.mark.slow
def test_tls_unix_named_and_ipv6_targets(stage: Stage, services: Services) -> None:
    import trustme

    ca = trustme.CA()
    ca.cert_pem.write_to_path(stage.path("ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    tls, plain, path = services.add_tls(echo, context), services.add(echo), stage.path("echo.sock")
    services.add_unix(echo, path)
    targets = {
        "tls": f"tls://localhost:{tls}",
        "unix": f"unix:{path}",
        "named": f"localhost:{plain}",
        "port": str(plain),
    }
    with contextlib.suppress(OSError):
        targets["six"] = f"[::1]:{services.add(echo, host='::1')}"
    server = stage.serve()
    untrusting = stage.connect(
        server, f"tls=127.0.0.1:0:tls://localhost:{tls}", admin=True,
        token=stage.run("token", "new", "lab", "--state-dir", server.state).stdout,
    )  # fmt: skip
    client = stage.connect(
        server, *(f"{name}=127.0.0.1:0:{target}" for name, target in targets.items()),
        env={"SSL_CERT_FILE": str(stage.path("ca.pem"))},
    )  # fmt: skip
    data = random.Random(7).randbytes(300_000)
    for port in client.wait_healthy(*targets):
        with dial(port) as visitor:
            sending = threading.Thread(target=visitor.sendall, args=(data,))
            sending.start()
            assert read_exactly(visitor, len(data)) == data
            sending.join(5)
    (port,) = untrusting.wait_healthy("tls")  # no CA knows that target: its visitors get nothing
    with dial(port) as visitor, contextlib.suppress(ConnectionResetError):
        visitor.sendall(b"x")
        assert read_all(visitor) == b""
    figures = settled(stage, untrusting, "tls")
    assert figures["refused"] == {"dial_failed": 1}


@pytest.mark.slow
def test_a_health_check_that_fails_is_told_and_the_proxy_comes_back(stage: Stage, services: Services) -> None:
    target = services.add(services.http)
    server = stage.serve()
    check = '[proxies.health_check]\ntype = "http"\npath = "/healthz"\ninterval = 0.1\ntimeout = 1\n'
    client = stage.connect(server, config=proxy_toml("web", 0, target, check))
    (port,) = client.wait_healthy("web")
    mark = len(client.out)
    services.http_status = 503
    try:
        down = client.wait_status("web", start=mark, status="unhealthy", seconds=2)
        assert down["reason"] == "target_down"
        assert "GET /healthz answered 503" in down["error_message"]
        assert down["publish_port"] == port
        assert server.proxies()["web"]["reason"] == "target_down"
    finally:
        services.http_status = 200
    client.wait_status("web", start=mark, status="healthy", seconds=2)


@pytest.mark.slow
def test_a_port_is_released_while_its_target_is_down_and_who_is_inside_stays(stage: Stage, services: Services) -> None:
    target, public = services.add(services.http), free_port()
    server = stage.serve()
    check = 'type = "http"\npath = "/healthz"\ninterval = 0.1\ntimeout = 1\n'
    more = f'when_down = "close"\n[proxies.health_check]\n{check}'
    client = stage.connect(server, config=proxy_toml("web", public, target, more))
    client.wait_healthy("web")
    with dial(public) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\n")  # and the rest later
        mark = len(client.out)
        services.http_status = 503
        try:
            down = client.wait_status("web", start=mark, status="unhealthy", seconds=2)
            assert (down["reason"], down["publish_port"]) == ("target_down", public)
            assert down["error_message"].startswith("The port is released until the target answers: ")
            with pytest.raises(ConnectionRefusedError):
                dial(public).close()
        finally:
            services.http_status = 200
        client.wait_status("web", start=mark, status="healthy", seconds=2)
        visitor.sendall(b"Host: here\r\nConnection: close\r\n\r\n")
        assert read_all(visitor).endswith(services.page)
    assert http_get(public) == (200, services.page)


# Counts and crowds


@pytest.mark.slow
def test_a_thousand_connections_are_counted_exactly_and_gauges_end_at_zero(stage: Stage, echo_port: int) -> None:
    """B31."""
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", admin=True)
    (port,) = client.wait_healthy("web")
    sizes = [random.Random(index).randint(0, 5000) for index in range(1000)]

    def visit(part: list[int]) -> None:
        for size in part:
            ask_echo(port, b"x" * size)

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, [sizes[start::8] for start in range(8)]))
    print(f"1,000 connections in {time.monotonic() - began:.2f} s")
    for side in (server, client):
        figures = settled(stage, side, "web")
        assert figures["visitors_total"] == 1000
        assert (figures["bytes_in"], figures["bytes_out"]) == (sum(sizes), sum(sizes))
        assert figures["refused"] == {}


@pytest.mark.slow
def test_counters_grow_while_a_transfer_goes_on(stage: Stage, services: Services) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{services.add(hold)}", admin=True)
    (port,) = client.wait_healthy("web")
    with dial(port) as visitor:
        for step in (1, 2, 3):
            visitor.sendall(b"x" * 1000)
            for side in (server, client):
                stage.until(
                    lambda side=side, step=step: side.proxies()["web"]["bytes_in"] == 1000 * step, f"{step} kB counted"
                )
            assert server.proxies()["web"]["visitors"] == 1
    settled(stage, server, "web")


@pytest.mark.slow
def test_two_thousand_idle_visitors_cost_at_most_8_kib_each(stage: Stage, services: Services) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{services.add(hold)}", f"echo=127.0.0.1:0:{services.add(echo)}")
    port, echo_port = client.wait_healthy("web", "echo")
    for _ in range(20):  # what the first visitors cost once is no cost of each
        ask_echo(echo_port)
    before = [resident_kib(process.pid) for process in (server, client)]
    with contextlib.ExitStack() as visitors:
        for _ in range(IDLE_VISITORS):
            visitors.enter_context(dial(port))
        stage.until(lambda: server.proxies()["web"]["visitors"] == IDLE_VISITORS, "all are inside")
        time.sleep(0.3)  # their targets are connected
        grown = [resident_kib(process.pid) - was for process, was in zip((server, client), before, strict=True)]
        ask_echo(echo_port)
    each = sum(grown) / IDLE_VISITORS
    print(f"an idle visitor costs {each:.2f} KiB (server {grown[0]}, client {grown[1]} KiB for {IDLE_VISITORS})")
    assert each <= KIB_EACH
    settled(stage, server, "web")


@pytest.mark.slow
def test_a_burst_of_200_visitors_right_after_the_start(stage: Stage, echo_port: int) -> None:
    """B26: none lost, none waits over a second."""
    server = stage.serve()
    port = free_port()
    stage.connect(server, f"web=127.0.0.1:{port}:{echo_port}").wait_healthy("web")
    waits = trio.run(burst, port)
    print(f"200 visitors at once: the slowest waited {max(waits):.3f} s")
    assert len(waits) == 200
    assert max(waits) < allowed(1)


async def burst(port: int) -> list[float]:
    """How long each of 200 visitors who come at once waits for its echo."""
    waits: list[float] = []

    async def visit(number: int) -> None:
        began = trio.current_time()
        word = f"visitor {number}".encode()
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(word)
            got = b""
            while len(got) < len(word):
                more = await stream.receive_some()
                assert more, f"visitor {number} was lost"
                got += more
        assert got == word
        waits.append(trio.current_time() - began)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(visit, number)
    return waits
