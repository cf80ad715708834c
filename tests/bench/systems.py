"""What is measured: one small class a system. This file holds the base, `direct`, trio-tunnel and the naive tunnel."""

# mypy: disable-error-code="mutable-override"

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from attrs import frozen

from .certificate import make_certificate
from .machine import ask_version
from .panels import OURS, PORTABLE
from .processes import START_SECONDS, Failed, Place, Process, free_port, run


@frozen
class Stage:
    """Where a system is set up: visitors and its public end are `near`, its client and the services are `far`."""

    folder: Path
    near: Place
    far: Place
    services: Mapping[str, int]  # ports in `far`
    files: int  # the limit of open files


class System:
    """`start` returns when the web service answers through it; from then on `host`:`port(service)` serves visitors."""

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    version_command: ClassVar[tuple[str, ...]] = ()

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.folder = stage.folder
        self.host = "127.0.0.1"
        self._ports: dict[str, int] = {}
        self._started: list[Process] = []

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be measured here, if so."""
        lacking = [program for program in cls.programs if not shutil.which(program)]
        return f"{', '.join(lacking)} not found on PATH" if lacking else None

    @classmethod
    def version(cls) -> str:
        return ask_version(cls.version_command) if cls.version_command else ""

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._ports = {service: free_port() for service in self.stage.services}
        try:
            self.set_up()
            self._started[-1].wait(self._serves, f"{self.name} serves the web service")
        except BaseException:
            self.stop()
            raise

    def set_up(self) -> None:
        """Start the processes, the one that must be asked about readiness last."""
        raise NotImplementedError

    def stop(self) -> None:
        """The client's end first, so that the server's end has nothing left to wait for."""
        while self._started:
            self._started.pop().stop()

    def pids(self) -> list[int]:
        return [process.pid for process in self._started]

    def port(self, service: str) -> int:
        return self._ports[service]

    # For the classes

    def run(
        self, name: str, argv: Sequence[str], *, far: bool = False, env: Mapping[str, str] | None = None
    ) -> Process:
        place = self.stage.far if far else self.stage.near
        process = Process(name, argv, place=place, folder=self.folder, env=env)
        self._started.append(process)
        return process

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        return str(path)

    def service(self, name: str) -> str:
        """Where the client's end finds a service."""
        return f"127.0.0.1:{self.stage.services[name]}"

    def _serves(self) -> bool:
        argv = [sys.executable, "-m", "tests.bench.visitors", "once", self.host, str(self.port("web"))]
        try:
            run(argv, place=self.stage.near, seconds=START_SECONDS)
        except Failed:
            time.sleep(0.05)
            return False
        return True


class Direct(System):
    """No tunnel: what the machine, the services and the loads can do."""

    name = "direct"

    def start(self) -> None:
        self.host = self.stage.far.address

    def port(self, service: str) -> int:
        return self.stage.services[service]


class TrioTunnel(System):
    name = OURS
    version_command = (sys.executable, "-m", "tunnel", "--version")
    module = "tunnel"

    def set_up(self) -> None:
        listen = f"{self.stage.near.address}:{free_port()}"
        state = str(self.folder / f"state-{time.monotonic_ns()}")
        server = self.serve("--listen", listen, "--admin", "off", "--state-dir", state)
        token = server.wait_said(r"TRIO_TUNNEL_TOKEN=(\S+)").group(1)
        pin = server.wait_said(r"--pin (\S+)").group(1)
        self.connect(listen, "--pin", pin, "--state-dir", f"{state}-client", token=token)

    def serve(self, *options: str) -> Process:
        server = self.run("server", [sys.executable, "-m", self.module, "serve", *options])
        server.wait_said(r"(?m)^listening on \S+:\d+")
        return server

    def connect(self, *options: str, token: str) -> None:
        """Returns when all is published."""
        proxies = []
        for name, port in self._ports.items():
            proxies += ["-p", f"{name}=127.0.0.1:{port}:{self.service(name)}"]
        command = [sys.executable, "-m", self.module, "connect", *options, "--json", *proxies]
        statuses = self.run("client", command, far=True, env={"TRIO_TUNNEL_TOKEN": token})
        for name in self._ports:
            statuses.wait_said(rf'(?m)^(?=.*"proxy_name": ?"{re.escape(name)}").*"status": ?"healthy"')


class Portable(TrioTunnel):
    """What plain Trio waits cost; measured only when named."""

    name = PORTABLE
    module = "tests.bench.portable"


class Naive(System):
    """See `naive`: the obvious way to write it in Trio."""

    name = "naive"

    def set_up(self) -> None:
        command = (sys.executable, "-m", "tests.bench.naive")
        certificate = make_certificate(self.folder)
        port = free_port()
        published = [f"{self._ports[name]}={self.service(name)}" for name in self._ports]
        server = self.run(
            "server", [*command, "server", f"{self.stage.near.address}:{port}", str(certificate.both), *published]
        )
        server.wait_listening(port)
        self.run(
            "client",
            [*command, "client", f"{self.stage.near.address}:{port}", str(certificate.cert), *published],
            far=True,
        )
