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
from .idle_things import IDLE_THINGS
from .link import MATRIX, Lab, LinkSpec
from .link_figures import LINK_FIGURES
from .machine import describe_machine, describe_versions
from .panels import PORTABLE
from .peers import PEERS
from .plot import to_grid_svg, to_svg
from .processes import Failed, Place
from .report import Cell, Report, to_json_text, to_markdown
from .rounds import Plan, Runner, say
from .services import Services
from .systems import Direct, Naive, Portable, Stage, System, TrioTunnel
from .watched import WATCHED

SYSTEMS: tuple[type[System], ...] = (Direct, TrioTunnel, Portable, Naive, *PEERS)
LOOPBACK_FIGURES = (*FIGURES, IDLE_THINGS, WATCHED)
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
    parser.add_argument("--systems", metavar="A,B,…", help=f"of {names}; default: all on PATH, but {PORTABLE}")
    parser.add_argument("--rounds", type=int, metavar="N", help="medians of so many rounds (default 3; of links 1)")
    loopback, link = (", ".join(figure.name for figure in figures) for figures in (LOOPBACK_FIGURES, LINK_FIGURES))
    parser.add_argument("--only", metavar="FIGURE,…", help=f"of {loopback}; with --link of {link}")
    parser.add_argument("--seconds", type=float, help="length of each load (default 3; across one link 8)")
    parser.add_argument(
        "--link",
        metavar="rtt=MS,loss=PERCENT,rate=MBIT",
        action="append",
        help=f"across an emulated link; needs root. Several, and every combination of values with slashes, are one "
        f"report; `matrix` stands for {MATRIX}".replace("%", "%%"),
    )
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


def measure(plan: Plan, link: LinkSpec | None) -> Cell:
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
        return Cell(link, runner.measured, runner.busy)


def write(report: Report, out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    by_link = {str(cell.link) if cell.link else "": cell.medians() for cell in report.cells}
    (out / f"{name}.md").write_text(to_markdown(report))
    (out / f"{name}.json").write_text(to_json_text(report))
    is_grid = len(by_link) > 1
    plot = to_grid_svg(report.title, by_link) if is_grid else to_svg(report.title, report.cells[0].medians())
    (out / f"{name}.svg").write_text(plot)
    say(f"written: {out / name}.md, .json, .svg")


def title_of(links: Sequence[LinkSpec]) -> str:
    if not links:
        return "trio-tunnel and its peers on loopback"
    if len(links) == 1:
        return f"trio-tunnel across a link of {links[0]}"
    rates = "/".join(f"{rate:g}" for rate in dict.fromkeys(link.rate for link in links))
    return f"trio-tunnel and its peers across {len(links)} links of {rates} Mbit/s"


def name_of(links: Sequence[LinkSpec], *, quick: bool) -> str:
    """Of the report's files."""
    if links:
        return links[0].file_name if len(links) == 1 else "links"
    return "quick" if quick else "loopback"


def choose_figures(options: argparse.Namespace) -> list[Figure]:
    all_figures: Sequence[Figure] = LINK_FIGURES if options.link else LOOPBACK_FIGURES
    known = [figure.name for figure in all_figures]
    only = options.only.replace("_", "-") if options.only else None
    names = choose(only, known, QUICK if options.quick and not options.link else known)
    return [figure for figure in all_figures if figure.name in names]


def stop_in_order(*_: object) -> None:
    raise SystemExit(143)  # so that every `with` block ends what it started


def make_plan(options: argparse.Namespace, links: Sequence[LinkSpec]) -> tuple[Plan, dict[str, str]]:
    """And what is skipped, with the reason."""
    known = [kind.name for kind in SYSTEMS]
    usual = [name for name in known if name != PORTABLE]
    systems, skipped = choose_systems(choose(options.systems, known, QUICK_SYSTEMS if options.quick else usual))
    figures = choose_figures(options)
    for figure in [figure for figure in figures if figure.needs and not shutil.which(figure.needs)]:
        figures.remove(figure)
        skipped[f"figure {figure.name}"] = f"{figure.needs} not found on PATH"
    seconds = options.seconds or (1.0 if options.quick else 8.0 if len(links) == 1 else 3.0)
    sizes = evolve(Sizes(seconds), idle_visitors=200, idle_sessions=10) if options.quick else Sizes(seconds)
    return Plan(systems, figures, options.rounds or (1 if options.quick or len(links) > 1 else 3), sizes), skipped


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    try:
        links = list(dict.fromkeys(link for text in options.link or () for link in LinkSpec.parse(text)))
    except ValueError as exc:
        print(f"--link: {exc}", file=sys.stderr)
        return 2
    if lacking := Services.missing():
        print(f"not found on PATH: {', '.join(lacking)}", file=sys.stderr)
        return 2
    if links and (why := Lab.missing()):
        print(f"skipped: --link: {why}")
        return 0
    plan, skipped = make_plan(options, links)
    report = Report(
        title=title_of(links),
        command=f"python -m tests.bench {shlex.join(argv)}".strip(),
        taken=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=describe_machine(),
        versions=describe_versions() | {kind.name: shown for kind in plan.systems if (shown := kind.version())},
        rounds=plan.rounds,
        seconds=plan.sizes.seconds,
        figures=plan.figures,
        cells=(),
        skipped=skipped,
    )
    signal.signal(signal.SIGTERM, stop_in_order)
    try:
        for link in links or (None,):
            report = evolve(report, cells=(*report.cells, measure(plan, link)))
            write(report, options.out, name_of(links, quick=options.quick))  # a long run may be ended before its end
    except Failed as exc:
        print(f"the benchmark itself failed: {exc}", file=sys.stderr)
        return 1
    print(to_markdown(report))
    return 0


def measure_pool(argv: Sequence[str]) -> int:
    """Benchmarks of their own, with options of their own."""
    from . import pool_bench, pool_tunnel

    return (pool_bench if argv[0] == "pool" else pool_tunnel).main(argv[1:])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop_in_order)
    sys.exit((measure_pool if sys.argv[1:] and sys.argv[1] in POOL else main)(sys.argv[1:]))
