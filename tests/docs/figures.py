"""Puts the benchmark's figures into the page that compares: from `bench/loopback.json`, never by hand."""

import json
import re
from pathlib import Path

NAMES = {
    "direct": "direct, no tunnel",
    "trio-tunnel": "**trio-tunnel**",
    "frp": "frp (TLS, multiplexed)",
    "frp-nomux": "frp (TLS, a connection each)",
    "rathole": "rathole (TLS)",
    "chisel": "chisel",
    "wstunnel": "wstunnel (wss)",
    "ssh": "OpenSSH -R",
}
COLUMNS = [
    ("requests/s, 64 connections", "requests_64", "{:,.0f}"),
    ("p99 ms", "p99_64_ms", "{:.1f}"),
    ("CPU µs a request", "cpu_us_per_request", "{:.0f}"),
    ("requests/s, 1 connection", "requests_1", "{:,.0f}"),
    ("new connections/s", "new_connections", "{:,.0f}"),
    ("Gbit/s up", "bulk_up", "{:.1f}"),
    ("Gbit/s down", "bulk_down", "{:.1f}"),
    ("p99 ms of small requests beside bulk", "small_beside_ms", "{:.1f}"),
    ("MiB at rest, both ends", "rest_mib", "{:.0f}"),
    ("KiB an idle visitor", "idle_kib", "{:.1f}"),
]
VERSIONS = ("Python", "frp", "rathole", "wstunnel", "ssh")
MARK = re.compile(r"<!-- figures -->\n.*?\n(?=How to read it)", re.DOTALL)


def with_figures(page: Path, figures: Path) -> str:
    """The page as it is, with the table of now."""
    report = json.loads(figures.read_text())
    systems = report["systems"]
    versions = ", ".join(
        f"{name} {report['versions'][name]}" for name in ("Python", "frp", "rathole", "wstunnel", "ssh")
    )
    rows = [
        f"Taken {report['taken']}: {report['machine']['cpu']}, {report['machine']['kernel']}, {versions}.\n",
        f"| | {' | '.join(title for title, _, _ in COLUMNS)} |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for name, shown in NAMES.items():
        medians = systems[name]["medians"]
        cells = [form.format(medians[key]) if key in medians else "–" for _, key, form in COLUMNS]
        rows.append(f"| {shown} | {' | '.join(cells)} |")
    table = "\n".join(rows)
    return MARK.sub(lambda _match: f"<!-- figures -->\n{table}\n\n", page.read_text())
