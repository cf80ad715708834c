"""A TLS service on many addresses of 127.0.0.0/8, some of them faulty: `python -m tests.bench.pool_service -h`.

One process and one epoll, so that it costs a client as little as Python can: HTTP/1.1 with keep-alive, TLS 1.3, a
socket for each address. `/healthz` answers ``ok``; `/` a line. What it has seen (handshakes, connections, requests) it
tells as JSON on `--stats-port`, without TLS, so that asking changes nothing.

A faulty address does one of these, always the same (see `Fault`), and which does what depends on the numbers alone.
"""

import argparse
import enum
import json
import random
import resource
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

SEED = 1631
IDLE_SECONDS = 0.25  # then `DIES_*` addresses end a connection: less than a round takes
BACKLOG = 128
RECEIVE_BYTES = 16 * 1024
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {on, 0 s}


class Fault(enum.StrEnum):
    REFUSED = "refused"  # nobody listens
    HANGS = "hangs"  # accepts, and never says a word
    RESETS = "resets"  # ends the handshake with a reset
    WRONG = "wrong"  # answers 500 to everything
    DIES_FIN = "dies (FIN)"  # serves, and drops idle connections without close_notify
    DIES_RST = "dies (RST)"  # serves, and resets idle connections


COUNTED = ("handshakes", "requests", "checks")  # in all, and at healthy addresses
COUNTS = ("accepted", "died_idle", *COUNTED, *(f"healthy_{what}" for what in COUNTED))
MENDABLE = (Fault.DIES_FIN, Fault.DIES_RST)  # a client that notices can be served all the same


def make_addresses(count: int) -> list[str]:
    """127.0.0.1 and those after it."""
    return [f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}" for number in range(1, count + 1)]


def choose_faults(addresses: Sequence[str], percent: float) -> dict[str, Fault]:
    """Which addresses are faulty, every kind as often as any other."""
    chosen = random.Random(SEED).sample(list(addresses), round(len(addresses) * percent / 100))
    kinds = list(Fault)
    return {address: kinds[number % len(kinds)] for number, address in enumerate(chosen)}


class Connection:
    """One accepted connection: in its handshake, then answering requests."""

    def __init__(self, sock: ssl.SSLSocket, fault: Fault | None) -> None:
        self.sock = sock
        self.fault = fault
        self.shaken = False
        self.used_at = 0.0
        self._received = b""

    def turn(self, answer: Callable[[bytes, Fault | None], bytes]) -> bool:
        """Do what can be done without waiting; True in the turn that ends the handshake. `OSError` when it is over."""
        ended_handshake = False
        try:
            if not self.shaken:
                self.sock.do_handshake()
                self.shaken = ended_handshake = True
            while True:
                received = self.sock.recv(RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError
                self._received += received
                while (end := self._received.find(b"\r\n\r\n")) >= 0:
                    head, self._received = self._received[:end], self._received[end + 4 :]
                    self.sock.sendall(answer(head, self.fault))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return ended_handshake

    def end(self, *, reset: bool) -> None:
        if reset:
            with suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


class Service:
    """All addresses on one port."""

    def __init__(self, context: ssl.SSLContext, faults: dict[str, Fault]) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self._context = context
        self._faults = faults
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Fault | None]] = {}
        self._connections: dict[int, Connection] = {}
        self._silent: dict[int, socket.socket] = {}  # hanging, or about to be reset
        self._idle: deque[tuple[float, Connection]] = deque()  # those that will die, first the one that dies first
        self._stats = -1

    def listen(self, addresses: Sequence[str], port: int) -> int:
        """Port 0 is the first address's choice for all; returns the port."""
        for address in addresses:
            fault = self._faults.get(address)
            if fault is not Fault.REFUSED:
                descriptor = self._listen(address, port, fault)
                port = self._listeners[descriptor][0].getsockname()[1]
        return port

    def listen_stats(self, port: int) -> None:
        self._stats = self._listen("127.0.0.1", port, None)

    def _listen(self, address: str, port: int, fault: Fault | None) -> int:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock, fault
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()

    def run(self) -> None:
        while True:
            wait = max(0.0, self._idle[0][0] - time.monotonic()) if self._idle else -1
            for descriptor, _ in self._epoll.poll(wait):
                if descriptor == self._stats:
                    self._tell_stats()
                elif descriptor in self._listeners:
                    self._accept(*self._listeners[descriptor])
                elif descriptor in self._connections:
                    self._turn(descriptor, self._connections[descriptor])
                elif descriptor in self._silent:
                    self._end_silent(descriptor)
            self._let_die(time.monotonic())

    def _accept(self, listener: socket.socket, fault: Fault | None) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # they went first
        self.counts["accepted"] += 1
        sock.setblocking(False)
        if fault in (Fault.HANGS, Fault.RESETS):
            self._silent[sock.fileno()] = sock
            if fault is Fault.RESETS:
                self._epoll.register(sock.fileno(), select.EPOLLIN)
            else:
                self._epoll.register(sock.fileno(), select.EPOLLRDHUP)  # until they give up
            return
        tls = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._connections[tls.fileno()] = Connection(tls, fault)
        self._epoll.register(tls.fileno(), select.EPOLLIN)

    def _turn(self, descriptor: int, connection: Connection) -> None:
        try:
            if connection.turn(self._answer):
                self._count("handshakes", connection.fault)
        except OSError:
            self._connections.pop(descriptor).end(reset=False)
            return
        if connection.fault in MENDABLE and connection.shaken:
            connection.used_at = time.monotonic()
            self._idle.append((connection.used_at + IDLE_SECONDS, connection))

    def _answer(self, head: bytes, fault: Fault | None) -> bytes:
        path = head.split(b" ", 2)[1]
        if path == b"/healthz":
            self._count("checks", fault)
            body = b"ok\n"
        else:
            self._count("requests", fault)
            body = b"a line of text that takes about as many bytes as a small JSON answer\n"
        status = b"500 Internal Server Error" if fault is Fault.WRONG else b"200 OK"
        return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)

    def _count(self, what: str, fault: Fault | None) -> None:
        self.counts[what] += 1
        if fault is None:
            self.counts[f"healthy_{what}"] += 1

    def _end_silent(self, descriptor: int) -> None:
        sock = self._silent.pop(descriptor)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()

    def _let_die(self, now: float) -> None:
        while self._idle and self._idle[0][0] <= now:
            _, connection = self._idle.popleft()
            descriptor = connection.sock.fileno()
            if descriptor >= 0 and now - connection.used_at >= IDLE_SECONDS:
                self.counts["died_idle"] += 1
                del self._connections[descriptor]
                connection.end(reset=connection.fault is Fault.DIES_RST)

    def _tell_stats(self) -> None:
        sock, _ = self._listeners[self._stats][0].accept()
        with sock, suppress(OSError):
            sock.sendall(json.dumps(self.counts).encode())


def ask_stats(port: int) -> dict[str, int]:
    """What a service with that `--stats-port` has seen so far."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, sock.makefile("rb") as answer:
        found: dict[str, int] = json.loads(answer.read())
        return found


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stats-port", type=int, default=0)
    parser.add_argument("--certificate", type=Path, required=True, help="certificate and key in one file")
    parser.add_argument("--addresses", type=int, default=1631)
    parser.add_argument("--only", metavar="ADDRESS", help="this one instead of those of 127.0.0.0/8")
    parser.add_argument("--faulty", type=float, default=0.0, metavar="PERCENT")
    options = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(options.certificate)
    addresses = [options.only] if options.only else make_addresses(options.addresses)
    service = Service(context, choose_faults(addresses, options.faulty))
    port = service.listen(addresses, options.port)
    service.listen_stats(options.stats_port)
    print(f"ready on port {port}", flush=True)
    with suppress(KeyboardInterrupt):
        service.run()


if __name__ == "__main__":
    main(sys.argv[1:])
