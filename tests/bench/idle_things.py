"""What sessions and proxies cost those whom they do not concern: a server full of them against one that has none.

Both are up all the time and asked by turns, so that the machine is the same for both, the crowd's own process included.
"""

# mypy: disable-error-code="mutable-override"

import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from attrs import evolve, frozen

from tunnel.certificates import certificate_pin_of_file, pin_text
from tunnel.state import hash_token

from . import loads
from .certificate import make_certificate
from .figures import Column, CpuMeter, Figure, Sizes, Values
from .loads import Target
from .panels import OURS
from .processes import Process, cpu_seconds, free_port, resident_kib
from .systems import System, TrioTunnel

MOST_SESSIONS, PROXIES_EACH, CHANNELS_EACH = 200, 5, 4
SETTLE_SECONDS = 2.0  # for the channels of the last sessions
WARM_UP_SECONDS = 1.0
PAIRS = 3
REST_SECONDS = 5.0  # half of a heartbeat's period: a share of each session's pings is in it


class Crowded(TrioTunnel):
    """A server that knows `MOST_SESSIONS` more clients; so many as are wanted are there while `crowd` lasts."""

    name = "crowded"

    def set_up(self) -> None:
        self.address = f"{self.stage.near.address}:{free_port()}"
        self.pin = pin_text(certificate_pin_of_file(make_certificate(self.folder).cert))
        token, *self.tokens = (secrets.token_hex(32) for _ in range(MOST_SESSIONS + 1))
        self.serve("-c", self.write("server.toml", self._server_file([token, *self.tokens])), "--admin", "off")
        self.connect(self.address, "--pin", self.pin, "--state-dir", str(self.folder / "client"), token=token)

    def _server_file(self, tokens: Sequence[str]) -> str:
        host, _, port = self.address.rpartition(":")
        both = make_certificate(self.folder).both
        text = f'bind_addr = "{host}"\nbind_port = {port}\nstate_dir = "{self.folder / "state"}"\n'
        text += f'[tls]\ncert_file = "{both}"\nkey_file = "{both}"\n'
        for number, token in enumerate(tokens):
            text += f'[[clients]]\nname = "client-{number}"\ntoken_sha256 = "{hash_token(token).hex()}"\n'
            text += 'allow_ports = ["1-65535"]\n'
        return text

    @contextmanager
    def crowd(self, sessions: int) -> Iterator[None]:
        plan: dict[str, Any] = {"server": self.address, "pin": self.pin, "target": self.service("web")}
        plan["channels"] = CHANNELS_EACH
        plan["clients"] = [
            {"token": token, "ports": [free_port() for _ in range(PROXIES_EACH)]} for token in self.tokens[:sessions]
        ]
        argv = [sys.executable, "-m", "tests.bench.sessions", self.write("sessions.json", json.dumps(plan))]
        process = Process("sessions", argv, place=self.stage.far, folder=self.folder)
        try:
            process.wait(lambda: "ready" in process.said(), "is ready", seconds=90.0)
            time.sleep(SETTLE_SECONDS)
            yield
        finally:
            process.stop()


def measure_idle_things(system: System, target: Target, sizes: Sizes) -> Values:
    """`system` is the one that has none."""
    server = Crowded(evolve(system.stage, folder=system.folder / "crowded"))
    server.start()
    try:
        where = evolve(target, host=server.host, web=server.port("web"), bulk=server.port("bulk"))
        for one, there in ((server, where), (system, target)):
            _ask(one, there, Sizes(WARM_UP_SECONDS))
        alone_kib = resident_kib(server.pids()[:1])
        with server.crowd(sizes.idle_sessions):
            values = _rest(server, alone_kib)
            pairs = [(_ask(system, target, sizes), _ask(server, where, sizes)) for _ in range(PAIRS)]
    finally:
        server.stop()
    values["idle_things_sessions"] = sizes.idle_sessions
    values["idle_things_proxies"] = sizes.idle_sessions * PROXIES_EACH
    values["idle_things_requests"] = median(there.rate for _, there in pairs)
    values["idle_things_ratio"] = median(there.rate / here.rate for here, there in pairs)
    values["idle_things_cpu_ratio"] = median(there.cpu / here.cpu for here, there in pairs)
    return values


def _rest(server: Crowded, alone_kib: float) -> Values:
    """Of the server's process, while the crowd is there and nobody asks anything."""
    pids = server.pids()[:1]
    used = cpu_seconds(pids)
    time.sleep(REST_SECONDS)
    percent = (cpu_seconds(pids) - used) / REST_SECONDS * 100
    return {"idle_things_mib": (resident_kib(pids) - alone_kib) / 1024, "idle_things_cpu_percent": percent}


@frozen
class _Asked:
    rate: float  # requests a second, 64 connections
    cpu: float  # seconds of server and asked client, a request


def _ask(system: System, where: Target, sizes: Sizes) -> _Asked:
    meter = CpuMeter(system)
    found = loads.wrk(where, connections=64, seconds=sizes.seconds)
    return _Asked(found.rate, meter.seconds() / found.count)


IDLE_THINGS = Figure(
    "idle-things",
    measure_idle_things,
    [
        Column(f"idle sessions of {CHANNELS_EACH} channels / proxies", ["idle_things_sessions", "idle_things_proxies"]),
        Column("with them: req/s", ["idle_things_requests"]),
        Column("× without: req/s / CPU a request", ["idle_things_ratio", "idle_things_cpu_ratio"], 2),
        Column("they cost the server, MiB / % of a core", ["idle_things_mib", "idle_things_cpu_percent"], 1),
    ],
    systems=(OURS,),
)
