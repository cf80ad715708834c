"""Connections to targets, as a pool keeps them: dialled, shaken hands with, and used by no visitor yet."""

import socket
from collections.abc import Callable

import trio
from attrs import evolve

from tunnel.addresses import Target
from tunnel.backoff import RetryBudget
from tunnel.client.target_dial import dial_target, shake_hands
from tunnel.config import PoolConfig, ProxyConfig
from tunnel.errors import PeerLost
from tunnel.faults import Phase
from tunnel.pool import Place, Pool, Use
from tunnel.relay import Stream
from tunnel.relay.tls_leg import TlsLeg
from tunnel.sockets import ENDED, UNREAD, has_hung_up, peek
from tunnel.tls import TlsStream

LEAST_SHARE_SECONDS = 2.0  # of a target, however many there are: a lost SYN takes a second, TLS three long round trips
BRIEF_SECONDS = 1.0  # after it was opened; what a target said before it hung up later is a farewell to nobody (a 408)


class TargetConnection:
    """An unused connection. Whoever takes it hands it over to a stream, once; until then it can be closed."""

    users = 0

    def __init__(self, sock: socket.socket, tls: TlsStream | None = None) -> None:
        self._sock = sock
        self._tls = tls
        self._is_gone = False
        self._opened_at = trio.current_time()

    def peek(self) -> str | None:
        """A target may have spoken first; what it said stays there for the visitor."""
        if self._is_gone:
            return ENDED
        return ENDED if has_hung_up(self._sock) and not self._has_said_all() else None

    def _has_said_all(self) -> bool:
        """It is one of those services that speak and hang up at once, and the visitor will hear it as it is meant."""
        if trio.current_time() - self._opened_at > BRIEF_SECONDS:
            return False
        return (peek(self._sock) if self._tls is None else self._tls.peek()) == UNREAD

    def hand_over(self, stream: Stream) -> None:
        """It is `stream`'s from now on."""
        self._is_gone = True
        tls, self._tls = self._tls, None  # the pool may remember us longer than the stream lives
        if tls is None:
            stream.connected(self._sock)
        else:
            leg = TlsLeg(tls.detach(), stream)
            stream.connected(leg, leg)

    def close(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        if self._tls is None:
            self._sock.close()
        else:
            self._tls.close()


async def open_connection(target: Target, enter: Callable[[Phase], None]) -> TargetConnection:
    """Dial `target`, and shake hands where it speaks TLS. Raises what these raise; cancelled, nothing is left open."""
    sock = await dial_target(target)
    if target.kind != "tls":
        return TargetConnection(sock)
    enter(Phase.HANDSHAKE)
    return TargetConnection(sock, await shake_hands(sock, target))


async def check_unused(connection: TargetConnection) -> None:
    """All that can be asked of a connection that no byte may flow through before its visitor's."""
    if (why := connection.peek()) is not None:
        raise PeerLost(why, answered=True)


def place_of(target: Target) -> Place[Target]:
    return Place(key_of(target), target.weight, target.backup)


def key_of(target: Target) -> Target:
    """What a connection is made to: a new weight makes no other target of it."""
    return evolve(target, weight=1, backup=False)


def open_pool(proxy: ProxyConfig, *, dial_seconds: float, budget: RetryBudget) -> Pool[Target, TargetConnection]:
    """The pool of one proxy, not running yet. Each target gets its share of `dial_seconds`, which is for them all."""
    use = Use(open=open_connection, validate=check_unused, capacity=1, reusable=False)
    pool = Pool(use, pool_config(proxy, dial_seconds), name=f"targets of {proxy.name}", budget=budget)
    pool.list_places(map(place_of, proxy.targets))
    return pool


def pool_config(proxy: ProxyConfig, dial_seconds: float) -> PoolConfig:
    pool = proxy.pool
    least = min(LEAST_SHARE_SECONDS, dial_seconds / 2)  # one that is silent leaves time for another at least
    share = max(dial_seconds / len(proxy.targets), least)
    return evolve(pool, open_seconds=min(pool.open_seconds, share), wait_seconds=min(pool.wait_seconds, dial_seconds))
