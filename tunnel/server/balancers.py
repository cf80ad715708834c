"""Balancers that connect for others, as the configuration names them: each connection begins with a PROXY header."""

import socket
from collections.abc import Iterable

import trio

from tunnel.server.proxy_protocol import SIGNATURE, TrustedPeers, is_start, missing, source_address

MAX_WAITING = 256  # connections whose header has not come; behind a healthy balancer it comes at once
UNASKED_HEADER = "%s sends a PROXY header, and proxy_protocol_from does not name it; add it there if it is a balancer"


class Balancers:
    """Made of addresses and CIDRs; `address in balancers` asks whether its word is taken."""

    def __init__(self, networks: Iterable[str], *, header_seconds: float) -> None:
        self._trusted = TrustedPeers(networks)
        self.header_seconds = header_seconds
        self._waiting = 0

    def __contains__(self, address: str) -> bool:
        return address in self._trusted

    async def hear(self, sock: socket.socket) -> str | None:
        """For whom the connection is; None for the balancer itself. Takes not a byte of what follows the header.

        `ValueError` says what is wrong with the header; `BrokenResourceError` or `OSError` when it left instead.
        """
        if self._waiting >= MAX_WAITING:
            raise ValueError(f"is missing on {MAX_WAITING} connections at a time")
        self._waiting += 1
        try:
            with trio.fail_after(self.header_seconds):
                return await _read(sock)
        except trio.TooSlowError:
            raise ValueError(f"did not come within {self.header_seconds:g} s") from None
        finally:
            self._waiting -= 1


def sends_header(sock: socket.socket) -> bool:
    """Whether a connection begins with a header that nobody asked for. Nothing is taken from it."""
    try:
        return is_start(sock.recv(len(SIGNATURE), socket.MSG_PEEK))
    except OSError:  # what it is otherwise shows when it is read
        return False


async def _read(sock: socket.socket) -> str | None:
    header = b""
    while wanted := missing(header):
        try:
            data = sock.recv(wanted)
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data and not header:
            raise trio.BrokenResourceError("a check whether we listen, most likely")
        if not data:
            raise ValueError("ends too early")
        header += data
    return source_address(header)
