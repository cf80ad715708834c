"""B31, B33, B43 from outside: a server and its client under traffic, their /metrics and /readyz over HTTP."""

from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio
from home_rig import Home, free_address, open_home
from metrics_rig import Samples, read

from tunnel import ClientConfig, HostPort, ProxyConfig, parse_target
from tunnel.api import run_client
from tunnel.backoff import RetryPolicy

SIDES = ("server", "client")
WEB = (("client", "home"), ("proxy", "web"))
PAYLOAD = 3_000_000  # bytes

pytestmark = pytest.mark.slow  # makes a key


async def ask(url: str) -> tuple[int, bytes]:
    def open_it() -> tuple[int, bytes]:
        try:
            answer: HTTPResponse
            with urlopen(url, timeout=30) as answer:
                return answer.status, answer.read()
        except HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read()

    return await trio.to_thread.run_sync(open_it)


async def get(home: Home, side: str, path: str) -> tuple[int, bytes]:
    return await ask(f"http://{home.admin[side]}{path}")


async def metrics(home: Home, side: str) -> Samples:
    status, text = await get(home, side, "/metrics")
    assert status == 200
    return read(text)


async def echo_all(visitor: trio.SocketStream, size: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(visitor.send_all, bytes(size))
        left = size
        while left:
            left -= len(await visitor.receive_some())


async def until_left(home: Home) -> None:
    while home.server.engine.bounds.open_streams or home.client.engine.bounds.open_streams:
        await trio.sleep(0.005)


async def test_counters_equal_the_payload_and_gauges_return_to_zero_on_both_sides(tmp_path: Path) -> None:
    async with open_home(tmp_path, admin=True) as home:
        async with await home.visit() as visitor:
            await echo_all(visitor, PAYLOAD)
            for side in SIDES:
                during = await metrics(home, side)
                assert during["trio_tunnel_visitors"] == {(): 1}
                assert during["trio_tunnel_proxy_visitors"] == {WEB: 1}
                assert during["trio_tunnel_relay_buffer_bytes"][()] >= 64 * 1024
        await until_left(home)
        for side in SIDES:
            after = await metrics(home, side)
            for figure in ("received_bytes_total", "sent_bytes_total"):
                assert after[f"trio_tunnel_{figure}"] == {(): PAYLOAD + len(b"hello")}
                assert after[f"trio_tunnel_proxy_{figure}"] == {WEB: PAYLOAD + len(b"hello")}
            assert after["trio_tunnel_visitors_accepted_total"] == {(): 1}
            for gauge in ("visitors", "relay_buffer_bytes", "relay_paused_listeners", "draining"):
                assert after[f"trio_tunnel_{gauge}"] == {(): 0}
            assert after["trio_tunnel_proxy_visitors"] == {WEB: 0}
            assert not any(after["trio_tunnel_visitors_refused_total"].values())
            duration = "first_byte" if side == "server" else "dial"
            assert after[f"trio_tunnel_{duration}_duration_seconds_count"] == {(): 1}


async def test_totals_of_the_process_outlive_sessions_and_proxies(tmp_path: Path) -> None:
    async with open_home(tmp_path, admin=True) as home:
        async with await home.visit() as visitor:
            await echo_all(visitor, 1000)
        await until_left(home)
        before = {side: await metrics(home, side) for side in SIDES}
        assert home.server.close_session("home") == ["home"]
        await home.until_back()
        async with await home.visit():
            pass
        await until_left(home)
        for side in SIDES:
            after = await metrics(home, side)
            assert after["trio_tunnel_received_bytes_total"] == {(): 1010}
            assert after["trio_tunnel_sessions_started_total"] == {(): 2}
            assert sum(after["trio_tunnel_sessions_ended_total"].values()) == 1
            assert after["trio_tunnel_session_up"] == {(("client", "home"),): 1}
            for name, samples in before[side].items():
                if name.endswith("_total") and "_proxy_" not in name and name != "process_cpu_seconds_total":
                    gone_back = {labels for labels, value in samples.items() if after[name].get(labels, 0) < value}
                    assert not gone_back, name
        assert (await metrics(home, "server"))["trio_tunnel_proxy_received_bytes_total"] == {WEB: 5}  # its session's


async def test_a_taken_port_and_a_refusing_target_are_told_by_their_reasons(tmp_path: Path) -> None:
    with trio.socket.socket() as taken, trio.socket.socket() as nobody:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        await nobody.bind(("127.0.0.1", 0))  # and does not listen
        where = HostPort("127.0.0.1", taken.getsockname()[1])
        policy = RetryPolicy(initial_delay=0.1, factor=1.0, max_retries=None)
        busy = ProxyConfig("busy", where, (parse_target("127.0.0.1:9"),), bind_retry=policy)
        target = parse_target(f"127.0.0.1:{nobody.getsockname()[1]}")
        shut = ProxyConfig("shut", HostPort("127.0.0.1", 0), (target,))
        async with open_home(tmp_path, busy, shut, admin=True) as home:
            await home.client.wait_healthy("shut")
            port = home.client.statuses["shut"].publish_port
            async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
                with pytest.raises(trio.BrokenResourceError):
                    await visitor.receive_some()
            while home.client.statuses["busy"].attempt < 3:
                await trio.sleep(0.005)
            await until_left(home)
            for side in SIDES:
                found = await metrics(home, side)
                assert found["trio_tunnel_visitors_refused_total"][("reason", "dial_refused"),] == 1
                assert found["trio_tunnel_proxies"] == {
                    (("status", "healthy"),): 2, (("status", "unhealthy"),): 1, (("status", "bind_failed"),): 0,
                }  # fmt: skip
                about = [dict(labels) for labels in found["trio_tunnel_proxy_status_info"]]
                (told,) = (labels for labels in about if labels["proxy"] == "busy")
                assert (told["status"], told["reason"]) == ("unhealthy", "addr_in_use")
                assert found["trio_tunnel_proxy_up"][("client", "home"), ("proxy", "busy")] == 0
            server = await metrics(home, "server")
            failures = server["trio_tunnel_bind_failures_total"]
            assert failures[("reason", "addr_in_use"),] == sum(failures.values()) >= 3
            assert server["trio_tunnel_bind_attempts_total"][()] == 2 + sum(failures.values())
            assert server["trio_tunnel_bind_retries_total"][()] == sum(failures.values()) - 1


async def test_both_know_when_the_servers_certificate_ends_and_tell_no_secret(tmp_path: Path) -> None:
    async with open_home(tmp_path, admin=True) as home:
        ends = [(await metrics(home, side))["trio_tunnel_certificate_expiry_timestamp_seconds"][()] for side in SIDES]
        assert ends[0] == ends[1]
        for side in SIDES:
            _, text = await get(home, side, "/metrics")
            for secret in (home.token, home.client.config.token):
                assert secret
                assert secret.encode() not in text


@pytest.mark.parametrize("stopping", SIDES)
async def test_who_drains_is_alive_and_not_ready_and_a_draining_servers_client_neither(
    tmp_path: Path, stopping: str
) -> None:
    async with open_home(tmp_path, admin=True) as home, trio.open_nursery() as nursery:
        for side in SIDES:
            assert await get(home, side, "/readyz") == (200, b"ready\n")
        async with await home.visit():  # stays inside, so that draining takes its time
            nursery.start_soon((home.server if stopping == "server" else home.client).drain, 30.0)
            while home.client.is_ready() or (stopping == "server" and home.server.is_ready()):
                await trio.sleep(0.005)
            for side in ("client", stopping):
                assert await get(home, side, "/healthz") == (200, b"ok\n")
                why = (
                    b"the server is stopping"
                    if side == "server"
                    else b"one side is stopping, and takes no new visitors"
                )
                assert await get(home, side, "/readyz") == (503, b"not ready: " + why + b"\n")
                found = await metrics(home, side)
                assert (found["trio_tunnel_ready"][()], found["trio_tunnel_draining"][()]) == (0, 1)
            if stopping == "client":  # a server serves other clients all the same
                assert (await get(home, "server", "/readyz"))[0] == 200
        if stopping == "server":
            nursery.cancel_scope.cancel(reason="the client tries to come back for ever")


async def test_a_client_without_a_server_says_why_it_is_not_ready(tmp_path: Path, nursery: trio.Nursery) -> None:
    nobody, admin = free_address(), free_address()
    config = ClientConfig((nobody,), "x" * 40, pin=bytes(32), admin=admin, state_dir=tmp_path)
    client = await nursery.start(run_client, config)
    while client.connection.detail == "":
        await trio.sleep(0.005)
    status, said = await ask(f"http://{admin}/readyz")
    assert status == 503
    assert said.startswith(f"not ready: no session: cannot reach {nobody}".encode())
    assert (await ask(f"http://{admin}/healthz"))[0] == 200
    assert read((await ask(f"http://{admin}/metrics"))[1])["trio_tunnel_session_up"] == {(("client", ""),): 0}
    nursery.cancel_scope.cancel(reason="the test is over")
