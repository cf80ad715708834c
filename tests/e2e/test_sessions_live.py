"""Sessions that are lost, contested and ended: B1, B2, B17, B21, B44 in small."""

import random
import re
import signal
import socket
import time

import pytest
import trio
from processes import LOOPBACK, Process, Stage, allowed, ask_echo, dial, echoes, free_port, read_all, read_exactly
from services import Services


@pytest.mark.slow
def test_a_client_started_first_connects_within_a_second_of_the_server(stage: Stage, echo_port: int) -> None:
    """B1."""
    first = stage.serve()
    first.terminate()
    assert first.wait() == 0
    public = free_port()
    client = stage.connect(first, f"web=127.0.0.1:{public}:{echo_port}")
    client.wait_log("refused; trying on")
    time.sleep(1.5)  # several dials
    assert client.stderr.count("refused") == 1  # said once, not with every dial
    stage.serve(state=first.state, port=first.port)
    appeared = time.monotonic()
    client.wait_healthy("web", seconds=1.5)
    print(f"connected {time.monotonic() - appeared:.2f} s after the server's 'listening on'")
    assert time.monotonic() - appeared < allowed(1.1)
    ask_echo(public)


@pytest.mark.slow
def test_service_is_back_in_two_seconds_after_the_server_was_killed(stage: Stage, echo_port: int) -> None:
    """B2, with kill -9: nothing was said, nothing was closed in order."""
    server = stage.serve()
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}", admin=True)
    client.wait_healthy("web")
    with dial(public) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
        server.kill()
        assert not read_to_the_end(visitor)  # the kernel ends it, with FIN or RST as it likes
    lost = client.wait_status("web", status="unhealthy", reason="session_lost", seconds=2)
    assert lost["error_message"]
    again = stage.serve(state=server.state, port=server.port)
    listened = time.monotonic()  # half a second after its start, which is Python's; on a busy machine, much more
    stage.until(lambda: echoes(public), "service is back", seconds=3)
    print(f"service back {time.monotonic() - listened:.2f} s after the server's 'listening on'")
    assert time.monotonic() - listened < allowed(1.5)
    assert [session["client"] for session in again.stats()["sessions"]] == ["default"]
    stage.until(lambda: client.proxies()["web"]["visitors"] == 0, "nobody is inside")


def read_to_the_end(visitor: socket.socket) -> bytes:
    try:
        return read_all(visitor)
    except ConnectionResetError:
        return b""


@pytest.mark.slow
def test_restarts_in_order_are_as_quick_however_often(stage: Stage, echo_port: int) -> None:
    """B2: a restart that was announced is no failure, and no reason to wait longer the next time."""
    server = stage.serve()
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}")
    client.wait_healthy("web")
    for _ in range(6):
        server.terminate()
        assert server.wait() == 0
        server = stage.serve(state=server.state, port=server.port)
        listened = time.monotonic()
        stage.until(lambda: echoes(public), "service is back", seconds=3)
        print(f"service back {time.monotonic() - listened:.2f} s after the new server's 'listening on'")
        assert time.monotonic() - listened < allowed(1.5)
    assert "the server is stopping" in client.stderr


@pytest.mark.slow
def test_the_one_who_holds_an_identity_keeps_it_and_the_other_is_told(stage: Stage, echo_port: int) -> None:
    """B17: a holder that answers wins; the newcomer hears who and since when, and comes in once the holder left."""
    server = stage.serve()
    public = free_port()
    proxy = f"web=127.0.0.1:{public}:{echo_port}"
    holder = stage.connect(server, proxy)
    holder.wait_healthy("web")
    since = server.stats()["sessions"][0]["since"]
    once = stage.connect(server, proxy, more=["--once"])
    assert once.wait(5) == 3
    words = f"client 'default' is connected from another process since {since}"
    assert words in once.stderr
    stays = stage.connect(server, proxy)
    told = stays.until(
        lambda: next((one for one in stays.statuses if words in (one["error_message"] or "")), None),
        "told who holds it",
    )
    assert told["retry_after_seconds"] == 30
    with dial(public) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
    assert [one["status"] for one in holder.statuses] == ["unhealthy", "healthy"]  # no flapping
    assert server.stats()["sessions"][0]["since"] == since


@pytest.mark.slow
def test_a_holder_that_is_frozen_gives_way(stage: Stage, echo_port: int) -> None:
    """The other half of B17: silence for a second replaces the holder, who learns it when he wakes up."""
    server = stage.serve()
    public = free_port()
    holder = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}", more=["--once"])
    holder.wait_healthy("web")
    holder.send(signal.SIGSTOP)
    newcomer = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}")
    newcomer.wait_healthy("web", seconds=3)
    ask_echo(public)
    holder.send(signal.SIGCONT)
    assert holder.wait(5) in (1, 3)
    ask_echo(public)


# The end


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client"])
def test_sigterm_lets_those_inside_finish_and_refuses_new_ones(stage: Stage, echo_port: int, side: str) -> None:
    """B21."""
    server = stage.serve()
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}")
    client.wait_healthy("web")
    stopped: Process = server if side == "server" else client
    with dial(public) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
        stopped.terminate()
        stage.until(lambda: refuses(public), "new visitors are refused", seconds=1)
        client.wait_status("web", status="unhealthy", reason="draining", seconds=1)
        if side == "server":
            assert server.proxies()["web"]["reason"] == "draining"
        time.sleep(0.3)  # a visitor who takes his time
        assert stopped.popen.poll() is None
        visitor.sendall(b"word" * 50_000)
        assert read_exactly(visitor, 200_000) == b"word" * 50_000
        visitor.shutdown(socket.SHUT_WR)
        assert read_all(visitor) == b""  # FIN, no reset
        began = time.monotonic()
    assert stopped.wait(5) == 0
    print(f"{side} gone {time.monotonic() - began:.2f} s after the last visitor left")
    assert time.monotonic() - began < allowed(1)
    assert "Traceback" not in stage.report()
    if side == "server":
        client.terminate()
        assert client.wait(2) == 0  # while reconnecting


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_download_under_way_loses_no_byte_to_a_stop(stage: Stage, services: Services, side: str) -> None:
    data = random.Random(11).randbytes(48 * 1024 * 1024)

    async def download(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()
        await stream.receive_some()

    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{services.add(download)}")
    (public,) = client.wait_healthy("web")
    stopped: Process = server if side == "server" else client
    with dial(public) as visitor:
        found = bytearray(read_exactly(visitor, 1_000_000))
        stopped.terminate()
        stage.until(lambda: refuses(public), "new visitors are refused", seconds=1)
        while piece := visitor.recv(262144):
            found += piece
        assert found == data
    assert stopped.wait(5) == 0


def refuses(port: int) -> bool:
    try:
        dial(port, seconds=2).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_drain_time_ends_visitors_who_stay(stage: Stage, echo_port: int, side: str) -> None:
    limits = "[limits]\ndrain_seconds = 0.5\n"
    server = stage.serve(config=limits)
    token = stage.run("token", "new", "lab", "--state-dir", server.state).stdout
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}", token=token, config=limits)
    client.wait_healthy("web")
    stopped: Process = server if side == "server" else client
    with dial(public) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
        began = time.monotonic()
        stopped.terminate()
        with pytest.raises(ConnectionResetError):  # a cut is never a clean end
            read_all(visitor)
        assert stopped.wait(5) == 0
    assert 0.4 < time.monotonic() - began < allowed(2)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_second_signal_ends_it_at_once(stage: Stage, echo_port: int, side: str) -> None:
    server = stage.serve()
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}")
    client.wait_healthy("web")
    stopped: Process = server if side == "server" else client
    with dial(public) as visitor:
        visitor.sendall(b"x")
        assert read_exactly(visitor, 1) == b"x"
        stopped.interrupt()
        stage.until(lambda: refuses(public), "the first signal was heard", seconds=2)
        began = time.monotonic()
        stopped.interrupt()
        assert stopped.wait(5) == 130
        print(f"{side} gone {time.monotonic() - began:.2f} s after the second SIGINT")
        assert time.monotonic() - began < allowed(1)
    assert "Traceback" not in stopped.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_nobody_inside_one_signal_is_enough(stage: Stage, echo_port: int, number: signal.Signals) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}")
    client.wait_healthy("web")
    for process in (client, server):
        began = time.monotonic()
        process.send(number)
        assert process.wait(5) == 0
        assert time.monotonic() - began < allowed(1)
        assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_once_stays_for_the_session_and_ends_with_it(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}", more=["--once"])
    client.wait_healthy("web")
    server.kill()
    assert client.wait(5) == 1
    assert re.search(r"^trio-tunnel: \S+", client.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_signal_while_nothing_answers_ends_the_client(stage: Stage) -> None:
    client = stage.start("connect", f"{LOOPBACK}:{free_port()}", env={"TRIO_TUNNEL_TOKEN": "x" * 40})
    client.wait_log("trying on")
    client.terminate()
    assert client.wait(2) == 0


@pytest.mark.slow
def test_a_client_that_leaves_in_order_is_said_goodbye_to(stage: Stage, services: Services, echo_port: int) -> None:
    server = stage.serve()
    public = free_port()
    client = stage.connect(server, f"web=127.0.0.1:{public}:{echo_port}")
    client.wait_healthy("web")
    client.terminate()
    assert client.wait() == 0
    server.wait_log("client 'default' said goodbye: the client is stopping")
    stage.until(lambda: server.stats()["sessions"] == [], "no session is left", seconds=1)
    assert refuses(public)
