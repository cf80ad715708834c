"""What it costs the relay to be watched: metrics scraped, history written and a dashboard open on both sides, against
none of it.

Both are up all the time and asked by turns, who watches is there while the watched one is asked and not while the other
is, so that the machine is the same for both but for the watching itself.
"""

# mypy: disable-error-code="mutable-override"

import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from attrs import evolve, frozen

from tunnel.certificates import certificate_pin_of_file, pin_text
from tunnel.state import hash_token

from . import loads
from .certificate import make_certificate
from .figures import Column, CpuMeter, Figure, Sizes, Values
from .loads import Target
from .panels import OURS
from .processes import free_port
from .systems import System, TrioTunnel

SCRAPE_SECONDS = 5.0  # three times as often as Prometheus does by default
WARM_UP_SECONDS = 1.0
PAIRS = 9


class Watched(TrioTunnel):
    """With an admin address at either end; history is on where there is one."""

    name = "watched"

    def set_up(self) -> None:
        self.admins = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        listen = f"{self.stage.near.address}:{free_port()}"
        state = str(self.folder / f"state-{time.monotonic_ns()}")
        server = self.serve("--listen", listen, "--admin", self.admins[0], "--state-dir", state)
        token = server.wait_said(r"TRIO_TUNNEL_TOKEN=(\S+)").group(1)
        pin = server.wait_said(r"--pin (\S+)").group(1)
        self.connect(listen, "--pin", pin, "--admin", self.admins[1], "--state-dir", f"{state}-client", token=token)


class Unwatched(TrioTunnel):
    """Without an admin address or a history."""

    name = "unwatched"

    def set_up(self) -> None:
        listen, token = f"{self.stage.near.address}:{free_port()}", secrets.token_hex(32)
        both = make_certificate(self.folder)
        text = f'listen = ["{listen}"]\nstate_dir = "{self.folder / "state"}"\n[history]\nenabled = false\n'
        text += f'[tls]\ncert_file = "{both.both}"\nkey_file = "{both.both}"\n'
        text += f'[[clients]]\nname = "one"\ntoken_sha256 = "{hash_token(token).hex()}"\nallow_ports = ["1-65535"]\n'
        self.serve("-c", self.write("server.toml", text), "--admin", "off")
        self.connect(listen, "--pin", pin_text(certificate_pin_of_file(both.cert)), token=token)


@frozen
class _Watchers:
    """What has come to them, so that nobody is measured who was not watched."""

    scrapes: list[int]
    pages: list[int]


@contextmanager
def watching(admins: list[str]) -> Iterator[_Watchers]:
    """A scraper and an open dashboard at each of `admins`, in threads of this process, until the block ends."""
    over = threading.Event()
    seen = _Watchers([], [])

    def scrape(admin: str) -> None:
        while not over.is_set():
            with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
                seen.scrapes.append(len(answer.read()))
            over.wait(SCRAPE_SECONDS)

    def page(admin: str) -> None:
        host, _, port = admin.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(f"GET /events HTTP/1.1\r\nHost: {admin}\r\n\r\n".encode())
            sock.settimeout(0.2)
            while not over.is_set():
                try:
                    seen.pages.append(len(sock.recv(65536)))
                except TimeoutError:
                    pass

    threads = [threading.Thread(target=look, args=(admin,)) for admin in admins for look in (scrape, page)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


@frozen
class _Asked:
    rate: float  # requests a second, 64 connections
    cpu: float  # seconds of both ends, a request


def measure_watched(system: System, target: Target, sizes: Sizes) -> Values:
    """Of two of their own; `system` only says where."""
    watched = Watched(evolve(system.stage, folder=system.folder / "watched"))
    alone = Unwatched(evolve(system.stage, folder=system.folder / "unwatched"))
    pairs = []
    try:
        for one in (watched, alone):
            one.start()
            _ask(one, target, Sizes(WARM_UP_SECONDS))
        for _ in range(PAIRS):
            before = _ask(alone, target, sizes)
            with watching(watched.admins) as seen:
                pairs.append((before, _ask(watched, target, sizes)))
            assert len(seen.scrapes) >= len(watched.admins)
            assert sum(seen.pages) > 0
    finally:
        watched.stop()
        alone.stop()
    return {
        "watched_requests": median(there.rate for _, there in pairs),
        "watched_ratio": median(there.rate / here.rate for here, there in pairs),
        "watched_cpu_ratio": median(there.cpu / here.cpu for here, there in pairs),
    }


def _ask(system: System, target: Target, sizes: Sizes) -> _Asked:
    where = evolve(target, host=system.host, web=system.port("web"), bulk=system.port("bulk"))
    meter = CpuMeter(system)
    found = loads.wrk(where, connections=64, seconds=sizes.seconds)
    return _Asked(found.rate, meter.seconds() / found.count)


WATCHED = Figure(
    "watched",
    measure_watched,
    [
        Column("metrics scraped, history on, a dashboard open at both ends: req/s", ["watched_requests"]),
        Column("× nobody watching: req/s / CPU a request", ["watched_ratio", "watched_cpu_ratio"], 3),
    ],
    systems=(OURS,),
)
