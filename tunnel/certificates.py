"""Certificates: makes the server's first one and reads from others what trust needs: their pin and their end.

`serve` makes a certificate once, every client connection computes a pin. So `cryptography`, which costs 8 to 11 MiB of
memory, is imported only where a certificate is made; reading is a short walk through the DER below. Bytes from a peer
give an answer or ValueError, nothing else.

    Certificate ::= SEQUENCE {
        tbsCertificate SEQUENCE {
            [0] version (optional), INTEGER serial, SEQUENCE algorithm, SEQUENCE issuer,
            SEQUENCE validity { notBefore, notAfter },
            SEQUENCE subject,
            SEQUENCE subjectPublicKeyInfo { SEQUENCE algorithm, BIT STRING key },      ◀── what a pin is the hash of
            … },
        SEQUENCE algorithm, BIT STRING signature }
"""

import hashlib
import ipaddress
import json
import re
import subprocess
import sys
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from tunnel.errors import TunnelError

if TYPE_CHECKING:  # at run time only where one is made, see above
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

# Nobody renews what `serve` made by itself, and trust in it is trust in its key (a pin, or the file as `ca_file`): an
# end would protect nobody and one day cut off every client at once. Ten years, not for ever, as the clocks of small
# machines and some TLS libraries go wrong with dates past 2038 or 2049.
VALID_FOR = timedelta(days=3650)
CLOCK_SKEW = timedelta(days=1)  # a client whose clock is behind must not find it "not yet valid"
ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")
MAX_CERTIFICATE_BYTES = 64 * 1024  # OpenSSL's own bound for a chain is 100 KiB; real certificates are 0.5 to 4 KiB
MAX_FILE_BYTES = 1024 * 1024  # a PEM bundle of every public CA is a quarter of this

INTEGER, BIT_STRING, UTC_TIME, GENERALIZED_TIME, SEQUENCE, EXPLICIT_0 = 0x02, 0x03, 0x17, 0x18, 0x30, 0xA0
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)
CHILD_SECONDS = 30.0  # for making a key; it takes a third of one


def spki_pin(der: bytes) -> bytes:
    """The pin of a DER certificate: SHA-256 of its SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(_walk(der).public_key_info).digest()


def pin_text(pin: bytes) -> str:
    """A pin as people copy it; `addresses.parse_pin` reads it."""
    return f"sha256:{pin.hex()}"


def expiry(der: bytes) -> datetime:
    """The moment, in UTC, after which a DER certificate is no longer valid."""
    return _time(_walk(der).not_after)


def certificate_pin_of_file(path: Path) -> bytes:
    """The pin of the first certificate in a PEM file: in a chain, the server's own. TunnelError if there is none."""
    remedy = "name a file with a certificate in PEM form, the server's own first"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise TunnelError(f"certificate {path} cannot be read: {exc.strerror}; {remedy}") from exc
    if len(text) > MAX_FILE_BYTES:
        raise TunnelError(f"certificate {path} has more than {MAX_FILE_BYTES} bytes; {remedy}")
    block = _PEM_BLOCK.search(text)
    if block is None:
        raise TunnelError(f"{path} holds no certificate; {remedy}")
    try:
        return spki_pin(a2b_base64(b"".join(block[1].split()), strict_mode=True))
    except (Base64Error, ValueError) as exc:
        raise TunnelError(f"certificate {path} is damaged: {exc}; {remedy}") from exc


def make_self_signed(hosts: Iterable[str], *, key_pem: bytes | None = None) -> tuple[bytes, bytes]:
    """A certificate for `hosts` (names or IP literals; this machine's own always too) and its key, both PEM.

    With `key_pem` the certificate is made for that key, so that its pin stays. A host that cannot stand in a
    certificate, or a damaged key, is a ValueError.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1()) if key_pem is None else _load_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trio-tunnel")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(_subject_names(hosts)), critical=False)
    )
    for extension, critical in _extensions(key.public_key()):
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pkcs8 = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return certificate.public_bytes(serialization.Encoding.PEM), pkcs8


def make_elsewhere(hosts: Iterable[str], *, key_pem: bytes | None = None) -> tuple[bytes, bytes]:
    """`make_self_signed` in a child process, so that a server does not keep `cryptography` for good (11 MiB).

    Where no interpreter can be started (a frozen program), in this one. Takes a third of a second, and blocks.
    """
    asked = json.dumps({"hosts": list(hosts), "key": key_pem and key_pem.decode("ascii")})
    child = "from tunnel.certificates import _answer; _answer()"
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and code
            [sys.executable, "-c", child],
            input=asked,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=True,
        )
        made = json.loads(done.stdout)
        return made["certificate"].encode(), made["key"].encode()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return make_self_signed(hosts, key_pem=key_pem)  # and if the key was the trouble, this says so


def _answer() -> None:
    """The child's part: hosts and key come on standard input, certificate and key go to standard output."""
    asked = json.load(sys.stdin)
    key_pem = asked["key"] and asked["key"].encode("ascii")
    certificate, key = make_self_signed(asked["hosts"], key_pem=key_pem)
    json.dump({"certificate": certificate.decode(), "key": key.decode()}, sys.stdout)


def _load_key(key_pem: bytes) -> "ec.EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(key_pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as exc:  # TypeError: it wants a password
        raise ValueError(f"the key cannot be used: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key cannot be used: it is not an elliptic-curve key")
    return key


def _extensions(public_key: "ec.EllipticCurvePublicKey") -> "list[tuple[x509.ExtensionType, bool]]":
    """What Python 3.13 and later (VERIFY_X509_STRICT) want to see; the flag says whether it is critical."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return [
        # Not a CA: whoever takes the file as `ca_file` trusts this key for these names, and nothing else it might sign.
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (ski, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), False),
    ]


def _subject_names(hosts: Iterable[str]) -> "list[x509.GeneralName]":
    from cryptography import x509

    names: dict[x509.GeneralName, None] = {}  # a set that keeps the order
    for host in (*hosts, *ALWAYS_NAMED):
        try:
            address = ipaddress.ip_address(host.partition("%")[0])  # a zone means something on one machine only
        except ValueError:
            names[_dns_name(host)] = None
            continue
        if not address.is_unspecified:  # 0.0.0.0 is where we listen, never where somebody goes
            names[x509.IPAddress(address)] = None
    return list(names)


def _dns_name(host: str) -> "x509.DNSName":
    from cryptography import x509

    try:
        ascii_form = host.encode("idna").decode("ascii").rstrip(".").lower()
    except UnicodeError as exc:
        raise ValueError(f"{host!r} is not a host name: {exc}; write a DNS name or an IP address") from exc
    if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", ascii_form) or len(ascii_form) > 253:
        raise ValueError(f"{host!r} is not a host name; write a DNS name or an IP address")
    return x509.DNSName(ascii_form)


# The walk. Only DER is taken, not all of BER: where each thing can be written in one way, no certificate can mean one
# key to us and another to the TLS library that has just checked its owner's signature.


@frozen
class _Parts:
    not_after: tuple[int, bytes]
    public_key_info: bytes


def _walk(der: bytes) -> _Parts:
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
    validity.enter(validity.peek())
    not_after = validity.peek(), validity.enter(validity.peek()).rest()
    validity.expect_end()
    tbs.enter(SEQUENCE)  # subject
    start = tbs.position
    info = tbs.enter(SEQUENCE)
    info.enter(SEQUENCE)
    info.enter(BIT_STRING)
    info.expect_end()
    return _Parts(not_after, der[start : tbs.position])


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


def _time(element: tuple[int, bytes]) -> datetime:
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
