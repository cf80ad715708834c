"""The relay's page says of each constant what the code says, and its sums add up."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tunnel.config import Limits
from tunnel.frames import FIRST_WINDOW, MAX_WINDOW
from tunnel.relay import Engine
from tunnel.relay.bounds import Budget
from tunnel.relay.channel import STEP_BYTES
from tunnel.relay.tempo import CAPACITY

PAGE = (Path(__file__).parents[2] / "deploy" / "docs" / "relay.md").read_text()
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "ms": 1e-3, "µs": 1e-6, "s": 1}
CONSTANT = re.compile(r"^\| `(tunnel\.[\w.]+)` \| ([\d.]+) ?(\w*) \|", re.MULTILINE)


def value_of(name: str) -> object:
    if name.startswith("tunnel.config.Limits."):
        return getattr(Limits(), name.rpartition(".")[2])
    return resolve_name(name)


def test_each_constant_has_the_value_that_the_page_says() -> None:
    told = {name: float(number) * UNITS[unit] for name, number, unit in CONSTANT.findall(PAGE)}
    assert len(told) > 20
    assert told == pytest.approx({name: value_of(name) for name in told})


def test_each_constant_that_the_text_names_is_in_its_table() -> None:
    text, _, constants = PAGE.partition("\n## Constants\n")
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", text)) - {"CAPACITY", "ALONE", "BESIDE"}
    assert named
    assert [name for name in named if f".{name}`" not in constants] == []


async def test_the_engines_own_buffers_are_as_big_as_the_page_says() -> None:
    engine = Engine()
    try:
        buffers = engine.inbound_view.nbytes, engine.plain_view.nbytes, engine.batch_view.nbytes
    finally:
        engine.close()
    (told,) = re.findall(r"ciphertext, plaintext, batch \| (\d+) KiB", PAGE)
    assert round(sum(buffers) / 1024) == int(told)


def test_so_many_visitors_and_so_much_growth_fit_into_the_budget() -> None:
    budget = Budget(Limits().buffer_budget)
    assert budget.free // FIRST_WINDOW == 4096
    assert (budget.free - budget.reserve) // FIRST_WINDOW == 2048
    assert (budget.free - budget.reserve) // (MAX_WINDOW - FIRST_WINDOW) == 16


def test_the_sum_for_two_hundred_sessions_adds_up() -> None:
    busy, total_busy = map(int, re.findall(r"800 × \(24 \+ (\d+)\) KiB = (\d+) MiB", PAGE)[0])
    stuck, total_stuck = map(int, re.findall(r"800 × (\d+) KiB = (\d+) MiB more", PAGE)[0])
    (worst,) = map(int, re.findall(r"at the very worst (\d+) MiB", PAGE))
    assert f"{busy} KiB more (measured)" in PAGE
    assert abs(busy - 2 * STEP_BYTES // 1024) < 80  # a step each way; the rest is OpenSSL's
    assert stuck == CAPACITY // 1024
    assert total_busy == round(800 * (24 + busy) / 1024)
    assert total_stuck == round(800 * stuck / 1024)
    assert worst == total_busy + total_stuck < 1024


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE)
    assert links
    assert [link for link in links if not (Path(__file__).parents[2] / "deploy" / "docs" / link).exists()] == []
