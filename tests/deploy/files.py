"""What the tests of the files in `deploy/` share."""

import re
from functools import cache
from pathlib import Path

import click

from tunnel.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SIDES = {"server": "serve", "client": "connect"}
USER = 10001  # of the image


@cache
def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of each of the Dockerfile's, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def without_files(path: Path, folder: Path) -> Path:
    """A copy of a configuration without what it takes from a container's file system."""
    copy = folder / path.name
    copy.write_text(re.sub(r"^(token_file|ca_file) = .*\n", "", path.read_text(), flags=re.MULTILINE))
    return copy


def parses(words: list[str]) -> bool:
    """Whether the command line takes these words; nothing is run."""
    program, name, *rest = words
    try:
        context = cli.commands[name].make_context(name, rest)
    except click.UsageError as exc:
        raise AssertionError(f"{' '.join(words)}: {exc.format_message()}") from exc
    return program == "trio-tunnel" and context.command is cli.commands[name]
