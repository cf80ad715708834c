"""What a proxy's visitors have moved and met, as the snapshots show it."""

from typing import TYPE_CHECKING

from attrs import Factory, define

from tunnel.frames import Abort

if TYPE_CHECKING:
    from tunnel.relay.stream import Stream


@define(eq=False, slots=True)
class Tally:
    """One proxy's figures. Streams count for themselves; whoever makes a snapshot adds them up, and each adds itself
    when it ends, so that the hot path has one counter to touch and not three."""

    visitors_total: int = 0
    refused: dict[str, int] = Factory(dict)
    _read: int = 0
    _written: int = 0
    _streams: "set[Stream]" = Factory(set)

    @property
    def visitors(self) -> int:
        return len(self._streams)

    @property
    def read(self) -> int:
        """Bytes taken from local sockets."""
        return self._read + sum(stream.bytes_read for stream in self._streams)

    @property
    def written(self) -> int:
        """Bytes delivered to local sockets."""
        return self._written + sum(stream.bytes_written for stream in self._streams)

    def enter(self, stream: "Stream") -> None:
        self.visitors_total += 1
        self._streams.add(stream)

    def leave(self, stream: "Stream") -> None:
        self._streams.remove(stream)
        self._read += stream.bytes_read
        self._written += stream.bytes_written

    def refuse(self, reason: Abort) -> None:
        key = reason.name.lower()
        self.refused[key] = self.refused.get(key, 0) + 1
