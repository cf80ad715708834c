"""What the server proves itself with: its certificate, read again when the files change, and whom it asks for one.

New handshakes get the new one; who is connected stays so. Files that cannot be used change nothing, and are told once.
"""

import logging
import socket
import ssl
from datetime import datetime
from pathlib import Path

import trio
from attrs import frozen

from tunnel.certificates import expiry_of_file, make_elsewhere, pair_problem
from tunnel.config import ServerConfig
from tunnel.config.token_file import exposed
from tunnel.errors import ConfigError, Mistake, TunnelError
from tunnel.state import StateDir
from tunnel.state_files import file_stamp
from tunnel.tls import server_context

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the files; what stood there twice is not being written any more


@frozen
class TlsFiles:
    """Where the certificate and all that belongs to it are."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: str = "1.3"

    def stamp(self) -> tuple[object, ...]:
        """Changes when one of them does."""
        files = (self.cert_file, self.key_file, self.client_ca_file)
        return tuple(file_stamp(path) for path in files if path is not None)

    def load(self) -> ssl.SSLContext:
        """Raises `TunnelError`: which file, why, what to do. Blocks."""
        try:
            return server_context(
                self.cert_file, self.key_file, client_ca_file=self.client_ca_file, min_version=self.min_version
            )
        except (OSError, ssl.SSLError) as exc:
            problem = pair_problem(self.cert_file, self.key_file) if self._is_pair_bad() else None
            ca = f"{self.client_ca_file} cannot be used as client_ca_file: {exc}; put the CA's certificate there, PEM"
            raise TunnelError(problem or ca) from exc

    def _is_pair_bad(self) -> bool:
        try:
            server_context(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError):
            return True
        return False


def find_files(config: ServerConfig, state: StateDir | None) -> TlsFiles:
    """Those of the configuration, else those in the state directory, made there at the first start. Blocks."""
    if config.cert_file is not None and config.key_file is not None:
        files = config.cert_file, config.key_file
    elif state is not None:
        hosts = [*(where.host for where in config.listen), socket.gethostname()]
        files = state.certificate(lambda key: make_elsewhere(hosts, key_pem=key))
    else:
        raise TunnelError("a server needs a state directory, or cert_file and key_file")
    return TlsFiles(*files, config.client_ca_file, config.tls_min_version)


def check_change(running: ServerConfig, wanted: ServerConfig) -> None:
    """`ConfigError` if the TLS settings are others now and cannot be used. Blocks."""
    if tls_part(running) == tls_part(wanted):
        return
    try:
        find_files(wanted, None if wanted.state_dir is None else StateDir.open(wanted.state_dir)).load()
    except TunnelError as exc:
        problem, _, remedy = str(exc).rpartition("; ")
        raise ConfigError(Mistake("", 0, "tls", "", problem, remedy)) from exc


def tls_part(config: ServerConfig) -> tuple[object, ...]:
    """What `find_files` goes by, without the state directory, which needs a restart."""
    return config.cert_file, config.key_file, config.client_ca_file, config.tls_min_version


class Certificate:
    """The one in force is `context`'s. Made from files that can be used; raises `TunnelError` otherwise, and blocks."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._stamp = files.stamp()  # before they are read: a change meanwhile is noticed
        self.context = files.load()
        self.not_after: datetime | None = _end(files)  # of the one in force; None where it cannot be told
        self._asked = trio.Event()

    def use(self, files: TlsFiles) -> None:
        """Others from now on; `TunnelError` where they cannot be. Takes milliseconds: `check_change` has tried them."""
        stamp, context = files.stamp(), files.load()
        self._stamp, self.files, self.context = stamp, files, context
        self.not_after = _end(files)

    def look_now(self) -> None:
        """Somebody says that the files are as they should be: `watch` does not wait for them to settle."""
        self._asked.set()

    async def watch(self) -> None:
        """Look at the files until cancelled."""
        seen = self._stamp
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._asked.wait()
            is_asked, self._asked = self._asked.is_set(), trio.Event()
            files = self.files
            now = await trio.to_thread.run_sync(files.stamp, abandon_on_cancel=True)  # a disk that hangs holds up none
            if files is self.files and now != self._stamp and (now == seen or is_asked):
                self._stamp = now  # whatever comes of it: it is told once
                await self._load(files)
            seen = now

    async def _load(self, files: TlsFiles) -> None:
        try:
            context = await trio.to_thread.run_sync(_load_private, files, abandon_on_cancel=True)
            ends = await trio.to_thread.run_sync(expiry_of_file, files.cert_file, abandon_on_cancel=True)
        except TunnelError as exc:
            log.error("the certificate was not changed, new connections get the old one: %s", exc)
            return
        if files is self.files:
            self.context, self.not_after = context, ends
            log.info("new connections get the certificate that %s holds now, good until %s", files.cert_file, ends)


def _end(files: TlsFiles) -> datetime | None:
    """Blocks, for as long as a small file takes to read."""
    try:
        return expiry_of_file(files.cert_file)
    except TunnelError as exc:  # OpenSSL takes what our reader does not; it serves all the same
        log.warning("nobody can say when the certificate ends: %s", exc)
        return None


def _load_private(files: TlsFiles) -> ssl.SSLContext:
    if (found := exposed(files.key_file, group=True)) is not None:
        raise TunnelError(f"{files.key_file} {found[0]}; {found[1]}")
    return files.load()
