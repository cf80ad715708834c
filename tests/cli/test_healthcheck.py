"""`healthcheck`: its exit code is what a container's engine goes by."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
from click.testing import CliRunner

from tunnel.addresses import HostPort
from tunnel.admin.site import AdminSource, bind_admin, serve_admin
from tunnel.cli import healthcheck as asking
from tunnel.cli.healthcheck import ask_health, healthcheck
from tunnel.errors import PeerLost, TunnelError

Check = Callable[..., tuple[int, str]]


@contextmanager
def answering(raw: bytes) -> Iterator[HostPort]:
    """One connection at a port of our own gets `raw`, whatever it says, and is closed; without `raw` it is kept."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(raw)
                if not raw:
                    over.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        yield HostPort(*listener.getsockname())
        over.set()
        thread.join()


async def check(where: HostPort, *options: str) -> tuple[int, str]:
    """The command against `where`: its exit code (1 for what `main` makes a message of), and what is said."""

    def run() -> tuple[int, str]:
        done = CliRunner().invoke(healthcheck, ["--admin", str(where), *options])
        return done.exit_code, done.output.strip() or str(done.exception)

    return await trio.to_thread.run_sync(run)


async def test_it_says_whether_a_process_would_serve_and_whether_it_is_alive_at_all(nursery: trio.Nursery) -> None:
    is_ready = True
    source = AdminSource("server", lambda: iter(()), lambda: is_ready, lambda name: [], "")
    listeners = await bind_admin(HostPort("127.0.0.1", 0), asked_for=True)
    where = HostPort(*listeners[0].socket.getsockname())
    nursery.start_soon(lambda: serve_admin(listeners, source=source))
    assert await check(where) == (0, "ready")
    is_ready = False
    code, said = await check(where)
    assert code == 1
    assert said.startswith(f"{where}/readyz answered 503: ")
    assert await check(where, "--alive") == (0, "ok")
    nursery.cancel_scope.cancel()


def test_who_is_not_there_is_told_with_what_to_look_for() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        with pytest.raises(PeerLost, match=r"Connection refused.*`connect` has one only with --admin"):
            ask_health(HostPort(*nobody.getsockname()), "/readyz")


def test_a_process_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.05)
    with answering(b"") as where, pytest.raises(PeerLost, match="timed out"):
        ask_health(where, "/healthz")


def test_a_stranger_is_not_healthy_and_what_it_says_is_made_printable_and_short() -> None:
    with answering(b"\x15\x03\x03\x00\x02") as where, pytest.raises(PeerLost, match="no answer"):
        ask_health(where, "/readyz")
    body = b"\x1b[31m" + b"x" * 5000
    with answering(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n" + body) as where:
        with pytest.raises(TunnelError, match="answered 404") as told:
            ask_health(where, "/readyz")
        assert "\x1b" not in str(told.value)
        assert len(str(told.value)) < 400
