"""What the tests of the server share."""

from pathlib import Path

import pytest
from gate_rig import authority


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for this machine, its key, and its authority."""
    path = tmp_path_factory.mktemp("certificate")
    certificate = authority().issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(path / "cert.pem")
    authority().cert_pem.write_to_path(path / "ca.pem")
    return path
