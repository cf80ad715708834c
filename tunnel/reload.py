"""The configuration is read again, and what changed is carried out, all or nothing. Used by `commands`; SIGHUP asks
for it (see `stopping`).

A file that cannot be used, or is half written, changes nothing: each mistake is logged, and the process goes on with
what it has.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Generic, TypeVar

import trio

from tunnel.config import ClientConfig, ServerConfig
from tunnel.config.actions import Action, NeedsRestart
from tunnel.config.diff import applied, diff
from tunnel.errors import ConfigError, TunnelError

C = TypeVar("C", ClientConfig, ServerConfig)

MAX_TOLD = 50  # changes or mistakes in one event; the log has them all

log = logging.getLogger(__name__)


class Reloader(Generic[C]):
    """Takes requests from its making on, and serves them while `run` does.

    `load` reads file and options as at the start, in a thread; None where no file was given. Once `drain` is set the
    configuration stays as it is.
    """

    def __init__(self, load: Callable[[], C] | None, *, drain: trio.Event) -> None:
        self._load: Callable[[], C] | None = load
        self._drain = drain
        self._requested = trio.Event()

    def request(self) -> None:
        """Read it again soon. Of several requests before that, the files are read once."""
        if self._drain.is_set():
            log.info("the configuration is not read again while stopping")
        elif self._load is None:
            log.warning("there is no configuration file to read again; give one with -c")
        else:
            self._requested.set()

    async def run(
        self,
        running: C,
        apply: Callable[[C, Sequence[Action]], None],
        *,
        check: Callable[[C, C], None] = lambda running, wanted: None,
        read: Callable[[], None] = lambda: None,
        tell: Callable[..., None] = lambda kind, **fields: None,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Serve requests until cancelled. `running` is the configuration of the process so far; `apply` gets what it
        shall be and how to get there; where it raises TunnelError nothing has changed. `check` gets both before, in a
        thread, and may raise ConfigError; `read` is called after each reading that found no mistake, `tell` with the
        kind and the fields of each event. All that for one request happens in the body of one `around`."""
        while True:
            await self._requested.wait()
            self._requested = trio.Event()  # before the files are read: who changes them later gets another reading
            with around():
                wanted = await self._read(partial(check, running), tell)
                if wanted is not None and not self._drain.is_set():
                    try:
                        running, changes = _change(running, wanted, apply)
                    except TunnelError as exc:  # a file that was good when it was checked; the next request tries again
                        log.error("the configuration was not changed: %s; then send SIGHUP again", exc)
                        tell("config.refused", mistakes=[str(exc)])
                        continue
                    tell("config.reloaded", changes=changes)  # also of none: what was refused before is mended
                    read()

    async def _read(self, check: Callable[[C], None], tell: Callable[..., None]) -> C | None:
        load = self._load
        assert load is not None

        def look() -> C:
            wanted = load()
            check(wanted)
            return wanted

        try:
            return await trio.to_thread.run_sync(look, abandon_on_cancel=True)  # a disk that hangs holds up no end
        except ConfigError as exc:
            for mistake in exc.mistakes:
                log.error("%s", mistake)
            log.error("the configuration was not changed: %s to mend", _count(len(exc.mistakes), "mistake"))
            tell("config.refused", mistakes=[str(mistake) for mistake in exc.mistakes[:MAX_TOLD]])
        except Exception as exc:
            log.exception("the configuration could not be read again; nothing was changed")
            tell("config.refused", mistakes=[f"it could not be read: {exc!r}"])
        return None


def _change(running: C, wanted: C, apply: Callable[[C, Sequence[Action]], None]) -> tuple[C, list[str]]:
    """What is in force now, and what has changed, in words."""
    actions = diff(running, wanted)
    now = applied(running, actions)
    live = [action for action in actions if not isinstance(action, NeedsRestart)]
    idle = "nothing to change without a restart" if actions else "nothing to change"
    if live:
        apply(now, live)
    for action in actions:
        log.log(logging.WARNING if isinstance(action, NeedsRestart) else logging.INFO, "%s", action)
    log.info("the configuration was read again: %s", _count(len(live), "change") if live else idle)
    return now, [str(action) for action in actions[:MAX_TOLD]]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
