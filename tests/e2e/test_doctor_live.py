"""`trio-tunnel doctor` as people run it: a line for each step, one object for programs, and exit codes."""

import json
import os

import pytest
from processes import LOOPBACK, Stage, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_line_for_each_step_and_exit_codes_by_what_failed(stage: Stage, echo_port: int) -> None:
    server = stage.serve()
    env = {"TRIO_TUNNEL_TOKEN": server.token}
    proxy = f"web={LOOPBACK}:{free_port()}:{echo_port}"
    well = stage.run("doctor", server.where, "--pin", server.pin, "-p", proxy, env=env)
    assert [line.split()[:2] for line in well.out[:-1]] == [
        ["ok", check]
        for check in (
            "program", "descriptors", "dns", "tcp", "tls", "certificate", "clock", "websocket", "token", "latency",
            "channel", "port", "target",
        )
    ]  # fmt: skip
    assert well.out[-1] == "all is well"
    pin = "sha256:" + "00" * 32
    untrusted = stage.run("doctor", server.where, "--pin", pin, "-p", proxy, "--json", env=env, code=3)
    told = json.loads(untrusted.stdout)
    assert (told["exit_code"], told["servers"]) == (3, [server.where])
    assert {check["check"]: check["verdict"] for check in told["checks"]}["tls"] == "fail"
    assert server.token not in well.stdout + well.stderr + untrusted.stdout + untrusted.stderr
    silent = stage.run("doctor", f"{LOOPBACK}:{free_port()}", "--pin", pin, env=env, code=1)
    assert "FAIL  tcp" in silent.stdout
    assert "skip  tls, certificate, clock: no address can be connected to" in silent.stdout
    assert "→" in silent.stdout
    usage = stage.run("doctor", "a:b:c", env=env, code=2)
    assert "SERVER" in usage.stderr
    secret = stage.run("doctor", server.where, "--via", "http://me:s3cret@p:1", env=env, code=2)
    assert "s3cret" not in secret.stdout + secret.stderr


def test_a_token_file_that_others_can_read_is_a_line_and_does_not_end_it(stage: Stage) -> None:
    server = stage.serve()
    path = stage.write("home.token", server.token, mode=0o644)
    if os.stat(path).st_mode & 0o044 == 0:
        pytest.skip("this file system keeps no modes")
    open_token = stage.run("doctor", server.where, "--pin", server.pin, "--token-file", path, code=1)
    assert "FAIL  token        --token-file: can be read by others (mode 0644)" in open_token.stdout
    assert f"chmod 600 {path}" in open_token.stdout
