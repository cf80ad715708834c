"""Whom to tell what: the values of ``[[notices]]``. Part of `tunnel.config`, which has the rest."""

from pathlib import Path

from attrs import field, frozen

from tunnel.addresses import HostPort
from tunnel.backoff import Policy, RetryPolicy

NOTICE_EVENTS = (
    "bind_failed", "unhealthy", "session_lost", "recovered", "certificate_expiring", "config_refused",
)  # fmt: skip
WEBHOOK_FORMATS = ("json", "slack", "ntfy")
MAIL_SECURITY = {"starttls": 587, "tls": 465, "none": 25}  # and the usual port of each
# Eight attempts within nine minutes: a receiver that is restarted is waited for, one that is gone delays the next
# notices no longer than people wait.
NOTICE_RETRY = RetryPolicy(initial_delay=2.0, factor=3.0, max_delay=180.0, max_retries=7, jitter=0.2)


@frozen
class Webhook:
    """An address that each notice is POSTed to. `url` may hold a secret of its own, and is shown nowhere."""

    url: str = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)  # signs each body
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: Path | None = None  # instead of the system's CAs
    proxy: str | None = None  # an HTTP proxy to go through; that of the environment counts for nothing
    format: str = "json"  # or "slack", "ntfy"
    timeout: float = 10.0  # seconds of one attempt, from the name's look-up to the answer's end


@frozen
class Email:
    """A mail server, and from whom and to whom each notice goes there."""

    where: HostPort
    sender: str
    to: tuple[str, ...]
    security: str = "starttls"  # or "tls", or "none"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout: float = 30.0  # seconds of one attempt


@frozen
class NoticeConfig:
    """One receiver, and what it is told. Times in seconds.

    `after` is how long a proxy must be unhealthy, or a session lost, before it is worth a notice; `interval` passes
    between two notices of trouble about one proxy or client; `gather` is waited for more to tell in the same notice.
    `days` before its end a certificate is expiring. `clients` and `proxies` are globs. `expected` clients should always
    have a session: one that never comes, or left with a goodbye and stays away, is told as lost, too.
    """

    name: str
    to: Webhook | Email
    events: tuple[str, ...] = NOTICE_EVENTS
    after: float = 60.0
    interval: float = 300.0
    gather: float = 5.0
    days: int = 14
    clients: tuple[str, ...] = ("*",)
    proxies: tuple[str, ...] = ("*",)
    expected: tuple[str, ...] = ()
    retry: Policy = NOTICE_RETRY
