"""A client's proxies: the newest status of each, the server's word or, while there is no server, its own."""

import logging
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import trio
from attrs import evolve

from tunnel.client.targets import ProxyRoute
from tunnel.messages import ProxyStatusUpdate, Reason, Status
from tunnel.snapshot import ProxyView, utc_now

log = logging.getLogger(__name__)


class Board:
    """One a client. Whoever changes something besides a status calls `notify`, for those who wait to look again."""

    def __init__(self) -> None:
        self.statuses: dict[str, ProxyStatusUpdate] = {}
        self._retry_at: dict[str, float] = {}
        self._changed = trio.Event()

    def post(self, update: ProxyStatusUpdate) -> None:
        before = self.statuses.get(update.proxy_name)
        self.statuses[update.proxy_name] = update
        self._retry_at.pop(update.proxy_name, None)
        if update.retry_after_seconds is not None:
            self._retry_at[update.proxy_name] = trio.current_time() + update.retry_after_seconds
        if before is None or (before.status, before.error_message, before.attempt) != (
            update.status, update.error_message, update.attempt,
        ):  # fmt: skip
            log.debug("proxy '%s' is %s%s", update.proxy_name, update.status, _because(update))
        self.notify()

    def explained(
        self, why: str, retry_after_seconds: int | None = None, reason: Reason = Reason.SESSION_LOST
    ) -> Iterator[ProxyStatusUpdate]:
        """Each proxy's status, to be posted, while no server can say it."""
        for status in list(self.statuses.values()):
            ours = Reason.CONNECTING if status.reason is Reason.CONNECTING else reason
            lost = own_status(status.proxy_name, status.publish_addr, status.publish_port, ours, why)
            since = status.since if status.status is Status.UNHEALTHY else lost.since
            yield evolve(lost, seq=status.seq, retry_after_seconds=retry_after_seconds, since=since)

    def forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self.statuses[name]

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def follow(self) -> AsyncIterator[ProxyStatusUpdate]:
        """Every proxy's newest status, then each change; a slow reader gets the newest of each, not a queue."""
        shown: dict[str, ProxyStatusUpdate] = {}
        while True:
            changed = self._changed  # before the look: a change after this line sets *this* event
            for name, update in list(self.statuses.items()):
                if shown.get(name) is not update:
                    shown[name] = update
                    yield update
            await changed.wait()

    async def wait_healthy(self, names: Sequence[str]) -> None:
        """Until all of these are. The caller holds the deadline."""
        while not all(name in self.statuses and self.statuses[name].status is Status.HEALTHY for name in names):
            await self._changed.wait()

    def view(self, name: str, route: ProxyRoute) -> ProxyView:
        """For the snapshot."""
        update, tally = self.statuses[name], route.tally
        retry_at = self._retry_at.get(name)
        return ProxyView(
            name=name,
            status=update.status,
            reason=update.reason,
            error_message=update.error_message,
            retry_after_seconds=None if retry_at is None else max(0, math.ceil(retry_at - trio.current_time())),
            attempt=update.attempt,
            max_retries=update.max_retries,
            publish_addr=update.publish_addr,
            publish_port=update.publish_port,
            target=", ".join(map(str, route.config.targets)),
            visitors=tally.visitors,
            visitors_total=tally.visitors_total,
            bytes_in=tally.written,
            bytes_out=tally.read,
            since=update.since,
            refused=dict(tally.refused),
        )


def own_status(name: str, addr: str, port: int, reason: Reason, message: str) -> ProxyStatusUpdate:
    """A status the client gives itself while no server can."""
    return ProxyStatusUpdate(
        proxy_name=name, status=Status.UNHEALTHY, error_message=message, retry_after_seconds=None, seq=0,
        reason=reason, attempt=0, max_retries=None, publish_addr=addr, publish_port=port, since=utc_now(),
    )  # fmt: skip


def _because(update: ProxyStatusUpdate) -> str:
    if update.status is Status.HEALTHY:
        return f" at {update.publish_addr}:{update.publish_port}"
    return f" ({update.reason}): {update.error_message}"
