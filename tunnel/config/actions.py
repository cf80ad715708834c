"""Actions that concern the whole of a process: its limits, its log, what a client proves itself with and whom it
trusts. Made by `diff`, beside those of proxies and clients; pure.
"""

from pathlib import Path

from attrs import field, frozen

from tunnel.config import ForwardProxy, Limits


@frozen
class SetLimits:
    """All of ``[limits]``. `changed` says in words which differ; a session keeps the heartbeat it began with."""

    limits: Limits
    changed: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        return f"limits: {'; '.join(self.changed)}"


@frozen
class SetLogLevel:
    """None: as without one."""

    level: str | None

    def __str__(self) -> str:
        return f"log level: {self.level or 'info'}"


@frozen
class SetToken:
    """A client's new session begins with it at once: who changes a token is about to revoke the old one."""

    token: str = field(repr=False)

    def __str__(self) -> str:
        return "the token is another one: a new session begins with it, at once"


@frozen
class SetTrust:
    """Whom a client takes for its server, what it shows of itself, and through whom it goes out: for connections that
    are opened from now on; those there are stay. `tls_stamp` changes with what the files hold."""

    pin: bytes | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    tls_min_version: str
    via: ForwardProxy | None
    tls_stamp: str
    changed: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        return f"connections to the server from now on go by another {', '.join(self.changed)}"
