"""What the server may ask of a client: the proxy sets sent lately, and nothing else."""

import errno
import socket
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tunnel.addresses import HostPort, Target, parse_target
from tunnel.backoff import RetryPolicy
from tunnel.client import targets as targets_module
from tunnel.client.channels import Tickets
from tunnel.client.targets import SETS_KEPT, ProxyRoute, RouteTable
from tunnel.config import HealthCheck, ProxyConfig
from tunnel.errors import PeerLost
from tunnel.frames import Abort
from tunnel.messages import ProxySpec, Retry, decode, encode


def proxy(name: str, *targets: str, **changes: Any) -> ProxyConfig:
    wanted = tuple(parse_target(text) for text in targets) or (Target("tcp", "127.0.0.1", 80),)
    return ProxyConfig(name, HostPort("0.0.0.0", 8001), wanted, **changes)


def table(*names: str) -> RouteTable:
    return RouteTable(tuple(proxy(name) for name in names), dial_seconds=10.0)


def found(routes: RouteTable, index: int, version: int) -> str | None:
    route = routes.find(index, version)
    return route and route.config.name


def test_a_set_tells_the_server_what_it_must_know_and_the_target_only_as_text() -> None:
    routes = RouteTable(
        (
            proxy("web", "tls://nas:443", "8080", bind_retry=RetryPolicy(1, 3, 9, 4, 0.5)),
            proxy("ssh", health_check=HealthCheck()),
        ),
        dial_seconds=10.0,
    )
    sent = routes.next_set()
    assert sent.version == 1
    assert sent.proxies == (
        ProxySpec("web", "0.0.0.0", 8001, Retry(1, 3, 9, 4, 0.5), False, "tls://nas:443, 127.0.0.1:8080"),
        ProxySpec("ssh", "0.0.0.0", 8001, None, True, "127.0.0.1:80"),
    )


def test_a_stream_names_a_proxy_by_index_and_version() -> None:
    routes = table("web", "ssh")
    routes.next_set()
    assert [found(routes, index, 1) for index in range(3)] == ["web", "ssh", None]


@pytest.mark.parametrize(
    ("index", "version"), [(2, 1), (0, 0), (0, 2), (2**32 - 1, 1), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)]
)
def test_anything_else_is_unknown(index: int, version: int) -> None:
    """B41: a malicious server that names other targets."""
    routes = table("web", "ssh")
    routes.next_set()
    assert routes.find(index, version) is None


def test_before_a_set_was_sent_nothing_is_known() -> None:
    assert table("web").find(0, 0) is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_no_number_from_the_wire_leads_elsewhere(index: int, version: int) -> None:
    routes = table("web")
    routes.next_set()
    assert found(routes, index, version) == ("web" if (index, version) == (0, 1) else None)


def test_a_change_of_the_set_does_not_race_streams_under_way() -> None:
    routes = table("web", "ssh")
    routes.next_set()
    routes.replace((proxy("ssh"), proxy("dns")))
    routes.next_set()
    assert [found(routes, index, 1) for index in (0, 1)] == [None, "ssh"]
    assert [found(routes, index, 2) for index in (0, 1)] == ["ssh", "dns"]


def test_a_proxy_that_stays_as_it_is_keeps_its_route_and_one_that_changed_does_not() -> None:
    """B35"""
    routes = table("web", "ssh")
    web, ssh = routes.routes["web"], routes.routes["ssh"]
    routes.replace((proxy("ssh", "nas:22"), proxy("web")))
    assert routes.routes["web"] is web
    assert routes.routes["ssh"] is not ssh


def test_old_sets_are_forgotten_after_a_while() -> None:
    routes = table("web")
    for _ in range(SETS_KEPT):
        routes.next_set()
    assert found(routes, 0, 1) == "web"
    routes.next_set()
    assert [found(routes, 0, version) for version in (1, 2, SETS_KEPT + 1)] == [None, "web", "web"]


def test_the_empty_set_has_a_version_of_its_own_and_streams_under_way_still_find_theirs() -> None:
    """B21"""
    routes = table("web")
    routes.next_set()
    last = routes.empty_set()
    assert (last.version, last.proxies) == (2, ())
    assert [found(routes, 0, version) for version in (1, 2)] == ["web", None]
    assert routes.next_set().version == 3


# Dialling


class Engine:
    woken = 0

    def wake(self) -> None:
        self.woken += 1

    def wall(self, stream: "Stream", exc: Exception) -> None:
        stream.asked.append(("wall", exc))


class Stream:
    """What a route asks of a stream."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.session = self
        self.engine = Engine()
        self.dialling: trio.CancelScope | None = None

    def dial(self, family: int, address: object) -> bool:
        self.asked.append(("dial", family, address))
        return True

    def connected(self, sock: object, entry: object = None) -> None:
        self.asked.append(("connected", trio.current_time()))

    def refuse(self, reason: Abort) -> None:
        self.asked.append(("refuse", reason, trio.current_time()))


LITERALS = {
    "127.0.0.1:80": (socket.AF_INET, ("127.0.0.1", 80)),
    "[::1]:80": (socket.AF_INET6, ("::1", 80)),
    "unix:/run/web": (socket.AF_UNIX, "/run/web"),
}


@pytest.mark.parametrize(("target", "address"), LITERALS.items())
def test_a_literal_address_is_dialled_in_the_relay(target: str, address: tuple[int, object]) -> None:
    stream = Stream()
    ProxyRoute(proxy("web", target), dial_seconds=10.0).dial(stream)  # type: ignore[arg-type]
    assert stream.asked == [("dial", *address)]


async def test_without_a_session_a_dial_that_waits_is_refused() -> None:
    stream = Stream()
    ProxyRoute(proxy("web", "nas:80"), dial_seconds=10.0).dial(stream)  # type: ignore[arg-type]
    assert stream.asked[0][:2] == ("refuse", Abort.SESSION_ENDED)


def lost(number: int) -> PeerLost:
    cause = OSError(number, "Connection refused" if number == errno.ECONNREFUSED else "No route to host")
    return PeerLost(f"cannot reach nas:80: {cause.strerror}", errno=number)


DIALS: dict[str, tuple[list[float | Exception], tuple[Any, ...]]] = {
    "answers": ([1.0], ("connected", 1.0)),
    "refuses": ([lost(errno.ECONNREFUSED)], ("refuse", Abort.DIAL_REFUSED, 0.0)),
    "unix socket refuses": (
        [ConnectionRefusedError(errno.ECONNREFUSED, "refused")],
        ("refuse", Abort.DIAL_REFUSED, 0.0),
    ),
    "unreachable": ([lost(errno.EHOSTUNREACH)], ("refuse", Abort.DIAL_FAILED, 0.0)),
    "no such socket": ([FileNotFoundError()], ("refuse", Abort.DIAL_FAILED, 0.0)),
    "tls breaks": ([trio.BrokenResourceError()], ("refuse", Abort.DIAL_FAILED, 0.0)),
    "hangs": ([20.0], ("refuse", Abort.DIAL_TIMEOUT, 10.0)),
    "the first that answers": ([lost(errno.ECONNREFUSED), 2.0], ("connected", 2.0)),
    "the first hangs": ([20.0, 2.0], ("connected", 7.0)),
    "both hang": ([20.0, 20.0], ("refuse", Abort.DIAL_TIMEOUT, 10.0)),
    "none of two": ([lost(errno.EHOSTUNREACH), lost(errno.ECONNREFUSED)], ("refuse", Abort.DIAL_REFUSED, 0.0)),
}


@pytest.mark.parametrize(("meets", "end"), DIALS.values(), ids=DIALS)
async def test_a_dial_that_waits_ends_in_a_connection_or_a_reason(
    meets: list[float | Exception],
    end: tuple[Any, ...],
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B25"""
    steps = iter(meets)

    async def connect_target(target: Target, stream: Stream) -> None:
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        await trio.sleep(step)
        stream.connected(None)

    monkeypatch.setattr(targets_module, "connect_target", connect_target)
    routes = RouteTable((proxy("web", *["nas:80"] * len(meets)),), dial_seconds=10.0)
    stream = Stream()
    async with trio.open_nursery() as nursery:
        routes.use(nursery)
        routes.routes["web"].dial(stream)  # type: ignore[arg-type]
    assert stream.asked == [end]


def test_a_set_with_many_targets_is_no_longer_than_a_message_may_be() -> None:
    many = table("web").routes["web"].config.targets * 100
    routes = RouteTable((ProxyConfig("web", HostPort("0.0.0.0", 8001), many),), dial_seconds=10.0)
    decode(encode(routes.next_set()))


@pytest.mark.parametrize("name", ["a..b:80", "tls://.example:443", "tls://" + "a" * 64 + ":443"])
async def test_a_name_that_cannot_be_is_told_like_one_that_is_not_there(name: str) -> None:
    with pytest.raises(PeerLost, match="no name can be spelled like that"):
        await targets_module.connect_target(parse_target(name), Stream())  # type: ignore[arg-type]


async def test_a_flood_of_tickets_is_not_kept() -> None:
    tickets = Tickets((), lambda count: None)
    for number in range(1000):
        tickets.add((str(number),))
    assert [await tickets.take() for _ in range(2)] == ["936", "937"]


async def test_a_dial_ends_with_its_visitor(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else visitors that come and go leave more dials behind than there may be streams."""

    async def connect_target(target: Target, stream: Stream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(targets_module, "connect_target", connect_target)
    routes = RouteTable((proxy("web", "nas:80"),), dial_seconds=10.0)
    stream = Stream()
    async with trio.open_nursery() as nursery:
        routes.use(nursery)
        routes.routes["web"].dial(stream)  # type: ignore[arg-type]
        await trio.sleep(1)
        assert stream.dialling is not None
        stream.dialling.cancel()
    assert (stream.asked, trio.current_time()) == ([], 1)


async def test_a_bug_in_a_dial_ends_its_stream_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect_target(target: Target, stream: Stream) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(targets_module, "connect_target", connect_target)
    routes = RouteTable((proxy("web", "nas:80"),), dial_seconds=10.0)
    stream = Stream()
    async with trio.open_nursery() as nursery:
        routes.use(nursery)
        routes.routes["web"].dial(stream)  # type: ignore[arg-type]
    assert stream.asked[0][0] == "wall"


async def test_a_dial_of_a_session_that_ends_is_over(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect_target(target: Target, stream: Stream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(targets_module, "connect_target", connect_target)
    routes = RouteTable((proxy("web", "nas:80"),), dial_seconds=10.0)
    stream = Stream()
    async with trio.open_nursery() as nursery:
        routes.use(nursery)
        routes.routes["web"].dial(stream)  # type: ignore[arg-type]
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert (stream.asked, trio.current_time()) == ([], 1)
