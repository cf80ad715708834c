"""Ports for tests that must know one before anybody listens there."""

import os
import random
import socket
from contextlib import suppress

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4  # of those that test at a time
PORTS = (20_000 + 3000 * WORKER, 22_999 + 3000 * WORKER)  # below the range that kernels choose outgoing ports from
_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """Never the same twice: whom it was given to may not listen yet. One that the kernel chose could be its choice for
    somebody else a moment later, the more so while other tests make connections by the thousand."""
    while True:
        port = random.randint(*PORTS)
        if port in _given:
            continue
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            _given.add(port)
            return port
