"""Strangers at the gate: what they hold, what it costs them, who gets in all the same; and balancers' headers."""

import errno
import json
import logging
import socket
from collections import Counter
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
from attrs import evolve
from gate_rig import PATIENT, client_context, open_descriptors, open_house, request, to_end, until
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import HostPort
from tunnel.config import Limits, ServerConfig
from tunnel.errors import Refused
from tunnel.rate_limited import Quota
from tunnel.server.app import open_server
from tunnel.server.balancers import Balancers
from tunnel.server.gate import Gate
from tunnel.server.penalties import Penalties
from tunnel.tls import TlsStream

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
SLOW = Limits()  # ten seconds for a handshake: nothing below is cut by a deadline
WRONG = request(Authorization="Bearer wrong")


def tcp(house, source="127.0.0.1"):
    """127/8 gives as many sources as a test wants."""
    sock = socket.create_connection(("127.0.0.1", house.server.where.port), source_address=(source, 0))
    sock.setblocking(False)
    return sock


async def tls(house, source="127.0.0.1", header=b""):
    sock = tcp(house, source)
    sock.send(header)
    stream = TlsStream(sock, client_context(), server_side=False, server_hostname="localhost")
    try:
        await stream.do_handshake()
    except BaseException:
        stream.abort()
        raise
    return stream


async def ask(house, head, source="127.0.0.1", header=b""):
    """The answer to a head: status, headers as text, and the JSON of its body."""
    stream = await tls(house, source, header)
    await stream.send_all(head)
    with trio.fail_after(30):
        answer = await to_end(stream)
    stream.close()
    headers, _, body = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), headers.decode().lower(), json.loads(body)


async def is_closed_unheard(house, source):
    try:
        stream = await tls(house, source)
    except (OSError, trio.BrokenResourceError):
        return True
    stream.abort()
    return False


@asynccontextmanager
async def held(house, count_by_source, data):
    """Connections that say `data` and no more, all of them accepted."""
    before = house.gate.stats()["strangers"]
    house.gate.strangers._admission.rand = lambda: 1.0  # the dice are for the newcomers
    socks = [tcp(house, source) for source, count in count_by_source.items() for _ in range(count)]
    try:
        for sock in socks:
            if data:
                sock.send(data)
        await until(lambda: house.gate.stats()["strangers"] >= before + len(socks))
        yield socks
    finally:
        for sock in socks:
            sock.close()


@pytest.fixture(autouse=True)
def charged(monkeypatch):
    """What each source was charged: a debt itself passes, on a busy machine before anybody has looked."""
    add, found = Penalties.add, Counter()

    def remember(self, source, seconds, now):
        found[source] += seconds
        return add(self, source, seconds, now)

    monkeypatch.setattr(Penalties, "add", remember)
    return found


def refusals(house):
    """Those that there were."""
    return {reason: count for reason, count in house.gate.stats()["refusals"].items() if count}


EIGHT_SOURCES = {f"127.0.0.{number}": 8 for number in range(2, 10)}


@pytest.mark.parametrize("data", [b"", HALF_A_HELLO], ids=["silence", "half a ClientHello"])
async def test_sixty_four_that_hold_a_handshake_hold_up_nobody_known(files, data):
    """B38: they had all the places, and who came next waited ten seconds."""
    async with open_house(files, SLOW) as house, held(house, EIGHT_SOURCES, data):
        with trio.fail_after(8):
            async with house.login():
                pass
        assert house.gate.stats()["strangers"] >= 64


async def test_sixty_four_that_hold_a_handshake_leave_the_rest_to_chance_and_not_to_waiting(files):
    async with open_house(files, SLOW) as house, held(house, EIGHT_SOURCES, HALF_A_HELLO):
        with trio.fail_after(8):
            assert (await ask(house, request("/"), "127.0.0.50"))[0] == 404


async def test_in_a_crowd_who_was_silent_for_three_seconds_makes_room_for_a_newcomer(files, monkeypatch):
    async with open_house(files, SLOW) as house:
        async with held(house, {f"127.0.0.{number}": 7 for number in range(2, 10)} | {"127.0.0.20": 1}, b""):
            monkeypatch.setattr("tunnel.server.admission.PATIENCE_SECONDS", 0.1)  # not before all are in
            house.gate.strangers._admission.rand = lambda: 0.0  # whoever meets a crowd is dropped
            await trio.sleep(0.1)
            assert (await ask(house, request("/"), "127.0.0.50"))[0] == 404
        assert refusals(house) == {"crowded_out": 57, "not_found": 1}


async def test_a_known_source_full_of_silence_gets_in_as_its_oldest_make_room(files, monkeypatch):
    """B38"""
    monkeypatch.setattr("tunnel.server.admission.PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("tunnel.server.admission.PER_KNOWN_SOURCE", 20)
    async with open_house(files, SLOW) as house, held(house, {"127.0.0.1": 20}, HALF_A_HELLO):
        with trio.fail_after(30):
            while await is_closed_unheard(house, "127.0.0.1"):
                await trio.sleep(0.05)
        async with house.login():
            pass


# What it costs


async def guess(house, times, source):
    return [(await ask(house, WRONG, source))[0] for _ in range(times)]


async def test_who_guesses_tokens_is_closed_unheard_and_a_good_token_from_elsewhere_works(files):
    """B40"""
    async with open_house(files) as house:
        began = trio.current_time()
        assert set(await guess(house, 3, "127.0.0.2")) == {401}
        with trio.fail_after(30):
            while not await is_closed_unheard(house, "127.0.0.2"):
                await guess(house, 1, "127.0.0.2")
        assert refusals(house)["token_refused"] in (3, 4, 5)
        now = trio.current_time()
        wait = house.gate.strangers._penalties.wait("127.0.0.2", now)
        assert wait + (now - began) > 14.0
        assert wait < 25.0
        stream = await tls(house, "127.0.0.3")
        await stream.send_all(request())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        stream.close()
        assert refusals(house)["penalty"] >= 1


async def test_beside_a_guesser_behind_one_address_good_tokens_and_tickets_are_taken(files):
    """B40: the guesser alone is told to wait."""
    async with open_house(files) as house, house.login() as (_, welcome):
        answers = [await ask(house, WRONG) for _ in range(6)]
        assert [status for status, _, _ in answers[:2]] == [401, 401]
        status, headers, body = answers[-1]
        assert (status, body["reason"]) == (429, "token_refused")
        wait = next(int(line.partition(":")[2]) for line in headers.split("\r\n") if line.startswith("retry-after:"))
        assert 20 < wait <= 30
        (await house.data_channel(welcome.tickets[0])).close()
        async with house.login(epoch=2):
            pass
        assert house.gate.stats()["penalised_sources"] == 1
        house.gate.strangers._penalties = Penalties()


async def test_a_source_is_heard_in_spite_of_a_penalty_while_a_session_lives_there(files):
    async with open_house(files) as house:
        strangers = house.gate.strangers
        for source in ("127.0.0.1", "127.0.0.2"):
            strangers._penalties.add(source, 100.0, trio.current_time())
        strangers._admission._known.clear()  # the hour since the login has passed
        assert await is_closed_unheard(house, "127.0.0.2")
        async with house.login():
            pass
        strangers._penalties = Penalties()


COSTS = {
    "silence": (b"", "silent", 5.0),
    "half a ClientHello": (HALF_A_HELLO, "slow_handshake", 5.0),
    "no TLS": (b"GET / HTTP/1.1\r\n\r\n", "tls", 1.0),
}


@pytest.mark.parametrize("what", COSTS)
async def test_before_tls_each_way_to_come_to_nothing_is_counted_and_has_its_price(files, charged, what):
    data, reason, price = COSTS[what]
    async with open_house(files, evolve(PATIENT, handshake_seconds=0.3)) as house:
        with tcp(house, "127.0.0.2") as sock:
            sock.send(data)
            await until(lambda: refusals(house) == {reason: 1})
            await until(lambda: house.gate.stats()["strangers"] == 0)
            assert charged == {"127.0.0.2": price}


HEADS = {
    "silence": (b"", "slow_head", 5.0),
    "half a head": (request()[:100], "slow_head", 5.0),
    "no HTTP": (b"\0\r\n\r\n", "bad_request", 1.0),
    "another path": (request("/"), "not_found", 1.0),
    "a wrong token": (WRONG, "token_refused", 5.0),
    "a wrong ticket": (request("/data"), "ticket_refused", 1.0),
}


@pytest.mark.parametrize("what", HEADS)
async def test_inside_tls_each_way_to_come_to_nothing_is_counted_and_has_its_price(files, charged, what):
    head, reason, price = HEADS[what]
    async with open_house(files, evolve(PATIENT, head_seconds=0.3) if reason == "slow_head" else PATIENT) as house:
        stream = await tls(house, "127.0.0.2")
        await stream.send_all(head)
        with trio.fail_after(30):
            await to_end(stream)
        stream.close()
        await until(lambda: house.gate.stats()["strangers"] == 0)
        assert refusals(house) == {reason: 1}
        assert charged == {"127.0.0.2": price}


async def test_who_leaves_without_a_word_owes_nothing_and_is_quickly_forgotten(files, charged):
    """A balancer's check, or the loser of a race of dials."""
    async with open_house(files) as house:
        for _ in range(20):
            tcp(house, "127.0.0.2").close()
        await until(lambda: refusals(house) == {"left": 20})
        assert charged == {}


async def test_who_breaks_off_in_the_midst_owes_a_second(files, charged):
    async with open_house(files) as house:
        (await tls(house, "127.0.0.2")).abort()
        await until(lambda: refusals(house) == {"left": 1})
        await until(lambda: house.gate.stats()["strangers"] == 0)
        assert charged == {"127.0.0.2": 1.0}


async def test_a_login_owes_nothing(files, charged):
    async with open_house(files) as house:
        stream = await tls(house, "127.0.0.2")
        await stream.send_all(request())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        stream.abort()
        await until(house.is_quiet)
        assert charged == {}
        assert house.gate.stats()["logins"] == 3  # the healthy client's, with its channel, and this one


async def test_what_is_told_of_many_sources_is_bounded(files, monkeypatch, caplog):
    """B37"""
    monkeypatch.setattr("tunnel.server.strangers.MAX_TOLD", 5)
    caplog.set_level(logging.INFO)
    async with open_house(files) as house:
        for number in range(12):
            await ask(house, WRONG, f"127.0.1.{number}")
        assert refusals(house) == {"token_refused": 12}
    told = [record.getMessage() for record in caplog.records if record.name == "tunnel.server.strangers"]
    assert told == [f"a wrong token from 127.0.1.{number}" for number in range(6)]


@pytest.mark.slow
async def test_logins_of_one_client_that_wait_have_a_bound(files, monkeypatch):
    """A good token is no licence to pile up."""
    monkeypatch.setattr("tunnel.server.logins.MAX_WAITING", 2)
    go_on = trio.Event()

    async def answers(self):
        await go_on.wait()
        return False

    monkeypatch.setattr("tunnel.server.session.Session.answers", answers)
    async with open_house(files, evolve(PATIENT, login_seconds=10.0)) as house, house.login():
        async with trio.open_nursery() as nursery:
            statuses = []

            async def come(number):
                stream = await tls(house)
                await stream.send_all(request(Trio_Tunnel_Instance=f"{number + 2:032x}"))
                statuses.append((await stream.receive_some())[:12])
                stream.close()

            for number in range(5):
                nursery.start_soon(come, number)
            await until(lambda: len(statuses) == 3)
            assert set(statuses) == {b"HTTP/1.1 503"}
            go_on.set()
        assert statuses.count(b"HTTP/1.1 503") == 3
        assert refusals(house)["server_busy"] == 3
        await until(house.is_quiet)


@pytest.mark.slow
async def test_a_client_that_logs_in_without_end_is_slowed_down_and_no_other(files, monkeypatch, caplog):
    """A good token is no licence to keep the server at handshakes, either."""
    shares = Quota(burst=5, per_second=0.0)
    async with open_house(files) as house:
        monkeypatch.setattr(house.gate._logins, "_shares", shares)
        for epoch in range(1, 6):  # as a client that is killed as soon as it is there: each time it is in at once
            async with house.login(epoch=epoch):
                assert len(house.gate.sessions) == 2
        for epoch in (6, 7):
            with pytest.raises(Refused, match="client 'lab' has logged in 256 times") as no:
                async with house.login(epoch=epoch):
                    pass
            assert (no.value.reason, no.value.trust) == ("server_busy", False)
        assert shares.spend("home", trio.current_time()) == 0  # the healthy client's own
        assert caplog.text.count("client 'lab' logs in again and again; refused beyond 2 times a second") == 1
        shares.per_second = 1e6  # as if it had waited
        async with house.login(epoch=8):
            assert len(house.gate.sessions) == 2


# What befalls the gate itself


class ShortListener:
    """A listener whose accept fails so often."""

    def __init__(self, listener, failures):
        self.listener = listener
        self.failures = failures
        self.asked = 0

    def accept(self):
        self.asked += 1
        if self.asked <= self.failures:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.listener.accept()

    def __getattr__(self, name):
        return getattr(self.listener, name)


@pytest.mark.slow
async def test_out_of_descriptors_the_gate_pauses_says_so_once_and_goes_on(files, caplog):
    """B39"""
    async with open_house(files) as house:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            short = ShortListener(listener, 5)
            with socket.create_connection(listener.getsockname()) as visitor:
                began = trio.current_time()
                with trio.fail_after(30):
                    while short.asked < 6:
                        await house.gate._accept(short, house.nursery)
                assert trio.current_time() - began >= 0.5
                assert house.gate.stats()["strangers"] == 1
                visitor.close()
            await until(house.is_quiet)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "accepting connections pauses: Too many open files"
    ]


@pytest.mark.slow
async def test_a_bug_behind_the_gate_is_told_once_a_minute_and_costs_its_connection(files, monkeypatch, caplog):
    async def route(self, stream, head, stranger):
        raise ExceptionGroup("several", [ZeroDivisionError("a bug"), ExceptionGroup("more", [KeyError("another")])])

    async with open_house(files) as house:
        monkeypatch.setattr(Gate, "_route", route)
        for _ in range(5):
            stream = await tls(house)
            await stream.send_all(request())
            await to_end(stream)
            stream.close()
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.getMessage() == "a connection's task failed"
    assert told.exc_info


@pytest.mark.slow
async def test_a_bug_before_a_balancers_header_was_heard_costs_its_connection_alone(files, monkeypatch, caplog):
    async def hear(self, sock):
        raise ZeroDivisionError("a bug")

    async with open_balanced(files) as house:
        monkeypatch.setattr(Balancers, "hear", hear)
        for _ in range(2):
            assert await is_closed_unheard(house, "127.0.0.2")
        assert not await is_closed_unheard(house, "127.0.0.3")
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.getMessage() == "a connection's task failed"


# Balancers


def open_balanced(files, limits=PATIENT):
    return open_house(files, limits, proxy_protocol_from=("127.0.0.2",))


def v1(source):
    return f"PROXY TCP4 {source} 198.51.100.1 56324 8443\r\n".encode()


async def test_of_a_trusted_balancer_the_headers_source_counts_and_not_its_own(files, charged):
    async with open_balanced(files) as house:
        for source in ("192.0.2.1", "192.0.2.2"):
            status, _, _ = await ask(house, WRONG, "127.0.0.2", v1(source))
            assert status == 401
        await until(lambda: house.gate.stats()["strangers"] == 0)
        assert charged == {"192.0.2.1": 5.0, "192.0.2.2": 5.0}
        house.gate.strangers._penalties.add("192.0.2.1", 20.0, trio.current_time())
        with pytest.raises((OSError, trio.BrokenResourceError)):
            await ask(house, WRONG, "127.0.0.2", v1("192.0.2.1"))
        stream = await tls(house, "127.0.0.2", b"PROXY UNKNOWN\r\n")
        await stream.send_all(request())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        assert house.gate.strangers._admission.is_known("127.0.0.2", trio.current_time())
        stream.close()


@pytest.mark.parametrize("data", [HALF_A_HELLO, b"PROXY TCP4 1.2.3.4\r\n", b"PROXY ", b""])
async def test_a_trusted_balancer_without_a_good_header_is_refused_in_time(files, data, caplog):
    async with open_balanced(files, evolve(PATIENT, head_seconds=0.3, handshake_seconds=0.3)) as house:
        with tcp(house, "127.0.0.2") as sock:
            sock.send(data)
            await until(lambda: refusals(house) == {"proxy_header": 1}, 2.0)
        await until(lambda: house.gate.stats()["strangers"] == 0)
    assert any("the PROXY header of 127.0.0.2 " in record.getMessage() for record in caplog.records)


async def test_a_balancers_check_is_no_mistake(files, caplog):
    async with open_balanced(files) as house:
        tcp(house, "127.0.0.2").close()
        await until(lambda: refusals(house) == {"left": 1})
    assert not [
        record for record in caplog.records if record.levelno >= logging.INFO and "PROXY" in record.getMessage()
    ]


async def test_from_anybody_else_the_header_is_no_tls(files, charged):
    async with open_balanced(files) as house:
        with pytest.raises((OSError, trio.BrokenResourceError)):
            await ask(house, WRONG, "127.0.0.3", v1("192.0.2.1"))
        await until(lambda: refusals(house) == {"tls": 1})
        assert "192.0.2.1" not in charged


async def test_a_server_that_closes_leaves_no_socket_of_any_phase(files):
    config = ServerConfig(
        listen=(HostPort("127.0.0.1", 0),),
        cert_file=files / "cert.pem",
        key_file=files / "key.pem",
        proxy_protocol_from=("127.0.0.2",),
    )
    before = open_descriptors()
    with ExitStack() as socks, trio.fail_after(30):
        async with open_server(config) as server:
            for source, data in (("127.0.0.2", b"PROXY"), ("127.0.0.3", b""), ("127.0.0.3", HALF_A_HELLO)):
                sock = socket.create_connection(("127.0.0.1", server.where.port), source_address=(source, 0))
                socks.enter_context(sock).send(data)
            gate = server._gate
            await until(lambda: (gate.stats()["strangers"], gate._balancers._waiting) == (2, 1))
            await wait_all_tasks_blocked(0.01)
        assert open_descriptors() == before + 3
        assert (gate.stats()["strangers"], gate._balancers._waiting) == (0, 0)
