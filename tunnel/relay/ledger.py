"""What all streams and channels of one engine have come to, of those that are gone, too: it only grows."""

from typing import TYPE_CHECKING

from attrs import Factory, define

from tunnel.frames import Abort
from tunnel.histogram import Histogram
from tunnel.meters import Distribution, RelayMeters

if TYPE_CHECKING:
    from tunnel.relay.engine import Engine
    from tunnel.relay.stream import Stream

# What befalls visitors that were never served; other ends cut one that was.
REFUSALS = (
    Abort.DIAL_REFUSED, Abort.DIAL_TIMEOUT, Abort.DIAL_FAILED, Abort.UNKNOWN_PROXY, Abort.OVER_LIMIT, Abort.TARGET_DOWN,
    Abort.CHANNEL_LOST, Abort.SESSION_ENDED,
)  # fmt: skip
CUTS = (Abort.RESET, Abort.IDLE, Abort.CHANNEL_LOST, Abort.SESSION_ENDED, Abort.INTERNAL)


@define(eq=False, slots=True)
class Ledger:
    """Touched where a stream begins, is served, and ends; never for a frame. Bytes of living streams are the streams'
    own to count, see `read_meters`."""

    visitors: int = 0  # that came, at the server; that were brought here, at a client
    read: int = 0  # bytes from local sockets, of streams that have ended
    written: int = 0  # bytes to local sockets, likewise
    refused: dict[Abort, int] = Factory(lambda: dict.fromkeys(REFUSALS, 0))
    cut: dict[Abort, int] = Factory(lambda: dict.fromkeys(CUTS, 0))  # that were served, and did not end cleanly
    dials: Histogram = Factory(Histogram)  # from hearing of a visitor to a connected target; a client's
    first_bytes: Histogram = Factory(Histogram)  # from accepting a visitor to the first byte for it; a server's
    channels_opened: int = 0
    channels_ended: dict[str, int] = Factory(lambda: dict.fromkeys(("retired", "closed", "lost"), 0))

    def refuse(self, reason: Abort) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def cut_off(self, reason: Abort) -> None:
        self.cut[reason] = self.cut.get(reason, 0) + 1

    def leave(self, stream: "Stream") -> None:
        """It ends now."""
        self.read += stream.bytes_read
        self.written += stream.bytes_written

    def end_channel(self, why: str, *, clean: bool) -> None:
        self.channels_ended["retired" if why == "retired" else "closed" if clean or why == "closed" else "lost"] += 1


def read_meters(engine: "Engine") -> RelayMeters:
    """All the figures of a relay at this moment. Walks its streams once."""
    ledger = engine.ledger
    sessions = list(engine.sessions)
    streams = [stream for session in sessions for stream in session.streams.values()]
    channels = [channel for session in sessions for channel in session.channels]
    suspect = sum(channel.is_suspect for channel in channels)
    retiring = sum(channel.is_retiring and not channel.is_suspect for channel in channels)
    return RelayMeters(
        visitors=engine.bounds.open_streams,
        visitors_limit=engine.bounds.max_streams,
        visitors_total=ledger.visitors,
        refused={reason.name.lower(): number for reason, number in ledger.refused.items()},
        cut={reason.name.lower(): number for reason, number in ledger.cut.items()},
        read=ledger.read + sum(stream.bytes_read for stream in streams),
        written=ledger.written + sum(stream.bytes_written for stream in streams),
        dials=Distribution.of(ledger.dials),
        first_bytes=Distribution.of(ledger.first_bytes),
        channels={"open": len(channels) - suspect - retiring, "suspect": suspect, "retiring": retiring},
        channels_opened=ledger.channels_opened,
        channels_ended=dict(ledger.channels_ended),
        turns=engine.turns,
        errors=engine.errors,
        buffer_bytes=engine.bounds.budget.size - engine.bounds.budget.free,
        buffer_limit=engine.bounds.budget.size,
        paused_listeners=len(engine.bounds.waiting),
    )
