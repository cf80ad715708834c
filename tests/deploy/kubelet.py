"""A kubelet's part, as far as a pod of ours sees it, played with Docker: its volumes and who owns what in them, its
security context, init containers, probes and end. Root only, with an engine on this machine.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from attrs import Factory, define

from .engine import Engine
from .files import DEPLOY

STARTED_SECONDS = 60.0


@define
class Pod:
    """The pod of a manifest's Deployment. `files`: contents of its ConfigMap and Secret, by volume."""

    engine: Engine
    side: str
    image: str
    network: str
    folder: Path  # where its volumes are; what is in a persistent one stays
    files: dict[str, dict[str, str]]
    publish: list[str] = Factory(list)  # as `docker run -p` has it
    _versions: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        (found,) = yaml.safe_load_all((DEPLOY / "kubernetes" / self.side / "deployment.yaml").read_text())
        spec: dict[str, Any] = found["spec"]["template"]["spec"]
        return spec

    @property
    def name(self) -> str:
        return f"{self.engine.project}-{self.side}"

    def start(self) -> None:
        """Volumes, init containers, the container; its readiness is asked for by `probe`."""
        for volume in self.spec["volumes"]:
            self._mount(volume)
        for container in self.spec.get("initContainers", []):
            program, *words = container["command"]
            self._run(container, "--rm", "--entrypoint", program, words=words)
        (container,) = self.spec["containers"]
        ports = [word for port in self.publish for word in ("-p", port)]
        self._run(container, "-d", "--name", self.name, "--hostname", self.side, *ports, words=container["args"])

    def stop(self) -> int:
        """As a kubelet ends a pod; the exit code. What it said goes with it."""
        grace = self.spec["terminationGracePeriodSeconds"]
        self.engine.run("docker", "stop", "-t", str(grace), self.name, seconds=grace + 30)
        code = int(self.engine.run("docker", "inspect", "--format", "{{.State.ExitCode}}", self.name))
        self.engine.run("docker", "rm", "-v", self.name)
        return code

    def exec(self, *words: str) -> str:
        return self.engine.run("docker", "exec", self.name, *words)

    def probe(self, name: str) -> bool:
        (container,) = self.spec["containers"]
        try:
            self.exec(*container[name]["exec"]["command"])
        except AssertionError:
            return False
        return True

    def logs(self) -> str:
        return self.engine.run("sh", "-c", f"docker logs {self.name} 2>&1")

    def change(self, volume: str, files: dict[str, str]) -> None:
        """New contents of a ConfigMap or Secret reach a running pod: a link is swapped."""
        self.files[volume] = files
        self._project(self.folder / volume, files, 0o644)

    def _run(self, container: dict[str, Any], *options: str, words: list[str]) -> None:
        security, allowed = self.spec["securityContext"], container["securityContext"]
        assert allowed["readOnlyRootFilesystem"]
        assert not allowed["allowPrivilegeEscalation"]
        command = [
            "docker", "run", "--network", self.network, "--read-only", "--security-opt", "no-new-privileges:true",
            "--user", f"{security['runAsUser']}:{security['runAsGroup']}", "--group-add", str(security["fsGroup"]),
            "--memory", container["resources"]["limits"]["memory"].removesuffix("i").lower(),
        ]  # fmt: skip
        for capability in allowed["capabilities"]["drop"]:
            command += ["--cap-drop", capability]
        for variable in container.get("env", []):
            command += ["-e", f"{variable['name']}={variable['value']}"]
        for mount in container["volumeMounts"]:
            mode = ":ro" if mount.get("readOnly") else ""
            command += ["-v", f"{self.folder / mount['name']}:{mount['mountPath']}{mode}"]
        self.engine.run(*command, *options, self.image, *words, seconds=STARTED_SECONDS)

    # Volumes

    def _mount(self, volume: dict[str, Any]) -> None:
        path, group = self.folder / volume["name"], self.spec["securityContext"]["fsGroup"]
        if "configMap" in volume:
            self._project(path, self.files[volume["name"]], 0o644)
        elif "secret" in volume:
            self._project(path, self.files[volume["name"]], volume["secret"]["defaultMode"] | 0o440)
        else:
            if "emptyDir" in volume:
                shutil.rmtree(path, ignore_errors=True)
            path.mkdir(exist_ok=True)
            path.chmod(0o777 if "emptyDir" in volume else 0o755)
            _give_to_group(path, group)

    def _project(self, path: Path, files: dict[str, str], mode: int) -> None:
        """Files as a ConfigMap or a Secret has them: links by way of `..data`, which a rename replaces."""
        self._versions += 1
        version = path / f"..version_{self._versions}"
        version.mkdir(parents=True)
        for name, text in files.items():
            (version / name).write_text(text)
            os.chown(version / name, 0, self.spec["securityContext"]["fsGroup"])
            (version / name).chmod(mode)
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")
        (path / "..data_tmp").symlink_to(version.name)
        (path / "..data_tmp").rename(path / "..data")


def _give_to_group(path: Path, group: int) -> None:
    """fsGroup, at its worst: the group gets and may write all, whatever the modes were."""
    for found in (path, *path.rglob("*")):
        os.chown(found, -1, group)
        found.chmod(found.stat().st_mode | (0o2770 if found.is_dir() else 0o660))
