"""SIGUSR2 to real processes: a dump with --profile-dir, a line in the log without, and they live on."""

import json
import re
import signal

import pytest
from processes import Stage, ask_echo


@pytest.mark.slow
def test_sigusr2_writes_a_dump_and_both_processes_live_on(stage: Stage, echo_port: int) -> None:
    folder = stage.path("dumps")
    server = stage.serve("--profile-dir", str(folder))
    client = stage.connect(server, f"web=127.0.0.1:0:{echo_port}")
    (port,) = client.wait_healthy("web")
    for _ in range(50):  # so much that the relay is among the slowest, whatever else a start took
        ask_echo(port, bytes(100_000))
    server.send(signal.SIGUSR2)
    written = server.wait_log(r"wrote the dump (\S+)$").group(1)
    (dump,) = folder.iterdir()
    assert str(dump) == written
    text = dump.read_text()
    figures = json.loads(re.search(r"^== figures ==\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE).group(1))
    assert figures["relay"]["sessions"] == 1
    assert figures["relay"]["channels"] >= 1
    assert figures["relay"]["turns"] > 0
    assert figures["connection_pool"]["clients"]["default"]["channels"] >= 1
    for task in ("relay", "gate", "proxy default/web"):
        assert re.search(rf"^ *{task}$", text, re.MULTILINE), text
    assert re.search(r"^ +\d+\.\d{3}  \S+Z  relay$", text, re.MULTILINE)  # among the slowest steps
    assert server.token not in text
    client.send(signal.SIGUSR2)
    client.wait_log("start with --profile-dir DIR")
    ask_echo(port)
