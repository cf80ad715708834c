"""Which events are worth a notice, for one notice of the configuration: `hear` what happens, send what is `due`.

Pure: `now` is handed in, seconds on one clock. At `next_at` something may be due though nothing happened. What is
heard, and of whom:

- a proxy's status: trouble while it is not healthy. While its session is away its own trouble rests: a client that is
  gone is one notice, not one for each of its proxies.
- a session, at a server one for each client: trouble when it ended in a way that nobody wanted, and while none is back;
  at a client its own: trouble while it is not connected, from the start on.
- the certificate and the configuration: each said to be in trouble, or not, by events of their own.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase

from tunnel.addresses import HostPort
from tunnel.config import NoticeConfig
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.notices.case import Policy
from tunnel.notices.cases import Cases, Key
from tunnel.notices.gathering import Gathering
from tunnel.notices.notice import (
    BIND_FAILED,
    CERTIFICATE_EXPIRING,
    CONFIG_REFUSED,
    SESSION_LOST,
    UNHEALTHY,
    Group,
    Subject,
)
from tunnel.notices.publishers import Publishers
from tunnel.snapshot import Event, ProxyView, Snapshot
from tunnel.wording import clean

WANTED = ("goodbye", "replaced", "revoked", "draining")  # ends of a session that somebody meant
_AWAY = (Reason.SESSION_LOST, Reason.CONNECTING)  # a client's word for its proxies while it has no session
PROXY, SESSION = "proxy", "session"
CERTIFICATE, CONFIG = ("certificate", "", ""), ("config", "", "")


class Rules:
    def __init__(self, config: NoticeConfig, *, is_server: bool) -> None:
        self._config = config
        self._is_server = is_server
        self._cases = Cases(_policy(config), Gathering(config.gather))
        self._publishers = Publishers()
        self._not_after = ""  # of the certificate that was told to be expiring
        self._listeners: dict[str, Callable[[Event, float], None]] = {
            "proxy.status": self._hear_status,
            "proxy.removed": self._hear_removed,
            "session.started": self._hear_started,
            "session.ended": self._hear_ended,
            "session.connecting": self._hear_away,
            "session.lost": self._hear_away,
            "session.connected": self._hear_connected,
            "certificate.loaded": self._hear_loaded,
            "certificate.expiring": self._hear_expiring,
            "config.refused": self._hear_refused,
            "config.reloaded": self._hear_reloaded,
        }

    def hear(self, event: Event, now: float) -> None:
        if (listener := self._listeners.get(event.kind)) is not None:
            listener(event, now)

    def seed(self, snapshot: Snapshot, now: float, *, at: str, is_ready: bool) -> None:
        """What there is already when these rules come into force; `at` is now as people read it."""
        for session in snapshot.sessions:
            if self._is_server:
                self._publishers.enter(session.client)
            for proxy in session.proxies:
                self._judge(session.client, proxy.name, proxy, now)
            if not self._is_server and not is_ready:
                self._session_lost(session.client, "lost", "not connected yet", at, now)
        for client in self._config.expected:
            if self._is_server and not self._publishers.has(client):
                self._session_lost(client, "absent", "it has not connected since the server started", at, now)

    def apply(self, config: NoticeConfig, now: float) -> None:
        """Go by this from now on, and remember what was told. To be followed by `seed`: more may be wanted now."""
        self._config = config
        self._publishers = Publishers()
        self._cases.apply(_policy(config), gather=config.gather, wants=self._wants_key, now=now)

    @property
    def ignored(self) -> int:
        """Troubles that could not be remembered, for there were too many others."""
        return self._cases.ignored

    @property
    def next_at(self) -> float:
        return self._cases.next_at

    def due(self, now: float) -> list[Group]:
        return self._cases.due(now)

    def flush(self, now: float) -> list[Group]:
        """What is due, and all that would still be gathered: this is the end."""
        return self._cases.flush(now)

    def _key(self, what: str, client: str, proxy: str = "") -> Key:
        """A client learns its own name late, and has no other client to tell apart."""
        return what, client if self._is_server else "", proxy

    def _wants_key(self, key: Key) -> bool:
        return key in (CERTIFICATE, CONFIG) or self._wants(key[1], key[2] or None)

    def _wants(self, client: str, proxy: str | None = None) -> bool:
        if self._is_server and not _any_match(client, self._config.clients):
            return False
        return proxy is None or _any_match(proxy, self._config.proxies)

    # Proxies

    def _hear_status(self, event: Event, now: float) -> None:
        self._judge(event.client, event.proxy, event.fields["update"], now)

    def _judge(self, client: str, name: str, state: ProxyStatusUpdate | ProxyView, now: float) -> None:
        key = self._key(PROXY, client, name)
        self._publishers.publish(key[1], name)
        if not self._wants(client, name):
            return
        if state.status == Status.HEALTHY:
            self._cases.mend([key], now)
        elif state.reason == Reason.DRAINING or (state.reason in _AWAY and SESSION_LOST in self._config.events):
            self._cases.suspend([key])
        else:
            is_given_up = state.status == Status.BIND_FAILED and BIND_FAILED in self._config.events
            self._cases.trouble(key, BIND_FAILED if is_given_up else UNHEALTHY, _of_proxy(client, name, state), now)

    def _hear_removed(self, event: Event, now: float) -> None:
        key = self._key(PROXY, event.client, event.proxy)
        self._publishers.withdraw(key[1], event.proxy)
        self._cases.mend([key], now, status="removed")

    # Sessions at a server

    def _hear_started(self, event: Event, now: float) -> None:
        self._publishers.enter(event.client)
        self._cases.mend([self._key(SESSION, event.client)], now, status="connected")

    def _hear_ended(self, event: Event, now: float) -> None:
        client = event.client
        if not self._publishers.leave(client) or not self._wants(client):
            return  # it was replaced, and its successor is here already
        proxies = self._cases.of(PROXY, client)
        reason, is_expected = event.fields["reason"], client in self._config.expected
        if reason in WANTED and not (is_expected and reason == "goodbye"):
            self._publishers.forget(client)
            self._cases.mend(proxies, now, status="removed", grace=self._config.after)
            return
        self._cases.suspend(proxies)
        why = event.fields["message"] or "its connection broke, or went silent"
        self._session_lost(client, reason, why, event.at, now)

    # The session of a client

    def _hear_away(self, event: Event, now: float) -> None:
        before = self._cases.subject(self._key(SESSION, ""))
        why = event.fields["detail"] or (before.message if before is not None else "") or "not connected yet"
        self._session_lost(event.client, "lost", why, event.at, now)

    def _hear_connected(self, event: Event, now: float) -> None:
        self._cases.mend([self._key(SESSION, "")], now, status="connected")

    def _session_lost(self, client: str, reason: str, why: str, at: str, now: float) -> None:
        key = self._key(SESSION, client)
        subject = Subject(
            client=clean(client), status="lost", reason=reason, message=clean(why), since=at,
            proxies=self._publishers.first_of(key[1]), proxies_total=self._publishers.count_of(key[1]),
        )  # fmt: skip
        self._cases.trouble(key, SESSION_LOST, subject, now)

    # The certificate and the configuration

    def _hear_loaded(self, event: Event, now: float) -> None:
        if event.fields["not_after"] != self._not_after:
            self._cases.mend([CERTIFICATE], now, status="renewed")

    def _hear_expiring(self, event: Event, now: float) -> None:
        days, not_after = event.fields["days"], event.fields["not_after"]
        if days > self._config.days:
            return
        self._not_after = not_after
        ends = f"ends in {days} day{'' if days == 1 else 's'}" if days >= 0 else "has ended"
        message = f"the server's certificate {ends}, at {not_after}"
        subject = Subject(status="expiring" if days >= 0 else "expired", message=message, since=event.at)
        self._cases.trouble(CERTIFICATE, CERTIFICATE_EXPIRING, subject, now, again=True)

    def _hear_refused(self, event: Event, now: float) -> None:
        mistakes = event.fields["mistakes"]
        why = mistakes if isinstance(mistakes, str) else "; ".join(map(str, mistakes))
        subject = Subject(status="refused", message=clean(why), since=event.at)
        self._cases.trouble(CONFIG, CONFIG_REFUSED, subject, now, again=True)

    def _hear_reloaded(self, event: Event, now: float) -> None:
        self._cases.mend([CONFIG], now, status="in force")


def _policy(config: NoticeConfig) -> Policy:
    return Policy(frozenset(config.events), config.after, config.interval)


def _of_proxy(client: str, name: str, state: ProxyStatusUpdate | ProxyView) -> Subject:
    return Subject(
        client=clean(client), proxy=clean(name), status=str(state.status), reason=str(state.reason or ""),
        message=clean(state.error_message or ""), since=clean(state.since),
        where=str(HostPort(clean(state.publish_addr), state.publish_port)) if state.publish_addr else "",
    )  # fmt: skip


def _any_match(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
