"""Two network namespaces and an emulated link between them; root on Linux only."""

import os
import shutil
import sys
from itertools import product
from pathlib import Path

from attrs import asdict, frozen

from .processes import Place, Process

MATRIX = "rtt=0/20/100,loss=0/0.1/1"
MOST = {"rtt": 10_000.0, "loss": 100.0, "rate": 100_000.0}


@frozen
class LinkSpec:
    """`rtt` in ms, `loss` in percent each way, `rate` in Mbit/s each way (0 is unlimited)."""

    rtt: float = 100.0
    loss: float = 0.0
    rate: float = 300.0

    @classmethod
    def parse(cls, text: str) -> "list[LinkSpec]":
        """Every combination of what is named, in order: `rtt=20/100,loss=0/1` are four; `matrix` is `MATRIX`."""
        given: dict[str, list[float]] = {}
        for part in text.replace("matrix", MATRIX).split(","):
            name, _, values = part.strip().partition("=")
            if name not in MOST:
                raise ValueError(f"{name!r} is unknown; it is rtt=MS,loss=PERCENT,rate=MBIT, or matrix")
            given[name] = [_number(name, value) for value in values.split("/")]
        return [cls(**dict(zip(given, values, strict=True))) for values in product(*given.values())]

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.rtt:g} ms RTT, {self.loss:g} % loss, {self.rate:g} Mbit/s"

    @property
    def file_name(self) -> str:
        return f"link-rtt{self.rtt:g}-loss{self.loss:g}-rate{self.rate:g}"


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name}={text}: not a number") from None
    if not 0 <= value <= MOST[name]:  # nan, too
        raise ValueError(f"{name}={text}: not between 0 and {MOST[name]:g}")
    return value


class Lab:
    """`near` and `far`, while the block lasts."""

    def __init__(self, spec: LinkSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._name = f"bench{os.getpid()}"
        self._process: Process | None = None
        self.near = Place("10.77.0.1", ("ip", "netns", "exec", f"{self._name}-a"))
        self.far = Place("10.77.0.2", ("ip", "netns", "exec", f"{self._name}-b"))

    @staticmethod
    def missing() -> str | None:
        if os.geteuid() != 0:
            return "network namespaces need root"
        if not shutil.which("ip"):
            return "ip (iproute2) not found on PATH"
        return None if Path("/dev/net/tun").exists() else "/dev/net/tun does not exist"

    def __enter__(self) -> "Lab":
        spec = self._spec
        options = ["--rtt", str(spec.rtt), "--loss", str(spec.loss), "--rate", str(spec.rate)]
        argv = [sys.executable, "-m", "tests.netlab", "up", "--name", self._name, *options]
        self._process = Process("netlab", argv, place=Place(), folder=self._folder)
        try:
            self._process.wait_said("ready")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process:
            self._process.stop()
