"""The words in which a proxy's state is shown: by `trio-tunnel status`, and by the views of `connect`.

Whatever is shown may come from a peer: every text passes `clean`.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from tunnel.addresses import HostPort

MAX_SHOWN = 300  # characters of one text; a message names an error, it is not a document
MIN_FLEXIBLE = 16  # of a text that is cut short; a name or an address is still told apart


class ProxyState(Protocol):
    """What `ProxyView` and `ProxyStatusUpdate` have in common."""

    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def error_message(self) -> str | None: ...
    @property
    def retry_after_seconds(self) -> int | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def max_retries(self) -> int | None: ...
    @property
    def publish_addr(self) -> str: ...
    @property
    def publish_port(self) -> int: ...


def clean(text: str) -> str:
    """One line without control, format or bidirectional characters, of bounded length: safe on any terminal."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text[: MAX_SHOWN + 1])
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."


def public_address(state: ProxyState) -> str:
    return str(HostPort(clean(state.publish_addr), state.publish_port)) if state.publish_addr else ""


def countdown(state: ProxyState, *, elapsed: float = 0.0) -> str:
    """``retry 3/10 in 12 s``, ``gave up after 10 retries``, or nothing; `elapsed` since the state was told."""
    if state.status == "bind_failed":
        return f"gave up after {state.attempt - 1} retries" if state.attempt > 1 else "given up"
    if state.status != "unhealthy" or state.retry_after_seconds is None:
        return ""
    which = f" {state.attempt}" if state.attempt else ""
    if which and state.max_retries is not None:
        which += f"/{state.max_retries}"
    left = int(state.retry_after_seconds - elapsed + 0.999)
    return f"retry{which} in {human_seconds(left)}" if left > 0 else f"retry{which} now"


def explain(
    state: ProxyState,
    *,
    elapsed: float = 0.0,
    refused: Mapping[str, int] | None = None,
    width: int | None = None,
    ellipsis: str = "…",
) -> str:
    """Why a proxy is not healthy and what happens next: ``addr_in_use: Port 8022 …; retry 1/10 in 2 s``; then how many
    visitors could not be served (`refused`), by reason.

    With a `width`, the why is cut short so that the next step can be seen.
    """
    why = ": ".join(clean(part) for part in (state.reason, state.error_message) if part)
    lost = ", ".join(f"{count} {clean(reason)}" for reason, count in (refused or {}).items())
    following = "; ".join(filter(None, (countdown(state, elapsed=elapsed), lost and f"visitors refused: {lost}")))
    if width is not None and why:
        room = max(MIN_FLEXIBLE, width - len(following) - 2)
        why = why if len(why) <= room else why[: room - len(ellipsis)] + ellipsis
    return "; ".join(part for part in (why, following) if part)


def plain_line(name: str, state: ProxyState, target: str = "") -> str:
    """A proxy's state on one line of plain text."""
    where = f" at {public_address(state)}" + (f" -> {clean(target)}" if target else "")
    line = f"{clean(name)}: {clean(state.status)}"
    if state.status == "healthy":
        return line + where
    line += f" ({clean(state.reason)})" if state.reason else ""
    return ": ".join(part for part in (line, "; ".join(_message_and_next(state))) if part)


def _message_and_next(state: ProxyState) -> Iterator[str]:
    if state.error_message:
        yield clean(state.error_message)
    if following := countdown(state):
        yield following


def listed(names: Sequence[str], *, most: int = 20) -> str:
    """``a, b, c``, or ``a, b, c and 7 more``."""
    shown = ", ".join(clean(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def no_such_proxy(name: str, there: Sequence[str]) -> str:
    return f"no proxy is named {name!r}{f'; there are {listed(there)}' if there else ', and there is none'}"


def human_bytes(count: float) -> str:
    """Decimal units, as network people count: ``999 B``, ``1.5 MB``, ``23 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.0f} PB"


def human_seconds(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def age(since: str, now: datetime) -> str:
    try:
        return human_seconds((now - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: without a time zone
        return ""
