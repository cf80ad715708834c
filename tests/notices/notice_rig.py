"""Events as a server or client would publish them, and rules that hear them at exact times."""

from typing import Any

from tunnel.config import NoticeConfig
from tunnel.config.receivers import Webhook
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.notices.notice import Group
from tunnel.notices.rules import Rules
from tunnel.snapshot import Event

HOOK = Webhook("https://hooks.example/x")
AT = "2026-11-20T16:40:12.000Z"


def config(**changes: Any) -> NoticeConfig:
    return NoticeConfig(**{"name": "ops", "to": HOOK, "gather": 0.0, **changes})


def update(name: str, status: str, reason: Reason | None = None, message: str = "") -> ProxyStatusUpdate:
    return ProxyStatusUpdate(
        proxy_name=name, status=Status(status), error_message=message or None, retry_after_seconds=None, seq=0,
        reason=reason, attempt=0, max_retries=None, publish_addr="0.0.0.0", publish_port=8001, since=AT,
    )  # fmt: skip


class Ear:
    """Rules of one side, and all that they had to tell: `told` has a line for each notice, with its time."""

    def __init__(self, *, is_server: bool = True, **changes: Any) -> None:
        self.rules = Rules(config(**changes), is_server=is_server)
        self.now = 0.0
        self.groups: list[Group] = []
        self.told: list[tuple[float, str, int]] = []

    def until(self, now: float) -> "Ear":
        """Let time pass, with a look whenever the rules want one."""
        while self.rules.next_at <= now:
            self.now = max(self.now, self.rules.next_at)
            self._look()
        self.now = now
        return self

    def hear(self, kind: str, client: str = "home", proxy: str = "", **fields: Any) -> "Ear":
        self.rules.hear(Event(kind, AT, client, proxy, fields), self.now)
        self._look()
        return self

    def status(
        self, name: str, status: str, reason: Reason | None = None, message: str = "", *, client: str = "home"
    ) -> "Ear":
        return self.hear("proxy.status", client, name, update=update(name, status, reason, message))

    def fails(self, name: str = "web", *, client: str = "home") -> "Ear":
        return self.status(name, "bind_failed", Reason.ADDR_IN_USE, "port 8001 is taken", client=client)

    def sick(self, name: str = "web", reason: Reason = Reason.TARGET_DOWN) -> "Ear":
        return self.status(name, "unhealthy", reason, "nobody answers")

    def heals(self, name: str = "web", *, client: str = "home") -> "Ear":
        return self.status(name, "healthy", client=client)

    def ends(self, reason: str = "lost", *, client: str = "home") -> "Ear":
        return self.hear("session.ended", client, reason=reason, message="", seconds=1.0)

    def starts(self, *, client: str = "home") -> "Ear":
        return self.hear("session.started", client, peer="192.0.2.1")

    @property
    def last(self) -> Any:
        return self.groups[-1].subjects[0]

    def _look(self) -> None:
        for group in self.rules.due(self.now):
            self.groups.append(group)
            self.told.append((self.now, group.kind, group.count))
