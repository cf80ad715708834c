"""The pages under deploy/docs: what is generated is fresh, links lead somewhere, and nothing here is named that is not
there."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tunnel.cli.main import cli
from tunnel.config import Limits
from tunnel.limits import RESERVED
from tunnel.messages import Reason
from tunnel.server import admission, penalties
from tunnel.server.data_channels import MAX_CHANNELS
from tunnel.server.strangers import REASONS

from .__main__ import DOCS, PAGES
from .recorder import read_keys

ROOT = DOCS.parent.parent
EVERY_PAGE = [ROOT / "README.md", *sorted((ROOT / "deploy").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"`(?:\S+=\S+ )*trio-tunnel ([a-z]+)(?: ([a-z]+))?")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_what_is_generated_is_as_it_would_be_written_now(name: str) -> None:
    """`python -m tests.docs` writes it."""
    assert (DOCS / name).read_text() == PAGES[name](), f"{name} is stale; run: python -m tests.docs"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        bare = re.sub(r"[^\w\s-]", "", heading.lower().replace("`", ""))
        found.add(re.sub(r"\s", "-", bare.strip()))
    return found


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_or_heading_leads_there(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {link}; there are {sorted(anchors(there))}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path) -> None:
    for first, second in COMMAND.findall(page.read_text()):
        assert first in cli.commands, f"{page.name}: trio-tunnel {first}"
        group = cli.commands[first]
        if second and isinstance(group, click.Group):
            assert second in group.commands, f"{page.name}: trio-tunnel {first} {second}"


def keys_of(table: dict[str, Any], at: str = "") -> Iterator[str]:
    """``notices[].url`` for what stands in a list of tables."""
    for key, value in table.items():
        path = f"{at}.{key}" if at else key
        if isinstance(value, dict):
            yield from keys_of(value, path)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                yield from keys_of(one, f"{path}[]")
        else:
            yield path


@pytest.mark.parametrize("page", sorted((ROOT / "deploy").rglob("*.md")), ids=lambda page: page.name)
def test_every_key_of_an_example_is_one_of_a_file(page: Path) -> None:
    known = read_keys("server").keys() | read_keys("client").keys()
    for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        assert set(keys_of(tomllib.loads(text))) <= known


def options_of(words: list[str]) -> set[str]:
    """Those of the command that these words begin with, and of the group."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    return {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts} | {
        "-h",
        "--help",
    }


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_of_a_command_that_is_shown_exists(page: Path) -> None:
    text = page.read_text()
    shown = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    for line in "\n".join(shown).replace("\\\n", " ").splitlines():
        found = re.search(rf"trio-tunnel ((?:{'|'.join(cli.commands)})\b.*?)(?:$|&&|\||;|#)", line)
        words = found[1].split() if found is not None else []
        known = options_of(list(words))
        for word in words:
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                assert word in known, f"{page.name}: {line.strip()}"


def test_operations_has_a_line_for_each_reason_of_a_status_and_of_a_refusal() -> None:
    text = (DOCS / "operations.md").read_text()
    missing = [word for word in (*Reason, *REASONS) if f"`{word}`" not in text]
    assert not missing


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_metric_that_is_named_is_told(page: Path) -> None:
    told = (ROOT / "tunnel" / "admin" / "families.py").read_text()
    for name in re.findall(r"\btrio_tunnel_(\w+)", page.read_text()):
        assert f'"{name.removesuffix("_total").removesuffix("_info")}"' in told, f"{page.name}: trio_tunnel_{name}"


NUMBERS = [
    ("security.md", "8 for one source", admission.PER_SOURCE),
    ("security.md", "100 in all", admission.MAX_STRANGERS),
    ("security.md", "early drop from 50", admission.EARLY_DROP_FROM),
    ("security.md", "has 256 places", admission.PER_KNOWN_SOURCE),
    ("security.md", "wrong token costs its source 5 s", penalties.WRONG_TOKEN_SECONDS),
    ("security.md", "each deadline that passes 5 s", penalties.TOO_LATE_SECONDS),
    ("security.md", "came to nothing 1 s", penalties.NO_LOGIN_SECONDS),
    ("security.md", "from 15 s on", penalties.ENFORCED_FROM),
    ("security.md", "65,536 sources", penalties.MAX_SOURCES),
    ("security.md", "has 10 s for TLS, 5 s for its head", (Limits().handshake_seconds, Limits().head_seconds)),
    ("operations.md", "8 from one source, 100 in all", (admission.PER_SOURCE, admission.MAX_STRANGERS)),
    ("operations.md", "more than 80 of one session", MAX_CHANNELS),
    ("operations.md", "descriptors, less 128", RESERVED),
]


@pytest.mark.parametrize(("page", "words", "numbers"), NUMBERS, ids=[words for _, words, _ in NUMBERS])
def test_each_number_of_a_page_is_the_codes(page: str, words: str, numbers: float | tuple[float, ...]) -> None:
    assert words in " ".join((DOCS / page).read_text().split())
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        assert f"{number:,.0f}" in words
