"""What the tests of the history share: events as the tunnel publishes them, and clocks that tests move."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from tunnel.history.recorder import Clocks, Keeping, Recorder
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import Event, Snapshot

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


def update(name: str = "web", status: str = "healthy", reason: str | None = None, **more: Any) -> ProxyStatusUpdate:
    values: dict[str, Any] = {
        "proxy_name": name, "status": Status(status), "error_message": None, "retry_after_seconds": None, "seq": 0,
        "reason": None if reason is None else Reason(reason), "attempt": 0, "max_retries": 10,
        "publish_addr": "0.0.0.0", "publish_port": 8001, "since": "",
    }  # fmt: skip
    return ProxyStatusUpdate(**{**values, **more})


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOON + seconds, UTC).isoformat()


def status(seconds: float, *words: Any, client: str = "home", **more: Any) -> Event:
    said = update(*words, **more)
    return Event("proxy.status", at(seconds), client, said.proxy_name, {"update": said})


def taken(seconds: float, attempt: int, *, client: str = "home", state: str = "unhealthy") -> Event:
    return status(
        seconds, "web", state, "addr_in_use", client=client, attempt=attempt, error_message="port 8001 is taken"
    )


def event(seconds: float, kind: str, client: str = "home", proxy: str = "", **fields: Any) -> Event:
    return Event(kind, at(seconds), client, proxy, fields)


class House:
    """A recorder whose clocks stand still until they are moved; nothing runs by itself."""

    recorders: ClassVar[list[Recorder]] = []  # closed at the end of the test

    def __init__(self, folder: Path, role: str = "server", **keeping: Any) -> None:
        self.path = folder / "history.sqlite"
        self.now, self.offset = 1000.0, NOON - 1000.0
        self.clocks = Clocks(lambda: self.now, lambda: self.now + self.offset)
        self.nothing = Snapshot(role, "1", ())
        self.keeping = Keeping(**{"path": self.path, "clocks": self.clocks, **keeping})
        self.recorder = self.begin()

    def begin(self) -> Recorder:
        """Another process, by the clocks as they stand."""
        self.recorder = Recorder(self.nothing, self.keeping)
        self.recorders.append(self.recorder)
        return self.recorder

    @property
    def wall(self) -> float:
        return self.now + self.offset

    def tell(self, *events: Event) -> None:
        for one in events:
            self.recorder.offer(one, lambda: self.nothing)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
