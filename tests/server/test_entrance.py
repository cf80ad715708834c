"""The server's own addresses: all or none at the start, each for itself afterwards."""

import errno
import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.activation import Passed
from tunnel.addresses import HostPort
from tunnel.errors import TunnelError
from tunnel.server import entrance as entrance_module
from tunnel.server.entrance import AGAIN_SECONDS, Entrance, bind_entrances
from tunnel.server.publication import PRESENCE_SECONDS
from tunnel.server.registry import Address, Registry
from tunnel.sockets import listen

FREE = HostPort("127.0.0.1", 0)


def can_listen(where: HostPort) -> bool:
    try:
        listen(where.host, where.port).close()
    except OSError:
        return False
    return True


@pytest.fixture
def registry() -> Registry[str]:
    return Registry()


# At the start


def test_each_address_is_bound_and_known_as_the_servers_own(registry: Registry[str]) -> None:
    with bind_entrances((FREE, HostPort("127.0.0.2", 0), FREE), registry) as entrances:
        bound = [entrance.where for entrance in entrances]
        assert [where.host for where in bound] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
        assert len(set(bound)) == 3
        for where in bound:
            assert not can_listen(where)
            held = registry.taken_by(where.host, where.port)
            assert held == Address(where.host, where.port, "", "its own port for clients")
    assert all(can_listen(where) for where in bound)
    assert registry._addresses == set()


def test_one_that_is_taken_is_named_and_none_is_held(registry: Registry[str]) -> None:
    with listen("127.0.0.1", 0) as other, listen("127.0.0.1", 0) as probe:
        taken = HostPort("127.0.0.1", other.getsockname()[1])
        first = HostPort("127.0.0.1", probe.getsockname()[1])
        probe.close()
        with pytest.raises(TunnelError) as caught, bind_entrances((first, taken, FREE), registry):
            pytest.fail("it has started")
    assert str(caught.value) == (
        f"cannot listen on {taken}: Address already in use; stop what holds it, or listen elsewhere (--listen)"
    )
    assert can_listen(first)
    assert registry._addresses == set()


def test_two_of_ours_that_overlap_are_not_blamed_on_another_process(registry: Registry[str]) -> None:
    with ExitStack() as stack:
        (one,) = stack.enter_context(bind_entrances((HostPort("0.0.0.0", 0),), registry))
        inside = HostPort("127.0.0.1", one.where.port)
        with pytest.raises(TunnelError) as caught:
            stack.enter_context(bind_entrances((inside,), registry))
    assert str(caught.value) == f"cannot listen on {inside} beside {one.where}: they overlap; leave one of the two out"


def test_a_server_without_an_address_says_so(registry: Registry[str]) -> None:
    with pytest.raises(TunnelError, match="needs an address"), bind_entrances((), registry):
        pytest.fail("it has started")


# Afterwards


class FakeListener:
    def __init__(self, addr: str, port: int) -> None:
        self.name = addr, port
        self.closed = False

    def getsockname(self) -> tuple[str, int]:
        return self.name

    def close(self) -> None:
        self.closed = True


class World:
    """What an entrance sees: `accept` takes clients in until `lose`; `listen` fails while `taken`."""

    def __init__(self, registry: Registry[str], monkeypatch: pytest.MonkeyPatch, addr: str = "127.0.0.1") -> None:
        monkeypatch.setattr(entrance_module, "listen", self.listen)
        monkeypatch.setattr(entrance_module, "is_addr_present", lambda addr: self.present)
        self.taken = False
        self.present = True
        self.accepting: list[tuple[float, object]] = []
        self.attempts: list[float] = []
        self.listeners = [FakeListener(addr, 8443)]
        self.lost = trio.Event()
        first: socket.socket = self.listeners[0]  # type: ignore[assignment]
        self.entrance = Entrance(HostPort("tunnel.example.com", 0), first, registry)

    def listen(self, addr: str, port: int) -> socket.socket:
        assert (addr, port) == self.listeners[0].name  # numeric: a name would be looked up, and time pass
        self.attempts.append(trio.current_time())
        if self.taken:
            raise OSError(errno.EADDRINUSE, "")
        self.listeners.append(FakeListener(addr, port))
        return self.listeners[-1]  # type: ignore[return-value]

    async def accept(self, listener: socket.socket) -> None:
        assert listener is self.listeners[-1]
        self.accepting.append((trio.current_time(), listener))
        try:
            await self.lost.wait()
        finally:
            self.accepting.append((trio.current_time(), None))
        raise OSError(errno.EINVAL, "Invalid argument")

    def lose(self) -> None:
        self.lost.set()
        self.lost = trio.Event()

    async def run(self) -> None:
        await self.entrance.run(self.accept)


async def until(time: float) -> None:
    await trio.sleep_until(time)
    await wait_all_tasks_blocked()


async def test_a_lost_listener_is_told_once_and_bound_again_as_soon_as_it_can_be(
    registry: Registry[str], nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    world = World(registry, monkeypatch)
    nursery.start_soon(world.run)
    await until(100)
    assert world.entrance.is_open
    world.taken = True
    world.lose()
    await until(100)
    assert (world.listeners[0].closed, world.entrance.is_open) == (True, False)
    assert registry.taken_by("127.0.0.1", 8443) is None  # it is a name's
    assert registry.taken_by("tunnel.example.com", 8443) is not None  # still ours
    await until(1000)
    assert world.attempts == [100 + AGAIN_SECONDS * number for number in range(1, 301)]
    world.taken = False
    await until(2000)
    assert world.entrance.is_open
    assert [at for at, _ in world.accepting] == [0, 100, 1003]
    assert caplog.messages == [
        "no longer listening on tunnel.example.com:8443: Invalid argument; tried again every 3 s",
        "listening on tunnel.example.com:8443 again",
    ]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("addr", "asks"), [("192.0.2.1", True), ("0.0.0.0", False), ("127.0.0.1", False)])
async def test_an_address_that_left_the_host_is_lost_and_taken_when_it_is_back(
    addr: str, asks: bool, registry: Registry[str], nursery: trio.Nursery, autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    world = World(registry, monkeypatch, addr)
    nursery.start_soon(world.run)
    await until(12)
    world.present, world.taken = False, True
    await until(20)
    assert world.entrance.is_open is not asks
    world.present, world.taken = True, False
    await until(100)
    assert world.entrance.is_open
    gone, back = 3 * PRESENCE_SECONDS, 3 * PRESENCE_SECONDS + 2 * AGAIN_SECONDS
    assert [at for at, _ in world.accepting] == ([0, gone, back] if asks else [0])
    if asks:
        assert f"this host no longer has the address {addr}" in caplog.messages[0]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", [False, True])
async def test_an_address_that_is_left_is_neither_accepted_on_nor_bound_again(
    lost: bool, registry: Registry[str], nursery: trio.Nursery, autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    world = World(registry, monkeypatch)
    nursery.start_soon(world.run)
    await until(10)
    world.taken = lost
    if lost:
        world.lose()
        await until(11)
    world.entrance.leave()
    assert (world.entrance.is_open, registry._addresses) == (False, set())
    world.taken = False
    await until(1000)
    assert (world.attempts, [at for at, _ in world.accepting]) == ([], [0, 10])


@pytest.mark.parametrize("lost", [False, True])
async def test_cancelled_at_any_await_it_leaves_nothing_open(
    lost: bool, registry: Registry[str], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(registry, monkeypatch)
    async with trio.open_nursery() as server:
        server.start_soon(world.run)
        await until(10)
        if lost:
            world.lose()
            await until(11)
        server.cancel_scope.cancel()
    world.entrance.close()
    await until(1000)
    assert world.attempts == []
    assert all(listener.closed for listener in world.listeners)


async def test_one_that_is_lost_does_not_stop_the_others(
    registry: Registry[str], nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    ends: list[str] = []

    def accepting(name: str, seconds: float) -> Callable[[socket.socket], object]:
        async def accept(listener: socket.socket) -> None:
            try:
                await trio.sleep(seconds)
            finally:
                ends.append(f"{name} {trio.current_time():g}")
            raise OSError(errno.EINVAL, "")

        return accept

    with bind_entrances((FREE, FREE), registry) as (one, other):
        nursery.start_soon(one.run, accepting("one", 10))
        nursery.start_soon(other.run, accepting("other", 1000))
        await until(50)
        assert ends == ["one 10", "one 23", "one 36", "one 49"]
        assert other.is_open
        nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()


# With sockets that systemd passed


def passed_at(addr: str = "127.0.0.1") -> tuple[socket.socket, Passed]:
    """systemd's own, and what it passed to us."""
    held = listen(addr, 0)
    return held, Passed("web", held.dup())


def test_a_passed_socket_stands_for_its_address_and_the_others_are_bound(registry: Registry[str]) -> None:
    held, passed = passed_at()
    with held, bind_entrances((FREE, passed.where), registry, passed=[passed]) as (bound, taken):
        assert taken.where == passed.where
        assert bound.where.port not in (0, taken.where.port)
        assert registry.taken_by(taken.where.host, taken.where.port) is not None
        assert not can_listen(taken.where)


def test_who_connects_after_the_end_waits_for_the_next_process(registry: Registry[str]) -> None:
    held, passed = passed_at()
    where = passed.where
    with held:
        with bind_entrances((where,), registry, passed=[passed]):
            pass
        with socket.create_connection((where.host, where.port), timeout=5) as visitor:
            accepted, _ = held.accept()
            with accepted:
                assert accepted.getpeername() == visitor.getsockname()
    assert can_listen(where)  # we held no descriptor any more
    assert registry._addresses == set()


def test_one_that_stands_for_no_address_is_closed_and_nothing_is_bound(registry: Registry[str]) -> None:
    held, passed = passed_at()
    with (
        held,
        pytest.raises(TunnelError, match="where this server is not to listen"),
        bind_entrances((FREE,), registry, passed=[passed]),
    ):
        pytest.fail("it has started")
    assert passed.sock.fileno() == -1
    assert registry._addresses == set()


async def test_a_passed_one_whose_address_went_away_is_taken_up_again_when_it_is_back(
    registry: Registry[str], nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = True
    monkeypatch.setattr(entrance_module, "is_addr_present", lambda addr: present)
    monkeypatch.setattr(entrance_module, "presence_seconds", lambda addr: PRESENCE_SECONDS)  # loopback is not watched
    held, passed = passed_at()
    taken: list[tuple[float, int]] = []

    async def accept(listener: socket.socket) -> None:
        taken.append((trio.current_time(), listener.getsockname()[1]))
        await trio.sleep_forever()

    with held, bind_entrances((passed.where,), registry, passed=[passed]) as (entrance,):
        nursery.start_soon(entrance.run, accept)
        await until(1)
        present = False
        await until(1000)
        assert not entrance.is_open
        present = True
        await until(1000 + AGAIN_SECONDS)
        assert entrance.is_open
        entrance.leave()
        await wait_all_tasks_blocked()
    assert [port for _, port in taken] == [entrance.where.port] * 2
    assert 1000 <= taken[1][0] <= 1000 + AGAIN_SECONDS
