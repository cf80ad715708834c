"""Certificates: makes the server's first one and reads from others what trust needs: their pin and their end.

`serve` makes a certificate once, every client connection computes a pin. So `cryptography`, which costs 8 to 11 MiB of
memory, is imported only where a certificate is made; reading is a short walk through the DER, see `der`.
"""

import hashlib
import ipaddress
import json
import re
import subprocess
import sys
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tunnel.der import read_time, walk
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
MAX_FILE_BYTES = 1024 * 1024  # a PEM bundle of every public CA is a quarter of this

T = TypeVar("T")
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)
CHILD_SECONDS = 30.0  # for making a key; it takes a third of one


def spki_pin(der: bytes) -> bytes:
    """The pin of a DER certificate: SHA-256 of its SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(walk(der).public_key_info).digest()


def pin_text(pin: bytes) -> str:
    """A pin as people copy it; `addresses.parse_pin` reads it."""
    return f"sha256:{pin.hex()}"


def expiry(der: bytes) -> datetime:
    """The moment, in UTC, after which a DER certificate is no longer valid."""
    return read_time(walk(der).not_after)


def lifetime(der: bytes) -> timedelta:
    """For how long a DER certificate was made."""
    parts = walk(der)
    return read_time(parts.not_after) - read_time(parts.not_before)


def certificate_pin_of_file(path: Path) -> bytes:
    """The pin of the first certificate in a PEM file: in a chain, the server's own. TunnelError if there is none."""
    return _of_file(path, spki_pin)


def expiry_of_file(path: Path) -> datetime:
    """The same for its end."""
    return _of_file(path, expiry)


def lifetime_of_file(path: Path) -> timedelta:
    """The same for how long it was made for."""
    return _of_file(path, lifetime)


def _of_file(path: Path, look: Callable[[bytes], T]) -> T:
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
        return look(a2b_base64(b"".join(block[1].split()), strict_mode=True))
    except (Base64Error, ValueError) as exc:
        raise TunnelError(f"certificate {path} is damaged: {exc}; {remedy}") from exc


def pair_problem(cert_file: Path, key_file: Path) -> str:
    """Why a certificate and its key could not be used, and what to do; OpenSSL says only that it was "PEM lib"."""
    both = {cert_file: b"", key_file: b""}
    for path in both:
        try:
            with path.open("rb") as file:
                both[path] = file.read(MAX_FILE_BYTES)
        except OSError as exc:
            return f"{path} cannot be read: {exc.strerror}; put a PEM file there that this user can read"
    pair = f"the certificate {cert_file} cannot be used with the key {key_file}"
    if not _PEM_BLOCK.search(both[cert_file]):
        return f"{pair}: {cert_file} holds no certificate; put one there in PEM form, this side's own first"
    if b"ENCRYPTED" in both[key_file]:
        return f"{pair}: the key wants a password, and nobody is there to type it; store it without one, mode 0600"
    if b"PRIVATE KEY-----" not in both[key_file]:
        return f"{pair}: {key_file} holds no private key; put the certificate's there, in PEM form"
    return f"{pair}: they do not belong together, or one is damaged; put both there as they were issued"


def pair_unfit(cert_file: Path, key_file: Path) -> tuple[str, str] | None:
    """What is wrong with a certificate and its key, and the remedy; None where they can be used. Reads both."""
    import ssl  # for who has such files; `status` need not load OpenSSL

    try:
        # An encrypted key gets an empty password: it fails, instead of asking on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
    except (OSError, ValueError):  # SSLError is an OSError
        problem, _, remedy = pair_problem(cert_file, key_file).rpartition("; ")
        return problem, remedy
    return None


def ca_problem(path: Path) -> tuple[str, str] | None:
    """The same for certificates of those to trust."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "reason", None) or exc
        return f"holds no certificate that can be used ({why})", "put the CA's certificate there, in PEM form"
    return None


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
