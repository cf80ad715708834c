"""Ports for tests that must know one before anybody listens there."""

import os
import random
import socket
from contextlib import suppress

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4  # of those that test at a time
PORTS = (12_000 + 1000 * WORKER, 12_999 + 1000 * WORKER)  # apart from tests/e2e's, below those the kernel gives
_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """Never the same twice. One that the kernel chose could be its choice for somebody else a moment later, the more
    so while other tests make connections by the thousand."""
    while True:
        port = random.SystemRandom().randint(*PORTS)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            _given.add(port)
            return port
