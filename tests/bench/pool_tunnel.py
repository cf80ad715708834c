"""`python -m tests.bench pool-tunnel`: hot channels and hot targets against cold ones, and what a dead address costs.

`first_byte` puts an emulated link (root only) between server and client, or between client and target, and sends
visitors one after the other. `kill` lets 200 visitors a second come while one of three server addresses falls silent.
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.request import urlopen

from attrs import frozen

from .certificate import NAME, make_certificate
from .link import Lab, LinkSpec
from .machine import busy_percent, describe_machine, describe_versions
from .processes import Failed, Place, Process, free_port
from .processes import run as run_to_end
from .rounds import say
from .visitors import percentile

RTTS = (0.0, 20.0, 100.0)
VISITORS = 100
ARRIVALS = 10
HOT = 8
KILL_AFTER_SECONDS = 4.0
AFTER_KILL_SECONDS = 12.0
RATE = 200
TALKERS = 30
GRACE_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # every address has its channel by then
WAITING_MS = 250  # longer than anybody is served late for any other reason


@frozen
class Scene:
    """Who is where: the public end and the visitors, the client, and the target."""

    folder: Path
    public: Place
    client: Place
    target: Place


class Tunnel:
    """A target over TLS, a server, and a client that `connect` starts; all are stopped with the `stack`."""

    def __init__(self, scene: Scene, stack: ExitStack) -> None:
        self.scene = scene
        self._stack = stack
        self._certificate = make_certificate(scene.folder)
        self.port = free_port()  # where visitors come
        self.control_port = free_port()
        self.admin_port = free_port()
        self._target_port = free_port()
        self._clients = 0
        self._start_target()
        self._start_server()

    def run(self, name: str, argv: Sequence[str], place: Place, env: dict[str, str] | None = None) -> Process:
        process = Process(name, [sys.executable, "-m", *argv], place=place, folder=self.scene.folder, env=env)
        self._stack.callback(process.stop)
        return process

    def _start_target(self) -> None:
        argv = ["tests.bench.pool_service", "--port", str(self._target_port), "--only", self._target_address]
        service = self.run("target", [*argv, "--certificate", str(self._certificate.both)], self.scene.target)
        service.wait_said("ready")

    @property
    def _target_address(self) -> str:
        return "127.0.0.1" if self.scene.target == self.scene.client else self.scene.target.address

    def _start_server(self) -> None:
        listen = f"{self.scene.public.address}:{self.control_port}"
        options = ["--listen", listen, "--admin", "off", "--state-dir", str(self.scene.folder / "state")]
        server = self.run("server", ["tunnel", "serve", *options], self.scene.public)
        server.wait_said(r"(?m)^listening on \S+$")
        self._token = server.wait_said(r"TRIO_TUNNEL_TOKEN=(\S+)").group(1)
        self._pin = server.wait_said(r"--pin (\S+)").group(1)

    @contextmanager
    def connected(self, *, hot: int, ports: Sequence[int] = (), wait: bool = True) -> Iterator[Process]:
        """A client, by default once its proxy is healthy; `ports`: of several addresses of the server."""
        self._clients += 1
        servers = json.dumps([f"{self.scene.public.address}:{port}" for port in ports or [self.control_port]])
        where = f"{self._target_address}:{self._target_port}"
        target = f'{{ target = "tls://{NAME}:{self._target_port}", connect_to = "{where}" }}'
        config = self.scene.folder / f"client-{self._clients}.toml"
        config.write_text(
            f'servers = {servers}\npin = "{self._pin}"\n[[proxies]]\nname = "web"\npublish_addr = "127.0.0.1"\n'
            f"publish_port = {self.port}\ntargets = [{target}]\n[proxies.pool]\nmin = {hot}\nfill_rate = 1000\n"
        )
        argv = ["tunnel", "connect", "-c", str(config), "--json", "--admin", f"127.0.0.1:{self.admin_port}"]
        argv += ["--state-dir", str(self.scene.folder / f"client-{self._clients}")]
        env = {"TRIO_TUNNEL_TOKEN": self._token, "SSL_CERT_FILE": str(self._certificate.cert)}
        client = self.run(f"client-{self._clients}", argv, self.scene.client, env)
        try:
            if wait:
                client.wait_said(r'(?m)^.*"status": ?"healthy"')
            yield client
        finally:
            client.stop()

    def users_by_port(self) -> dict[int, int]:
        """How many visitors are inside by each address of the server, as the client's /stats tell; on loopback only."""
        with urlopen(f"http://127.0.0.1:{self.admin_port}/stats", timeout=5) as answer:
            channels = json.load(answer)["connection_pool"]["data_channels"]
        return {int(where.rpartition(":")[2]): one["users"] for where, one in channels["addresses"].items()}

    def visitors(self, what: str, *numbers: float, seconds: float = 0.0) -> Any:
        argv = [sys.executable, "-m", "tests.bench.visitors", what, "127.0.0.1", str(self.port), *map(str, numbers)]
        return json.loads(run_to_end(argv, place=self.scene.public, seconds=seconds + GRACE_SECONDS))


def first_byte(rtt: float, where: str) -> dict[str, float]:
    """Milliseconds to the first byte; `where` the link is: "server – client" or "client – target"."""
    with ExitStack() as stack:
        folder = new_folder(stack)
        lab = stack.enter_context(Lab(LinkSpec(rtt, 0, 0), folder))
        client = lab.far if where == "server – client" else lab.near
        tunnel = Tunnel(Scene(folder, lab.near, client, lab.far), stack)
        values: dict[str, float] = {}
        for name, hot in (("hot", HOT), ("cold_target", 0)):
            with tunnel.connected(hot=hot):
                tunnel.visitors("one-by-one", 20)  # windows, name look-ups and pools have settled by then
                found = tunnel.visitors("one-by-one", VISITORS, seconds=VISITORS * rtt / 100)
                if found["served"] != VISITORS:
                    raise Failed(f"{found['served']} of {VISITORS} visitors were served")
                values |= {f"{name}_p50_ms": found["median_ms"], f"{name}_p99_ms": found["p99_ms"]}
        arrivals = []
        for _ in range(ARRIVALS):
            with tunnel.connected(hot=0, wait=False):
                arrivals.append(tunnel.visitors("arrive")["median_ms"])
        values |= {"cold_p50_ms": percentile(arrivals, 50), "cold_p99_ms": percentile(arrivals, 99)}
        return values


def kill(which: str) -> dict[str, Any]:
    """One of three addresses of the server falls silent, the ``busiest`` or the ``idlest``: what its visitors,
    those of the others and new ones see of it."""
    with ExitStack() as stack:
        here = Place()
        tunnel = Tunnel(Scene(new_folder(stack), here, here, here), stack)
        freezers: dict[int, Process] = {}
        for port in [free_port() for _ in range(3)]:
            argv = ["tests.bench.freezer", str(port), str(tunnel.control_port)]
            freezers[port] = tunnel.run(f"freezer-{port}", argv, here)
            freezers[port].wait_said("ready")
        with tunnel.connected(hot=HOT, ports=list(freezers)):
            time.sleep(SETTLE_SECONDS)
            seconds = KILL_AFTER_SECONDS + AFTER_KILL_SECONDS
            numbers = [str(tunnel.port), str(RATE), str(seconds), str(TALKERS)]
            load = tunnel.run("load", ["tests.bench.visitors", "steady", "127.0.0.1", *numbers], here)
            time.sleep(KILL_AFTER_SECONDS)
            users = tunnel.users_by_port()
            dead = (max if which == "busiest" else min)(users, key=lambda port: users[port])
            killed_at = time.monotonic()
            os.kill(freezers[dead].pid, signal.SIGUSR1)
            freezers[dead].wait_said("frozen")
            load.wait(lambda: load.said().endswith("}\n"), "ends", seconds + GRACE_SECONDS)
            dead_users = users.pop(dead)
            return {"users": [dead_users, *users.values()], **sum_up(json.loads(load.said()), killed_at)}


Visit = tuple[float, float | None]  # seconds after the kill, milliseconds to the first byte


def sum_up(found: dict[str, Any], killed_at: float) -> dict[str, Any]:
    visits: list[Visit] = [(at - killed_at, ms) for at, ms in found["visits"]]
    talks: list[list[Visit]] = [[(at - killed_at, ms) for at, ms in talk] for talk in found["talks"]]
    before = [ms for at, ms in visits if at < -1 and ms is not None]
    new = [(at, ms) for at, ms in visits if at >= 0]
    waiting = [at for at, ms in new if ms is None or ms > WAITING_MS]
    kept = [talk for talk in talks if talk[-1][1] is not None]
    kept_answers = [ms for talk in kept for at, ms in talk if at >= 0 and ms is not None]
    return {
        "visitors": len(visits),
        "before_p50_ms": percentile(before, 50),
        "before_p99_ms": percentile(before, 99),
        "failed_under_way": sum(at < 0 and ms is None for at, ms in visits),
        "failed_new_first_second": sum(at < 1 and ms is None for at, ms in new),
        "failed_new_later": sum(at >= 1 and ms is None for at, ms in new),
        "waited": len(waiting),
        "nobody_waits_after_s": max(waiting, default=0.0),
        "longest_ms": max((ms for _, ms in new if ms is not None), default=None),
        "longest_after_1s_ms": max((ms for at, ms in new if at >= 1 and ms is not None), default=None),
        "talkers": len(talks),
        "talkers_cut": len(talks) - len(kept),
        "talkers_kept_longest_ms": max(kept_answers, default=None),
    }


def new_folder(stack: ExitStack) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="bench-tunnel-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def first_byte_rows(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = [
        "| link | hot, p50 / p99 ms | cold target | cold channel and target, p50 / slowest of 10 |",
        "|---|--:|--:|--:|",
    ]
    for link, values in results.items():
        cells = [
            f"{values[f'{name}_p50_ms']:.1f} / {values[f'{name}_p99_ms']:.1f}"
            for name in ("hot", "cold_target", "cold")
        ]
        lines.append(f"| {link} | " + " | ".join(cells) + " |")
    return lines


def kill_table(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = [kill_rows(found) for found in runs.values()]
    heads = " | ".join(f"the {which}" for which in runs)
    lines = [f"| one of three server addresses falls silent | {heads} |", "|---|" + "--:|" * len(runs)]
    return lines + [f"| {row} | " + " | ".join(column[row] for column in columns) + " |" for row in columns[0]]


def kill_rows(found: Mapping[str, Any]) -> dict[str, str]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    return {
        f"new visitors, {RATE} a second: p50 / p99 ms before": (
            f"{found['before_p50_ms']:.1f} / {found['before_p99_ms']:.1f}"
        ),
        "visitors inside: its own / by the other addresses": " / ".join(map(str, found["users"])),
        "failed: under way at that moment": str(found["failed_under_way"]),
        "failed: came within a second after it / later": (
            f"{found['failed_new_first_second']} / {found['failed_new_later']}"
        ),
        f"came after it and waited over {WAITING_MS} ms": str(found["waited"]),
        "from when on nobody waits, s": f"{found['nobody_waits_after_s']:.2f}",
        "longest wait of those served that came after it / over a second after it, ms": (
            f"{shown(found['longest_ms'])} / {shown(found['longest_after_1s_ms'])}"
        ),
        f"visitors that stay, {found['talkers']}: cut / longest answer to the others, ms": (
            f"{found['talkers_cut']} / {shown(found['talkers_kept_longest_ms'])}"
        ),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        "# Hot channels and hot targets through the tunnel",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {report['taken']}. Before it, others used "
        f"{report['busy_percent']:.0f} % of the CPU. Command:",
        "",
        f"    {report['command']}",
        "",
        *(first_byte_rows(report["first_byte"]) if report["first_byte"] else [f"Skipped: {report['skipped']}."]),
        "",
        *(kill_table(report["kill"]) if report["kill"] else []),
        "",
        *wrap(LEGEND, 120),
    ]
    return "\n".join(lines) + "\n"


LEGEND = (
    f"First byte: {VISITORS} visitors one after the other, from the start of the connection; the target speaks TLS. "
    f"Hot: channels open, {HOT} unused connections to the target kept ready. Cold channel: the visitor comes when its "
    "port is bound, with the session. Fallen silent: the address forwards nothing more, its sockets stay open. "
    f"{TALKERS} visitors stay for the whole time and ask every 50 ms."
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench pool-tunnel", description=__doc__)
    parser.add_argument("--only", choices=("first-byte", "kill"))
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the report")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {
        "command": f"python -m tests.bench pool-tunnel {shlex.join(argv)}".strip(),
        "taken": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "busy_percent": busy_percent(),
        "skipped": Lab.missing() if options.only != "kill" else "not asked for",
        "first_byte": {},
        "kill": {},
    }
    try:
        if report["skipped"] is None:
            for where in ("server – client", "client – target"):
                for rtt in RTTS:
                    named = f"{where}, {rtt:g} ms RTT"
                    report["first_byte"][named] = first_byte(rtt, where)
                    say(f"{named}: {report['first_byte'][named]}")
        if options.only != "first-byte":
            report["kill"] = {which: kill(which) for which in ("busiest", "idlest")}
    except Failed as exc:
        print(f"the benchmark itself failed: {exc}", file=sys.stderr)
        return 1
    text = to_markdown(report)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pool-tunnel.md").write_text(text)
    (options.out / "pool-tunnel.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    say(f"written: {options.out / 'pool-tunnel'}.md, .json")
    return 0
