"""A public address that leaves the host while a proxy listens on it, and comes back: in a namespace of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from processes import Client, Server, Stage

ADDRESS = "10.99.0.1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="needs root and ip (iproute2) to make a network namespace",
    ),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"tt-test-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        yield name
    finally:
        ip("netns", "del", name)


def test_a_listener_whose_address_went_away_is_retried_until_it_is_back(stage: Stage, namespace: str) -> None:
    inside = ["ip", "netns", "exec", namespace]
    words = ["--listen", "127.0.0.1:8443", "--admin", "off", "--state-dir", stage.new_path("state")]
    server: Server = stage.start("serve", *words, kind=Server, prefix=inside)
    server.wait_listening()
    client: Client = stage.start(
        "connect", "127.0.0.1:8443", "--pin", server.pin, "--json",
        "-p", f"gone={ADDRESS}:8001:1", "-p", "stays=127.0.0.1:8001:1",
        kind=Client, prefix=inside, env={"TRIO_TUNNEL_TOKEN": server.token},
    )  # fmt: skip
    client.wait_healthy("gone", "stays")
    before = len(client.out)

    ip("-n", namespace, "addr", "del", f"{ADDRESS}/32", "dev", "lo")
    lost = client.wait_status("gone", start=before, reason="addr_not_available", seconds=8)
    assert (lost["status"], lost["attempt"]) == ("unhealthy", 1)

    ip("-n", namespace, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
    client.wait_status("gone", start=before, status="healthy", seconds=8)
    assert all(status["proxy_name"] == "gone" for status in client.statuses[before:])
