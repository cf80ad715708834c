"""Who must be served all the while: visitors of the healthy client's proxies, and honest newcomers at the gate."""

import json
import random
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable

from attrs import define, field
from processes import LOOPBACK, http_get, read_exactly

from .assault import careless
from .insiders import HELLO
from .wire import request

VISIT_SECONDS = 5.0  # an answer later than this counts as lost
PAUSE_SECONDS = 0.01  # between one visitor's requests
LOGIN_SECONDS = 15.0  # that a newcomer goes on knocking
KNOCK_SECONDS = (0.7, 1.0)  # between knocks, as our client's dials


@define(eq=False)
class Figures:
    """What one kind of healthy peer met. Milliseconds of those that were served; why the others were not."""

    name: str
    times: list[float] = field(factory=list)
    lost: list[str] = field(factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("nan")


class Caller:
    """Does the same thing again and again in a thread of its own while the body runs; the figures are its."""

    def __init__(self, name: str, once: Callable[[], None], pause: Callable[[], float]) -> None:
        self.figures = Figures(name)
        self._once, self._pause = once, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self._once()
            except (OSError, AssertionError, ValueError) as exc:
                self.figures.lost.append(f"{type(exc).__name__}: {exc}"[:120])
            else:
                self.figures.times.append((time.monotonic() - began) * 1e3)
            self._over.wait(self._pause())


def new_visitor(port: int) -> Caller:
    """A request on a connection of its own."""

    def once() -> None:
        status, page = http_get(port)
        assert (status, page) == (200, b"a page\n"), f"{status}, {len(page)} bytes"

    return Caller("a new visitor's request", once, lambda: PAUSE_SECONDS)


class LastingVisitor:
    """Word and echo on one connection that must never break."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((LOOPBACK, port), timeout=VISIT_SECONDS)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def once(self) -> None:
        word = random.randbytes(64)
        self._sock.sendall(word)
        assert read_exactly(self._sock, len(word)) == word, "another echo"

    def caller(self) -> Caller:
        return Caller("an echo on an open connection", self.once, lambda: PAUSE_SECONDS)

    def close(self) -> None:
        self._sock.close()


class Newcomer:
    """An honest client that comes anew, each time from an address that the server has not seen: login to Welcome.

    What the gate drops unheard it knocks again for, as ours does; `knocks` counts them.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._epoch = 0
        self.knocks: list[int] = []

    def once(self) -> None:
        self._epoch += 1
        deadline = time.monotonic() + LOGIN_SECONDS
        knocks = 0
        while True:
            knocks += 1
            try:
                self._log_in(f"127.0.9.{self._epoch % 250 + 1}")
                self.knocks.append(knocks)
                return
            except (OSError, ssl.SSLError) as exc:
                if time.monotonic() > deadline:
                    raise AssertionError(f"no login in {knocks} knocks: {exc!r}") from exc
            time.sleep(random.uniform(*KNOCK_SECONDS))

    def caller(self) -> Caller:
        return Caller("a newcomer's login", self.once, lambda: 0.5)  # as often as one client may for long

    def _log_in(self, source: str) -> None:
        raw = socket.create_connection((LOOPBACK, self._port), timeout=VISIT_SECONDS, source_address=(source, 0))
        with careless().wrap_socket(raw, server_hostname="localhost") as sock:
            sock.sendall(request("/control", self._token, Trio_Tunnel_Epoch=str(self._epoch)) + b"")
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += self._more(sock)
            if not heard.startswith(b"HTTP/1.1 101 "):
                raise ConnectionRefusedError(heard[:60])
            sock.sendall(HELLO)
            heard = heard.partition(b"\r\n\r\n")[2]
            while not _is_welcome(heard):
                heard += self._more(sock)

    def _more(self, sock: ssl.SSLSocket) -> bytes:
        if not (data := sock.recv(65536)):
            raise ConnectionResetError("hung up")
        return data


def _is_welcome(heard: bytes) -> bool:
    at = heard.find(b"{")
    if at < 0:
        return False
    try:
        return json.JSONDecoder().raw_decode(heard[at:].decode("utf-8", "replace"))[0]["type"] == "Welcome"
    except ValueError:
        return False
