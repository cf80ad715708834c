"""The image and the Compose demo fit together, as far as can be told without an engine."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunnel.config.file import check_file

from .files import DEPLOY, ROOT, SIDES, USER, instructions, of, parses, without_files


def test_the_image_runs_the_program_itself_as_a_numbered_user_so_that_sigterm_reaches_it() -> None:
    assert of("ENTRYPOINT") == ['["trio-tunnel"]']
    assert of("CMD") == ['["serve"]']
    assert of("STOPSIGNAL") == ["SIGTERM"]
    ours, for_the_demos_files, ours_again = of("USER")
    assert (ours, for_the_demos_files, ours_again) == (f"{USER}:{USER}", "0:0", ours)
    assert of("VOLUME") == ["/var/lib/trio-tunnel"]


def test_the_image_asks_the_program_for_its_health() -> None:
    (health,) = of("HEALTHCHECK")
    _, _, command = health.partition("CMD ")
    assert parses(yaml.safe_load(command))


def test_the_base_image_is_the_only_thing_that_is_not_checked_against_a_hash() -> None:
    assert of("FROM")[0] == "${PYTHON_IMAGE} AS build"
    assert of("ARG")[0] == "PYTHON_IMAGE=python:3.13-slim"
    installs = re.findall(r"-m pip .*?(?= && |$)", " && ".join(of("RUN")))
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert not re.search(r"curl|wget|apt-get|https?:", " ".join(of("RUN")))


def test_the_classic_builder_can_make_it_too() -> None:
    assert not re.search(r"--mount|--chmod|--link|<<", " ".join(rest for _, rest in instructions()))


def test_what_builds_the_package_is_locked() -> None:
    wanted = re.findall(r'^requires = \["(\w+)>=([\d.]+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    locked = dict(re.findall(r"^([\w-]+)==([\d.]+)", (DEPLOY / "build.lock").read_text(), re.MULTILINE))
    ((name, least),) = wanted
    assert numbers(locked[name]) >= numbers(least)


def numbers(version: str) -> list[int]:
    return list(map(int, version.split(".")))


def test_the_context_of_a_build_has_what_is_copied_and_no_more() -> None:
    sources = [word for rest in of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert first == "*"
    assert let_in == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert [line for line in lines if not line.startswith("!")] == ["**/__pycache__", "**/*.pyc"]


# The Compose demo


@cache
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("side", SIDES)
def test_both_sides_of_the_demo_have_a_configuration_without_a_mistake(side: str, tmp_path: Path) -> None:
    words = services()[side]["command"]
    assert words[0] == SIDES[side]
    report = check_file(without_files(DEPLOY / "demo" / words[2], tmp_path), side)
    assert report.mistakes == ()


def test_only_the_client_is_on_the_sample_services_network_which_has_no_way_out() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["networks"]["inside"] == {"internal": True}
    there = {name for name, service in services().items() if "inside" in service.get("networks", [])}
    assert there == {"web", "client"}
    assert services()["web"]["networks"] == ["inside"]


def test_the_thief_sits_in_the_servers_network_before_the_client_asks_for_the_port() -> None:
    assert services()["thief"]["network_mode"] == "service:server"
    assert services()["client"]["depends_on"]["thief"] == {"condition": "service_healthy"}


def test_what_the_demo_publishes_only_this_machine_reaches() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:${") for port in published)


def test_no_container_of_the_demo_may_more_than_it_must() -> None:
    for service in services().values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service


def test_the_prometheus_beside_the_demo_asks_by_a_name_that_the_server_answers_to() -> None:
    beside = yaml.safe_load((DEPLOY / "compose.prometheus.yaml").read_text())["services"]["prometheus"]
    sources = {mount.split(":")[0] for mount in beside["volumes"]}
    assert all((DEPLOY / source).is_file() for source in sources)
    config = yaml.safe_load((DEPLOY / "demo" / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    served = tomllib.loads((DEPLOY / "demo" / "server.toml").read_text())
    assert target.split(":")[0] in served["admin"]["hosts"]
    assert target.split(":")[0] in services()
    assert set(beside["networks"]) <= set(services()["server"]["networks"])
