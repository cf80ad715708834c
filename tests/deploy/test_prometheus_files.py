"""The dashboard and the alerts ask for metrics and labels that there are; Prometheus' own tool takes all of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from metrics_rig import HandMade, notices, read, view

from tunnel.admin.http import Request
from tunnel.admin.metrics import Metrics

from .files import DEPLOY

PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "trio-tunnel.json"
OF_PROMETHEUS = {"job", "instance"}  # labels it adds
WORDS = {  # of PromQL, that look like names
    "and", "or", "on", "by", "without", "sum", "min", "max", "count", "topk", "rate", "increase", "time",
    "histogram_quantile",
}  # fmt: skip

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian has it in the package prometheus)"
)


@cache
def dashboard() -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return shown


@cache
def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and what it is, with something in the place of Grafana's variables."""
    for alert in alerts():
        yield alert["alert"], alert["expr"]
    for panel in panels():
        for target in panel["targets"]:
            asked = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$(job|instance|client)", ".*", asked)


async def text_of(role: str) -> bytes:
    """What a server or client tells when everything there is to tell is there."""
    proxies = [("home", view("web", number=1)), ("home", view("ssh", status="unhealthy"))]
    metrics = Metrics(HandMade(*proxies, role=role), {"notices": notices})
    answer = await metrics.route.handler(Request("GET", "/metrics", "", {}, b""))
    return answer.body


async def exposed() -> dict[str, set[str]]:
    """The labels of each metric of either side."""
    found: dict[str, set[str]] = {"up": set(), "trio_tunnel_status_changes_total": {"status", "reason"}}
    for role in ("server", "client"):
        for name, samples in read(await text_of(role)).items():
            found.setdefault(name, set()).update(label for labels in samples for label, _ in labels)
    return found


async def test_every_metric_and_label_asked_for_is_one_that_is_told() -> None:
    told = await exposed()
    for where, expression in expressions():
        bare = re.sub(r'"[^"]*"', '""', expression)
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", bare):
            assert name in told, f"{where}: no metric {name}"
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert asked <= told[name] | OF_PROMETHEUS, f"{where}: {name} has no labels {asked - told[name]}"
        grouped = re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", bare)
        labels = {label.strip() for group in grouped for label in group.split(",")} - {""}
        names = set(re.findall(r"\b[a-z_]\w*(?=[\s{\[)/<>=-]|$)", re.sub(r"\{[^}]*\}|\([^()]*,[^()]*\)", "", bare)))
        assert names - WORDS - labels <= told.keys(), f"{where}: {names - WORDS - labels - told.keys()}"
        there = set[str]().union(*(told[name] for name in told if name in bare))
        assert labels <= there | OF_PROMETHEUS, f"{where}: nobody has the labels {labels - there}"


async def test_legends_and_columns_name_labels_that_are_told() -> None:
    known = set[str]().union(*(await exposed()).values()) | OF_PROMETHEUS
    for panel in panels():
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, panel["title"]
        for step in panel.get("transformations", []):
            renamed = step["options"].get("renameByName", {})
            assert {name for name in renamed if not name.startswith("Value #")} <= known, panel["title"]
            queries = {f"Value #{target['refId']}" for target in panel["targets"]}
            assert {name for name in renamed if name.startswith("Value #")} <= queries, panel["title"]


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    shown = dashboard()
    every = shown["panels"]
    assert (shown["uid"], shown["title"]) == ("trio-tunnel", "trio-tunnel")
    assert len({panel["id"] for panel in every}) == len(every)
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}  # whichever Prometheus there is
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(every)))
    assert used - {"__rate_interval", "__all"} == {variable["name"] for variable in shown["templating"]["list"]}
    places = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(places) == len(set(places)), "two panels overlap"
    assert max(x for x, _ in places) < 24


def test_every_alert_says_what_it_means_and_is_tested() -> None:
    tested = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    names = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case["exp_alerts"]}
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert set(alert["annotations"]) == {"summary", "description"}
    assert names == {alert["alert"] for alert in alerts()}


def test_the_example_scrapes_and_has_the_alerts() -> None:
    example = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert [(PROMETHEUS / file).exists() for file in example["rule_files"]] == [True]
    assert {scrape["job_name"] for scrape in example["scrape_configs"]} == {"trio-tunnel-server", "trio-tunnel-client"}


# Prometheus' own tool


def promtool(*words: object, text: bytes | None = None) -> str:
    done = subprocess.run(["promtool", *map(str, words)], input=text, capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "client"])
async def test_promtool_finds_nothing_to_say_of_the_metrics(role: str) -> None:
    assert promtool("check", "metrics", text=await text_of(role)) == ""


@needs_promtool
@pytest.mark.slow
def test_promtool_takes_the_example_and_the_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(alerts())} rules found" in promtool("check", "rules", PROMETHEUS / "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", PROMETHEUS / "alerts.test.yml")


@needs_promtool
@pytest.mark.slow
def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)
