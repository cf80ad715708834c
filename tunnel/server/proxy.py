"""One published proxy at the server: the bind-retry loop, then the listener, until cancelled.

The only author of the proxy's statuses. `run` never raises: what goes wrong in one proxy stays there.

It lives in rounds. A round begins with fresh counters, waits until the target may be visited (`when_down` "close"),
binds, and ends when the listener is lost. What changes the course from outside (`hear`, `revise`, `retry`) does so at
once and synchronously, then cancels the round: the next one begins with what is known by then, so that of several
words within one moment the last one counts.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from tunnel.addresses import HostPort
from tunnel.backoff import Policy
from tunnel.messages import ProxySpec, Reason, Status, TargetHealth
from tunnel.rate_limited import RateLimited
from tunnel.relay import Tally
from tunnel.server.binding import BindFailed
from tunnel.server.standing import Standing
from tunnel.snapshot import utc_now

log = logging.getLogger(__name__)

STEADY_SECONDS = 1.0  # a listener that lasted so long is bound again at once


class Holding(Protocol):
    """A bound, listening and accepting address."""

    where: HostPort

    async def wait_lost(self) -> str:
        """Until accepting has ended for good; returns why."""

    def release(self) -> None:
        """Free the address, at once."""


class Proxy(Standing):
    """`take(spec, tally)` makes one bind attempt and raises `BindFailed`; `policy` is asked at the start of each round;
    `report` is called at each change of the status."""

    def __init__(
        self,
        spec: ProxySpec,
        *,
        policy: Callable[[ProxySpec], Policy],
        take: Callable[[ProxySpec, Tally], Holding],
        report: Callable[["Proxy"], None],
    ) -> None:
        super().__init__(spec, changed=lambda: report(self))
        self.scope = trio.CancelScope()  # registered before the task starts, so that closing can never miss it
        self.target_health: TargetHealth | None = None  # the client's last word on it
        self._choose_policy = policy
        self._policy = policy(spec)  # of the round under way
        self.max_retries = self._policy.max_retries
        self._take = take
        self._holding: Holding | None = None
        self._told = RateLimited(log, trio.current_time, count=10)  # a client may say a target is up, down, up, down
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
            await self._one_round()
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

    async def _one_round(self) -> None:
        self._policy = self._choose_policy(self.spec)
        self.attempt, self.max_retries = 0, self._policy.max_retries
        if not self._may_listen:
            if self.reason is not Reason.TARGET_DOWN:  # that was told as it was heard
                self._report_waiting()
            await trio.sleep_forever()  # the word that it is up begins the next round
        holding = self._holding = await self._bind()
        held_since = trio.current_time()
        try:
            self.where = holding.where
            self._report_listening()
            why = await holding.wait_lost()
            await trio.lowlevel.checkpoint_if_cancelled()  # it may have been released in this very moment
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
        retries = 0
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
            self._told.log(
                logging.INFO, "Proxy '%s' listening on %s%s", self.spec.name, holding.where, after, key="listening"
            )
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

    # Changes of course

    def retry(self) -> bool:
        """Start afresh with new counters, unless it is listening or waits for its target; True if it did."""
        is_waiting = not self._may_listen and self.status is not Status.BIND_FAILED
        if self._holding is not None or is_waiting:
            return False
        self._round.cancel(reason="a retry was asked for")
        return True

    @property
    def is_held(self) -> bool:
        """Whether its address is ours, and it accepts visitors."""
        return self._holding is not None

    def begin_anew(self, why: str) -> None:
        """Let go of the address, if it is held, and begin a round with what is known now. Visitors inside stay."""
        if self.scope.cancel_called:
            return
        if self._holding is not None:
            self._holding.release()
            self._holding = None
            self._set(Status.UNHEALTHY, Reason.PENDING, f"The listener on {self.where} was closed: {why}")
        self._round.cancel(reason=why)

    def is_at(self, spec: ProxySpec) -> bool:
        """Whether `spec` is of this very proxy at this very address, so that `revise` can take it over."""
        ours = self.spec
        return (spec.name, spec.publish_addr, spec.publish_port) == (ours.name, ours.publish_addr, ours.publish_port)

    def revise(self, spec: ProxySpec) -> None:
        """Take over all that does not concern the address. The listener, its visitors and a bind retry's counters stay;
        only a new policy starts afresh what is not listening, which is what whoever changed it wants."""
        assert self.is_at(spec)
        could, before = self._may_listen, self.spec
        self.spec = spec
        if not spec.checked:
            self.target_health = None  # the client begins with a word on it when it checks again
        if spec.bind_retry != before.bind_retry and self._holding is None:
            self._round.cancel(reason="a new bind-retry policy")
        if (spec.checked, spec.when_down) != (before.checked, before.when_down):
            self._weigh(could)

    def hear(self, health: TargetHealth) -> None:
        """The client's word on the target; where that is not checked (any more) it is not believed."""
        if not self.spec.checked:
            return
        could = self._may_listen
        self.target_health = health
        self._weigh(could)

    @property
    def _may_listen(self) -> bool:
        """With `when_down` "close" (a word unknown here means "keep"): only while the target is up.

        Before the first word on it nothing is bound, for the client has one soon; but what is bound already stays.
        """
        if not (self.spec.checked and self.spec.when_down == "close"):
            return True
        if self.target_health is None:
            return self._holding is not None
        return self.target_health.healthy

    def _weigh(self, could: bool) -> None:
        """Act on what is known of the target now. `could`: `_may_listen` as it was before."""
        if self.scope.cancel_called or self.status is Status.BIND_FAILED:  # given up: only a person begins anew
            return
        can = self._may_listen
        if not can:
            self._let_go()
            self._report_waiting()
        elif self._holding is not None:
            self._report_listening()
        if can is not could:
            self._round.cancel(reason="the target is up" if can else "the target is down")

    def _let_go(self) -> None:
        if self._holding is not None:
            word = "Proxy '%s' releases %s: its target does not answer"
            self._told.log(logging.WARNING, word, self.spec.name, self.where, key="released")
            self._holding.release()
            self._holding = None

    # Status

    def _report_listening(self) -> None:
        target = self.target_health
        if self.spec.checked and target is not None and not target.healthy:
            self._report_down("The target does not answer", target)
        elif self.status is not Status.HEALTHY:
            self._set(Status.HEALTHY, None, None)

    def _report_waiting(self) -> None:
        self.attempt = 0
        if self.target_health is None:
            message = "The port is bound as soon as the target has passed its first check"
            self._set(Status.UNHEALTHY, Reason.PENDING, message)
        else:
            self._report_down("The port is released until the target answers", self.target_health)

    def _report_down(self, what: str, target: TargetHealth) -> None:
        message = f"{what}: {target.error_message or 'no reason given'}"
        self._set(Status.UNHEALTHY, Reason.TARGET_DOWN, message, after=target.retry_after_seconds)
