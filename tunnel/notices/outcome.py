"""What came of one attempt to deliver a notice. Pure."""

import os
import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime

from attrs import frozen

from tunnel.config.token_file import NOT_SHOWN
from tunnel.wording import clean

MAX_RETRY_AFTER = 900.0  # seconds; who wants us later than that has failed this time


@frozen
class Outcome:
    """`said` is what the receiver answered, or why there was no answer, and shows no secret; `remedy` what to do about
    it. `retry` tells failures that may pass; `retry_after` is when the receiver wants to be asked, in seconds."""

    delivered: bool
    said: str
    remedy: str = ""
    retry: bool = False
    retry_after: float = 0.0

    def __str__(self) -> str:
        return f"{self.said}; {self.remedy}" if self.remedy else self.said


def hide(text: str, secrets: Iterable[str]) -> str:
    """What a receiver said, on one line, without our secrets: some repeat what they were sent."""
    for secret in secrets:
        if len(secret) >= 4:  # less is no secret, and would eat the text
            text = text.replace(secret, NOT_SHOWN)
    return clean(text.strip())


def reason(exc: BaseException) -> str:
    """Why something failed, in the system's words where it was a system call: not with what others wrote around it."""
    if isinstance(exc, socket.gaierror) and exc.strerror:  # its numbers are others
        return exc.strerror
    if isinstance(exc, OSError) and exc.errno is not None and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno)
    return str(exc) or type(exc).__name__


def retry_after(header: str | None, now: datetime | None = None) -> float:
    """Seconds, of a ``Retry-After`` in either of its forms; 0 where there is none that makes sense."""
    if not header:
        return 0.0
    from email.utils import parsedate_to_datetime  # takes eight milliseconds, which not every start has to pay

    if header.strip().isdecimal() and len(header) <= 12:
        seconds = float(header)
    else:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
