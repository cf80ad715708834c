"""The pods of `deploy/kubernetes`, run by Docker as a kubelet would: confined, with its volumes and their owners.

python -m tests.deploy.pods     as root, with a Docker engine on this machine; each step is timed
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

from .compose import get, serves, until
from .engine import BUILD_SECONDS, Engine, NoEngine, find
from .files import DEPLOY
from .kubelet import Pod

READY_SECONDS = 60.0
SERVER_TOML = (DEPLOY / "kubernetes" / "server" / "server.toml").read_text()
CLIENT_TOML = (DEPLOY / "kubernetes" / "client" / "client.toml").read_text()
MORE = '\n[[proxies]]\nname = "more"\npublish_port = 8002\ntarget = "web:8080"\n'


@contextmanager
def step(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"ok {time.monotonic() - began:6.1f} s  {name}", flush=True)


def run(engine: Engine, folder: Path) -> None:
    """All steps; `AssertionError` says what was not as it should be. Nothing of it is left."""
    project = engine.project
    started: list[Pod] = []
    try:
        with step("built"):
            base = f"PYTHON_IMAGE={engine.environment['PYTHON_IMAGE']}"
            network = engine.environment.get("BUILD_NETWORK", "default")
            words = ("docker", "build", "-q", "-f", "deploy/Dockerfile", "--network", network, "--build-arg", base)
            engine.run(*words, "-t", project, ".", seconds=BUILD_SECONDS)
            engine.run(*words, "--target", "demo", "-t", f"{project}-demo", ".", seconds=BUILD_SECONDS)
        engine.run("docker", "network", "create", project)
        sample = ("docker", "run", "-d", "--name", f"{project}-web", "--network", project, "--network-alias", "web")
        engine.run(*sample, "--entrypoint", "python", f"{project}-demo", "web.py")
        _run(engine, folder, started)
    except BaseException:
        for pod in started:
            print(f"--- {pod.side}\n{pod.logs()}", flush=True)
        raise
    finally:
        _sweep(project, engine)


def _run(engine: Engine, folder: Path, started: list[Pod]) -> None:
    ports = free_port(), free_port()
    publish = [f"127.0.0.1:{ports[0]}:8001", f"127.0.0.1:{ports[1]}:8002"]
    pages = [f"http://localhost:{port}/" for port in ports]
    with step("the server's pod is ready"):
        server = _pod(engine, "server", folder, {"config": {"server.toml": SERVER_TOML}}, publish)
        _start(server, started)
    with step("a token, a Secret, the pin from the log: the client's pod is ready"):
        token = server.exec("trio-tunnel", "token", "new", "home")
        (pin,) = re.findall(r"by its pin: (sha256:[0-9a-f]{64})", server.logs())
        config = _client_toml(server.name, pin)
        client = _pod(engine, "client", folder, {"config": {"client.toml": config}, "token": {"token": token}})
        _start(client, started)
    with step("a visitor reaches the service"):
        until(serves(pages[0], "It works"), pages[0], READY_SECONDS)
    with step("a changed ConfigMap is taken over by the running client"):
        client.change("config", {"client.toml": config + MORE})
        until(serves(pages[1], "It works"), pages[1], READY_SECONDS)
    with step("another server pod on the same volume, whose modes fsGroup has widened; the client comes back"):
        assert server.stop() == 0
        started.remove(server)
        assert client.probe("livenessProbe")
        _start(server, started)
        until(serves(pages[1], "It works"), pages[1], READY_SECONDS)
        assert "It works" in get(pages[0])[1]
    with step("both end with exit code 0, and neither said the token"):
        assert token.strip() not in server.logs() + client.logs()
        assert [pod.stop() for pod in list(started)] == [0, 0]
        started.clear()


def _pod(
    engine: Engine, side: str, folder: Path, files: dict[str, dict[str, str]], publish: list[str] | None = None
) -> Pod:
    where = folder / side
    where.mkdir()
    return Pod(engine, side, engine.project, engine.project, where, files, publish or [])


def _start(pod: Pod, started: list[Pod]) -> None:
    pod.start()
    started.append(pod)
    until(lambda: pod.probe("readinessProbe"), f"a ready {pod.side}", READY_SECONDS)
    assert pod.probe("livenessProbe")


def _client_toml(server: str, pin: str) -> str:
    """The example, with what a person replaces in it."""
    text = re.sub(r"^server = .*", f'server = "{server}:8443"', CLIENT_TOML, flags=re.MULTILINE)
    text = re.sub(r"^target = .*", 'target = "web:8080"', text, flags=re.MULTILINE)
    return re.sub(r"sha256:[0-9a-f]{64}", pin, text)


def _sweep(project: str, engine: Engine) -> None:
    for name in ("server", "client", "web"):
        engine.run("sh", "-c", f"docker rm -fv {project}-{name} 2>&1 || true", seconds=60)
    engine.run("sh", "-c", f"docker network rm {project} 2>&1; docker rmi -f {project} {project}-demo 2>&1 || true")


def main() -> int:
    if os.geteuid() != 0:
        print("only root can give volumes their owners", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(find(f"trio-tunnel-test-{os.getpid()}", {}), Path(folder))
        except NoEngine as exc:
            print(exc, file=sys.stderr)
            return 2
        except AssertionError as exc:
            print(f"FAILED: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
