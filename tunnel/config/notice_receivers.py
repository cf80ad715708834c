"""What an entry of ``[[notices]]`` says of its receiver: a webhook or a mail server. Used by `notices`.

Secrets are read here, from files of their own: what a config file holds is copied, mailed and committed.
"""

import binascii
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from tunnel.addresses import HostPort, is_ip
from tunnel.config.receivers import MAIL_SECURITY, WEBHOOK_FORMATS, Email, Webhook
from tunnel.config.sections import take_ca_file
from tunnel.config.table import Table
from tunnel.config.token_file import read_secret_line
from tunnel.config.values import host, number, one_of, path_from, text, whole
from tunnel.errors import ConfigError

T = TypeVar("T")

MAX_RECIPIENTS = 20
MAX_TIMEOUT = 300.0  # seconds of one attempt
MIN_SECRET = 16  # characters: what could be guessed signs nothing
WEBHOOK_KEYS = ("url", "url_file", "secret_file", "headers_file", "proxy", "format")
EMAIL_KEYS = ("host", "port", "security", "from", "to", "username", "password_file")
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)[ \t]*")
_OUR_HEADERS = ("host", "content-length", "transfer-encoding", "connection", "content-type")


# Webhooks


def take_webhook(entry: Table, base: Path) -> Webhook | None:
    written = entry.take("url", _url, None)
    of_file = _secret(entry, "url_file", base, "the URL", lambda content: _url(content.strip()))
    if "url" in entry and "url_file" in entry:
        entry.blame("url_file", "stands beside url", "keep one of the two")
    elif "url" not in entry and "url_file" not in entry:
        entry.missing("url", 'add url = "https://example.com/hook", or url_file where it is a secret')
    headers = _secret(entry, "headers_file", base, "the headers", _headers) or ()
    found = Webhook(
        url=written or of_file or "",
        secret=_secret(entry, "secret_file", base, "the secret", _signing_key),
        headers=headers,
        ca_file=take_ca_file(entry, "ca_file", base),
        proxy=entry.take("proxy", _proxy, None),
        format=entry.take("format", one_of(WEBHOOK_FORMATS, "format"), "json"),
        timeout=entry.take("timeout", number(0, MAX_TIMEOUT, above=True), 10.0),
    )
    if not found.url:
        return None
    split = urlsplit(found.url)
    if headers and split.scheme == "http" and not _is_near(split.hostname or ""):
        entry.blame("headers_file", "would be sent over http, for everybody on the way to read", "write https in url")
    return found


def _url(value: Any) -> str:
    found = text(value).strip()
    split = _split(found, ("https", "http"), "https://example.com/hook")
    if split.fragment:
        raise ValueError("has a fragment (#), which is never sent; take it away")
    return found


def _proxy(value: Any) -> str:
    found = text(value)
    split = _split(found, ("http", "https"), "http://proxy.example.com:3128")
    if split.path not in ("", "/") or split.query or split.fragment:
        raise ValueError("has a path, which a proxy has not; write http://HOST:PORT")
    return found


def _split(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """No message repeats the URL: that of a chat's webhook is as good as a password."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise ValueError(f"is no URL; write one such as {example}") from None
    if split.scheme not in schemes or not split.hostname or re.search(r"[^\x21-\x7e]", url):
        raise ValueError(f"is no URL of {' or '.join(schemes)}; write one such as {example}")
    try:
        host(split.hostname)
    except ValueError:
        raise ValueError(f"names no host; write one such as {example}") from None
    if port == 0:
        raise ValueError(f"has port 0; write one such as {example}")
    if split.username is not None or split.password is not None:
        raise ValueError("has a user name in it; put an Authorization header into headers_file instead")
    return split


def _headers(content: str) -> tuple[tuple[str, str], ...]:
    found = []
    for number_, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ValueError(f"has no header in line {number_}; write each as Name: value")
        if match[1].lower() in _OUR_HEADERS or match[1].lower().startswith("webhook-"):
            raise ValueError(f"has {match[1]} in line {number_}, which is set for each notice; take it away")
        found.append((match[1], match[2]))
    if not found:
        raise ValueError("holds no header; write lines such as Authorization: Bearer …")
    return tuple(found)


def _signing_key(content: str) -> bytes:
    """A secret as text, or as receivers of Standard Webhooks show it: ``whsec_`` and Base64."""
    secret = content.strip()
    if len(secret) < MIN_SECRET or len(secret.splitlines()) > 1:
        problem = f"holds no secret of one line with {MIN_SECRET} characters at least"
        raise ValueError(f"{problem}; make one: openssl rand -hex 32")
    if not secret.startswith("whsec_"):
        return secret.encode("latin-1")
    try:
        return binascii.a2b_base64(secret.removeprefix("whsec_"), strict_mode=True)
    except binascii.Error:
        raise ValueError(
            "begins with whsec_ and goes on as no Base64; copy it again, as the receiver shows it"
        ) from None


# E-mail


def take_email(entry: Table, base: Path) -> Email | None:
    security = entry.take("security", one_of(tuple(MAIL_SECURITY), "security"), "starttls")
    where = entry.need("host", host, 'host = "smtp.example.com"')
    port = entry.take("port", whole(1, 65535), MAIL_SECURITY[security])
    sender = entry.need("from", _mailbox, 'from = "tunnel@example.com"')
    to = some(entry, "to", _mailbox, ())
    if "to" not in entry:
        entry.missing("to", 'add to = ["ops@example.com"]')
    elif len(to) > MAX_RECIPIENTS:
        entry.blame("to", f"has {len(to)} members", f"write at most {MAX_RECIPIENTS}, or the address of a list")
    username = entry.take("username", text, None)
    password = _secret(entry, "password_file", base, "the password", _password)
    for one, other in (("username", "password_file"), ("password_file", "username")):
        if one in entry and other not in entry:
            entry.missing(other, f"add {other}, or take {one} away")
    if security == "none" and password is not None and where is not None and not _is_near(where):
        entry.blame("security", "would send the password for everybody on the way to read", 'write "starttls" or "tls"')
    ca_file, timeout = (
        take_ca_file(entry, "ca_file", base),
        entry.take("timeout", number(0, MAX_TIMEOUT, above=True), 30.0),
    )
    if where is None or sender is None or not to:
        return None
    return Email(HostPort(where, port), sender, to, security, username, password, ca_file, timeout)


def _mailbox(value: Any) -> str:
    found = text(value)
    if not _MAILBOX.fullmatch(found):
        raise ValueError(f"{found!r} is no mail address; write it alone, such as ops@example.com")
    return found


def _password(content: str) -> str:
    secret = content.rstrip("\r\n")
    if not re.fullmatch(r"[\x20-\x7e]+", secret):  # what smtplib can send
        raise ValueError("holds no password of one line in ASCII; leave only the password")
    return secret


# Both


def some(entry: Table, key: str, read: Callable[[Any], T], default: tuple[T, ...]) -> tuple[T, ...]:
    """The elements of a list that may not be empty, each once."""
    found = entry.many(key, read, default)
    if entry.data.get(key) == []:
        entry.blame(key, "is empty", "write at least one, or take it away")
    return tuple(dict.fromkeys(found)) or default


def _secret(entry: Table, key: str, base: Path, what: str, read: Callable[[str], T]) -> T | None:
    """What the file at `key` holds. A file that this user cannot read is in doubt only, where another user will."""
    path = entry.take(key, path_from(base), None)
    if path is None:
        return None
    try:
        return read(read_secret_line(path, what=what))
    except ConfigError as exc:
        absent = isinstance(exc.__cause__, FileNotFoundError | PermissionError)
        for mistake in exc.mistakes:
            (entry.doubt if absent else entry.blame)(key, mistake.problem, mistake.remedy)
    except ValueError as exc:
        problem, _, remedy = str(exc).rpartition("; ")
        entry.blame(key, problem, remedy)
    return None


def _is_near(where: str) -> bool:
    """Whether it is this machine: nobody is on the way."""
    return where == "localhost" or (is_ip(where) and (where.startswith("127.") or where == "::1"))
