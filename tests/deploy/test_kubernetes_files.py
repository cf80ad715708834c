"""The Kubernetes manifests fit together, and with the program; a cluster is not needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunnel.config.file import check_file

from .files import DEPLOY, SIDES, USER, of, parses, without_files

KUBERNETES = DEPLOY / "kubernetes"


def manifests(folder: str) -> Iterator[dict[str, Any]]:
    names = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    for name in names:
        if name.endswith(".yaml"):
            yield from yaml.safe_load_all((KUBERNETES / folder / name).read_text())


def one(folder: str, kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests(folder) if manifest["kind"] == kind]
    return found


def pod(side: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(side, "Deployment")["spec"]["template"]["spec"]
    return spec


def containers(side: str) -> list[dict[str, Any]]:
    return [*pod(side).get("initContainers", []), *pod(side)["containers"]]


@pytest.mark.parametrize("side", SIDES)
def test_pods_are_as_confined_as_the_restricted_standard_has_it_and_more(side: str) -> None:
    spec = pod(side)
    security = spec["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, USER, USER)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {kind for volume in spec["volumes"] for kind in set(volume) - {"name"}} <= {
        "configMap", "secret", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip
    for container in containers(side):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("side", SIDES)
def test_there_is_one_of_each_side_and_it_has_time_to_let_visitors_finish(side: str) -> None:
    spec = one(side, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert pod(side)["terminationGracePeriodSeconds"] > 30  # drain_seconds, by default


@pytest.mark.parametrize("side", SIDES)
def test_what_pods_run_and_are_probed_by_are_commands_that_there_are(side: str) -> None:
    (main,) = pod(side)["containers"]
    assert main["args"][0] == SIDES[side]
    assert parses(["trio-tunnel", *main["args"]])
    probes = [main[name]["exec"]["command"] for name in main if name.endswith("Probe")]
    assert len(probes) >= 2
    assert all(parses(probe) for probe in probes)
    assert main["livenessProbe"]["exec"]["command"][-1] == "--alive"


@pytest.mark.parametrize("side", SIDES)
def test_volumes_that_are_mounted_are_there_and_files_lie_where_they_are_looked_for(side: str, tmp_path: Path) -> None:
    names = {volume["name"] for volume in pod(side)["volumes"]}
    assert all(mount["name"] in names for container in containers(side) for mount in container["volumeMounts"])
    (main,) = pod(side)["containers"]
    where = {mount["name"]: mount["mountPath"] for mount in main["volumeMounts"]}
    assert where["config"] == of("WORKDIR")[1]  # `-c server.toml` is relative
    variables = {one["name"]: one["value"] for one in main["env"]}
    assert variables["XDG_STATE_HOME"] == where["state"]
    report = check_file(without_files(KUBERNETES / side / main["args"][2], tmp_path), side)
    assert report.mistakes == ()
    if side == "client":
        text = (KUBERNETES / "client" / "client.toml").read_text()
        assert f'token_file = "{variables["CREDENTIALS_DIRECTORY"]}/token"' in text
        assert where["token"] == variables["CREDENTIALS_DIRECTORY"]


def test_the_service_the_pod_and_the_network_policy_speak_of_the_same_ports() -> None:
    inside = {port["containerPort"] for port in pod("server")["containers"][0]["ports"]}
    assert {port["targetPort"] for port in one("server", "Service")["spec"]["ports"]} == inside
    everybody, prometheus = one("server-with-metrics", "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for port in everybody["ports"]} == inside
    assert "from" not in everybody
    assert [port["port"] for port in prometheus["ports"]] == [8480]
    assert prometheus["from"]


def test_the_admin_address_is_open_to_other_pods_only_where_that_is_asked_for() -> None:
    for side in SIDES:
        assert 'listen = "127.0.0.1:8480"' in (KUBERNETES / side / f"{side}.toml").read_text()
    overlay = (KUBERNETES / "server-with-metrics" / "kustomization.yaml").read_text()
    assert '"0.0.0.0:8480"' in overlay
    assert parses(["trio-tunnel", *pod("server")["containers"][0]["args"], "--admin", "0.0.0.0:8480"])
