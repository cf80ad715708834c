"""A server with something of everything, for pictures: healthy proxies with traffic, one retrying, one given up, one
whose target is down. Names and addresses are those that are kept for examples."""

import math
import random
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from .puppet import Puppet, proxy

HOUR = 3600


def ago(seconds: float) -> str:
    then = datetime.now(UTC) - timedelta(seconds=seconds)
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def server() -> Puppet:
    puppet = Puppet("server")
    puppet.since = {"home": ago(26 * HOUR), "lab": ago(41 * 60), "shop": ago(9 * 24 * HOUR)}
    puppet.put(
        "home",
        proxy("photos", publish_port=8001, target="127.0.0.1:8080", since=ago(26 * HOUR), visitors=7,
              visitors_total=48_211, bytes_in=182_000_000, bytes_out=9_400_000_000),
        proxy("ssh", publish_port=8022, target="127.0.0.1:22", since=ago(26 * HOUR), visitors=1, visitors_total=12,
              bytes_in=104_000, bytes_out=4_400_000),
        proxy("git", publish_port=8443, target="10.0.0.7:443", since=ago(75), visitors_total=311, bytes_in=1_000_000,
              bytes_out=44_000_000),
    )  # fmt: skip
    puppet.put(
        "lab",
        proxy("camera", publish_port=8554, target="192.168.7.20:554", since=ago(61), visitors_total=9,
              status="unhealthy", reason="target_down", refused={"target_refused": 4},
              error_message="192.168.7.20:554 refuses connections"),
        proxy("printer", publish_addr="192.0.2.10", publish_port=631, target="unix:/run/cups/cups.sock",
              since=ago(15 * 60), status="bind_failed", reason="addr_not_available", attempt=11,
              error_message="192.0.2.10 is no address of this machine"),
    )  # fmt: skip
    puppet.put(
        "shop",
        proxy("store", publish_port=443, target="127.0.0.1:8443", since=ago(9 * 24 * HOUR), visitors=31,
              visitors_total=1_204_377, bytes_in=3_100_000_000, bytes_out=61_000_000_000),
        proxy("store-admin", publish_addr="127.0.0.1", publish_port=9443, target="127.0.0.1:9443",
              since=ago(9 * 24 * HOUR), visitors_total=840, bytes_in=9_000_000, bytes_out=210_000_000),
    )  # fmt: skip
    puppet.retry_in("home", "git", 41, reason="addr_in_use", attempt=3,
                    error_message="Port 8443 on 0.0.0.0 is already in use by another process")  # fmt: skip
    puppet.extra = {
        "connection_pool": {
            "clients": {
                "home": {"channels": 4, "streams": 8, "suspect": 0, "retiring": 0},
                "lab": {"channels": 2, "streams": 0, "suspect": 1, "retiring": 0},
                "shop": {"channels": 4, "streams": 31, "suspect": 0, "retiring": 0},
            }
        },
        "gate": {"strangers": 2, "logins": 41, "penalised_sources": 3,
                 "refusals": {"tls": 1208, "penalty": 311, "silent": 77, "token_refused": 14}},
    }  # fmt: skip
    return puppet


def tell(puppet: Puppet) -> None:
    """What happened, once it runs."""
    puppet.publish("session.started", client="shop", peer="198.51.100.7:52011")
    puppet.publish("session.ended", client="lab", reason="lost", message="nothing heard for 30 s", seconds=4211)
    puppet.publish("session.started", client="lab", peer="203.0.113.9:40140")
    for client, name in (("lab", "printer"), ("lab", "camera"), ("home", "git")):
        view = puppet.sessions[client][name]
        puppet.publish("proxy.status", client=client, proxy=name, status=view.status, reason=view.reason,
                       error_message=view.error_message)  # fmt: skip
    puppet.publish("config.reloaded", changes=["clients: sessions are held to what they may do now"])


class Traffic:
    """Bytes and visitors that come and go, ten times a second, while the body runs."""

    def __init__(self, puppet: Puppet) -> None:
        self._puppet = puppet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._dice = random.Random(1)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        tick = 0
        while not self._ended.wait(0.1):
            tick += 1
            wave = 1.3 + math.sin(tick / 70) + 0.4 * math.sin(tick / 13)
            self._move("shop", "store", 12_000 * wave, 610_000 * wave, visitors=29 + tick // 25 % 5)
            self._move("home", "photos", 4_000 * wave, 180_000 * (3 - wave), visitors=6 + tick // 40 % 3)
            if tick % 30 < 9:
                self._move("home", "ssh", 60, 700)

    def _move(self, client: str, name: str, more_in: float, more_out: float, **changes: Any) -> None:
        view, luck = self._puppet.sessions[client][name], self._dice.uniform(0.7, 1.3)
        self._puppet.change(
            client, name, bytes_in=view.bytes_in + int(more_in * luck), bytes_out=view.bytes_out + int(more_out * luck),
            visitors_total=view.visitors_total + (self._dice.random() < 0.3), **changes,
        )  # fmt: skip
