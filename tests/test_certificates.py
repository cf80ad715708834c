import hashlib
import ipaddress
import ssl
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.addresses import parse_pin
from tunnel.certificates import (
    certificate_pin_of_file,
    expiry,
    make_elsewhere,
    make_self_signed,
    pin_text,
    spki_pin,
)
from tunnel.errors import TunnelError

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")])
END = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def certificate(key, *, end=END):
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(key.public_key())
    builder = builder.serial_number(2**150 + 1).not_valid_before(end - timedelta(days=1)).not_valid_after(end)
    return builder.sign(key, algorithm)


KEYS = {
    "EC P-256": ec.generate_private_key(ec.SECP256R1()),
    "EC P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
CERT_PEM, KEY_PEM = make_self_signed(["tunnel.example.com", "192.0.2.7", "2001:db8::7"])
DER = ssl.PEM_cert_to_DER_cert(CERT_PEM.decode())


def handshake(tmp_path, host, *, flags=ssl.VERIFY_X509_TRUSTED_FIRST):
    """A handshake in memory, the certificate being its own `ca_file`; SSLError if the client does not trust it."""
    crt, key = tmp_path / "server.crt", tmp_path / "server.key"
    crt.write_bytes(CERT_PEM)
    key.write_bytes(KEY_PEM)
    client_context = ssl.create_default_context(cafile=crt)
    client_context.verify_flags = client_context.verify_flags | flags
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(crt, key)
    uplink, downlink = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(downlink, uplink, server_hostname=host)
    server = server_context.wrap_bio(uplink, downlink, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("kind", KEYS)
def test_the_pin_is_the_hash_of_the_public_key_as_cryptography_writes_it(kind):
    key = KEYS[kind]
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_pin(certificate(key).public_bytes(Encoding.DER)) == hashlib.sha256(info).digest()


@pytest.mark.parametrize("year", [1999, 2031, 2049, 2050, 9999])
def test_the_end_is_read_in_both_forms_that_x509_has_for_times(year):
    end = END.replace(year=year)
    assert expiry(certificate(KEYS["EC P-256"], end=end).public_bytes(Encoding.DER)) == end


def test_a_pin_reads_back_from_its_text():
    assert pin_text(bytes(32)) == "sha256:" + "00" * 32
    assert parse_pin(pin_text(spki_pin(DER))) == spki_pin(DER)


@pytest.mark.parametrize("host", ["tunnel.example.com", "192.0.2.7", "2001:db8::7", "localhost", "127.0.0.1", "::1"])
def test_our_certificate_is_accepted_strictly_with_itself_as_ca_file(tmp_path, host):
    assert handshake(tmp_path, host, flags=ssl.VERIFY_X509_STRICT) == DER


def test_our_certificate_is_refused_for_another_name(tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'other'"):
        handshake(tmp_path, "other")


def test_our_certificate_is_for_servers_only_and_signs_no_other():
    extensions = x509.load_der_x509_certificate(DER).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_our_certificate_is_valid_since_yesterday_and_for_ten_years():
    made = x509.load_der_x509_certificate(DER)
    now = datetime.now(UTC)
    assert made.not_valid_before_utc < now - timedelta(hours=23)
    assert timedelta(days=3649) < expiry(DER) - now <= timedelta(days=3650)


def test_hosts_stand_once_in_ascii_and_listening_addresses_not_at_all():
    cert_pem, _ = make_self_signed(["0.0.0.0", "::", "Bücher.example", "localhost", "127.0.0.1", "fe80::1%eth0"])
    names = x509.load_pem_x509_certificate(cert_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example", "localhost"]
    addresses = ["127.0.0.1", "fe80::1", "::1"]
    assert names.value.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(text) for text in addresses]


@pytest.mark.parametrize("host", ["", "a b", "a..b", "x" * 64, "tunnel.example.com:8443", "a/b", "a\nb"])
def test_a_host_that_cannot_stand_in_a_certificate_is_named(host):
    with pytest.raises(ValueError, match="is not a host name") as caught:
        make_self_signed([host])
    assert repr(host) in str(caught.value)


def test_a_renewed_certificate_keeps_key_and_pin():
    cert_pem, key_pem = make_self_signed([], key_pem=KEY_PEM)
    assert key_pem == KEY_PEM
    assert spki_pin(ssl.PEM_cert_to_DER_cert(cert_pem.decode())) == spki_pin(DER)


@pytest.mark.parametrize("key_pem", [b"", b"garbage", CERT_PEM, KEY_PEM[:-40]])
def test_a_damaged_key_is_a_value_error(key_pem):
    with pytest.raises(ValueError):
        make_self_signed([], key_pem=key_pem)


def test_the_pin_of_a_file_is_that_of_its_first_certificate(tmp_path):
    other = certificate(KEYS["RSA"]).public_bytes(Encoding.PEM)
    path = tmp_path / "chain.pem"
    path.write_bytes(KEY_PEM + b"Bag Attributes\r\n" + CERT_PEM.replace(b"\n", b"\r\n") + other)
    assert certificate_pin_of_file(path) == spki_pin(DER)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no certificate"),
        (KEY_PEM, "holds no certificate"),
        (CERT_PEM[:200], "holds no certificate"),
        (CERT_PEM.replace(b"MII", b"M*I", 1), "damaged"),
        (CERT_PEM.replace(b"MII", b"MIJ", 1), "damaged"),
        (b"-" * (1024 * 1024 + 1), "more than"),
    ],
)
def test_a_file_without_a_good_certificate_is_named_with_a_remedy(tmp_path, content, words):
    path = tmp_path / "server.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TunnelError, match=words) as caught:
        certificate_pin_of_file(path)
    assert str(path) in str(caught.value)
    assert "name a file with a certificate" in str(caught.value)


def test_every_cut_and_every_addition_is_refused():
    for length in range(len(DER)):
        with pytest.raises(ValueError):
            spki_pin(DER[:length])
    with pytest.raises(ValueError):
        spki_pin(DER + b"\0")


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x80" + DER[4:] + b"\0\0",  # indefinite length: BER
        b"\x30\x83\x00" + DER[2:],  # a length with a leading zero
        b"\x30\x81\x05" + bytes(5),  # a long form where the short one would do
        b"\x30\x84\x00\x00\x00\x05" + bytes(5),
        b"\x30\x84\xff\xff\xff\xff" + bytes(5),
        b"\x31" + DER[1:],
        b"\x30\x83\x0f\xff\xff" + bytes(70_000),
    ],
)
def test_what_is_not_der_is_refused(der):
    with pytest.raises(ValueError):
        spki_pin(der)


@settings(deadline=None)
@given(st.binary(max_size=400))
@example(b"\x30")
@example(b"\x30\x84")
def test_garbage_gives_nothing_but_value_error(garbage):
    for read in (spki_pin, expiry):
        with pytest.raises(ValueError):
            read(garbage)


@settings(deadline=None)
@given(st.integers(0, len(DER) - 1), st.binary(min_size=1, max_size=6))
def test_a_certificate_with_changed_bytes_gives_an_answer_or_value_error(at, change):
    changed = DER[:at] + change + DER[at + len(change) :]
    for read in (spki_pin, expiry):
        with suppress(ValueError):
            read(changed)


def test_reading_a_pin_does_not_load_cryptography():
    script = (
        "import sys; from tunnel.certificates import spki_pin, expiry; der = bytes.fromhex(sys.argv[1])\n"
        "spki_pin(der), expiry(der); sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, DER.hex()], check=False).returncode == 0


def test_a_certificate_made_in_a_child_process_is_one_of_ours_and_keeps_a_given_key() -> None:
    certificate, key = make_elsewhere(["tunnel.example.com", "203.0.113.7"])
    again, same_key = make_elsewhere(["tunnel.example.com"], key_pem=key)
    assert key == same_key
    assert _pin(certificate) == _pin(again)


def test_a_key_that_cannot_be_used_is_told_by_this_process() -> None:
    with pytest.raises(ValueError, match="PEM"):
        make_elsewhere(["localhost"], key_pem=b"no key")


def test_without_an_interpreter_to_start_the_certificate_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    certificate, _ = make_elsewhere(["localhost"])
    assert _pin(certificate)


def _pin(certificate: bytes) -> bytes:
    return spki_pin(ssl.PEM_cert_to_DER_cert(certificate.decode()))
