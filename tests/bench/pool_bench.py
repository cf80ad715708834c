"""`python -m tests.bench pool`: a hot pool against cold connections, on 1,631 addresses, without and with faulty ones.

The service and the client are a process each; `pool_load` says what is measured, this file runs it and writes the
report.
"""

import argparse
import datetime
import json
import resource
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from attrs import frozen

from .certificate import make_certificate
from .machine import busy_percent, describe_machine, describe_versions
from .pool_service import make_addresses
from .processes import Failed, Place, Process, free_port, run
from .rounds import say

LOAD_SECONDS = 240.0
HEALTHY_REUSE = "reuse at healthy addresses, handshakes and requests counted by the service, %"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench pool", description="The benchmark of the hot pool.")
    parser.add_argument("--addresses", type=int, default=1631, metavar="N", help="of 127.0.0.0/8 (default %(default)s)")
    parser.add_argument("--faulty", type=float, default=2.0, metavar="PERCENT", help="in the second run (default 2)")
    parser.add_argument("--rounds", type=int, metavar="N", help="over all addresses (default 3)")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default 16)")
    parser.add_argument("--quick", action="store_true", help="few addresses, one round")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the report")
    options = parser.parse_args(argv)
    if options.quick:
        options.addresses = min(options.addresses, 100)
        options.faulty = max(options.faulty, 12.0)  # two addresses of each kind
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def measure(options: argparse.Namespace, faulty: float) -> dict[str, Any]:
    """One run: a fresh service, a fresh client."""
    folder = Path(tempfile.mkdtemp(prefix="bench-pool-"))
    service: Process | None = None
    try:
        certificate = make_certificate(folder)
        port, stats_port = free_port(), free_port()
        shared = ["--port", str(port), "--stats-port", str(stats_port), "--addresses", str(options.addresses)]
        shared += ["--faulty", str(faulty)]
        argv = [sys.executable, "-m", "tests.bench.pool_service", *shared, "--certificate", str(certificate.both)]
        service = Process("service", argv, place=Place(), folder=folder)
        service.wait_said("ready")
        load = [sys.executable, "-m", "tests.bench.pool_load", *shared, "--certificate", str(certificate.cert)]
        load += ["--rounds", str(options.rounds), "--concurrency", str(options.concurrency)]
        found: dict[str, Any] = json.loads(run(load, place=Place(), seconds=LOAD_SECONDS))
        return found
    finally:
        if service:
            service.stop()
        shutil.rmtree(folder, ignore_errors=True)


@frozen
class Part:
    """Several rounds of one kind, summed up."""

    rounds: list[dict[str, Any]]

    def total(self, group: str, kind: str) -> int:
        return sum(one[group][kind] for one in self.rounds)

    def counted(self, what: str) -> int:
        return sum(one["service"][what] for one in self.rounds)

    def median(self, key: str) -> float:
        return statistics.median(one[key] for one in self.rounds)

    def slowest(self, key: str) -> float | None:
        return max((one[key] for one in self.rounds if one[key] is not None), default=None)

    def latencies(self) -> str:
        return " / ".join(f"{self.median(f'p{percent}_ms'):.2f}" for percent in (50, 95, 99))

    def failures(self, kind: str) -> str:
        failed = self.total("failed", kind)
        return f"{failed:,} of {failed + self.total('served', kind):,}"

    @property
    def reuse_percent(self) -> float:
        return 100 * (1 - self.counted("healthy_handshakes") / max(1, self.counted("healthy_requests")))


def rows(found: Mapping[str, Any], addresses: int) -> dict[str, str]:
    """One run's column of the table."""
    hot, hot_alone, cold, cold_alone = (Part(found[name]) for name in ("hot", "hot_alone", "cold", "cold_alone"))
    warm_up, pool = found["warm_up"], found["pool"]
    broken = hot.total("failed", "broken") + hot.total("served", "broken")
    healthy = hot.total("failed", "healthy") + hot.total("served", "healthy")
    in_a_round = healthy // len(hot.rounds)
    before, after = warm_up["memory_kib"]
    slowest = hot.slowest("slowest_dying_ms")
    return {
        "warm-up: failed, healthy addresses": f"{warm_up['failed']['healthy']} of {in_a_round:,}",
        "warm-up: failed, faulty addresses": f"{warm_up['failed']['broken']} of {broken // len(hot.rounds)}",
        "warm-up: seconds / handshakes": f"{warm_up['seconds']:.2f} / {warm_up['service']['handshakes']:,}",
        "hot requests failed, healthy addresses": hot.failures("healthy"),
        "hot requests failed, where idle connections die": hot.failures("dying"),
        "hot requests failed, broken addresses": hot.failures("broken"),
        "GETs sent once more": str(sum(one["sent_again"] for one in hot.rounds)),
        HEALTHY_REUSE: f"{hot.reuse_percent:.2f}",
        "handshakes / requests in the hot rounds, all addresses": (
            f"{hot.counted('handshakes'):,} / {hot.counted('requests'):,}"
        ),
        "hot, p50 / p95 / p99 ms": hot.latencies(),
        "cold, p50 / p95 / p99 ms": cold.latencies(),
        "cold p50 : hot p50": f"{cold.median('p50_ms') / hot.median('p50_ms'):.1f}",
        "one at a time: hot, p50 / p95 / p99 ms": hot_alone.latencies(),
        "one at a time: cold, p50 / p95 / p99 ms": cold_alone.latencies(),
        "one at a time: cold p50 : hot p50": f"{cold_alone.median('p50_ms') / hot_alone.median('p50_ms'):.1f}",
        "slowest hot request, healthy / where idle connections die, ms": (
            f"{hot.slowest('slowest_ms') or 0:.1f} / " + ("–" if slowest is None else f"{slowest:.1f}")
        ),
        "a round: hot / cold, s": f"{hot.median('seconds'):.2f} / {cold.median('seconds'):.2f}",
        "memory before / after the warm-up, MiB": f"{before / 1024:.0f} / {after / 1024:.0f}",
        "KiB per connection": f"{(after - before) / max(1, warm_up['opened']):.1f}",
        **pool_rows(pool),
    }


def pool_rows(pool: Mapping[str, Any]) -> dict[str, str]:
    """What the pool itself has counted, from the warm-up to the end of the hot rounds."""
    return {
        "idle connections found dead by peek or probe": f"{pool['retired'].get('dead', 0):,}",
        "openings failed, by phase and class": counted(pool["failures"]),
        "retries, by phase and class": counted(pool["retries"]),
        "retries denied by the budget": str(pool["denied_retries"]),
        "quarantines": str(pool["quarantines"]),
    }


def counted(by_class: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(by_class.items())) or "none"


def to_markdown(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    columns = {name: rows(found, report["addresses"]) for name, found in report["runs"].items()}
    lines = [
        f"# {report['title']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {report['taken']}.",
        f"{report['addresses']:,} addresses, {report['rounds']} rounds, {report['concurrency']} requests at a time. "
        f"Before each run, others used {', '.join(f'{busy:.0f}' for busy in report['busy_percent'])} % of the CPU. "
        "Command:",
        "",
        f"    {report['command']}",
        "",
        "| figure | " + " | ".join(columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    first = next(iter(columns.values()))
    lines += [f"| {head} | " + " | ".join(column[head] for column in columns.values()) + " |" for head in first]
    versions = "; ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", *wrap(LEGEND, 120), "", f"Versions: {versions}."]) + "\n"


LEGEND = (
    "Hot is from asking the pool for a connection to the last byte of the answer; cold is from the start of the "
    "connection, and every request makes its own, over the same TLS code and as many at a time. Percentiles are of "
    "healthy addresses, medians of the rounds; one at a time only these are asked. Reuse is the share of requests for "
    "which the service saw no handshake. An address that is broken refuses, hangs, resets the handshake or answers 500 "
    "(evenly mixed); one whose idle connections die drops or resets them after a quarter of a second, and there is "
    "half a second of rest before each round. The pool's own counts begin with the warm-up."
)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * options.addresses + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        print(f"the limit of open files is {hard}; {options.addresses} addresses need {needed}", file=sys.stderr)
        return 2
    runs: dict[str, Any] = {}
    busy = []
    try:
        for name, faulty in (("no faults", 0.0), (f"{options.faulty:g} % faulty", options.faulty)):
            busy.append(busy_percent())
            say(f"pool, {name}: {len(make_addresses(options.addresses)):,} addresses")
            runs[name] = measure(options, faulty)
    except Failed as exc:
        print(f"the benchmark itself failed: {exc}", file=sys.stderr)
        return 1
    report = {
        "title": "A hot pool against cold connections",
        "command": f"python -m tests.bench pool {shlex.join(argv)}".strip(),
        "taken": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe_machine(),
        "versions": {name: shown for name, shown in describe_versions().items() if name in ("Python", "Trio")},
        "busy_percent": busy,
        "addresses": options.addresses,
        "rounds": options.rounds,
        "concurrency": options.concurrency,
        "runs": runs,
    }
    text = to_markdown(report)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "pool-quick" if options.quick else "pool"
    (options.out / f"{name}.md").write_text(text)
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    say(f"written: {options.out / name}.md, .json")
    return 0
