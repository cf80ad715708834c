"""How many pieces a WebSocket message may come in. Sans-IO; `control` puts it in front of a library that has no bound.

That library counts a message's characters, so one of empty fragments may go on for ever: each costs memory, and those
of one read hold up everybody for a twentieth of a second (measured, 11,000 in 64 KiB). Our own ends send a message in
one piece; something in between may cut it (RFC 6455 §5.4), and even into pieces of a kilobyte it may cut the longest.
"""

from tunnel.errors import RemoteProtocolError

MAX_FRAGMENTS = 1024
_HEAD_END = b"\r\n\r\n"
_FIN, _OPCODE, _CONTROL, _MASKED, _LENGTH = 0x80, 0x0F, 0x08, 0x80, 0x7F


class FragmentBound:
    """Follows what one side sends, from its HTTP head on."""

    def __init__(self) -> None:
        self._is_http = True
        self._left = b""  # of a head that is not whole yet
        self._skip = 0  # bytes of a payload that are still to come
        self._fragments = 0

    def feed(self, data: bytes) -> None:
        """What was received next. `RemoteProtocolError` when a message has too many fragments."""
        if self._is_http:
            data = self._after_http(data)
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        data, at, self._skip = self._left + data, self._skip, 0
        while (ends := _end_of_head(data, at)) is not None:
            self._count(data[at])
            at = ends + _payload_length(data, at)
        self._left, self._skip = data[at:], max(at - len(data), 0)

    def _after_http(self, data: bytes) -> bytes:
        seen = self._left + data
        _, end, behind = seen.partition(_HEAD_END)
        self._is_http = not end
        self._left = b"" if end else seen[1 - len(_HEAD_END) :]
        return behind

    def _count(self, first: int) -> None:
        if first & _CONTROL:  # may come between fragments
            return
        self._fragments = 0 if first & _FIN else self._fragments + 1
        if self._fragments > MAX_FRAGMENTS:
            raise RemoteProtocolError(f"a message in more than {MAX_FRAGMENTS} fragments")


def _end_of_head(data: bytes, at: int) -> int | None:
    """Where the frame's head that begins at `at` ends; None if that is not there yet."""
    if len(data) < at + 2:
        return None
    second = data[at + 1]
    end = at + 2 + {126: 2, 127: 8}.get(second & _LENGTH, 0) + (4 if second & _MASKED else 0)
    return end if len(data) >= end else None


def _payload_length(data: bytes, at: int) -> int:
    length = data[at + 1] & _LENGTH
    if length < 126:
        return length
    return int.from_bytes(data[at + 2 : at + (4 if length == 126 else 10)])
