"""Ports that are taken, forbidden, freed and fought over: the seed's scenarios, B6 and B8 to B12, B14."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    Client,
    Stage,
    allowed,
    ask_echo,
    can_listen,
    dial,
    echoes,
    free_port,
    held_port,
    proxy_toml,
    read_exactly,
)

QUICK = "initial_delay = 0.2\nfactor = 1\nmax_delay = 1\nmax_retries = 3\n"
UNPRIVILEGED = ("--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


def lab(**allowances: str) -> tuple[str, str]:
    """A client's token, and its entry in server.toml."""
    token = "lab-token-" + "x" * 30
    lines = "".join(f"{key} = {value}\n" for key, value in allowances.items())
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, f'[[clients]]\nname = "lab"\ntoken_sha256 = "{digest}"\n{lines}'


# The seed's three scenarios


@pytest.mark.slow
def test_a_port_in_use_that_is_freed_is_live_at_the_next_attempt(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    with held_port() as holder:
        port = holder.getsockname()[1]
        client = stage.connect(server, f"web=127.0.0.1:{port}:{echo_port}")
        taken = client.wait_status("web", status="unhealthy", reason="addr_in_use")
    assert taken["error_message"] == f"Port {port} is already in use by another process"
    assert (taken["attempt"], taken["max_retries"], taken["retry_after_seconds"]) == (1, 10, 2)
    began = time.monotonic()
    client.wait_healthy("web", seconds=3)
    assert time.monotonic() - began < allowed(2.5)  # attempts are at 0 and 2 s
    ask_echo(port)
    server.wait_log("Proxy 'web' listening on")  # a line of the log may come later than what it tells of
    words = f"Proxy 'web' bind failed (attempt 1/10): Port {port} is already in use by another process."
    logged = [line.split(" ", 2)[2] for line in server.err if "Proxy" in line or "Waiting" in line]
    assert [line.split(" peer=")[0] for line in logged] == [
        f"{words} Retrying in 2 seconds...",
        "Waiting 2 seconds before retry attempt 2/10...",
        f"Proxy 'web' listening on 127.0.0.1:{port} (after 1 retries)",
    ]


@pytest.fixture
def commoners_stage() -> Iterator[tuple[Stage, tuple[str, ...]]]:
    """A stage whose folder an unprivileged user owns, and the words that make a command that user's."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        pytest.skip("this kernel lets everybody bind any port")
    with tempfile.TemporaryDirectory(prefix="trio-tunnel-e2e-") as folder:
        prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            setpriv = shutil.which("setpriv")
            if setpriv is None:
                pytest.skip("running as root, and there is no setpriv to become somebody else")
            prefix = (setpriv, *UNPRIVILEGED)
            os.chown(folder, 65534, 65534)
            tried = subprocess.run([*prefix, sys.executable, "-c", "import tunnel"], capture_output=True, timeout=20)
            if tried.returncode:
                pytest.skip(f"an unprivileged user cannot run this Python: {tried.stderr.decode()[-200:]}")
        with Stage(Path(folder)) as stage:
            yield stage, prefix


@pytest.mark.slow
def test_a_privileged_port_is_told_as_such_and_retried_and_given_up(
    commoners_stage: tuple[Stage, tuple[str, ...]], echo_port: int
) -> None:
    stage, prefix = commoners_stage
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    port = next(port for port in range(start - 1, 0, -1) if can_listen(port) or os.geteuid())
    server = stage.serve(prefix=prefix)
    few = "[proxies.bind_retry]\ninitial_delay = 0.2\nmax_delay = 0.2\nmax_retries = 2\n"
    config = proxy_toml("patient", port, echo_port) + proxy_toml("hasty", port, echo_port, few, "127.0.0.2")
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", config=config)
    words = f"Permission denied to bind to 127.0.0.1:{port} - may need administrator privileges"
    first = client.wait_status("patient", reason="permission_denied", attempt=1)
    assert (first["status"], first["error_message"], first["retry_after_seconds"]) == ("unhealthy", words, 2)
    given_up = client.wait_status("hasty", status="bind_failed", reason="permission_denied")
    assert (given_up["attempt"], given_up["retry_after_seconds"]) == (3, None)
    server.wait_log(r"Proxy 'hasty' bind failed after 2 retries: Permission denied")
    ask_echo(*client.wait_healthy("web"))  # the rest works
    client.wait_status("patient", reason="permission_denied", attempt=2, seconds=3)


@pytest.mark.slow
def test_three_proxies_with_the_middle_one_taken(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    ports = free_port(), free_port()
    with held_port() as holder:
        taken = holder.getsockname()[1]
        began = time.monotonic()
        client = stage.connect(
            server, f"proxy1=127.0.0.1:{ports[0]}:{echo_port}", f"proxy2=127.0.0.1:{taken}:{echo_port}",
            f"proxy3=127.0.0.1:{ports[1]}:{echo_port}", admin=True,
        )  # fmt: skip
        for port in ports:
            stage.until(lambda port=port: echoes(port), f"port {port} answers")
        print(f"first and third answered {time.monotonic() - began:.2f} s after the client's start")
        assert time.monotonic() - began < allowed(1.0 + 0.3)  # a Python start is not ours to count
        with dial(ports[0]) as held_open:
            told = client.wait_status("proxy2", status="unhealthy", reason="addr_in_use", attempt=1)
            assert told["retry_after_seconds"] == 2
            counted: dict[int, set[int]] = {}  # of each attempt, the seconds that were seen to be left

            def counting_down() -> bool:
                for side in (server, client):
                    proxy = side.proxies()["proxy2"]
                    assert (proxy["status"], proxy["reason"]) == ("unhealthy", "addr_in_use")
                    counted.setdefault(proxy["attempt"], set()).add(proxy["retry_after_seconds"])
                return sum(len(seconds) > 1 for seconds in counted.values()) >= 2

            stage.until(counting_down, "status counts down through two attempts")  # as a rule, the first two
            assert all(max(seconds) <= 2**attempt for attempt, seconds in counted.items())
            shown = stage.run("status", "--admin", f"127.0.0.1:{server.admin}").stdout
            assert re.search(rf"addr_in_use: Port {taken} is already in use by another process; retry \d+/10 in", shown)
            holder.close()
            left = client.proxies()["proxy2"]["retry_after_seconds"] or 0
            client.wait_status("proxy2", status="healthy", attempt=0, seconds=left + 2)
            ask_echo(taken)
            held_open.sendall(b"still here")
            assert read_exactly(held_open, 10) == b"still here"
        seen = {status["proxy_name"]: [] for status in client.statuses}
        for status in client.statuses:
            seen[status["proxy_name"]].append(status["status"])
        assert seen["proxy1"] == seen["proxy3"] == ["unhealthy", "healthy"]  # connecting, then never a blink
        assert [status["seq"] for status in client.statuses if status["seq"]] == list(range(1, len(client.out) - 2))


# Giving up, and the ways back


@pytest.mark.slow
def test_given_up_after_its_retries_and_brought_back_by_the_retry_command(stage: Stage, echo_port: int) -> None:
    server = stage.serve(config=f"[bind_retry]\n{QUICK}")
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    with held_port() as holder:
        port = holder.getsockname()[1]
        client = stage.connect(
            server, f"web=127.0.0.1:{port}:{echo_port}", token=token, admin=True,
        )  # fmt: skip
        given_up = client.wait_status("web", status="bind_failed")
        assert (given_up["attempt"], given_up["max_retries"], given_up["retry_after_seconds"]) == (4, 3, None)
        attempts = [one["attempt"] for one in client.statuses if one["reason"] == "addr_in_use"]
        assert attempts == [1, 2, 3, 4]
        server.wait_log("Proxy 'web' bind failed after 3 retries: Port")
        table = stage.run("status", "--admin", f"127.0.0.1:{server.admin}").stdout
        assert "gave up after 3 retries" in table
        again = stage.run("retry", "web", "--admin", f"127.0.0.1:{server.admin}", "--state-dir", server.state)
        assert again.stdout == "lab/web: starts afresh"
        client.wait_status("web", start=len(attempts) + 1, status="unhealthy", attempt=1)
        client.wait_status("web", start=len(attempts) + 2, status="bind_failed")
    mark = len(client.out)
    stage.run("retry", "web", "--admin", f"127.0.0.1:{client.admin}", "--state-dir", client.state)
    client.wait_healthy("web", start=mark, seconds=2)
    ask_echo(port)
    listening = stage.run("retry", "lab/web", "--admin", f"127.0.0.1:{server.admin}", "--state-dir", server.state)
    assert listening.stdout == "lab/web: nothing to retry; it listens, or waits for its target"
    unknown = stage.run("retry", "wep", "--admin", f"127.0.0.1:{server.admin}", "--state-dir", server.state, code=1)
    assert "wep" in unknown.stderr


@pytest.mark.slow
def test_a_proxys_own_policy_goes_over_the_servers(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    with held_port() as holder:
        few = "[proxies.bind_retry]\ninitial_delay = 0.1\nmax_retries = 1\n"
        config = proxy_toml("web", holder.getsockname()[1], echo_port, few)
        given_up = stage.connect(server, config=config).wait_status("web", status="bind_failed")
    assert (given_up["attempt"], given_up["max_retries"]) == (2, 1)


@pytest.mark.slow
def test_what_the_token_does_not_allow_is_refused_at_once_and_the_rest_works(stage: Stage, echo_port: int) -> None:
    good, bad, reserve = free_port(), free_port(), free_port()
    token, entry = lab(
        allow_ports=f'["{good}", "{reserve}"]', allow_addrs='["127.0.0.1"]', allow_names='["web", "db", "far"]'
    )
    server = stage.serve(config=entry)
    client = stage.connect(
        server, f"web=127.0.0.1:{good}:{echo_port}", f"db=127.0.0.1:{bad}:{echo_port}",
        f"far=127.0.0.2:{reserve}:{echo_port}", f"other=127.0.0.1:{reserve}:{echo_port}", token=token,
    )  # fmt: skip
    ask_echo(*client.wait_healthy("web"))
    keys = {"db": "allow_ports", "far": "allow_addrs", "other": "allow_names"}
    for name, key in keys.items():
        refused = client.wait_status(name, status="bind_failed", reason="not_allowed", attempt=1)
        assert key in refused["error_message"]
        assert refused["retry_after_seconds"] is None
    assert can_listen(bad)
    assert can_listen(reserve)


# Who holds it


@pytest.mark.slow
def test_the_second_to_ask_for_an_address_is_told_who_holds_it(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    port = free_port()
    home = stage.connect(server, f"ssh=127.0.0.1:{port}:{echo_port}")
    home.wait_healthy("ssh")

    def rival(name: str, *proxies: str) -> Client:
        token = stage.run("token", "new", name, "--state-dir", server.state).stdout
        return stage.connect(server, *proxies, token=token)

    specific = rival("lab", f"mine=127.0.0.1:{port}:{echo_port}", f"control=127.0.0.1:{server.port}:{echo_port}")
    wildcard = rival("office", f"mine=0.0.0.0:{port}:{echo_port}")
    holder = f"Port {port} is already published by client 'default' (proxy 'ssh')"
    for client in (specific, wildcard):
        assert client.wait_status("mine", status="unhealthy", reason="addr_in_use")["error_message"] == holder
    told = specific.wait_status("control", reason="addr_in_use")
    assert "this server itself" in told["error_message"]
    home.terminate()
    assert home.wait() == 0
    stage.until(lambda: echoes(port), "another has the port after the first left", seconds=10)  # at its next retry
    two = f"one=127.0.0.1:{port}:{echo_port}", f"all=0.0.0.0:{port}:{echo_port}"
    words = ["-p", two[0], "-p", two[1], "127.0.0.1:1"]
    clash = stage.run(
        "connect", *words, code=2, env={"TRIO_TUNNEL_TOKEN": "x"}
    )  # within one client: said before any dial
    assert "one=" in clash.stderr
    assert "all=" in clash.stderr


# The client goes, and comes back


@pytest.mark.slow
def test_a_client_killed_during_a_retry_leaves_nothing_and_returns_within_a_second(
    stage: Stage, echo_port: int
) -> None:
    """B8, B14: no further attempt, no port held; restarted, the same ports at once and counters from one."""
    server = stage.serve(config="[bind_retry]\ninitial_delay = 0.3\nfactor = 1\n")
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    port = free_port()
    with held_port() as holder:
        taken = holder.getsockname()[1]
        proxies = f"web=127.0.0.1:{port}:{echo_port}", f"busy=127.0.0.1:{taken}:{echo_port}"
        client = stage.connect(server, *proxies, token=token)
        client.wait_healthy("web")
        client.wait_status("busy", attempt=2)
        client.kill()
        server.wait_log("client 'lab' disconnected", seconds=2)
        attempts = server.stderr.count("bind failed")
        stage.until(lambda: can_listen(port), "the healthy proxy's port is free", seconds=1)
        assert server.stats()["sessions"] == []
        time.sleep(0.7)  # two more attempts, if anybody still made them
        assert server.stderr.count("bind failed") == attempts
        began = time.monotonic()
        again = stage.connect(server, *proxies, token=token)
        again.wait_healthy("web", seconds=1.5)
        print(f"ports bound again {time.monotonic() - began:.2f} s after the client's start")
        assert time.monotonic() - began < allowed(1.0 + 0.3)  # a Python start is not ours to count
        first = again.wait_status("busy", reason="addr_in_use")
        assert first["attempt"] == 1
        ask_echo(port)


@pytest.mark.slow
def test_port_0_is_chosen_told_and_kept(stage: Stage, echo_port: int) -> None:
    """B12: the same port after the client's reconnect, and after the server's restart."""
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", f"db=127.0.0.1:0:{echo_port}")
    ports = client.wait_healthy("web", "db")
    assert 0 not in ports
    assert len(set(ports)) == 2
    client.kill()
    again = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", f"db=127.0.0.1:0:{echo_port}")
    assert again.wait_healthy("web", "db") == ports
    server.terminate()
    assert server.wait() == 0
    again.wait_status("web", reason="session_lost")
    mark = len(again.out)
    restarted = stage.serve(state=server.state, port=server.port)
    assert restarted.port == server.port
    assert again.wait_healthy("web", "db", start=mark) == ports
    for port in ports:
        ask_echo(port)


@pytest.mark.slow
def test_a_kept_port_that_somebody_took_meanwhile_is_replaced(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}")
    (port,) = client.wait_healthy("web")
    server.terminate()
    assert server.wait() == 0
    with held_port(port):
        mark = len(client.out)
        stage.serve(state=server.state, port=server.port)
        (other,) = client.wait_healthy("web", start=mark)
        assert other != port
        ask_echo(other)


@pytest.mark.slow
def test_a_listener_on_an_address_the_host_does_not_have_is_retried_with_the_reason(
    stage: Stage, echo_port: int
) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=192.0.2.7:{free_port()}:{echo_port}")
    told = client.wait_status("web", status="unhealthy", reason="addr_not_available")
    assert "192.0.2.7" in told["error_message"]
    assert told["retry_after_seconds"] == 2


@pytest.mark.slow
def test_ipv6_is_published_beside_ipv4_on_the_same_port(stage: Stage, echo_port: int) -> None:
    if not can_listen(0, "::1"):
        pytest.skip("this host has no IPv6")
    server = stage.serve()
    port = free_port()
    client = stage.connect(server, f"six=[::1]:{port}:{echo_port}", f"four=127.0.0.1:{port}:{echo_port}")
    assert client.wait_healthy("six", "four") == [port, port]
    ask_echo(port, host="::1")
    ask_echo(port)
