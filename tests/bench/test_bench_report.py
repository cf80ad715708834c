"""What the benchmark writes, and how it reads its options: pure. No figure is judged here."""

import json
import xml.etree.ElementTree as ElementTree
from itertools import product

import pytest

from .__main__ import SYSTEMS, choose_figures, make_plan, name_of, parse
from .figures import Column, Figure
from .link import LinkSpec
from .panels import PANELS, best_of, peers_of, quality, ratio_rows
from .plot import to_grid_svg, to_svg
from .report import Cell, Report, to_json_text, to_markdown
from .rounds import Measured

SVG = "{http://www.w3.org/2000/svg}"
REQUESTS, TAIL = PANELS[:2]


def cell(link: LinkSpec | None = None, **rates: float) -> Cell:
    """`rates`: requests/s a system, whose name has underscores for hyphens."""
    measured = {
        name.replace("_", "-"): Measured({"requests_64": [rate - 1, rate, rate + 2], "p99_64_ms": [1e6 / rate]})
        for name, rate in rates.items()
    }
    return Cell(link, measured, [3.0])


def report(*cells: Cell) -> Report:
    columns = [Column("req/s", ["requests_64"]), Column("p99 ms", ["p99_64_ms"], 1)]
    figure = Figure("requests", lambda *_: {}, columns)
    machine = {"cpu": "Z80", "cores": "2", "kernel": "Linux 9"}
    return Report("A title", "a command", "today", machine, {"Trio": "1"}, 3, 2.0, [figure], cells, {"frp": "missing"})


def rows_of(markdown: str) -> list[list[str]]:
    return [
        [field.strip() for field in line.strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|") and not line.startswith("|--")
    ]


def test_the_matrix_is_three_round_trips_by_three_losses() -> None:
    expected = [LinkSpec(rtt, loss, 300.0) for rtt, loss in product((0.0, 20.0, 100.0), (0.0, 0.1, 1.0))]
    assert LinkSpec.parse("matrix") == expected


def test_a_link_has_every_combination_of_its_values_and_the_usual_ones_for_the_rest() -> None:
    assert LinkSpec.parse("rtt=20") == [LinkSpec(20.0, 0.0, 300.0)]
    assert LinkSpec.parse("rtt=20/40, rate=50") == [LinkSpec(20.0, 0.0, 50.0), LinkSpec(40.0, 0.0, 50.0)]
    assert LinkSpec.parse("matrix,rate=100") == [
        LinkSpec(link.rtt, link.loss, 100.0) for link in LinkSpec.parse("matrix")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is unknown"),
        ("delay=3", "'delay' is unknown"),
        ("rtt=", "rtt=: not a number"),
        ("rtt=20/x", "rtt=x: not a number"),
        ("loss=101", "loss=101: not between 0 and 100"),
        ("rtt=-1", "rtt=-1: not between"),
        ("rate=nan", "rate=nan: not between"),
    ],
)
def test_a_link_that_cannot_be_is_told_by_its_part(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LinkSpec.parse(text)


def test_several_links_are_one_report_under_one_name_and_one_keeps_its_own() -> None:
    assert name_of([], quick=False) == "loopback"
    assert name_of([], quick=True) == "quick"
    assert name_of(LinkSpec.parse("rtt=20,loss=0.5"), quick=False) == "link-rtt20-loss0.5-rate300"
    assert name_of(LinkSpec.parse("matrix"), quick=False) == "links"


def test_figures_are_named_with_hyphens_or_underscores_and_a_wrong_name_lists_the_known() -> None:
    for spelt in ("idle-things,single", "single, idle_things"):
        assert [figure.name for figure in choose_figures(parse(["--only", spelt]))] == ["single", "idle-things"]
    with pytest.raises(SystemExit, match=r"unknown: paced; known: idle, rest, .*idle-things"):
        choose_figures(parse(["--only", "paced"]))
    assert choose_figures(parse(["--only", "paced", "--link", "matrix"]))


def test_loads_are_short_and_taken_once_where_there_are_several_links() -> None:
    one, several = (make_plan(options, links)[0] for options, links in (
        (parse(["--systems", "direct", "--link", "rtt=20"]), LinkSpec.parse("rtt=20")),
        (parse(["--systems", "direct", "--link", "matrix"]), LinkSpec.parse("matrix")),
    ))  # fmt: skip
    assert (one.rounds, one.sizes.seconds) == (3, 8.0)
    assert (several.rounds, several.sizes.seconds) == (1, 3.0)


def test_the_portable_poller_is_measured_only_where_it_is_named() -> None:
    usual = {kind.name for kind in make_plan(parse([]), [])[0].systems}
    assert "portable" not in usual
    assert "trio-tunnel" in usual
    assert [kind.name for kind in make_plan(parse(["--systems", "portable"]), [])[0].systems] == ["portable"]


def test_every_system_and_every_panel_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in SYSTEMS}) == len(SYSTEMS)
    assert len({panel.key for panel in PANELS}) == len(PANELS)


def test_the_best_peer_is_neither_ours_nor_direct_nor_the_naive_tunnel() -> None:
    values = {"direct": 9.0, "trio-tunnel": 8.0, "portable": 7.0, "naive": 6.0, "ssh": 2.0, "frp": 4.0}
    assert best_of(REQUESTS, peers_of(values)) == "frp"
    assert best_of(TAIL, peers_of(values)) == "ssh"
    assert best_of(REQUESTS, {}) is None


def test_quality_is_one_for_the_best_and_falls_with_the_ratio_either_way() -> None:
    assert (quality(REQUESTS, 10.0, 10.0), quality(REQUESTS, 5.0, 10.0)) == (1.0, 0.5)
    assert (quality(TAIL, 10.0, 10.0), quality(TAIL, 40.0, 10.0)) == (1.0, 0.25)
    assert (quality(TAIL, 0.0, 0.0), quality(TAIL, 1.0, 0.0)) == (1.0, 0.0)


def test_ratios_name_the_best_peer_of_each_figure_and_divide_by_every_one() -> None:
    found = cell(direct=900, trio_tunnel=150, ssh=100, frp=50).medians()
    head, requests, tail = ratio_rows(found)
    assert head == ["figure", "trio-tunnel", "best peer", "÷ best", "÷ ssh", "÷ frp"]
    assert requests[1:] == ["150", "ssh 100", "**1.50**", "1.50", "3.00"]
    assert tail[1:] == ["6,666.67", "ssh 10,000.00", "**0.67**", "0.67", "0.33"]
    assert ratio_rows(cell(direct=900, trio_tunnel=150).medians()) == []


def test_one_condition_has_a_row_a_system_and_then_the_ratios() -> None:
    markdown = to_markdown(report(cell(direct=900, trio_tunnel=150, ssh=100)))
    rows = rows_of(markdown)
    assert rows[:4] == [
        ["system", "req/s", "p99 ms"],
        ["direct", "900", "1,111.1"],
        ["**trio-tunnel**", "150", "6,666.7"],
        ["ssh", "100", "10,000.0"],
    ]
    assert rows[4][0] == "figure"
    assert "    a command\n" in markdown
    assert "Skipped: frp (missing)." in markdown


def test_several_links_have_a_row_a_figure_and_link_and_name_where_something_failed() -> None:
    near, far = LinkSpec.parse("rtt=0/100")
    cells = cell(near, direct=900, trio_tunnel=150), cell(far, trio_tunnel=140)
    cells[1].measured["trio-tunnel"].notes.append("round 1/1, bulk: it was cut")
    markdown = to_markdown(report(*cells))
    assert rows_of(markdown) == [
        ["figure", "link", "direct", "**trio-tunnel**"],
        ["req/s", "0 ms RTT, 0 % loss, 300 Mbit/s", "900", "150"],
        ["req/s", "100 ms RTT, 0 % loss, 300 Mbit/s", "–", "140"],
        ["p99 ms", "0 ms RTT, 0 % loss, 300 Mbit/s", "1,111.1", "6,666.7"],
        ["p99 ms", "100 ms RTT, 0 % loss, 300 Mbit/s", "–", "7,142.9"],
    ]
    assert "- trio-tunnel across 100 ms RTT, 0 % loss, 300 Mbit/s, round 1/1, bulk: it was cut" in markdown


def test_json_is_flat_for_one_condition_and_has_every_cell_of_several() -> None:
    one = json.loads(to_json_text(report(cell(ssh=100))))
    assert one["link"] is None
    assert one["systems"]["ssh"]["values"]["requests_64"] == [99, 100, 102]
    several = json.loads(to_json_text(report(*(cell(link, ssh=100) for link in LinkSpec.parse("matrix")))))
    assert [found["link"]["rtt"] for found in several["cells"]] == [0, 0, 0, 20, 20, 20, 100, 100, 100]
    assert "systems" not in several


def test_the_plot_has_a_bar_a_tunnel_and_its_ratio_and_leaves_direct_out() -> None:
    plot = to_svg("A & B", cell(direct=900, trio_tunnel=150, ssh=100).medians())
    root = ElementTree.fromstring(plot)
    kinds = [rect.get("class") for rect in root.iter(f"{SVG}rect")]
    assert kinds == ["page", "ours", "theirs", "ours", "theirs"]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "direct" not in texts
    assert {"A & B", "150", "100 (0.67×)"} <= set(texts)


def test_the_grid_has_a_cell_a_system_and_link_and_the_best_tunnel_is_tinted_deepest() -> None:
    links = {str(link): cell(link, direct=900, trio_tunnel=150, ssh=75).medians() for link in LinkSpec.parse("matrix")}
    root = ElementTree.fromstring(to_grid_svg("A title", links))
    tints = [float(rect.get("opacity", 1)) for rect in root.iter(f"{SVG}rect") if rect.get("class") == "ours"]
    assert len(tints) == 9 * 2 * 2  # direct has none
    assert all(ours > theirs for ours, theirs in zip(tints[::2], tints[1::2], strict=True))
    assert {str(link) for link in LinkSpec.parse("matrix")} <= {text.text for text in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("draw", [lambda: to_svg("T", {}), lambda: to_grid_svg("T", {"a": {}, "b": {}})])
def test_a_run_in_which_everything_failed_is_drawn_empty(draw) -> None:
    assert ElementTree.fromstring(draw()).tag == f"{SVG}svg"


def test_a_plot_says_its_colours_for_light_and_for_dark_pages() -> None:
    for plot in (to_svg("T", cell(ssh=1).medians()), to_grid_svg("T", {"a": cell(ssh=1).medians()})):
        assert "@media (prefers-color-scheme: dark)" in plot
        assert "fill='#" not in plot  # all by class: a fixed colour would be lost on the other page
