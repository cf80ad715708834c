"""One self-signed certificate for `localhost`, for the systems that do not bring their own."""

import datetime
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509.oid import NameOID

NAME = "localhost"
PASSWORD = "bench"


@frozen
class Certificate:
    cert: Path
    both: Path  # certificate and key
    identity: Path  # PKCS #12 under PASSWORD


def make_certificate(folder: Path) -> Certificate:
    """Made once a folder: P-256, as trio-tunnel's own is."""
    made = Certificate(folder / "cert.pem", folder / "both.pem", folder / "identity.p12")
    if made.identity.exists():
        return made
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_pem = cert.public_bytes(Encoding.PEM)
    made.cert.write_bytes(cert_pem)
    made.both.touch(0o600)
    made.both.write_bytes(cert_pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    made.identity.write_bytes(
        serialize_key_and_certificates(b"bench", key, cert, None, BestAvailableEncryption(PASSWORD.encode()))
    )
    return made
