"""A server and a client that can be killed, each started again at once with the state and the ports it had."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field
from processes import LOOPBACK, Client, Process, Server, Stage, ask_echo, free_port
from services import Services, echo

from .transfers import Tally, Transfer, download, download_service, upload, upload_service

READY_SECONDS = 30.0


@define(eq=False)
class House:
    stage: Stage
    targets: dict[str, int]  # local services
    ports: dict[str, int]  # their public ports
    tally: Tally
    server: Server = field(init=False)
    client: Client = field(init=False)
    _token: str = ""
    _pin: str = ""

    @property
    def traffic(self) -> dict[Transfer, int]:
        return {upload: self.ports["up"], download: self.ports["down"]}

    def start_server(self) -> None:
        """As a supervisor does: the same words, state directory and port. Returns once it listens."""
        first = not self._token
        before = None if first else self.server
        self.server = self.stage.serve(state=before and before.state, port=before.port if before else 0)
        if first:
            self._token, self._pin = self.server.token, self.server.pin

    def start_client(self) -> None:
        proxies = [f"{name}={LOOPBACK}:{self.ports[name]}:{target}" for name, target in self.targets.items()]
        self.client = self.stage.connect(self.server, *proxies, token=self._token, pin=self._pin)

    def kill(self, side: str) -> None:
        """`kill -9`, and forget it."""
        process: Process = self.server if side == "server" else self.client
        process.kill()
        process.end()
        self.stage.processes.remove(process)

    def restart(self, side: str) -> None:
        if side == "server":
            self.start_server()
        else:
            self.start_client()

    def assert_state_is_readable(self) -> None:
        """By the commands that people use on it, the token that was made first among what they find."""
        assert "default" in self.stage.run("token", "list", "--state-dir", self.server.state).stdout

    def is_served(self) -> bool:
        """Whether a visitor is answered."""
        try:
            ask_echo(self.ports["echo"])
        except (OSError, AssertionError):
            return False
        return True


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    tally = Tally()
    with Stage(folder) as stage, Services() as services:
        handlers = {"echo": echo, "up": upload_service(tally), "down": download_service}
        targets = {name: services.add(handler) for name, handler in handlers.items()}
        house = House(stage, targets, {name: free_port() for name in handlers}, tally)
        house.start_server()
        house.start_client()
        house.client.wait_healthy(*handlers, seconds=READY_SECONDS)
        yield house
