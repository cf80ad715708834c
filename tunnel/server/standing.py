"""How a proxy stands: its status with all that is told of it, to the client and in the snapshot."""

import math
from collections.abc import Callable

import trio

from tunnel.addresses import HostPort
from tunnel.messages import MAX_TEXT, ProxySpec, ProxyStatusUpdate, Reason, Status
from tunnel.relay import Tally
from tunnel.snapshot import ProxyView, utc_now


class Standing:
    """What `Proxy` says of itself; it alone changes anything here. `changed` is called at each change."""

    def __init__(self, spec: ProxySpec, *, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.tally = Tally()
        self.status = Status.UNHEALTHY
        self.reason: Reason | None = Reason.PENDING
        self.error_message: str | None = None
        self.attempt = 0
        self.max_retries: int | None = None  # by the policy of the round under way
        self.where = HostPort(spec.publish_addr, spec.publish_port)
        self.since = utc_now()
        self._changed = changed
        self._retry_at: float | None = None

    def _set(self, status: Status, reason: Reason | None, message: str | None, *, after: float | None = None) -> None:
        if status is not self.status:
            self.since = utc_now()
        self.status, self.reason = status, reason
        self.error_message = message and message[:MAX_TEXT]  # a list of allowed ports may be long; the peer has a bound
        self._retry_at = None if after is None else trio.current_time() + after
        self._changed()

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
            max_retries=self.max_retries,
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
            max_retries=self.max_retries,
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
