"""What the README says is true: its example runs, its commands and words exist."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trustme

from tunnel.cli.main import cli
from tunnel.messages import Reason, Status

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
IN_PYTHON = (ROOT / "deploy" / "docs" / "python.md").read_text()


def block(name: str, page: str = README) -> str:
    """The code block behind ``<!-- name -->``."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("example", IN_PYTHON))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^web healthy None \d+$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
def test_the_example_of_the_pool_asks_three_times_over_one_handshake(tmp_path: Path) -> None:
    authority, script, both = trustme.CA(), tmp_path / "example.py", tmp_path / "both.pem"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(both)
    script.write_text(block("pool example", IN_PYTHON))
    command = [sys.executable, "-m", "tests.bench.pool_service", "--addresses", "3", "--certificate", str(both)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            port = service.stdout.readline().split()[-1]
            arguments = [f"https://localhost:{port}/", "127.0.0.3", str(tmp_path / "ca.pem")]
            done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=60)
        finally:
            service.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 ready {}", *["True HTTP/1.1 200 OK"] * 3, "1 handshake"]


def test_demo_and_tests_are_one_line_each_and_set_everything_up() -> None:
    for name, end in (("demo", ".venv/bin/trio-tunnel demo"), ("tests", ".venv/bin/python -m tests")):
        (line,) = block(name).strip().splitlines()
        assert line.startswith("python3 -m venv .venv && ")
        assert line.endswith(f" && {end}")


def test_every_command_of_the_table_exists_and_every_command_is_in_it() -> None:
    table = README[README.index("| command |") : README.index("`PUBLISH` is")]
    cells = [row.split(" | ")[0] for row in table.splitlines()[2:] if row.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([a-z]+)", cell)}
    assert named == set(cli.commands)
    assert all(isinstance(command, click.Command) for command in cli.commands.values())


def test_statuses_and_reasons_it_names_are_those_of_the_wire() -> None:
    table = README[README.index("| status |") : README.index("`attempt` counts")]
    assert {row.split("`")[1] for row in table.splitlines()[2:] if row.startswith("| `")} == set(Status)
    codes = set(re.findall(r"`(\w+)`", table)) - set(Status) - {"reason", "retry_after_seconds"}
    assert codes <= set(Reason)
