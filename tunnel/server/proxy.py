"""One published proxy at the server: the bind-retry loop, then the listener, until cancelled.

The only author of the proxy's statuses. `run` never raises: what goes wrong in one proxy stays there.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from tunnel.addresses import HostPort
from tunnel.backoff import Policy
from tunnel.messages import MAX_TEXT, ProxySpec, ProxyStatusUpdate, Reason, Status, TargetHealth
from tunnel.relay import Tally
from tunnel.server.binding import BindFailed
from tunnel.snapshot import ProxyView, utc_now

log = logging.getLogger(__name__)

STEADY_SECONDS = 1.0  # a listener that lasted so long is bound again at once


class Holding(Protocol):
    """A bound, listening and accepting address."""

    where: HostPort

    async def wait_lost(self) -> str:
        """Until accepting has ended for good; returns why."""

    def release(self) -> None:
        """Free the address, at once."""


class Proxy:
    """`take(spec, tally)` makes one bind attempt and raises `BindFailed`; `report` is called at each change."""

    def __init__(
        self,
        spec: ProxySpec,
        *,
        policy: Policy,
        take: Callable[[ProxySpec, Tally], Holding],
        report: Callable[["Proxy"], None],
    ) -> None:
        self.spec = spec
        self.tally = Tally()
        self.scope = trio.CancelScope()  # registered before the task starts, so that closing can never miss it
        self.status = Status.UNHEALTHY
        self.reason: Reason | None = Reason.PENDING
        self.error_message: str | None = None
        self.attempt = 0
        self.where = HostPort(spec.publish_addr, spec.publish_port)
        self.since = utc_now()
        self._policy = policy
        self._take = take
        self._report = report
        self._retry_at: float | None = None
        self._target: TargetHealth | None = None
        self._holding: Holding | None = None
        self._round = trio.CancelScope()

    # Lifetime

    async def run(self) -> None:
        """Hold the public address until `scope` is cancelled; afterwards nothing is bound and nothing retried."""
        with self.scope:
            while True:
                self._round = trio.CancelScope()
                with self._round:
                    await self._guarded_round()

    async def _guarded_round(self) -> None:
        try:
            await self._hold_address()
        except Exception as exc:
            log.exception("Proxy '%s' failed", self.spec.name)
            self._set(Status.BIND_FAILED, Reason.INTERNAL_ERROR, f"internal error: {exc!r}; see the server's log")
            await trio.sleep_forever()

    def stop(self, reason: str) -> None:
        """Free the address now, and end `run`."""
        if self._holding is not None:
            self._holding.release()
        self.scope.cancel(reason=reason)

    def drain(self) -> None:
        """Take no new visitors, for good. The client is not told by a status: it has heard the server's goodbye."""
        self.stop("draining")
        self.status, self.reason, self.since = Status.UNHEALTHY, Reason.DRAINING, utc_now()
        self.error_message, self._retry_at = "the server is stopping; visitors inside may finish", None

    def retry(self) -> bool:
        """Start afresh with new counters, unless it is listening; True if it did."""
        if self._holding is not None:
            return False
        self._round.cancel(reason="a retry was asked for")
        return True

    def hear(self, health: TargetHealth) -> None:
        """The client's word on the target; it counts while we are listening."""
        self._target = health
        if self._holding is not None:
            self._report_listening()

    async def _hold_address(self) -> None:
        while True:
            holding = self._holding = await self._bind()
            held_since = trio.current_time()
            try:
                self.where = holding.where
                self._report_listening()
                why = await holding.wait_lost()
            finally:
                self._holding = None
                holding.release()
            log.warning("Proxy '%s' lost its listener on %s: %s", self.spec.name, self.where, why)
            # One that is lost again and again is bound no faster than a taken port is tried.
            pause = 0.0
            if trio.current_time() - held_since < STEADY_SECONDS:
                pause = max(next(self._policy.delays(), 0.0), STEADY_SECONDS)
            message = f"The listener on {self.where} was lost: {why}"
            self._set(Status.UNHEALTHY, Reason.LISTENER_LOST, message, after=pause)
            await trio.sleep(pause)

    async def _bind(self) -> Holding:
        """The bind-retry loop: returns once the address is ours; waits here for ever once it has given up."""
        delays: Iterator[float] = self._policy.delays()
        self.attempt = retries = 0
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()  # nothing is bound for a client that has gone meanwhile
            try:
                holding = self._take(self.spec, self.tally)
            except BindFailed as failure:
                self.attempt += 1
                delay = None if failure.final else next(delays, None)
                if delay is None:
                    await self._give_up(failure, retries)
                else:
                    await self._wait(failure, delay)
                    retries += 1
                continue
            after = f" (after {retries} retries)" if retries else ""
            log.info("Proxy '%s' listening on %s%s", self.spec.name, holding.where, after)
            self.attempt = 0
            return holding

    async def _wait(self, failure: BindFailed, delay: float) -> None:
        most = self._policy.max_retries
        of = "" if most is None else f"/{most}"
        log.warning(
            "Proxy '%s' bind failed (attempt %d%s): %s. Retrying in %g seconds...",
            self.spec.name, self.attempt, of, failure, delay,
        )  # fmt: skip
        self._set(Status.UNHEALTHY, failure.reason, str(failure), after=delay)
        upcoming = self.attempt + 1 if most is None else min(self.attempt + 1, most)
        log.info("Waiting %g seconds before retry attempt %d%s...", delay, upcoming, of)
        await trio.sleep(delay)

    async def _give_up(self, failure: BindFailed, retries: int) -> None:
        if failure.final:
            log.error("Proxy '%s' cannot be published: %s", self.spec.name, failure)
        else:
            log.error("Proxy '%s' bind failed after %d retries: %s", self.spec.name, retries, failure)
        self._set(Status.BIND_FAILED, failure.reason, str(failure))
        await trio.sleep_forever()

    # Status

    def _report_listening(self) -> None:
        target = self._target
        if self.spec.checked and target is not None and not target.healthy:
            message = f"The target does not answer: {target.error_message or 'no reason given'}"
            after = target.retry_after_seconds
            self._set(Status.UNHEALTHY, Reason.TARGET_DOWN, message, after=after)
        else:
            self._set(Status.HEALTHY, None, None)

    def _set(self, status: Status, reason: Reason | None, message: str | None, *, after: float | None = None) -> None:
        if status is not self.status:
            self.since = utc_now()
        self.status, self.reason = status, reason
        self.error_message = message and message[:MAX_TEXT]  # a list of allowed ports may be long; the peer has a bound
        self._retry_at = None if after is None else trio.current_time() + after
        self._report(self)

    @property
    def retry_after_seconds(self) -> int | None:
        """Whole seconds, rounded up, until the next attempt."""
        if self._retry_at is None:
            return None
        return max(0, math.ceil(self._retry_at - trio.current_time()))

    def update(self, seq: int) -> ProxyStatusUpdate:
        """The status as it is now."""
        return ProxyStatusUpdate(
            proxy_name=self.spec.name,
            status=self.status,
            error_message=self.error_message,
            retry_after_seconds=self.retry_after_seconds,
            seq=seq,
            reason=self.reason,
            attempt=self.attempt,
            max_retries=self._policy.max_retries,
            publish_addr=self.where.host,
            publish_port=self.where.port,
            since=self.since,
        )

    def view(self) -> ProxyView:
        """For the snapshot."""
        tally = self.tally
        return ProxyView(
            name=self.spec.name,
            status=self.status,
            reason=self.reason,
            error_message=self.error_message,
            retry_after_seconds=self.retry_after_seconds,
            attempt=self.attempt,
            max_retries=self._policy.max_retries,
            publish_addr=self.where.host,
            publish_port=self.where.port,
            target=self.spec.target,
            visitors=tally.visitors,
            visitors_total=tally.visitors_total,
            bytes_in=tally.read,
            bytes_out=tally.written,
            since=self.since,
            refused=dict(tally.refused),
        )
