"""A walk through a certificate's DER to what trust needs: its key, and from when to when it counts.

Only DER is taken, not all of BER: where each thing can be written in one way, no certificate can mean one key to us and
another to the TLS library that has just checked its owner's signature. Bytes from a peer give an answer or ValueError,
nothing else.

    Certificate ::= SEQUENCE {
        tbsCertificate SEQUENCE {
            [0] version (optional), INTEGER serial, SEQUENCE algorithm, SEQUENCE issuer,
            SEQUENCE validity { notBefore, notAfter },
            SEQUENCE subject,
            SEQUENCE subjectPublicKeyInfo { SEQUENCE algorithm, BIT STRING key },      ◀── what a pin is the hash of
            … },
        SEQUENCE algorithm, BIT STRING signature }
"""

from datetime import datetime

from attrs import frozen

MAX_CERTIFICATE_BYTES = 64 * 1024  # OpenSSL's own bound for a chain is 100 KiB; real certificates are 0.5 to 4 KiB

INTEGER, BIT_STRING, UTC_TIME, GENERALIZED_TIME, SEQUENCE, EXPLICIT_0 = 0x02, 0x03, 0x17, 0x18, 0x30, 0xA0


@frozen
class Parts:
    not_before: tuple[int, bytes]
    not_after: tuple[int, bytes]
    public_key_info: bytes


def walk(der: bytes) -> Parts:
    """What trust needs of a certificate; ValueError if it is none."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"a certificate of {len(der)} bytes; at most {MAX_CERTIFICATE_BYTES}")
    outer = _Reader(der, 0, len(der))
    certificate = outer.enter(SEQUENCE)
    outer.expect_end()
    tbs = certificate.enter(SEQUENCE)
    certificate.enter(SEQUENCE)
    certificate.enter(BIT_STRING)
    certificate.expect_end()
    if tbs.peek() == EXPLICIT_0:
        tbs.enter(EXPLICIT_0)
    tbs.enter(INTEGER)
    tbs.enter(SEQUENCE)  # algorithm
    tbs.enter(SEQUENCE)  # issuer
    validity = tbs.enter(SEQUENCE)
    not_before = validity.peek(), validity.enter(validity.peek()).rest()
    not_after = validity.peek(), validity.enter(validity.peek()).rest()
    validity.expect_end()
    tbs.enter(SEQUENCE)  # subject
    start = tbs.position
    info = tbs.enter(SEQUENCE)
    info.enter(SEQUENCE)
    info.enter(BIT_STRING)
    info.expect_end()
    return Parts(not_before, not_after, der[start : tbs.position])


class _Reader:
    """Reads the DER elements between `position` and `end`, which never lies past the end of `der`."""

    def __init__(self, der: bytes, position: int, end: int) -> None:
        self.der = der
        self.position = position
        self.end = end

    def peek(self) -> int:
        if self.position >= self.end:
            raise ValueError("the certificate ends too soon")
        return self.der[self.position]

    def enter(self, tag: int) -> "_Reader":
        """Steps over the next element, which must have this tag, and returns a reader of what is in it."""
        if self.peek() != tag:
            raise ValueError(f"the certificate has tag 0x{self.peek():02x} where 0x{tag:02x} belongs")
        start, length = self._length(self.position + 1)
        if length > self.end - start:
            raise ValueError("an element of the certificate is longer than what it stands in")
        self.position = start + length
        return _Reader(self.der, start, self.position)

    def _length(self, at: int) -> tuple[int, int]:
        """Where the content begins, and its length. DER: definite, and in as few bytes as it can be."""
        if at >= self.end:
            raise ValueError("the certificate ends too soon")
        first, at = self.der[at], at + 1
        if first < 0x80:
            return at, first
        size = first & 0x7F
        if not 1 <= size <= 3 or size > self.end - at:
            raise ValueError("an element of the certificate has no length that DER knows")
        length = int.from_bytes(self.der[at : at + size], "big")
        if length < 0x80 or length >> (8 * (size - 1)) == 0:
            raise ValueError("an element of the certificate has a length with more bytes than it needs")
        return at + size, length

    def rest(self) -> bytes:
        return self.der[self.position : self.end]

    def expect_end(self) -> None:
        if self.position != self.end:
            raise ValueError("the certificate has more in it than belongs there")


def read_time(element: tuple[int, bytes]) -> datetime:
    """UTCTime or GeneralizedTime as RFC 5280 allows them: to the second, in UTC."""
    tag, content = element
    digits = content[:-1]
    wanted = {UTC_TIME: 12, GENERALIZED_TIME: 14}.get(tag)
    if len(digits) != wanted or not digits.isdigit() or not content.endswith(b"Z"):
        raise ValueError("the certificate's end is no time that X.509 knows")
    text = digits.decode("ascii")
    if tag == UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text  # RFC 5280, 4.1.2.5.1
    return datetime.fromisoformat(f"{text[:8]}T{text[8:]}+00:00")
