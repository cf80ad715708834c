"""Makes `deploy/docs/metrics.md`: every metric as it is told, with its labels and which side tells it."""

import sys
from pathlib import Path

from attrs import evolve
from prometheus_client import ProcessCollector

from tunnel.admin.counts import EventCounts
from tunnel.admin.families import families
from tunnel.admin.family import Family

if str(Path(__file__).parent.parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent.parent))  # as pytest does

from metrics_rig import notices, scrape, view

HEAD = """\
# Metrics

*Generated from what is told by `python -m tests.docs`; a test fails when it is stale.*

A server tells them at `/metrics` of its admin address (`http://127.0.0.1:8480/metrics`), a client where it was given
one (`--admin 127.0.0.1:8481`), in Prometheus' text format, or as OpenMetrics to whoever asks for that. There are
[an example for Prometheus](../prometheus/prometheus.yml), [alerts](../prometheus/alerts.yml), and
[a dashboard for Grafana](../grafana/trio-tunnel.json). Reading needs no credentials, and no secret is told; where
Prometheus asks by a name and no IP address, that name must stand in `[admin] hosts`.

- **Totals of the process only grow** while it runs, whatever sessions and proxies come and go. The counters of a proxy
  (`…_proxy_…_total`) begin anew at the server with its session; `rate()` and `increase()` know that.
- **Labels are bounded** by the configuration (`client`, `proxy`, `notice`) or by the code's own words (`reason`,
  `status`, `state`, `how`, …). A proxy has eight series; the first 10,000 are told one by one, the others are counted.
- **The same visitors are told at both ends**: add up those of servers, or those of clients, not both.
- **Durations** are histograms, with four buckets a decade from 0.1 ms to 100 s. What is timed is each visitor, once.
- **Scraping costs** some 4 ms of one core for each hundred proxies, in steps of well under a millisecond: visitors do
  not wait for it. The first scrape takes 2 MiB of memory.
"""
PROCESS = """\
On Linux there are also those of the process itself, under the names that every Prometheus library gives them:
"""


def make_metrics() -> str:
    """The whole page."""
    told = {role: _told(role) for role in ("server", "client")}
    rows: list[str] = []
    for name, family in {**told["server"], **told["client"]}.items():
        sides = "both" if all(name in side for side in told.values()) else next(r for r in told if name in told[r])
        rows.append(f"| `{name}` | {family.kind} | {sides} | {_labels(family)} | {family.text} |")
    head = "| name | kind | told by | labels | what it is |\n|---|---|---|---|---|"
    process = ", ".join(
        sorted(f"`{s.name}`" for metric in ProcessCollector(registry=None).collect() for s in metric.samples)
    )
    return "\n".join([HEAD, head, *rows, "", PROCESS.strip("\n"), process + "."]) + "\n"


def _told(role: str) -> dict[str, Family]:
    """The families by the names that are asked for in Prometheus; their samples made."""
    counts = EventCounts()
    counts.status_changes["healthy", ""] = 1
    everything = evolve(scrape(("home", view("web")), role=role, counts=counts), notices=notices())
    found = (evolve(family, samples=list(family.samples)) for family in families(everything))
    suffix = {"counter": "_total", "info": "_info"}
    return {family.name + suffix.get(family.kind, ""): family for family in found}


def _labels(family: Family) -> str:
    names = {name for _, labels, _ in family.samples for name in labels} - {"le"}
    return ", ".join(f"`{name}`" for name in sorted(names)) or "–"
