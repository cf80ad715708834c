"""What a file says of notices: ``[[notices]]``, whom to tell what. Used by `server_file` and `file`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunnel.config.notice_receivers import EMAIL_KEYS, WEBHOOK_KEYS, some, take_email, take_webhook
from tunnel.config.receivers import NOTICE_EVENTS, NOTICE_RETRY, Email, NoticeConfig, Webhook
from tunnel.config.sections import blame_repeats, take_policy
from tunnel.config.table import Spot, Table
from tunnel.config.values import DAY, name, number, one_of, text, whole

MAX_NOTICES = 16
MAX_DAYS = 30  # before a certificate's end; the server begins to tell of it then
TYPES = ("webhook", "email")
_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,100}")


def take_notices(table: Table, base: Path, *, is_server: bool) -> tuple[NoticeConfig, ...]:
    entries = table.tables("notices")
    if len(entries) > MAX_NOTICES:
        table.blame("notices", f"has {len(entries)} members", f"write at most {MAX_NOTICES}")
    found = [(entry, _take_notice(entry, base, is_server=is_server)) for entry in entries]
    names: list[tuple[Spot, Any]] = [(entry.spot("name"), found_name) for entry, (found_name, _) in found]
    blame_repeats(names, table.findings.blame, "the name at", "give each notice a name of its own")
    return tuple(notice for _, (_, notice) in found if notice is not None)


def _take_notice(entry: Table, base: Path, *, is_server: bool) -> tuple[str | None, NoticeConfig | None]:
    """Its name, and the whole, as far as they could be read."""
    found_name = entry.need("name", name, 'name = "ops"')
    kind = entry.need("type", one_of(TYPES, "type of notice"), 'type = "webhook", or "email"')
    readers: dict[str, Callable[[Table, Path], Webhook | Email | None]] = {"webhook": take_webhook, "email": take_email}
    _know_foreign(entry, kind)
    to = readers[kind](entry, base) if kind is not None else None
    values: dict[str, Any] = {
        "events": some(entry, "events", one_of(NOTICE_EVENTS, "event that is told"), NOTICE_EVENTS),
        "after": entry.take("after", number(0, DAY), 60.0),
        "interval": entry.take("interval", number(0, DAY), 300.0),
        "gather": entry.take("gather", number(0, 3600), 5.0),
        "days": entry.take("days", whole(1, MAX_DAYS), 14),
        "clients": some(entry, "clients", _pattern, ("*",)),
        "proxies": some(entry, "proxies", _pattern, ("*",)),
        "expected": some(entry, "expected", name, ()),
        "retry": take_policy(entry, "retry", NOTICE_RETRY) or NOTICE_RETRY,
    }
    for key in ("clients", "expected"):
        if not is_server and key in entry:
            entry.blame(key, "means nothing at a client, which knows only itself", "take it away")
    if values["retry"].max_retries is None:
        entry.blame("retry", "never gives up, and later notices would wait for ever", "write max_retries = 7")
    if found_name is None or to is None:
        return found_name, None
    return found_name, NoticeConfig(found_name, to, **values)


def _know_foreign(entry: Table, kind: str | None) -> None:
    """The keys of the other type are keys, too: blamed for what they mean, not for their spelling."""
    for other, keys in (("webhook", WEBHOOK_KEYS), ("email", EMAIL_KEYS)):
        if kind != other:
            entry.known.extend((*keys, "ca_file", "timeout") if kind is None else keys)
            for key in keys:
                if kind is not None and key in entry:
                    entry.blame(
                        key, f"means nothing to a notice of type {kind}", f'take it away, or write type = "{other}"'
                    )


def _pattern(value: Any) -> str:
    found = text(value)
    if not _PATTERN.fullmatch(found):
        raise ValueError(f"{found!r} is no name, nor a pattern of names; write such as web, or web-*")
    return found
