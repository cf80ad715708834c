"""Whole processes as systemd starts them: what they tell it, and sockets that outlive them. A test plays systemd."""

import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Client, Server, Stage

from tunnel.config.credentials import credential_name
from tunnel.sockets import listen

# Takes a descriptor from the socket named first, as 3, and becomes what follows, as systemd's child does.
GIVEN = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    found = socket.recv_fds(sock, 1, 1)[1][0]
if found != 3:
    os.dup2(found, 3)
    os.close(found)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="clients")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Systemd:
    """Hears what processes say, and keeps what it heard."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("")  # an abstract name of the kernel's choice
        self.address = "@" + self._sock.getsockname()[1:].decode()
        self.words: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while heard := self._sock.recv(65536):
                self.words += heard.decode().splitlines()

    def heard(self, start: str, *, since: int = 0) -> list[str]:
        return [word for word in self.words[since:] if word.startswith(start)]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._sock.getsockname())
        self._reader.join(5)
        self._sock.close()


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    found = Systemd()
    yield found
    found.close()


def test_a_server_tells_its_life_from_ready_to_stopping(stage: Stage, systemd: Systemd) -> None:
    server = stage.serve(
        config="[limits]\ndrain_seconds = 5\n", env={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
    )
    stage.until(lambda: systemd.heard("READY=1"), "it is ready")
    assert systemd.heard("STATUS=")[0] == f"STATUS=0 clients, 0 of 0 proxies healthy; listening on {server.where}"
    stage.until(lambda: len(systemd.heard("WATCHDOG=1")) > 2, "it shows life, and again")
    since = len(systemd.words)
    server.send(signal.SIGHUP)
    stage.until(lambda: systemd.heard("READY=1", since=since), "it is ready again")
    assert systemd.heard("RELOADING=1", since=since)
    assert int(systemd.heard("MONOTONIC_USEC=", since=since)[0].partition("=")[2]) > 0
    server.terminate()
    assert server.wait() == 0
    for word in ("STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000"):
        stage.until(lambda word=word: systemd.heard(word, since=since), f"{word} is heard")


def test_a_client_is_ready_before_it_has_a_session_and_tells_when_it_has_one(
    stage: Stage, systemd: Systemd, echo_port: int
) -> None:
    server = stage.serve()
    client = stage.connect(server, f"echo=127.0.0.1:0:{echo_port}", env={"NOTIFY_SOCKET": systemd.address})
    client.wait_healthy("echo")
    stage.until(lambda: systemd.heard("STATUS=connected as default: 1 of 1 proxy healthy"), "it tells of its session")
    assert systemd.words[0] == "READY=1"
    assert not systemd.heard("STATUS=tt_")


def test_a_token_that_systemd_passed_is_read_in_place_of_the_file_that_the_configuration_names(
    stage: Stage, echo_port: int
) -> None:
    server = stage.serve()
    folder = stage.path("credentials")
    folder.mkdir()
    stage.write(f"credentials/{credential_name(stage.path('home.token'))}", server.token, mode=0o440)
    text = f'server = "{server.where}"\npin = "{server.pin}"\ntoken_file = "home.token"\n'
    text += f'[[proxies]]\nname = "echo"\npublish_addr = "127.0.0.1"\npublish_port = 0\ntarget = "{echo_port}"\n'
    path = stage.write("client.toml", text)
    client = stage.start("connect", "-c", path, "--json", kind=Client, env={"CREDENTIALS_DIRECTORY": str(folder)})
    client.wait_healthy("echo")


def test_who_connects_while_a_socket_activated_server_restarts_is_served_by_the_next(stage: Stage) -> None:
    with listen("127.0.0.1", 0) as held, _Giver(stage.path("giver"), held) as giver:
        port = held.getsockname()[1]
        prefix = [sys.executable, "-c", GIVEN, str(giver.path)]
        state = stage.new_path("state")
        first = stage.serve(state=state, port=port, prefix=prefix)
        assert _answers(port)
        first.terminate()
        assert first.wait() == 0
        with socket.create_connection(("127.0.0.1", port), timeout=20) as waiting:  # nobody serves: it waits
            second = stage.serve(state=state, port=port, prefix=prefix)
            assert _handshake(waiting)
        assert second.port == port
        second.terminate()
        assert second.wait() == 0


def test_a_socket_at_another_address_than_the_configurations_ends_the_start_with_both_named(stage: Stage) -> None:
    with listen("127.0.0.1", 0) as held, _Giver(stage.path("giver"), held) as giver:
        prefix = [sys.executable, "-c", GIVEN, str(giver.path)]
        words = ["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--state-dir", stage.new_path("state")]
        server = stage.start(*words, kind=Server, prefix=prefix)
        assert server.wait() == 1
        where = f"127.0.0.1:{held.getsockname()[1]}"
        server.wait_log(rf"systemd passed a socket at {where} \('clients'\), where this server is not to listen")


class _Giver:
    """Hands a listening socket to each process that asks."""

    def __init__(self, path: Path, held: socket.socket) -> None:
        self.path = path
        self._held = held
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._give, daemon=True)

    def _give(self) -> None:
        with suppress(OSError):
            while True:
                asking, _ = self._sock.accept()
                with asking:
                    socket.send_fds(asking, [b"x"], [self._held.fileno()])

    def __enter__(self) -> "_Giver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._sock.close()


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        return _handshake(sock)


def _handshake(sock: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(sock) as wrapped:
        return wrapped.version() == "TLSv1.3"
