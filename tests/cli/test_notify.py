"""`trio-tunnel notify test`: what a person sees of each receiver, and the exit code."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tunnel.cli.main import cli
from tunnel.errors import ConfigError, TunnelError


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(204 if self.path == "/good" else 404)
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Hook)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def write(folder: Path, hook: Any, *paths: str, kind: str = "server") -> Path:
    head = "bind_port = 1\n" if kind == "server" else 'server = "a"\ntoken_file = "nowhere"\n'
    entry = '[[notices]]\nname = "{0}"\ntype = "webhook"\nurl = "http://127.0.0.1:{1}/{0}"\n'
    path = folder / f"{kind}.toml"
    path.write_text(head + "".join(entry.format(one, hook.server_port) for one in paths))
    return path


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["notify", "test", *args])


@pytest.mark.parametrize("kind", ["server", "client"])
def test_a_receiver_that_takes_it_is_told_and_has_a_test_notice(tmp_path: Path, hook: Any, kind: str) -> None:
    result = run("-c", str(write(tmp_path, hook, "good", kind=kind)))
    assert result.output == f"good (webhook): sent: http://127.0.0.1:{hook.server_port} answered 204\n"
    assert result.exit_code == 0
    (body,) = hook.got
    assert (body["kind"], body["role"], body["notice"], body["title"]) == (
        "test",
        kind,
        "good",
        "test notice of 'good'",
    )


def test_one_that_fails_is_told_with_the_remedy_and_the_others_are_tried_all_the_same(
    tmp_path: Path, hook: Any
) -> None:
    result = run("-c", str(write(tmp_path, hook, "bad", "good")))
    assert result.output.splitlines() == [
        f"bad (webhook): FAILED: http://127.0.0.1:{hook.server_port} answered 404; see whether url is still the right one",  # noqa: E501
        f"good (webhook): sent: http://127.0.0.1:{hook.server_port} answered 204",
    ]
    assert result.exit_code == 1


def test_programs_get_json_of_those_that_were_named(tmp_path: Path, hook: Any) -> None:
    result = run("-c", str(write(tmp_path, hook, "good", "bad")), "--name", "bad", "--json")
    assert json.loads(result.output) == {
        "results": [
            {
                "name": "bad", "type": "webhook", "delivered": False,
                "said": f"http://127.0.0.1:{hook.server_port} answered 404",
                "remedy": "see whether url is still the right one",
            }
        ]
    }  # fmt: skip
    assert result.exit_code == 1


def test_a_name_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, hook: Any) -> None:
    result = run("-c", str(write(tmp_path, hook, "good")), "--name", "god")
    assert result.exit_code == 2
    assert "has no notice 'god'; there are good" in result.output


def test_a_file_without_notices_or_with_mistakes_sends_nothing(tmp_path: Path, hook: Any) -> None:
    assert isinstance(run("-c", str(write(tmp_path, hook))).exception, TunnelError)
    path = write(tmp_path, hook, "good", "good")
    assert isinstance(run("-c", str(path)).exception, ConfigError)
    path.write_text("")
    assert isinstance(run("-c", str(path)).exception, ConfigError)
    assert hook.got == []
