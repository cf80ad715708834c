"""What is sent: a notice as a webhook's request or as a mail. Pure; `now` for a signature is handed in.

The JSON body, version 1 (a later one may have more keys, none with another meaning):

    {"version": 1, "id": "…", "notice": "ops", "kind": "bind_failed", "at": "2026-11-20T16:40:12.000Z",
     "role": "server", "host": "tunnel-1", "software": "trio-tunnel/0.1.0",
     "title": "…", "text": "…", "next_step": "…",
     "count": 1000, "subjects": [{…}, the first twenty],
     and those of the first subject once more, for receivers that look no further:
     "client", "proxy", "status", "reason", "message", "since", "seconds", "times", "where", "proxies",
     "proxies_total", "was"}

It is signed as Standard Webhooks (standardwebhooks.com) are, for which every language has a verifier:
``webhook-id``, ``webhook-timestamp`` (seconds since 1970) and ``webhook-signature``, which is ``v1,`` and the Base64 of
the HMAC-SHA256 over ``ID.TIMESTAMP.BODY``. Whoever receives it should refuse a timestamp that is minutes old, and drop
an id it has had: trying again sends the same id, with a timestamp of its own.
"""

import hashlib
import hmac
import json
from base64 import b64encode
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from attrs import asdict, frozen

from tunnel.config.receivers import Email, Webhook
from tunnel.notices.notice import RECOVERED, TEST, Notice, Sender, Subject
from tunnel.notices.words import next_step, text, title
from tunnel.wording import clean

MAX_SUBJECT = 150  # characters of a mail's subject line


@frozen
class Request:
    """A POST without its address; `headers` are those that depend on the notice."""

    content: bytes
    headers: dict[str, str]


def request(notice: Notice, to: Webhook, now: float) -> Request:
    """`now` is the wall clock, seconds since 1970."""
    content, headers = {"json": _json, "slack": _slack, "ntfy": _ntfy}[to.format](notice)
    stamp = str(int(now))
    headers |= {"Idempotency-Key": notice.id, "webhook-id": notice.id, "webhook-timestamp": stamp}
    if to.secret is not None:
        headers["webhook-signature"] = signature(to.secret, notice.id, stamp, content)
    return Request(content, headers)


def signature(secret: bytes, notice_id: str, stamp: str, content: bytes) -> str:
    signed = b".".join((notice_id.encode(), stamp.encode(), content))
    return "v1," + b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def body(notice: Notice) -> dict[str, object]:
    """Of the JSON format."""
    group = notice.group
    first = asdict(group.subjects[0] if group.subjects else Subject())
    return {
        "version": 1, "id": notice.id, "notice": notice.to, "kind": notice.kind, "at": notice.at,
        **asdict(notice.sender), "title": title(notice), "text": text(notice), "next_step": next_step(notice),
        "count": group.count, "subjects": [asdict(subject) for subject in group.subjects], **first,
    }  # fmt: skip


def _json(notice: Notice) -> tuple[bytes, dict[str, str]]:
    return json.dumps(body(notice), ensure_ascii=False).encode(), {"Content-Type": "application/json"}


def _slack(notice: Notice) -> tuple[bytes, dict[str, str]]:
    """What Slack, Mattermost, Rocket.Chat and Google Chat take. Its three special characters are escaped."""
    said = f"*{_headline(notice)}*\n{text(notice)}"
    escaped = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return json.dumps({"text": escaped}, ensure_ascii=False).encode(), {"Content-Type": "application/json"}


def _ntfy(notice: Notice) -> tuple[bytes, dict[str, str]]:
    """Headers are ASCII: what is not is left out of the title, the text has it all."""
    is_good = notice.kind in (RECOVERED, TEST)
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Title": _headline(notice).encode("ascii", "replace").decode(),
        "Priority": "default" if is_good else "high",
        "Tags": "white_check_mark" if is_good else "warning",
    }
    return text(notice).encode(), headers


def mail(notices: list[Notice], to: Email) -> EmailMessage:
    """One mail for all of them: several that wait together are a digest. `EmailMessage` takes no line break in a
    header, and what peers wrote has been cleaned of them long before."""
    first = notices[0]
    message = EmailMessage(policy=SMTP)
    subject = _headline(first) + (f" (and {len(notices) - 1} more)" if len(notices) > 1 else "")
    message["Subject"] = clean(subject)[:MAX_SUBJECT]
    message["From"] = to.sender
    message["To"] = ", ".join(to.to)
    message["Date"] = format_datetime(datetime.fromisoformat(first.at))
    message["Message-ID"] = f"<{first.id}@{to.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    parts = [text(notice) for notice in notices]
    message.set_content(("\n" + "-" * 60 + "\n\n").join(parts) + "\n" + _footer(first.sender, first.to, first.at))
    return message


def _headline(notice: Notice) -> str:
    return f"[trio-tunnel {notice.sender.host}] {_capital(title(notice))}"


def _footer(sender: Sender, entry: str, at: str) -> str:
    return f"-- \nTold by the {sender.role} on {sender.host}, {sender.software}, at {at}, as notice '{entry}'.\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
