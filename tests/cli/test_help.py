"""What `-h` shows: every command with an example, in lines that can be copied, and a list without words cut off."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from tunnel.cli.main import cli


def _commands(group: click.Group, *before: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *before, name)
        else:
            yield (*before, name), command


COMMANDS = [path for path, _ in _commands(cli)]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example_of_itself_in_one_piece(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "-h"]).output
    _, _, examples = shown.partition("  Example")
    assert f"\n    {' '.join(('trio-tunnel', *path))}" in examples.replace("(umask 077; ", "")


@pytest.mark.parametrize("group", ["token", "service", "notify"])
def test_every_group_shows_an_example_of_a_command_of_it(group: str) -> None:
    shown = CliRunner().invoke(cli, [group, "-h"]).output
    _, _, examples = shown.partition("  Example")
    assert f"\n    trio-tunnel {group} " in examples


@pytest.mark.parametrize("group", [(), ("token",), ("service",)])
def test_the_list_of_commands_cuts_no_word_off(group: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*group, "-h"], terminal_width=80).output
    _, _, listed = shown.partition("Commands:\n")
    lines = listed.splitlines()
    assert len(lines) > 2
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
