"""`python -m tests.bench [pool | pool-tunnel]`: see `-h`, and the package's docstring for what is where."""

import argparse
import datetime
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import evolve

from .figures import FIGURES, QUICK, Figure, Sizes
from .link import Lab, LinkSpec
from .link_figures import LINK_FIGURES
from .machine import describe_machine, describe_versions
from .peers import PEERS
from .plot import to_svg
from .processes import Failed, Place
from .report import Report, to_json_text, to_markdown
from .rounds import Plan, Runner, say
from .services import Services
from .systems import Direct, Naive, Stage, System, TrioTunnel

SYSTEMS: tuple[type[System], ...] = (Direct, TrioTunnel, Naive, *PEERS)
QUICK_SYSTEMS = ("direct", "trio-tunnel", "haproxy")
MAX_FILES = 65_536
POOL = ("pool", "pool-tunnel")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="The benchmark of trio-tunnel. Those of its pools are others: see pool -h and pool-tunnel -h.",
    )
    names = ", ".join(kind.name for kind in SYSTEMS)
    parser.add_argument("--quick", action="store_true", help="under a minute: few figures, few systems, one round")
    parser.add_argument("--systems", metavar="A,B,…", help=f"of {names}; default: all that are on PATH")
    parser.add_argument("--rounds", type=int, metavar="N", help="medians of so many rounds (default 3)")
    loopback, link = (", ".join(figure.name for figure in figures) for figures in (FIGURES, LINK_FIGURES))
    parser.add_argument("--only", metavar="FIGURE,…", help=f"of {loopback}; with --link of {link}")
    parser.add_argument("--seconds", type=float, help="length of each load (default 3; across a link 8)")
    parser.add_argument("--link", metavar="rtt=MS,loss=PERCENT,rate=MBIT", help="across an emulated link; needs root")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for the report (default %(default)s)"
    )
    return parser.parse_args(argv)


def choose(text: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else list(default)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return [name for name in known if name in names]


def raise_file_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MAX_FILES) if hard != resource.RLIM_INFINITY else MAX_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return wanted


def choose_systems(names: Sequence[str]) -> tuple[list[type[System]], dict[str, str]]:
    chosen, skipped = [], {}
    for kind in SYSTEMS:
        if kind.name in names:
            if why := kind.missing():
                skipped[kind.name] = why
                say(f"skipped: {kind.name}: {why}")
            else:
                chosen.append(kind)
    return chosen, skipped


def measure(plan: Plan, link: LinkSpec | None) -> Runner:
    files = raise_file_limit()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # nginx's worker, another user, must come through
        near = far = Place()
        if link:
            lab = stack.enter_context(Lab(link, folder))
            near, far = lab.near, lab.far
        services = stack.enter_context(Services(folder / "services", far, files))
        runner = Runner(plan, Stage(folder, near, far, services.ports, files), services)
        runner.run()
        return runner


def write(report: Report, out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    medians = {system: measured.medians() for system, measured in report.measured.items()}
    for suffix, text in (
        ("md", to_markdown(report)),
        ("json", to_json_text(report)),
        ("svg", to_svg(report.title, medians)),
    ):
        (out / f"{name}.{suffix}").write_text(text)
    say(f"written: {out / name}.md, .json, .svg")


def choose_figures(options: argparse.Namespace) -> list[Figure]:
    all_figures: Sequence[Figure] = LINK_FIGURES if options.link else FIGURES
    known = [figure.name for figure in all_figures]
    names = choose(options.only, known, QUICK if options.quick and not options.link else known)
    return [figure for figure in all_figures if figure.name in names]


def stop_in_order(*_: object) -> None:
    raise SystemExit(143)  # so that every `with` block ends what it started


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    try:
        link = LinkSpec.parse(options.link) if options.link else None
    except ValueError as exc:
        print(f"--link: {exc}", file=sys.stderr)
        return 2
    figures = choose_figures(options)
    wanted = choose(
        options.systems, [kind.name for kind in SYSTEMS], QUICK_SYSTEMS if options.quick else [k.name for k in SYSTEMS]
    )
    lacking = Services.missing()
    if lacking:
        print(f"not found on PATH: {', '.join(lacking)}", file=sys.stderr)
        return 2
    if link and (why := Lab.missing()):
        print(f"skipped: --link: {why}")
        return 0
    systems, skipped = choose_systems(wanted)
    for figure in [figure for figure in figures if figure.needs and not shutil.which(figure.needs)]:
        figures.remove(figure)
        skipped[f"figure {figure.name}"] = f"{figure.needs} not found on PATH"
    seconds = options.seconds or (1.0 if options.quick else 8.0 if link else 3.0)
    sizes = evolve(Sizes(seconds), idle_visitors=200) if options.quick else Sizes(seconds)
    plan = Plan(systems, figures, options.rounds or (1 if options.quick else 3), sizes)
    signal.signal(signal.SIGTERM, stop_in_order)
    try:
        done = measure(plan, link)
    except Failed as exc:
        print(f"the benchmark itself failed: {exc}", file=sys.stderr)
        return 1
    versions = describe_versions() | {kind.name: shown for kind in systems if (shown := kind.version())}
    report = Report(
        title=f"trio-tunnel across a link of {link}" if link else "trio-tunnel and its peers on loopback",
        command=f"python -m tests.bench {shlex.join(argv)}".strip(),
        taken=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=describe_machine(),
        versions=versions,
        rounds=plan.rounds,
        seconds=seconds,
        link=link.to_json() if link else None,
        figures=figures,
        measured=done.measured,
        busy=done.busy,
        skipped=skipped,
    )
    print(to_markdown(report))
    write(report, options.out, link.file_name if link else "quick" if options.quick else "loopback")
    return 0


def measure_pool(argv: Sequence[str]) -> int:
    """Benchmarks of their own, with options of their own."""
    from . import pool_bench, pool_tunnel

    return (pool_bench if argv[0] == "pool" else pool_tunnel).main(argv[1:])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop_in_order)
    sys.exit((measure_pool if sys.argv[1:] and sys.argv[1] in POOL else main)(sys.argv[1:]))
