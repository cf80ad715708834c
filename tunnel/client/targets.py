"""Where a visitor's stream goes on the client's side. Only this config names a target; the server names a proxy."""

import logging
import socket

import trio

from tunnel.addresses import Target
from tunnel.backoff import RetryBudget
from tunnel.client.target_pool import TargetConnection, key_of, open_connection, open_pool, place_of, pool_config
from tunnel.config import ProxyConfig
from tunnel.errors import PeerLost
from tunnel.faults import Fault, Kind, Phase, classify
from tunnel.frames import Abort
from tunnel.pool import Lease, Pool, Unavailable
from tunnel.pool.renewal import keep_running
from tunnel.relay import Stream, Tally
from tunnel.sockets import family_of

log = logging.getLogger(__name__)

MAX_SAID = (
    32  # causes logged of one proxy's refusals in a row: several targets have one each, and a name many addresses
)
_REFUSALS = {Kind.REFUSED: Abort.DIAL_REFUSED, Kind.TIMEOUT: Abort.DIAL_TIMEOUT}


class ProxyRoute:
    """One proxy's way to its targets.

    A single literal address with nothing kept hot is dialled in the relay, without a task; anything else comes from a
    pool: at once if it has a connection, else from a short task that waits for one.
    """

    def __init__(self, config: ProxyConfig, *, dial_seconds: float) -> None:
        self.config = config
        self.tally = Tally()
        self.pool: Pool[Target, TargetConnection] | None = None
        self._dial_seconds = dial_seconds
        self._tasks: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._down: dict[Target, str] = {}  # what health checks say of targets that do not pass
        self._budget = RetryBudget()
        self._literal = _literal(config)
        self._said: set[str] = set()  # why visitors were refused since one was served, as it was logged

    # Lifetime

    def start(self, tasks: trio.Nursery) -> None:
        """Keep the pool, and dial, in `tasks` from now on."""
        self._tasks = tasks
        self._scope = trio.CancelScope()
        if self._literal is None:
            self.pool = self._make_pool()
            tasks.start_soon(self._run_pool, self._scope, name=f"targets of {self.config.name}")

    def stop(self) -> None:
        """No new visitor is taken to a target; unused connections are closed."""
        self._scope.cancel(reason="the proxy has changed or gone")
        self.pool = self._tasks = None

    def _make_pool(self) -> Pool[Target, TargetConnection]:
        pool = open_pool(self.config, dial_seconds=self._dial_seconds, budget=self._budget)
        for target, why in self._down.items():
            pool.mark(key_of(target), why)
        return pool

    async def _run_pool(self, scope: trio.CancelScope) -> None:
        def renew() -> Pool[Target, TargetConnection] | None:
            if scope.cancel_called:  # the route may have another by now
                return None
            self.pool = self._make_pool()
            return self.pool

        with scope:
            if self.pool is not None:
                await keep_running(self.pool, renew, whose=f"proxy '{self.config.name}'")

    def apply(self, config: ProxyConfig) -> None:
        """Other targets, checks or figures, from the next visitor on."""
        before, self.config = self.config, config
        if (before.targets, before.pool, before.health_check) == (config.targets, config.pool, config.health_check):
            return
        if config.health_check is None:
            self._down.clear()
        self._down = {target: why for target, why in self._down.items() if target in config.targets}
        self._literal = _literal(config)
        tasks = self._tasks
        if self.pool is None or self._literal is not None:
            self.stop()
            if tasks is not None:
                self.start(tasks)
            return
        self.pool.apply(pool_config(config, self._dial_seconds))
        self.pool.list_places(map(place_of, config.targets))
        for target in config.targets:
            self.pool.mark(key_of(target), self._down.get(target))

    def limit(self, dial_seconds: float) -> None:
        self._dial_seconds = dial_seconds
        if self.pool is not None:
            self.pool.apply(pool_config(self.config, dial_seconds))

    def forget_verdicts(self) -> None:
        """Its checks begin anew: until they have told, every target counts as usable."""
        for target in list(self._down):
            self.hear(target, True, None)

    def hear(self, target: Target, is_healthy: bool, problem: str | None) -> None:
        """A health check's word on a target."""
        log.debug("target %s of proxy '%s' is %s", target, self.config.name, "up" if is_healthy else f"down: {problem}")
        if is_healthy:
            self._down.pop(target, None)
        else:
            self._down[target] = problem or "its health check fails"
        if self.pool is not None:
            self.pool.mark(key_of(target), self._down.get(target))

    # Visitors

    def dial(self, stream: Stream) -> None:
        """Take a visitor to a target, now or later; or refuse it with the reason."""
        if self._down and all(target in self._down for target in self.config.targets):
            stream.refuse(Abort.TARGET_DOWN)
        elif self._literal is not None:
            if not stream.dial(*self._literal):
                self._start_task(stream)
        elif self.pool is not None and (lease := self.pool.take_nowait(self._owner)) is not None:
            self._hand_over(lease, stream)
        else:
            self._start_task(stream)

    @property
    def _owner(self) -> str:
        return f"a visitor of {self.config.name}"

    def _hand_over(self, lease: Lease[Target, TargetConnection], stream: Stream) -> None:
        if not stream.alive:
            lease.value.close()
            lease.release()
            return
        stream.lease = lease
        lease.value.hand_over(stream)

    def _start_task(self, stream: Stream) -> None:
        if self._tasks is None:
            stream.refuse(Abort.SESSION_ENDED)
            return
        stream.dialling = trio.CancelScope()  # before the task begins: its stream may be over by then
        self._tasks.start_soon(self._dial_slowly, stream, stream.dialling, name=f"dial for {self.config.name}")

    async def _dial_slowly(self, stream: Stream, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._wait_for_target(stream)
            except Exception as exc:
                stream.session.engine.wall(stream, exc)
            stream.session.engine.wake()
        stream.dialling = None

    async def _wait_for_target(self, stream: Stream) -> None:
        """If the targets change meanwhile it waits for the new ones, which have as long as the old ones had."""
        give_up_at = trio.current_time() + self._dial_seconds
        while (pool := self.pool) is not None:
            try:
                lease = await pool.wait(self._owner)
            except Unavailable as exc:
                if pool is self.pool or trio.current_time() >= give_up_at:
                    self._refuse(stream, exc.fault)
                    return
            else:
                self._said.clear()
                self._hand_over(lease, stream)
                return
        await self._dial_again(stream)

    async def _dial_again(self, stream: Stream) -> None:
        """A Unix socket's backlog was full (the kernel tells of no event when there is room), or the pool has ended."""
        if self._tasks is None:
            stream.refuse(Abort.SESSION_ENDED)
            return
        try:
            with trio.fail_after(self._dial_seconds):
                connection = await open_connection(self.config.targets[0], lambda _phase: None)
        except (OSError, PeerLost, trio.TooSlowError) as exc:
            self._refuse(stream, classify(exc, Phase.DIAL))
        else:
            connection.hand_over(stream)

    def _refuse(self, stream: Stream, fault: Fault) -> None:
        """The log has a line for each new cause, not for each visitor."""
        if fault.message not in self._said and len(self._said) < MAX_SAID:
            self._said.add(fault.message)
            log.warning("a visitor of proxy '%s' was refused: %s", self.config.name, fault.message)
        stream.refuse(_REFUSALS.get(fault.kind, Abort.DIAL_FAILED))


def _literal(config: ProxyConfig) -> tuple[int, tuple[str, int] | str] | None:
    """What a socket can be told to connect to at once, where that is all there is to do."""
    target = config.targets[0]
    if len(config.targets) > 1 or config.pool.min > 0:
        return None
    if target.kind == "unix":
        return socket.AF_UNIX, target.host
    return (family_of(target.where.host), (target.where.host, target.where.port)) if target.is_literal else None
