"""The addresses at which clients connect: all are bound before the server starts, one that is lost is bound again."""

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import trio

from tunnel.activation import Passed, match
from tunnel.addresses import HostPort
from tunnel.errors import TunnelError
from tunnel.server.publication import presence_seconds
from tunnel.server.registry import Address, Registry
from tunnel.sockets import is_addr_present, listen

log = logging.getLogger(__name__)

AGAIN_SECONDS = 3.0  # between attempts to bind an address that was lost: one bind(2), and clients dial as often


class Entrance:
    """One address. `run` it in a task of its own; the others do not notice what befalls it."""

    def __init__(
        self, where: HostPort, listener: socket.socket, registry: Registry[Any], *, is_passed: bool = False
    ) -> None:
        port = listener.getsockname()[1]
        # systemd holds on to one that it made, so that it cannot be bound again, only be taken up again
        self._passed = listener.dup() if is_passed else None
        self.where = HostPort(where.host, port)  # as bound: the port is never 0
        self._addr = str(listener.getsockname()[0])  # numeric: a name is not looked up again
        self._listener: socket.socket | None = listener
        self._scope = trio.CancelScope()
        self._registry = registry
        self._address = Address(where.host, port, "", "its own port for clients")  # ours also while it is lost
        registry.publish(self._address)

    @property
    def is_open(self) -> bool:
        return self._listener is not None and not self._scope.cancel_called

    async def run(self, accept: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Until it is left or cancelled. `accept` takes clients in, and raises `OSError` once there can be no more."""
        with self._scope:
            while True:
                assert self._listener is not None
                why = await self._until_lost(self._listener, accept)
                self._close()
                log.error("no longer listening on %s: %s; tried again every %g s", self.where, why, AGAIN_SECONDS)
                self._listener = await self._bind_again()
                log.warning("listening on %s again", self.where)

    async def _until_lost(self, listener: socket.socket, accept: Callable[[socket.socket], Awaitable[None]]) -> str:
        why = f"this host no longer has the address {self._addr}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_presence, nursery.cancel_scope)
            try:
                await accept(listener)
            except OSError as exc:
                why = exc.strerror or str(exc)
            nursery.cancel_scope.cancel(reason="the listener is lost")
        return why

    async def _watch_presence(self, accepting: trio.CancelScope) -> None:
        """A listener on an address that went away hears and says nothing."""
        seconds = presence_seconds(self._addr)
        while True:
            await trio.sleep(seconds)
            if not is_addr_present(self._addr):
                accepting.cancel(reason="the address is gone")

    async def _bind_again(self) -> socket.socket:
        while True:
            await trio.sleep(AGAIN_SECONDS)
            try:
                return self._listen_again()
            except OSError as exc:  # an error was told when it was lost
                log.debug("still not listening on %s: %s", self.where, exc.strerror or exc)

    def _listen_again(self) -> socket.socket:
        if self._passed is None:
            return listen(self._addr, self.where.port)
        if not is_addr_present(self._addr):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return self._passed.dup()

    def leave(self) -> None:
        """Accept no more here, for good; who came in this way stays."""
        self._scope.cancel(reason="the address is left")
        self._registry.withdraw(self._address)

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """After `run`, or in its stead."""
        self._registry.withdraw(self._address)
        self._close()
        if self._passed is not None:
            self._passed.close()


@contextmanager
def bind_entrances(
    wanted: tuple[HostPort, ...], registry: Registry[Any], *, passed: Sequence[Passed] = ()
) -> Iterator[tuple[Entrance, ...]]:
    """Bind them all, or raise `TunnelError` and hold none. Leaving the body closes what is still open.

    Where systemd has `passed` a socket for one of them, that is used in place of binding; it is closed in any case.
    """
    if not wanted:
        raise TunnelError("a server needs an address to listen on, such as 0.0.0.0:8443")
    with ExitStack() as bound:
        for one in passed:
            bound.enter_context(closing(one.sock))  # an entrance has descriptors of its own
        found = match(passed, wanted)
        yield tuple(bound.enter_context(closing(_open(where, found.get(where), registry))) for where in wanted)


def _open(where: HostPort, passed: Passed | None, registry: Registry[Any]) -> Entrance:
    listener = _listen(where, registry) if passed is None else passed.sock.dup()
    return Entrance(where, listener, registry, is_passed=passed is not None)


def _listen(where: HostPort, registry: Registry[Any]) -> socket.socket:
    ours = registry.taken_by(where.host, where.port)
    if ours is not None:
        other = HostPort(ours.addr, ours.port)
        raise TunnelError(f"cannot listen on {where} beside {other}: they overlap; leave one of the two out")
    try:
        return listen(where.host, where.port)
    except OSError as exc:
        raise TunnelError(
            f"cannot listen on {where}: {exc.strerror or exc}; stop what holds it, or listen elsewhere (--listen)"
        ) from exc
