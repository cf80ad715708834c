"""The state directory: what a server must still know after a restart, and what nobody else may read.

    server.key, server.crt   the server's key and its certificate, PEM; the pin is the key's
    tokens.json              client name → SHA-256 of its token, and when it was made; tokens themselves are not kept
    revoked.json             SHA-256 of a revoked token → whose it was, and when that was; no entry of a configuration
                             brings it back
    admin.token              for writes through the admin address; the commands read it themselves
    ports.json               client/proxy → the port chosen for it where 0 was published
    known.json               address that clients came from within the hour → seconds since, when it was written

How the files are read and replaced is in `state_files`. All errors are TunnelError with a remedy.
Everything here is synchronous and waits for the disk: call what writes from a thread where an event loop runs.
"""

import hashlib
import hmac
import os
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tunnel.addresses import check_name
from tunnel.config import Grant
from tunnel.errors import TunnelError
from tunnel.state_files import StateFiles, make_private
from tunnel.token_records import REVOKED_FILE, TOKENS_FILE, read_revoked, read_tokens

TOKEN_BYTES = 32  # 256 bits: nothing is gained by a slow hash of what cannot be guessed
TOKEN = re.compile(r"tt_[A-Za-z0-9_-]{43}\Z")
MAX_TOKENS = 10_000  # a login compares with every one, which then takes half a millisecond
MAX_PORTS = 10_000
KNOWN_FILE = "known.json"
MAX_PORTS_PER_CLIENT = 1000  # as many proxies as a client may have; past it a client displaces only its own


def hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()  # a header may hold any bytes


def find_grant(grants: Iterable[Grant], token: str) -> Grant | None:
    """Whose token this is; an empty one is nobody's. Compares with them all, so that the time taken tells nothing."""
    digest = hash_token(token)
    found = None
    for grant in grants:
        if hmac.compare_digest(grant.token_sha256, digest):
            found = grant
    return found if token else None


def default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/trio-tunnel")
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
        return Path(base, "trio-tunnel")
    try:
        return Path.home() / ".local" / "state" / "trio-tunnel"
    except RuntimeError as exc:
        raise TunnelError(
            "this user has no home directory to keep state in; name a directory with --state-dir"
        ) from exc


class StateDir:
    """An opened state directory. Safe to use from several threads and processes."""

    def __init__(self, path: Path, owner: int | None = None) -> None:
        self.path = path
        self._files = StateFiles(path, owner)
        self._ports: dict[str, int] | None = (
            None  # as in ports.json, which only the server writes; replaced, not changed
        )

    @classmethod
    def open(cls, path: Path, *, for_owner: bool = False) -> "StateDir":
        """Makes the directory if need be; refuses one that others may write or that belongs to another user.

        With `for_owner` root may act for that user: what it writes there is the user's.
        """
        return cls(path, make_private(path, for_owner=for_owner))

    # Tokens

    def grants(self) -> tuple[Grant, ...]:
        """All clients with a token made here. Such a token allows any port, address and name."""
        tokens = read_tokens(self._files)
        return tuple(Grant(name, bytes.fromhex(record["sha256"]), allow_ports=None) for name, record in tokens.items())

    def made(self) -> dict[str, str]:
        """When the token of each client was made here, ISO 8601."""
        return {name: record["created"] for name, record in read_tokens(self._files).items()}

    def revoked(self) -> frozenset[bytes]:
        """The SHA-256 of each token that was revoked, wherever it had been made."""
        return frozenset(map(bytes.fromhex, read_revoked(self._files)))

    def stamp(self) -> tuple[object, ...]:
        """Changes with whatever `grants` and `revoked` are read from, and costs two system calls."""
        return tuple(self._files.stamp(name) for name in (TOKENS_FILE, REVOKED_FILE))

    def new_token(self, name: str) -> str:
        """A new token for a client; only its hash stays here. ValueError if `name` cannot be a client's name."""
        check_name(name)
        with self._files.locked():
            tokens = read_tokens(self._files)
            if name in tokens:
                made = tokens[name]["created"]
                raise TunnelError(
                    f"client {name!r} has a token already, made {made}, and it cannot be shown again; "
                    f"choose another name, or revoke that token first"
                )
            if len(tokens) >= MAX_TOKENS:
                raise TunnelError(f"{self.path / TOKENS_FILE} holds {MAX_TOKENS} tokens; revoke some first")
            token = _random_token()
            record = {"sha256": hash_token(token).hex(), "created": datetime.now(UTC).isoformat(timespec="seconds")}
            self._files.write_json(TOKENS_FILE, {**tokens, name: record})
        return token

    def revoke_token(self, name: str, *, others: Iterable[bytes] = ()) -> None:
        """A client's token of ours counts no more, nor do the `others` of it: SHA-256 of what a configuration names."""
        with self._files.locked():
            tokens = read_tokens(self._files)
            digests = [digest.hex() for digest in others]
            if name in tokens:
                digests.append(tokens[name]["sha256"])
            if not digests:
                known = ", ".join(sorted(tokens)[:20]) or "none"
                raise TunnelError(
                    f"no client {name!r} in {self.path / TOKENS_FILE}; clients with a token: {known}; "
                    f"one that has only an entry in a configuration file needs that file named with -c"
                )
            now = datetime.now(UTC).isoformat(timespec="seconds")
            revoked = {**read_revoked(self._files), **{digest: {"name": name, "revoked": now} for digest in digests}}
            while len(revoked) > MAX_TOKENS:
                del revoked[next(iter(revoked))]  # the oldest: dicts keep their order, in JSON too
            self._files.write_json(REVOKED_FILE, revoked)  # first: cut short after it, the token is good no more
            if tokens.pop(name, None) is not None:
                self._files.write_json(TOKENS_FILE, tokens)

    def admin_token(self) -> str:
        """The secret for writes through the admin address, made if there is none yet."""
        content = self._files.read("admin.token")
        if content is None:
            with self._files.locked():
                content = self._files.read("admin.token")  # another process may have been first
                if content is None:
                    content = f"{_random_token()}\n".encode("ascii")
                    self._files.write("admin.token", content)
        token = content.decode("ascii", "replace").removesuffix("\n")
        if not TOKEN.match(token):  # above all: an empty file must not make "" a valid secret
            raise self._files.damaged(
                "admin.token", "it holds no token", "delete it, and the next start makes a new one"
            )
        return token

    # The certificate

    def certificate(self, make: Callable[[bytes | None], tuple[bytes, bytes]]) -> tuple[Path, Path]:
        """Where the server's certificate and key are, made on the first start.

        `make` is given the key that is there already, or None, and returns a certificate and its key, PEM. So deleting
        `server.crt` alone renews the certificate and keeps the pin.
        """
        crt, key = self.path / "server.crt", self.path / "server.key"
        with self._files.locked():
            cert_pem, key_pem = self._files.read("server.crt"), self._files.read("server.key")
            if cert_pem is None:
                cert_pem, key_pem = self._make_certificate(make, key_pem)
        if key_pem is None:
            raise self._files.damaged(
                "server.crt",
                "server.key, which belongs to it, is missing",
                "put server.key back, or delete server.crt too for a new pair, whose pin every client must be told",
            )
        self._check_pair(crt, key)
        return crt, key

    def _make_certificate(
        self, make: Callable[[bytes | None], tuple[bytes, bytes]], key_pem: bytes | None
    ) -> tuple[bytes, bytes]:
        try:
            cert_pem, new_key_pem = make(key_pem)
        except ValueError as exc:
            if key_pem is None:
                raise TunnelError(f"no certificate can be made: {exc}") from exc
            raise self._files.damaged(
                "server.key",
                str(exc),
                "put back a copy of it, or delete it for a new one, whose pin every client needs",
            ) from exc
        if new_key_pem != key_pem:
            # The key first: alone it is no more than a first start cut short.
            self._files.write("server.key", new_key_pem)
        self._files.write("server.crt", cert_pem)
        return cert_pem, new_key_pem

    def _check_pair(self, crt: Path, key: Path) -> None:
        import ssl  # for the few commands that come here; `status` need not load OpenSSL

        try:
            # An encrypted key gets an empty password: it fails, instead of asking on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(crt, key, password="")
        except (OSError, ValueError) as exc:  # SSLError is an OSError
            raise self._files.damaged(
                "server.crt",
                f"it cannot be used with server.key ({getattr(exc, 'reason', None) or exc})",
                "put back copies of both; or delete server.crt for a new certificate of the same key; "
                "or delete both for a new pair, whose pin every client must be told",
            ) from exc

    # Ports

    def port_for(self, client: str, proxy: str) -> int | None:
        """The port this proxy had when it last asked for any. Reads the file on first use, then remembers."""
        if self._ports is None:
            self._ports = self._read_ports()
        return self._ports.get(f"{client}/{proxy}")

    def remember_port(self, client: str, proxy: str, port: int) -> None:
        """Keeps a chosen port for a later restart. To fail here (a full disk) is no reason to give up the proxy."""
        assert 1 <= port <= 65535
        key = f"{check_name(client)}/{check_name(proxy)}"
        with self._files.locked():
            ports = dict(self._read_ports() if self._ports is None else self._ports)
            if ports.get(key) == port:
                return
            ports.pop(key, None)
            of_client = [other for other in ports if other.startswith(f"{client}/")]
            if len(of_client) >= MAX_PORTS_PER_CLIENT:
                del ports[of_client[0]]  # the oldest: dicts keep their order, in JSON too
            elif len(ports) >= MAX_PORTS:
                del ports[next(iter(ports))]
            ports[key] = port
            self._files.write_json("ports.json", ports)
            self._ports = ports

    def _read_ports(self) -> dict[str, int]:
        remedy = "delete it; the server then chooses ports afresh"
        ports = self._files.read_json("ports.json", remedy)
        for key, port in ports.items():
            if type(port) is not int or not 1 <= port <= 65535:
                raise self._files.damaged("ports.json", f"{key!r:.140} has no port from 1 to 65535", remedy)
        if len(ports) > MAX_PORTS:
            raise self._files.damaged("ports.json", f"it has more than {MAX_PORTS} entries", remedy)
        return ports

    # Sources

    def known_sources(self) -> dict[str, float]:
        """As they were kept last, in seconds since each one's last login then."""
        remedy = "delete it; clients behind an address that guesses tokens may then have to wait once"
        ages = self._files.read_json(KNOWN_FILE, remedy)
        if not all(type(age) in (int, float) for age in ages.values()):
            raise self._files.damaged(KNOWN_FILE, "it has an age that is no number", remedy)
        return ages

    def keep_known_sources(self, ages: Mapping[str, float]) -> None:
        with self._files.locked():
            self._files.write_json(KNOWN_FILE, dict(ages))


def _random_token() -> str:
    return "tt_" + urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=").decode("ascii")
