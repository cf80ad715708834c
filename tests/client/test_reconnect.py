"""When a client tries again, in virtual time (design §5), and what its statuses say meanwhile."""

import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate, chain, cycle, islice, repeat
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, frozen
from trio.testing import MockClock, wait_all_tasks_blocked

from tunnel.addresses import HostPort, Target
from tunnel.backoff import RECONNECT
from tunnel.client import app as app_module
from tunnel.client import board as board_module
from tunnel.client.app import Client
from tunnel.client.resolver import ServerAddress
from tunnel.config import ClientConfig, Limits, ProxyConfig
from tunnel.config.actions import SetServers
from tunnel.config.diff import diff
from tunnel.errors import PeerLost, Refused, RemoteProtocolError, TunnelError
from tunnel.messages import Farewell, Goodbye, ProxyStatusUpdate, Status, Welcome

SEED = 7
WEB = ProxyConfig("web", HostPort("0.0.0.0", 8001), (Target("tcp", "127.0.0.1", 80),))
CONFIG = ClientConfig(
    (HostPort("server.example", 8443),), "token", pin=bytes(32), proxies=(WEB,), limits=Limits(max_visitors=10)
)
HEALTHY = ProxyStatusUpdate("web", Status.HEALTHY, None, None, 5, None, 0, 10, "0.0.0.0", 8001, "then")

BROKE = PeerLost("the connection broke", answered=True)
BUSY = Refused("server_busy", "too many at once", trust=False)
NO_TRUST = Refused("token_refused", "the token is not known", trust=True)
HELD = Refused("identity_held", "another process has it", trust=True)
DRAINING = Goodbye(Farewell.DRAINING)

Outcome = TunnelError | Goodbye
Step = tuple[float, float, Outcome]  # seconds until the server is reached, of the session, and how it ends


ADDRESS = ServerAddress("10.0.0.1", 8443, CONFIG.servers[0])


@frozen
class Reached:
    """In place of a connection: what becomes of it."""

    step: Step
    address: ServerAddress = ADDRESS


class World:
    """A server that goes by a script; `tries` are the times at which the client set out to reach it."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self.steps = steps
        self.tries: list[float] = []
        self.epochs: list[int] = []
        self.instances: set[str] = set()
        self.once: set[bool] = set()
        self.addresses: Iterator[ServerAddress] = repeat(ADDRESS)

    async def reach(self, dial: Callable[[], Awaitable[Any]], *, failed: Any, once: bool = False) -> Reached:
        self.tries.append(trio.current_time())
        self.once.add(once)
        step = next(self.steps)
        await trio.sleep(step[0])
        if step[1] == 0 and isinstance(step[2], PeerLost):
            raise step[2]
        return Reached(step, next(self.addresses))

    def session(self, config: ClientConfig, *, connected: Any, heard: Any, **_: Any) -> "Session":
        return Session(self, connected, heard)


class Session:
    def __init__(self, world: World, connected: Any, heard: Any) -> None:
        self._world, self._connected, self._heard = world, connected, heard
        self.control_at: ServerAddress | None = None

    async def run(self, reached: Reached, identity: Any) -> Goodbye:
        step = reached.step
        self.control_at = reached.address
        self._world.epochs.append(identity.epoch)
        self._world.instances.add(identity.instance)
        if step[1]:
            self._connected(Welcome("id", "lab", (), 10.0))
            self._heard(HEALTHY)
            await trio.sleep(step[1])
        if isinstance(step[2], Goodbye):
            return step[2]
        raise step[2]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(app_module, "Engine", lambda *_, **__: None)  # its sockets are not for here
    return Client(CONFIG)


@pytest.fixture
def play(client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Set the stage: these steps, then the last one again and again."""

    def prepare(*steps: Step) -> World:
        world = World(chain(steps, repeat(steps[-1])))
        monkeypatch.setattr(app_module, "reach", world.reach)
        monkeypatch.setattr(app_module, "ClientSession", world.session)
        random.seed(SEED)
        return world

    return prepare


async def run_for(client: Client, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await client.run()


def jittered(count: int) -> list[float]:
    """The delays of the reconnect policy under this test's dice."""
    return list(islice(RECONNECT.delays(random.Random(SEED).random), count))


@pytest.mark.parametrize("outcome", [BROKE, BUSY, RemoteProtocolError("nonsense")], ids=str)
@pytest.mark.parametrize("session", [0, 0.25])
async def test_what_answered_and_broke_is_tried_at_once_then_after_1_s_doubling_to_30_with_jitter(
    session: float, outcome: Outcome, client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """B2, B3: no retry storm, whatever a server says."""
    world = play((0, session, outcome))
    await run_for(client, 300)
    delays = [0.0, *jittered(len(world.tries) - 2)]
    assert world.tries == pytest.approx(list(accumulate((delay + session for delay in delays), initial=0)))
    assert all(delay <= bound for delay, bound in zip(delays, [0, 1, 2, 4, 8, 16, *[30] * 99], strict=False))
    assert len(world.tries) >= 15


async def test_a_server_that_only_says_goodbye_is_asked_as_often_as_one_that_does_not_answer(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """B2: a restart is no failure, however often; and no busy loop either."""
    world = play((0, 0.25, DRAINING))
    await run_for(client, 4.5)
    assert world.tries == pytest.approx([0, 0.25, 1.2, 2.15, 3.1, 4.05])


async def test_a_refusal_only_a_person_can_mend_is_tried_after_30_s_growing_to_5_min(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """B3"""
    world = play((0, 0, NO_TRUST))
    await run_for(client, 1400)
    assert world.tries == [0, 30, 90, 210, 450, 750, 1050, 1350]


async def test_a_wait_is_cut_short_on_request_and_the_next_one_is_as_long_as_ever(
    client: Client, play: Callable[..., World], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    world = play((0, 0, NO_TRUST))
    nursery.start_soon(client.run)
    await trio.sleep(12)
    assert client.close_session("whoever") == []  # no server has told it its name
    await trio.sleep(200)
    nursery.cancel_scope.cancel()
    assert world.tries == [0, 12, 72, 192]


async def test_another_token_or_another_trust_is_tried_at_once_whatever_the_wait(
    client: Client, play: Callable[..., World], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B35: who mended the file need not wait for what was wrong before."""
    world = play((0, 0, NO_TRUST))
    nursery.start_soon(client.run)
    await trio.sleep(12)
    client.apply(diff(CONFIG, evolve(CONFIG, token="another")))
    await trio.sleep(8)
    client.apply(diff(CONFIG, evolve(CONFIG, pin=b"\1" * 32)))
    await trio.sleep(8)
    client.apply(diff(CONFIG, evolve(CONFIG, resolve_seconds=5.0)))  # no reason to
    await trio.sleep(50)
    nursery.cancel_scope.cancel()
    assert world.tries == [0, 12, 20]
    assert (client.config.token, client.config.pin) == ("another", b"\1" * 32)
    assert client._dialer.pin == b"\1" * 32


async def test_a_ca_file_that_cannot_be_used_changes_nothing(client: Client, tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match="cannot use the CA file"):
        client.apply(diff(CONFIG, evolve(CONFIG, ca_file=tmp_path / "none", token="another")))
    assert client.config == CONFIG


@pytest.mark.parametrize("farewell", [Farewell.REVOKED, Farewell.VERSION_UNSUPPORTED])
async def test_a_goodbye_that_only_a_person_can_mend_is_as_slow(
    farewell: Farewell, client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = play((0, 1, Goodbye(farewell)))
    await run_for(client, 215)
    assert world.tries == [0, 31, 92, 213]


@pytest.mark.parametrize("outcome", [HELD, Goodbye(Farewell.REPLACED, "lab-2")], ids=["409", "replaced"])
async def test_a_held_identity_is_asked_for_every_30_s(
    outcome: Outcome, client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """B17: no flapping."""
    world = play((0, 0, outcome))
    await run_for(client, 200)
    assert world.tries == [0, 30, 60, 90, 120, 150, 180]


@pytest.mark.parametrize("outcome", [BROKE, DRAINING], ids=str)
async def test_a_session_of_more_than_a_minute_resets_the_counters(
    outcome: Outcome, client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    quick = (0, 0, BROKE)
    world = play(quick, quick, quick, quick, (0, 61, outcome), quick, quick, quick)
    await run_for(client, 90)
    dice = random.Random(SEED)
    delays = [0, *islice(RECONNECT.delays(dice.random), 3), 61 + 0, *islice(RECONNECT.delays(dice.random), 2)]
    assert world.tries[:8] == pytest.approx(list(accumulate(delays, initial=0)))


async def test_a_session_of_a_minute_or_less_does_not(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = play((0, 59, BROKE))
    await run_for(client, 400)
    assert world.tries == pytest.approx(
        list(accumulate((59 + delay for delay in [0, *jittered(len(world.tries) - 2)]), initial=0))
    )


async def test_a_server_that_is_killed_every_few_seconds_is_dialled_at_once_each_time(
    client: Client, play: Callable[..., World], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: while it is restarted a dial finds nobody; that is no server that breaks off again and again."""
    world = play((0.85, 5, BROKE))

    async def reach(dial: object, *, failed: Callable[[PeerLost], None], once: bool = False) -> Any:
        failed(PeerLost("cannot reach server.example:8443: Connection refused"))
        return await world.reach(dial, failed=failed, once=once)  # type: ignore[arg-type]

    monkeypatch.setattr(app_module, "reach", reach)
    await run_for(client, 100)
    assert world.tries == pytest.approx([5.85 * number for number in range(18)])


async def test_the_time_it_took_to_reach_the_server_is_no_part_of_the_session(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = play((600, 1, BROKE))
    await run_for(client, 3000)
    delays = [0, *jittered(len(world.tries) - 2)]
    assert world.tries == pytest.approx(list(accumulate((601 + delay for delay in delays), initial=0)))


async def test_a_long_session_also_resets_the_slow_counter(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    world = play((0, 0, NO_TRUST), (0, 0, NO_TRUST), (0, 100, Goodbye(Farewell.REVOKED)), (0, 0, NO_TRUST))
    await run_for(client, 300)
    assert world.tries == [0, 30, 90, 220, 280]


async def test_every_session_has_a_higher_epoch_of_one_instance(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """B14, B16"""
    world = play((0, 1, BROKE))
    await run_for(client, 60)
    assert world.epochs == list(range(1, len(world.epochs) + 1))
    assert len(world.epochs) > 5
    assert [len(instance) for instance in world.instances] == [32]


@pytest.mark.parametrize(
    ("outcome", "is_avoided"),
    [(BROKE, True), (RemoteProtocolError("nonsense"), True), (HELD, False), (DRAINING, False)],
    ids=str,
)
async def test_an_address_at_which_a_session_broke_is_not_the_first_to_be_dialled_again(
    outcome: Outcome, is_avoided: bool, client: Client, play: Callable[..., World], autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    avoided: list[ServerAddress] = []
    monkeypatch.setattr(client._turns, "avoid", avoided.append)
    play((0, 10, outcome))
    await run_for(client, 10.5)
    assert avoided == [ADDRESS] * is_avoided


# Once


ONCE = {
    "nobody there": ((0, 0, PeerLost("Connection refused")), "Connection refused", PeerLost),
    "broke": ((0, 2, BROKE), "the connection broke", PeerLost),
    "token": ((0, 0, NO_TRUST), "the token is not known", Refused),
    "busy": ((0, 0, BUSY), "too many at once", Refused),
    "nonsense": ((0, 2, RemoteProtocolError("nonsense")), "nonsense", RemoteProtocolError),
    "draining": ((0, 2, DRAINING), "the server is stopping", PeerLost),
    "stopping": ((0, 2, Goodbye(Farewell.STOPPING)), "the server is stopping", PeerLost),
    "renamed": ((0, 2, Goodbye(Farewell.STOPPING, "called 'lab' now")), "called 'lab' now", PeerLost),
    "replaced": ((0, 2, Goodbye(Farewell.REPLACED, "by lab-2")), "another client took over: by lab-2", Refused),
    "revoked": ((0, 2, Goodbye(Farewell.REVOKED)), "the token was revoked: revoked", Refused),
    "version": ((0, 2, Goodbye(Farewell.VERSION_UNSUPPORTED, "too old")), "too old", Refused),
    "our fault": (
        (0, 2, Goodbye(Farewell.PROTOCOL_ERROR, "x")),
        "the server ended the session: x",
        RemoteProtocolError,
    ),
}


@pytest.mark.parametrize(("step", "words", "kind"), ONCE.values(), ids=ONCE)
async def test_with_once_the_end_is_raised_and_nothing_is_tried_again(
    step: Step,
    words: str,
    kind: type[TunnelError],
    client: Client,
    play: Callable[..., World],
    autojump_clock: MockClock,
) -> None:
    world = play(step)
    with pytest.raises(kind) as caught:
        await client.run(once=True)
    assert str(caught.value) == words
    assert (world.tries, world.once, trio.current_time()) == ([0], {True}, step[1])
    if isinstance(caught.value, Refused):
        assert caught.value.trust is (words != "too many at once")


async def test_an_unknown_exception_is_a_bug_and_not_tried_again(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    play((0, 1, ZeroDivisionError()))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await client.run()


# Statuses


def status(client: Client) -> tuple[str, str | None, int | None, int]:
    update = client.statuses["web"]
    return update.status.value, update.reason and update.reason.value, update.retry_after_seconds, update.seq


async def test_before_the_first_session_a_proxy_is_connecting(
    client: Client, play: Callable[..., World], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    play((0, 0, NO_TRUST))
    assert status(client) == ("unhealthy", "connecting", None, 0)
    assert client.connection.state == "connecting"
    nursery.start_soon(client.run)
    await wait_all_tasks_blocked()
    assert status(client) == ("unhealthy", "connecting", 30, 0)
    assert client.statuses["web"].error_message == "the token is not known"
    nursery.cancel_scope.cancel()


async def test_a_lost_session_is_told_with_its_reason_and_counts_down(
    client: Client, play: Callable[..., World], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B6, B15"""
    play((0, 10, Goodbye(Farewell.REVOKED, "by the admin")))
    nursery.start_soon(client.run)
    await trio.sleep(5)
    assert (status(client), client.is_ready()) == (("healthy", None, None, 5), True)
    assert client.connection.detail == "lab"
    await trio.sleep(7.5)
    assert (status(client), client.is_ready()) == (("unhealthy", "session_lost", 30, 5), False)
    lost = client.statuses["web"]
    assert lost.error_message == "the token was revoked: by the admin"
    assert (lost.attempt, lost.publish_addr, lost.publish_port) == (0, "0.0.0.0", 8001)
    (session,) = client.snapshot().sessions
    assert [proxy.retry_after_seconds for proxy in session.proxies] == [28]
    assert client.connection.state == "lost"
    assert client.connection.retry_in == 30
    await trio.sleep_until(41)
    assert (status(client), client.is_ready()) == (("healthy", None, None, 5), True)
    (session,) = client.snapshot().sessions
    assert [proxy.retry_after_seconds for proxy in session.proxies] == [None]
    nursery.cancel_scope.cancel()


async def test_a_proxy_that_stays_down_keeps_the_time_since_when(
    client: Client, play: Callable[..., World], nursery: trio.Nursery, autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(board_module, "utc_now", lambda: f"at {trio.current_time():g}")
    play((0, 10, Goodbye(Farewell.REVOKED)), (0, 0, NO_TRUST))
    nursery.start_soon(client.run)
    await trio.sleep(500)
    assert client.statuses["web"].since == "at 10"
    nursery.cancel_scope.cancel()


async def test_a_status_of_a_proxy_we_do_not_publish_is_ignored(client: Client) -> None:
    """B41"""
    client._post(evolve(HEALTHY, proxy_name="other"))
    assert set(client.statuses) == {"web"}


async def test_a_follower_gets_the_newest_of_each_and_no_queue(
    client: Client, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    seen: list[tuple[int, str]] = []

    async def follow_slowly() -> None:
        async for update in client.follow():
            seen.append((update.seq, update.status.value))
            await trio.sleep(1)

    nursery.start_soon(follow_slowly)
    await wait_all_tasks_blocked()
    for seq in range(1, 1000):
        client._post(evolve(HEALTHY, seq=seq))
    await trio.sleep(10)
    assert seen == [(0, "unhealthy"), (999, "healthy")]
    nursery.cancel_scope.cancel()


async def test_waiting_for_healthy_ends_when_all_that_were_named_are(
    client: Client, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    @nursery.start_soon
    async def post() -> None:
        await trio.sleep(3)
        client._post(HEALTHY)

    await client.wait_healthy()
    assert trio.current_time() == 3
    await client.wait_healthy("web")


async def test_a_retry_without_a_session_says_what_happens_instead(client: Client) -> None:
    with pytest.raises(ValueError, match="there is no session"):
        client.retry("web")
    with pytest.raises(LookupError, match="no proxy is named 'nope'"):
        client.retry("nope")


async def test_the_log_has_a_line_for_each_loss_and_no_more(
    client: Client, play: Callable[..., World], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    play((0, 0, NO_TRUST))
    await run_for(client, 31)
    assert caplog.messages == [
        "no session: the token is not known; trying again in 30 s",
        "no session: the token is not known; trying again in 60 s",
    ]


async def test_an_address_that_refuses_does_not_keep_the_client_from_the_others(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """One of `servers` may be a stranger, or have an old certificate; where all refuse, a person has to help."""
    client.apply([SetServers((HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)))])
    world = play((0, 0, NO_TRUST))
    world.addresses = cycle(client._resolver.addresses)
    await run_for(client, 100)
    assert world.tries == [0, 0, 30, 30, 90, 90]


@pytest.mark.parametrize("reason", ["proxy_auth", "proxy_refused"])
async def test_what_the_proxy_on_the_way_refuses_is_not_asked_again_for_each_address(
    reason: str, client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    client.apply([SetServers((HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)))])
    world = play((0, 0, Refused(reason, "the proxy wants a password", trust=True)))
    world.addresses = cycle(client._resolver.addresses)
    await run_for(client, 100)
    assert world.tries == [0, 30, 90]


async def test_with_once_a_refusal_is_not_hidden_by_an_address_where_nobody_answers(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    """A name with an IPv6 address that leads nowhere: a person has to mend the token, whatever the other one says."""
    client.apply([SetServers((HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)))])
    world = play((0, 0, NO_TRUST), (0, 0, PeerLost("cannot reach 10.0.0.2:8443: Connection refused")))
    world.addresses = iter(client._resolver.addresses)
    with pytest.raises(Refused, match="the token is not known"):
        await client.run(once=True)
    assert world.tries == [0, 0]


async def test_with_once_a_session_at_the_next_address_ends_with_its_own_reason(
    client: Client, play: Callable[..., World], autojump_clock: MockClock
) -> None:
    client.apply([SetServers((HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)))])
    world = play((0, 0, NO_TRUST), (0, 2, BROKE))
    world.addresses = iter(client._resolver.addresses)
    with pytest.raises(PeerLost, match="the connection broke"):
        await client.run(once=True)


async def test_while_nobody_answers_elsewhere_the_refusal_is_told_too(
    client: Client, play: Callable[..., World], nursery: trio.Nursery, autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client.apply([SetServers((HostPort("10.0.0.1", 8443), HostPort("10.0.0.2", 8443)))])
    world = play((0, 0, NO_TRUST), (0, 5, BROKE))
    world.addresses = cycle(client._resolver.addresses)

    async def reach(dial: object, *, failed: Callable[[PeerLost], None], once: bool = False) -> Any:
        if world.tries:
            failed(PeerLost("cannot reach 10.0.0.2:8443: Connection refused"))
            await trio.sleep(10)
        return await world.reach(dial, failed=failed, once=once)  # type: ignore[arg-type]

    monkeypatch.setattr(app_module, "reach", reach)
    nursery.start_soon(client.run)
    await trio.sleep(5)
    told = "the token is not known; cannot reach 10.0.0.2:8443: Connection refused"
    assert (client.connection.detail, client.statuses["web"].error_message) == (told, told)
    await trio.sleep(6)
    assert client.connection.detail == "lab"
    await trio.sleep(5)
    assert client.connection.detail == "cannot reach 10.0.0.2:8443: Connection refused"  # the refusal is of the past
    nursery.cancel_scope.cancel()


async def test_that_nobody_answers_is_one_event_however_often_it_is_tried(client: Client) -> None:
    for words in ("nobody is there", "nobody is there", "the network is down", "the network is down"):
        client._unanswered(PeerLost(words))
    told = [event.fields["detail"] for event in client.events.recent if event.kind == "session.connecting"]
    assert told == ["nobody is there", "the network is down"]
