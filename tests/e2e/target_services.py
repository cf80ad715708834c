"""Services that can be killed or that speak TLS, proxies that lead to them, and what their visitors meet."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
import trustme
from processes import (
    LOOPBACK,
    Client,
    Server,
    Stage,
    dial,
    free_port,
    read_all,
)
from services import Services

PROGRAM = Path(__file__).with_name("named_service.py")


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
