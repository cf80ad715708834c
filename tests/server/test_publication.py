"""What a token allows, and taking an address under it: also for messages made by hand (B11)."""

import errno
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import HostPort, PortRange
from tunnel.config import Grant
from tunnel.messages import ProxySpec, Reason
from tunnel.server import publication as publication_module
from tunnel.server.binding import BindFailed
from tunnel.server.publication import CHOICES, PRESENCE_SECONDS, Publication, check_allowed, take_address
from tunnel.server.registry import Address, Registry


def grant(
    ports: str | None = "8000-8009",
    addrs: tuple[str, ...] | None = None,
    names: tuple[str, ...] | None = None,
) -> Grant:
    ranges = None
    if ports is not None:
        pairs = [(part + "-" + part).split("-")[:2] if "-" not in part else part.split("-") for part in ports.split()]
        ranges = tuple(PortRange(int(first), int(last)) for first, last in pairs)
    return Grant("lab", b"", allow_ports=ranges, allow_addrs=addrs, allow_names=names)


def spec(port: int = 8001, addr: str = "0.0.0.0", name: str = "ssh") -> ProxySpec:
    return ProxySpec(name, addr, port)


class Host:
    """Listens on anything but what is taken; port 0 gives 40000. Remembers what was asked."""

    def __init__(self, *taken: int) -> None:
        self.taken = set(taken)
        self.asked: list[int] = []

    def listen(self, addr: str, port: int) -> socket.socket:
        self.asked.append(port)
        if port in self.taken:
            raise OSError(errno.EADDRINUSE, "")
        return FakeSocket(addr, port or 40_000)  # type: ignore[return-value]


class FakeSocket:
    def __init__(self, addr: str, port: int) -> None:
        self._name = addr, port

    def getsockname(self) -> tuple[str, int]:
        return self._name


ALLOWED = [
    (grant("8001"), spec()),
    (grant("1-10 8000-8009"), spec()),
    (grant(None), spec(1)),
    (grant(None), spec(0)),
    (grant(), spec(0)),
    (grant(addrs=("127.0.0.1",)), spec(addr="127.0.0.1")),
    (grant(addrs=("0.0.0.0",)), spec(addr="127.0.0.1")),
    (grant(addrs=("::",)), spec(addr="::1")),
    (grant(addrs=("0::0",)), spec(addr="::1")),
    (grant(addrs=("::1",)), spec(addr="0:0:0:0:0:0:0:1")),
    (grant(names=("web", "ssh")), spec()),
]
PORTS = "the token of client 'lab' does not allow port {} (allowed: {}); change allow_ports at the server or what is published"  # noqa: E501
ADDRS = "the token of client 'lab' does not allow the address {} (allowed: {}); change allow_addrs at the server or what is published"  # noqa: E501
NAMES = "the token of client 'lab' does not allow the proxy name '{}'; change allow_names at the server or what is published"  # noqa: E501
REFUSED = [
    (grant("80 8002-8009"), spec(), PORTS.format(8001, "80, 8002-8009")),
    (grant(""), spec(), PORTS.format(8001, "none")),
    (grant(""), spec(0), PORTS.format(0, "none")),
    (grant(), spec(-1), PORTS.format(-1, "8000-8009")),
    (grant(), spec(65536), PORTS.format(65536, "8000-8009")),
    (grant(addrs=("127.0.0.1",)), spec(), ADDRS.format("0.0.0.0", "127.0.0.1")),
    (grant(addrs=("127.0.0.1",)), spec(addr="127.0.0.2"), ADDRS.format("127.0.0.2", "127.0.0.1")),
    (grant(addrs=("0.0.0.0",)), spec(addr="::"), ADDRS.format("::", "0.0.0.0")),
    (grant(addrs=("0.0.0.0",)), spec(addr="::1"), ADDRS.format("::1", "0.0.0.0")),
    (grant(addrs=("::1",)), spec(addr="::"), ADDRS.format("::", "::1")),
    (grant(addrs=()), spec(), ADDRS.format("0.0.0.0", "none")),
    (grant(names=("web",)), spec(), NAMES.format("ssh")),
    (grant(names=()), spec(), NAMES.format("ssh")),
]


@pytest.mark.parametrize(("token", "wanted"), ALLOWED)
def test_what_a_token_allows_is_taken(token: Grant, wanted: ProxySpec) -> None:
    registry: Registry[str] = Registry()
    _, address = take_address(token, wanted, registry, Host().listen)
    assert (address.addr, address.client, address.proxy) == (wanted.publish_addr, "lab", "ssh")
    assert registry.taken_by(address.addr, address.port) == address


@pytest.mark.parametrize(("token", "wanted", "words"), REFUSED)
def test_what_a_token_does_not_allow_is_refused_for_good(token: Grant, wanted: ProxySpec, words: str) -> None:
    """B11"""
    registry: Registry[str] = Registry()
    host = Host()
    with pytest.raises(BindFailed) as caught:
        take_address(token, wanted, registry, host.listen)
    assert (caught.value.reason, str(caught.value), caught.value.final) == (Reason.NOT_ALLOWED, words, True)
    assert host.asked == []


@pytest.mark.parametrize("addr", ["", "localhost", "\0", "::1%\0", "0.0.0.0/0", "\ud800", "0.0.0.0\n", "*", "127.1"])
@pytest.mark.parametrize("token", [grant(None), grant(addrs=("0.0.0.0", "::"))], ids=["any", "wildcards"])
def test_a_malformed_address_in_a_hand_made_message_is_final(token: Grant, addr: str) -> None:
    """B11, B13"""
    with pytest.raises(BindFailed) as caught:
        check_allowed(token, spec(addr=addr))
    assert (caught.value.reason, caught.value.final) == (Reason.MALFORMED_ADDR, True)


@given(st.text(), st.integers(), st.text())
def test_any_hand_made_proxy_is_taken_or_fails_in_words(addr: str, port: int, name: str) -> None:
    """B41"""
    try:
        check_allowed(grant(addrs=("127.0.0.1", "::"), names=("ssh",)), spec(port, addr, name))
    except BindFailed as exc:
        assert exc.final  # noqa: PT017  which of them fail is not the point


def test_an_address_of_another_client_is_told_with_its_holder() -> None:
    """B10"""
    registry: Registry[str] = Registry()
    registry.publish(Address("0.0.0.0", 8001, "home", "web"))
    host = Host()
    with pytest.raises(BindFailed) as caught:
        take_address(grant(), spec(addr="127.0.0.1"), registry, host.listen)
    assert str(caught.value) == "Port 8001 is already published by client 'home' (proxy 'web')"
    assert (caught.value.reason, caught.value.final, host.asked) == (Reason.ADDR_IN_USE, False, [])


def test_a_failed_attempt_leaves_nothing_in_the_registry() -> None:
    registry: Registry[str] = Registry()
    with pytest.raises(BindFailed):
        take_address(grant(), spec(), registry, Host(8001).listen)
    assert registry._addresses == set()


# Port 0


def test_port_zero_without_limits_is_the_kernels_choice() -> None:
    """B12"""
    host = Host()
    _, address = take_address(grant(None), spec(0), Registry(), host.listen)
    assert (address.port, host.asked) == (40_000, [0])


def test_port_zero_is_chosen_inside_the_allowed_ranges() -> None:
    """B11, B12"""
    token = grant("8000-8003 9000")
    ports = {take_address(token, spec(0), Registry(), Host().listen)[1].port for _ in range(200)}
    assert ports == {8000, 8001, 8002, 8003, 9000}


def test_port_zero_passes_over_what_is_taken_by_others_and_by_us() -> None:
    registry: Registry[str] = Registry()
    registry.publish(Address("127.0.0.1", 8000, "home", "web"))
    for _ in range(20):
        _, address = take_address(grant("8000-8002"), spec(0), registry, Host(8001).listen)
        assert address.port == 8002
        registry.withdraw(address)


def test_port_zero_is_the_port_of_last_time() -> None:
    """B12"""
    registry: Registry[str] = Registry()
    registry.choose_port("lab", "ssh", 8007)
    host = Host()
    assert take_address(grant(), spec(0), registry, host.listen)[1].port == 8007
    assert host.asked == [8007]


def test_the_port_of_last_time_is_left_alone_when_it_is_taken_or_no_longer_allowed() -> None:
    registry: Registry[str] = Registry()
    registry.choose_port("lab", "ssh", 8007)
    assert take_address(grant("8001"), spec(0), registry, Host().listen)[1].port == 8001
    host = Host(8007)
    assert take_address(grant(None), spec(0), registry, host.listen)[1].port == 40_000
    assert host.asked == [8007, 0]


def test_port_zero_gives_up_an_attempt_when_no_allowed_port_is_free() -> None:
    host = Host(8000, 8001)
    with pytest.raises(BindFailed) as caught:
        take_address(grant("8000-8001"), spec(0), Registry(), host.listen)
    assert (caught.value.reason, caught.value.final) == (Reason.ADDR_IN_USE, False)
    assert str(caught.value) == "No free port among those allowed to client 'lab'"
    assert len(host.asked) == CHOICES


def test_another_error_on_port_zero_is_not_tried_a_hundred_times() -> None:
    asked: list[int] = []

    def listen(addr: str, port: int) -> socket.socket:
        asked.append(port)
        raise OSError(errno.EMFILE, "")

    with pytest.raises(BindFailed) as caught:
        take_address(grant(), spec(0), Registry(), listen)
    assert caught.value.reason is Reason.OUT_OF_DESCRIPTORS
    assert len(asked) == 1


# While it is held


class FakeListener:
    closed = 0

    def close(self) -> None:
        self.closed += 1


def held(addr: str = "127.0.0.1") -> tuple[Publication, Registry[str], FakeListener]:
    registry: Registry[str] = Registry()
    address = Address(addr, 8001, "lab", "ssh")
    registry.publish(address)
    publication = Publication(address, HostPort(addr, 8001), registry)
    listener = FakeListener()
    publication.listener = listener  # type: ignore[assignment]
    return publication, registry, listener


def test_released_is_free_at_once_and_may_be_released_again() -> None:
    publication, registry, listener = held()
    publication.release()
    assert registry.taken_by("0.0.0.0", 8001) is None
    assert listener.closed == 1
    publication.release()


async def test_a_listener_that_ends_says_why(autojump_clock: trio.testing.MockClock) -> None:
    publication, _, _ = held()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def lose() -> None:
            await trio.sleep(1000)
            publication.on_lost(OSError(errno.EBADF, "Bad file descriptor"))

        assert await publication.wait_lost() == "Bad file descriptor"
    assert trio.current_time() == 1000
    assert await publication.wait_lost() == "Bad file descriptor"


@pytest.mark.parametrize(("addr", "asks"), [("192.0.2.1", True), ("0.0.0.0", False), ("::", False), ("::1", False)])
async def test_only_an_interfaces_address_is_watched_for_going_away(
    addr: str, asks: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def is_addr_present(addr: str) -> bool:
        asked.append(trio.current_time())
        return len(asked) < 3

    monkeypatch.setattr(publication_module, "is_addr_present", is_addr_present)
    publication, _, _ = held(addr)
    why = None
    with trio.move_on_after(100):
        why = await publication.wait_lost()
    assert why == (f"this host no longer has the address {addr}" if asks else None)
    assert asked == ([PRESENCE_SECONDS, 2 * PRESENCE_SECONDS, 3 * PRESENCE_SECONDS] if asks else [])
