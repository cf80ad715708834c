"""The Compose demo, run for real from its start to its end: each step is timed, and the first that fails ends it.

python -m tests.deploy.compose            with the Docker engine that answers here
python -m tests.deploy.compose --engine   where none does: root installs and starts one first (Debian)
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from attrs import Factory, define
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port

from .engine import BUILD_SECONDS, Engine, NoEngine, find

UP_SECONDS = 120.0  # from "start" to a client that is ready
RETRIED_SECONDS = 90.0  # the thief stays for 20, and attempts are 4 apart
BACK_SECONDS = 60.0  # after a restart; seconds, on a machine that is not busy
STOP_SECONDS = 45.0  # over what a drain may take
SLOW_LINES = 5  # of the sample service's /slow, one a second
T = TypeVar("T")


@define
class Demo:
    """The demo under its own project name, at ports of its own."""

    engine: Engine
    ports: dict[str, int]
    took: dict[str, float] = Factory(dict)  # step → seconds

    def url(self, port: str, path: str = "/") -> str:
        return f"http://localhost:{self.ports[port]}{path}"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.took[name] = time.monotonic() - began
        print(f"ok {self.took[name]:6.1f} s  {name}", flush=True)

    def proxy(self, name: str) -> dict[str, Any]:
        """What the server's /stats says of a proxy; empty where it has none of this name."""
        found = [proxy for session in self.stats()["sessions"] for proxy in session["proxies"]]
        return next((proxy for proxy in found if proxy["name"] == name), {})

    def stats(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(get(self.url("DASHBOARD_PORT", "/stats"))[1])
        return told


def until(look: Callable[[], T], what: str, seconds: float) -> T:
    """What `look` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.2)
    return found


def get(url: str, seconds: float = 10.0) -> tuple[str, str]:
    """Content type and body of a 200; OSError for all else."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def serves(url: str, words: str) -> Callable[[], bool]:
    def look() -> bool:
        try:
            return words in get(url)[1]
        except (OSError, ValueError):
            return False

    return look


def run(demo: Demo) -> None:
    """All steps; `AssertionError` says what was not as it should be. Whatever happens, nothing of it is left."""
    try:
        _run(demo)
    except BaseException:
        print(_logs(demo), flush=True)
        raise
    finally:
        with demo.step("taken down, with its networks and volumes"):
            demo.engine.compose("down", "-v", "--timeout", "5", seconds=STOP_SECONDS + 60)


def _run(demo: Demo) -> None:
    engine = demo.engine
    with demo.step("built"):
        engine.compose("build", seconds=BUILD_SECONDS)
    with demo.step("started; the client's session is up"):
        engine.compose("up", "-d", seconds=UP_SECONDS)
        until(lambda: engine.state("client", "{{.State.Health.Status}}") == "healthy", "a client", UP_SECONDS)
    with demo.step("the second proxy's port is the thief's, and that is seen"):
        _look_at_the_thief(demo)
    with demo.step("the sample service answers through the tunnel, and to nobody else"):
        _look_at_the_service(demo)
    with demo.step("dashboard, readiness, metrics; a line of the log says where"):
        _look_at_the_admin_address(demo)
    with demo.step("the second proxy has its port by itself, once the thief has gone"):
        _see_it_recover(demo)
    with demo.step("the server restarted, both proxies answer again"):
        engine.compose("restart", "--timeout", "35", "server", seconds=STOP_SECONDS)
        _both_answer(demo)
    with demo.step("a visitor inside reads to the end while the server stops; exit code 0"):
        _stop_with_a_visitor_inside(demo)
    with demo.step("the client stops at once; exit code 0; no token in any log"):
        _stop_the_client(demo)


def _look_at_the_thief(demo: Demo) -> None:
    found = until(lambda: demo.proxy("second").get("reason") and demo.proxy("second"), "a proxy", 20)
    assert (found["status"], found["reason"]) == ("unhealthy", "addr_in_use"), found
    assert found["error_message"] == "Port 8002 is already in use by another process"
    assert found["retry_after_seconds"] is not None
    assert "port thief" in get(demo.url("SECOND_PORT"))[1]


def _look_at_the_service(demo: Demo) -> None:
    until(serves(demo.url("WEB_PORT"), "It works"), "the sample service's page", BACK_SECONDS)
    dial = "import socket; socket.create_connection(('web', 8080), 3)"
    command = ("docker", "exec", demo.engine.container("server"), "python", "-c", dial)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "gaierror" in done.stderr, f"the server's container reaches the inside network: {done}"


def _look_at_the_admin_address(demo: Demo) -> None:
    assert get(demo.url("DASHBOARD_PORT", "/readyz"))[1].startswith("ready")
    kind, page = get(demo.url("DASHBOARD_PORT"))
    assert kind.startswith("text/html"), kind
    assert "trio-tunnel" in page
    _, text = get(demo.url("DASHBOARD_PORT", "/metrics"))
    families = {family.name for family in text_string_to_metric_families(text)}
    assert any("sessions" in name for name in families), sorted(families)
    assert demo.url("DASHBOARD_PORT") in demo.engine.compose("logs", "open")


def _see_it_recover(demo: Demo) -> None:
    until(lambda: demo.proxy("second").get("status") == "healthy", "the second proxy", RETRIED_SECONDS)
    assert "It works" in get(demo.url("SECOND_PORT"))[1]
    log = demo.engine.compose("logs", "server")
    assert "Proxy 'second' bind failed (attempt 1/10): Port 8002 is already in use by another process" in log
    assert "Proxy 'second' listening on 0.0.0.0:8002 (after " in log
    assert demo.engine.state("thief", "{{.State.ExitCode}}") == "0"


def _both_answer(demo: Demo) -> None:
    for port in ("WEB_PORT", "SECOND_PORT"):
        until(serves(demo.url(port), "It works"), f"an answer at {demo.url(port)}", BACK_SECONDS)


def _stop_with_a_visitor_inside(demo: Demo) -> None:
    with urllib.request.urlopen(demo.url("WEB_PORT", "/slow"), timeout=30) as answer:
        assert answer.readline() == b"still here\n"
        stopping = threading.Thread(target=_stop, args=(demo, "server"))
        stopping.start()
        rest = answer.read()
    stopping.join()
    assert rest == b"still here\n" * (SLOW_LINES - 1)
    assert demo.engine.state("server", "{{.State.ExitCode}}") == "0"


def _stop(demo: Demo, service: str) -> None:
    demo.engine.compose("stop", "--timeout", "35", service, seconds=STOP_SECONDS)


def _stop_the_client(demo: Demo) -> None:
    before = time.monotonic()
    _stop(demo, "client")
    assert time.monotonic() - before < 30, "the client did not heed SIGTERM"
    assert demo.engine.state("client", "{{.State.ExitCode}}") == "0"
    assert "tt_" not in demo.engine.compose("logs")


def _logs(demo: Demo) -> str:
    """What all containers said, for whoever reads about a failure."""
    try:
        return demo.engine.compose("logs", "--no-color", "--tail", "60") + demo.engine.run("docker", "ps", "-a")
    except (AssertionError, subprocess.TimeoutExpired) as exc:
        return f"no logs: {exc}"


def prepare() -> Demo:
    """A demo not yet started; `NoEngine` where it cannot be."""
    ports = {name: free_port() for name in ("DASHBOARD_PORT", "WEB_PORT", "SECOND_PORT")}
    environment = {name: str(port) for name, port in ports.items()}
    return Demo(find(f"trio-tunnel-test-{os.getpid()}", environment), ports)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.deploy.compose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", action="store_true", help="install and start a Docker engine first; root only")
    told = parser.parse_args()
    began = time.monotonic()
    if told.engine:
        subprocess.run([str(Path(__file__).with_name("engine.sh"))], check=True)
        print(f"ok {time.monotonic() - began:6.1f} s  an engine and a base image", flush=True)
    try:
        run(prepare())
    except NoEngine as exc:
        print(exc, file=sys.stderr)
        return 2
    except (AssertionError, OSError, subprocess.TimeoutExpired) as exc:
        print(f"FAILED: {exc}", file=sys.stderr)
        return 1
    print(f"all of it in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
