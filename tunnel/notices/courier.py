"""Delivers the notices of one receiver, in order, each until it is taken, refused for good, or has been tried enough.

    offer ─▶ waiting (bounded; the oldest gives way, and is counted) ─▶ one at a time, all at once in a mail

What waits is a few notices at most, for rules gather what comes thick; the bound is for a receiver that is gone.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio
from attrs import define, field

from tunnel.config import NoticeConfig
from tunnel.config.receivers import Email, Webhook
from tunnel.notices.notice import Notice
from tunnel.notices.outcome import Outcome

log = logging.getLogger(__name__)

MAX_WAITING = 100
MAX_IN_MAIL = 20  # notices in one mail
MAX_SECONDS = 1800.0  # from the first attempt on; what is older is no news
CLOSING_SECONDS = 1.5  # for what is still to be sent when the process ends

Send = Callable[[list[Notice]], Awaitable[Outcome]]


def sender(config: NoticeConfig, threads: trio.CapacityLimiter) -> Send:
    """What delivers to this receiver, once. A webhook gets one notice at a time, a mail server what there is.

    What it needs is imported here: of who has no such receiver it takes no memory.
    """
    match config.to:
        case Webhook() as hook:
            from tunnel.notices.webhook import post

            return lambda notices: post(notices[0], hook)
        case Email() as mailbox:
            from tunnel.notices.mail import send_mail

            return lambda notices: send_mail(notices, mailbox, threads)


@define(eq=False)
class Courier:
    """`offer` from anywhere in the same thread; `run` delivers until cancelled."""

    config: NoticeConfig
    send: Send
    sent: int = 0  # notices that were taken
    failed: int = 0  # given up: refused for good, or tried often enough
    dropped: int = 0  # never tried, or not to the end: too many were waiting, or the process ended
    retried: int = 0  # attempts after the first
    last: str = ""  # what came of the last attempt
    _waiting: deque[Notice] = field(factory=deque, init=False)
    _offered: trio.Event = field(factory=trio.Event, init=False)
    _batch: list[Notice] = field(factory=list, init=False)  # under way

    def offer(self, notice: Notice) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
            log.warning("notice '%s': one was dropped, %d wait already", self.config.name, MAX_WAITING)
        self._waiting.append(notice)
        self._offered.set()

    @property
    def unsent(self) -> int:
        return len(self._waiting) + len(self._batch)

    async def run(self) -> None:
        while True:
            await self._offered.wait()
            while self._waiting:
                self._batch = list(self._take())
                await self._deliver()
                self._batch = []
            self._offered = trio.Event()

    async def close(self) -> None:
        """One last attempt for each that was not sent; to be called when `run` has ended, under a deadline."""
        while self._batch or self._waiting:
            self._batch = self._batch or list(self._take())
            self._note(await self.send(self._batch))
            self._batch = []

    def give_up(self) -> None:
        """What could not be sent before the end is said once."""
        if self.unsent:
            kinds = ", ".join(notice.kind for notice in [*self._batch, *self._waiting][:MAX_IN_MAIL])
            log.warning("notice '%s': %d not sent before the end: %s", self.config.name, self.unsent, kinds)
            self.dropped += self.unsent
            self._batch = []
            self._waiting.clear()

    def stats(self) -> dict[str, Any]:
        kind = "webhook" if isinstance(self.config.to, Webhook) else "email"
        return {
            "type": kind, "sent": self.sent, "failed": self.failed, "dropped": self.dropped, "retried": self.retried,
            "waiting": self.unsent, "last": self.last,
        }  # fmt: skip

    def _take(self) -> Iterator[Notice]:
        for _ in range(MAX_IN_MAIL if isinstance(self.config.to, Email) else 1):
            if self._waiting:
                yield self._waiting.popleft()

    async def _deliver(self) -> None:
        """Try, and try again while that can help. If cancelled, the batch is still to be sent."""
        began = trio.current_time()
        delays = iter(self.config.retry.delays())
        outcome = await self.send(self._batch)
        while outcome.retry and (delay := self._delay(delays, outcome, began)) is not None:
            self.last = f"{outcome}; trying again in {delay:.0f} s"
            log.info("notice '%s' was not taken: %s", self.config.name, self.last)
            await trio.sleep(delay)
            self.retried += 1
            outcome = await self.send(self._batch)
        self._note(outcome)

    def _delay(self, delays: Iterator[float], outcome: Outcome, began: float) -> float | None:
        """Until the next attempt: at least what the receiver asked for. None: this was the last one."""
        delay = next(delays, None)
        if delay is None:
            return None
        delay = max(delay, outcome.retry_after)
        return None if trio.current_time() + delay > began + MAX_SECONDS else delay

    def _note(self, outcome: Outcome) -> None:
        self.last = str(outcome)
        if outcome.delivered:
            self.sent += len(self._batch)
            level = logging.WARNING if outcome.remedy else logging.INFO
            log.log(level, "notice '%s' (%s): %s", self.config.name, self._batch[0].kind, outcome)
            return
        self.failed += len(self._batch)
        log.error("notice '%s' (%s) was given up: %s", self.config.name, self._batch[0].kind, outcome)
