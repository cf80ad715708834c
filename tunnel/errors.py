"""The exception tree: one class for each thing a caller does differently."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen


class TunnelError(Exception):
    """Base of everything this package raises on purpose."""


@frozen
class Mistake:
    """One thing wrong in a config file or option, placed so that a person finds it.

    `file` is a path or the option's name, `line` is 1-based (0: no line can be named), `path` a dotted key path
    such as ``proxies[1].publish_port``, `value` the offending value as written, `problem` and `remedy` plain text.
    """

    file: str
    line: int
    path: str
    value: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        parts = [place, self.path, self.value, f"{self.problem}; {self.remedy}" if self.remedy else self.problem]
        return ": ".join(part for part in parts if part)


class ConfigError(TunnelError):
    """The configuration cannot be used. Carries every mistake at once; nothing has been changed."""

    def __init__(self, *mistakes: Mistake) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


class Refused(TunnelError):
    """The other side, or our own check of it, said no.

    `reason` is a stable code (`token_refused`, `pin_mismatch`, `certificate_untrusted`, `identity_held`,
    `server_busy`, `version_unsupported`, …). `trust` tells refusals that only a person can mend (exit code 3, slow
    retry) from "come back later".
    """

    def __init__(self, reason: str, message: str, *, trust: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.trust = trust


class RemoteProtocolError(TunnelError):
    """The peer broke the protocol: drop the peer, log at info."""


class LocalProtocolError(TunnelError):
    """We broke the protocol: our bug, log with traceback."""


class PeerLost(TunnelError):
    """The peer, or the way to it, is gone: nothing answered, or what answered broke off."""

    def __init__(self, message: str, *, answered: bool = False, errno: int | None = None) -> None:
        super().__init__(message)
        self.answered = answered
        self.errno = errno  # of the system call that failed, where one did


@asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """What the body raised, without the groups that nurseries inside put around a single cause."""
    try:
        yield
    except BaseExceptionGroup as group:
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        if isinstance(cause, Exception) and not isinstance(cause, BaseExceptionGroup):
            raise cause from cause.__cause__
        raise
