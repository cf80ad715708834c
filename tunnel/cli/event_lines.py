"""What happened, as a line for people: of an event as /events tells it. Pure.

Lenient towards what another version leaves out or adds; a kind that is not known is told with its fields.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tunnel.cli.status_table import proxy_of
from tunnel.wording import clean, human_seconds, plain_line

Event = dict[str, Any]


def event_line(event: Event) -> str:
    """``home/web: healthy at 0.0.0.0:8001``; without the time."""
    kind, fields = str(event.get("kind", "")), event.get("fields")
    fields = fields if isinstance(fields, dict) else {}
    if kind == "proxy.status":
        return plain_line(who(event), proxy_of(fields))
    words = _WORDS[kind](fields) if kind in _WORDS else f"{clean(kind)}{_details(fields)}"
    subject = who(event) or ("this client" if kind.startswith("session.") else "")
    return f"{subject}: {words}" if subject else words


def who(event: Event) -> str:
    """CLIENT/PROXY, or the one of them that there is, or nothing."""
    return "/".join(clean(str(event.get(key))) for key in ("client", "proxy") if event.get(key))


def is_wanted(event: Event, *, kinds: Sequence[str], name: str) -> bool:
    """Whether it is of one of `kinds` (``proxy.status``, or ``proxy`` for all of these), if there are any, and of
    `name` (PROXY, CLIENT or CLIENT/PROXY), if there is one."""
    kind = str(event.get("kind", ""))
    if kinds and not any(kind == wanted or kind.startswith(f"{wanted}.") for wanted in kinds):
        return False
    return not name or name in (event.get("client"), event.get("proxy"), f"{event.get('client')}/{event.get('proxy')}")


Fields = dict[str, Any]


def _ended(fields: Fields) -> str:
    seconds = fields.get("seconds")
    lasted = f" after {human_seconds(seconds)}" if isinstance(seconds, (int, float)) else ""
    return f"session ended{lasted} ({clean(str(fields.get('reason', '')))}){_after_colon(fields.get('message'))}"


def _lost(fields: Fields) -> str:
    seconds = fields.get("retry_in")
    then = f"; tries again in {human_seconds(seconds)}" if isinstance(seconds, (int, float)) and seconds >= 1 else ""
    return f"no session{_after_colon(fields.get('detail'))}{then}"


def _after_colon(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = "; ".join(map(str, value))
    return f": {clean(str(value))}" if value else ""


def _expiring(fields: Fields) -> str:
    days, end = fields.get("days"), clean(str(fields.get("not_after")))
    if isinstance(days, (int, float)) and days < 0:
        return f"the certificate has ended, at {end}"
    return f"the certificate ends in {clean(str(days))} days, at {end}"


def _so_far(why: Any) -> str:
    return f"; so far{_after_colon(why)}" if why else ""


def _details(fields: Fields) -> str:
    return "".join(f" {clean(str(key))}={clean(str(value))}" for key, value in fields.items())


_WORDS: dict[str, Callable[[Fields], str]] = {
    "proxy.removed": lambda _: "published no longer",
    "session.started": lambda fields: f"session started, from {clean(str(fields.get('peer', '')))}",
    "session.ended": _ended,
    "session.connecting": lambda fields: f"connecting{_so_far(fields.get('detail'))}",
    "session.connected": lambda _: "connected",
    "session.lost": _lost,
    "config.reloaded": lambda fields: f"configuration read again{_after_colon(fields.get('changes'))}",
    "config.refused": lambda fields: (
        f"configuration refused, nothing has changed{_after_colon(fields.get('mistakes'))}"
    ),
    "certificate.loaded": lambda fields: f"another certificate is in use, until {clean(str(fields.get('not_after')))}",
    "certificate.expiring": _expiring,
}
