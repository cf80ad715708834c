"""Two hundred clients with five proxies each, whose server is restarted under them: B19, and B2 for all of them."""

import hashlib
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define, field
from processes import Process, Server, Stage, echoes

CLIENTS, PROXIES, PROGRAMS = 200, 5, 2
BACK_SECONDS = 10.0  # for the last of them, on a machine that has other things to do
PORTS = 16_000, 20_000


def free_ports(count: int) -> range:
    """In a row, with nobody there; apart from those that `free_port` gives, here and in `tests/ports.py`, to us (the
    next server's admin address for one) and to others who test at the same time."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    taken = {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
    while True:
        start = random.randint(PORTS[0], PORTS[1] - count)
        if not taken & set(range(start, start + count)):
            return range(start, start + count)


@define
class Crowd:
    """Programs that are many clients each; `up` is when each has come (back), None while it is away."""

    programs: list[Process]
    names: list[str]
    up: dict[str, float | None] = field(factory=dict)
    whys: Counter[str] = field(factory=Counter)
    _read: list[int] = field(factory=lambda: [0] * PROGRAMS)

    def look(self) -> None:
        for number, program in enumerate(self.programs):
            lines = list(program.out)[self._read[number] :]
            self._read[number] += len(lines)
            for line in map(json.loads, lines):
                if line["why"] is not None:
                    self.up[line["client"]] = None
                    self.whys[line["why"]] += 1
                elif self.up.get(line["client"]) is None:
                    self.up[line["client"]] = line["at"]

    def are_all_up(self) -> bool:
        self.look()
        return len(self.up) == len(self.names) and None not in self.up.values()

    def are_all_away(self) -> bool:
        self.look()
        return set(self.up.values()) == {None}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks for free ports in /proc")
def test_two_hundred_clients_come_back_after_their_server_was_killed_and_after_it_was_stopped(
    stage: Stage, echo_port: int
) -> None:
    names = [f"client{number}" for number in range(CLIENTS)]
    tokens = {name: random.randbytes(16).hex() for name in names}
    ports = free_ports(CLIENTS * PROXIES)
    publish = {name: list(ports[number * PROXIES : (number + 1) * PROXIES]) for number, name in enumerate(names)}
    config = "".join(
        f'[[clients]]\nname = "{name}"\ntoken_sha256 = "{hashlib.sha256(tokens[name].encode()).hexdigest()}"\n'
        f'allow_ports = ["{publish[name][0]}-{publish[name][-1]}"]\n'
        for name in names
    )
    server = stage.serve(config=config)

    def start(number: int) -> Process:
        mine = names[number::PROGRAMS]
        plan = {
            "port": server.port, "pin": server.pin, "target": f"127.0.0.1:{echo_port}",
            "tokens": {name: tokens[name] for name in mine}, "publish": publish,
        }  # fmt: skip
        path = stage.write(f"plan{number}.json", json.dumps(plan))
        return stage.watch(f"crowd {number}", [sys.executable, Path(__file__).with_name("crowd.py"), path], stdin=True)

    crowd = Crowd([start(number) for number in range(PROGRAMS)], names)
    stage.until(crowd.are_all_up, "all have come", 40)

    def restart(how: Callable[[Server], None], word: str) -> None:
        nonlocal server
        how(server)
        server.popen.wait(10)
        ended = time.monotonic()
        stage.until(crowd.are_all_away, "all have noticed", 5)
        crowd.whys.clear()
        server = stage.serve(state=server.state, config=config, port=server.port)
        listening = time.monotonic()
        stage.until(crowd.are_all_up, "all are back", BACK_SECONDS)
        back = sorted(at - listening for at in crowd.up.values())
        tenths = statistics.quantiles(back, n=10)
        print(
            f"{word}: {CLIENTS} clients x {PROXIES} back: first {back[0]:.2f}, median {tenths[4]:.2f}, "
            f"slowest {back[-1]:.2f} s after the new server listened, {listening - ended:.2f} s after the old one's "
            f"end; 10-90 %: {tenths[8] - tenths[0]:.2f} s; tries that failed: {crowd.whys.most_common(4)}"
        )
        assert tenths[8] - tenths[0] > 0.1, "they do not come in step"
        assert len(server.stats()["sessions"]) == CLIENTS

    restart(Server.kill, "killed")
    restart(Server.terminate, "stopped")
    assert all(echoes(port) for port in random.sample(ports, 20))
    assert "Traceback" not in stage.report()
