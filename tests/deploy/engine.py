"""A Docker engine, Compose in either spelling, and a base image to build on; or why there is none."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
SPELLINGS = (("docker", "compose"), ("docker-compose",))
USUAL_IMAGE = "python:3.13-slim"  # what deploy/Dockerfile builds on unless told
STAND_IN = "localhost/python:3.11"  # what engine.sh makes where no registry is reached
ANSWER_SECONDS = 20.0  # for what an engine has at hand
BUILD_SECONDS = 600.0


class NoEngine(Exception):
    """What is missing, in words."""


@frozen
class Engine:
    """`run` and `compose` return what the command printed, and raise `AssertionError` with it where it failed."""

    spelling: tuple[str, ...]
    project: str
    environment: dict[str, str]

    def run(self, *command: str, seconds: float = ANSWER_SECONDS) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> str:
        return self.run(*self.spelling, "-f", str(COMPOSE_FILE), "-p", self.project, *arguments, seconds=seconds)

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        asked = ("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}")
        return self.run(*asked, "--filter", f"label=com.docker.compose.service={service}").strip()

    def state(self, service: str, template: str) -> str:
        return self.run("docker", "inspect", "--format", template, self.container(service)).strip()


def find(project: str, environment: dict[str, str]) -> Engine:
    """The engine that answers, with a base image; `NoEngine` where something is missing."""
    if not _works(["docker", "info"]):
        raise NoEngine("no Docker engine answers here; root can start one with tests/deploy/engine.sh")
    spelling = next((words for words in SPELLINGS if _works([*words, "version"])), None)
    if spelling is None:
        raise NoEngine("neither `docker compose` nor `docker-compose` is here")
    return Engine(spelling, project, {**_base_image(), **environment})


def _base_image() -> dict[str, str]:
    """What compose.yaml is told: the base image that is asked for, or at hand, or can be pulled."""
    if asked := os.environ.get("PYTHON_IMAGE"):
        return {"PYTHON_IMAGE": asked}
    if _works(["docker", "image", "inspect", STAND_IN]):
        return {"PYTHON_IMAGE": STAND_IN, "BUILD_NETWORK": "host"}
    image = ["docker", "image", "inspect", USUAL_IMAGE]
    if not _works(image) and not _works(["docker", "pull", "-q", USUAL_IMAGE], seconds=BUILD_SECONDS):
        raise NoEngine(f"{USUAL_IMAGE} cannot be pulled here; name a base image that is here in PYTHON_IMAGE")
    return {"PYTHON_IMAGE": USUAL_IMAGE}


def _works(command: Sequence[str], seconds: float = ANSWER_SECONDS) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False
