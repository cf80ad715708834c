"""The pool as a library: what is shared and what never is, what is used again, and services that do not behave."""

import errno
import json
import os
import ssl

import pytest
import trio
from tls_service import LINE, authority, serving

import tunnel
from tunnel.backoff import LinearPolicy
from tunnel.certificates import spki_pin
from tunnel.faults import Kind, Phase
from tunnel.pool.connections import parse_url
from tunnel.pool.names import MAX_ADDRESSES, Names

QUICK = tunnel.PoolConfig(
    open_seconds=0.5, validate_seconds=0.5, wait_seconds=5.0, retry=LinearPolicy(step=0.0, max_retries=2)
)


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return path


@pytest.fixture
async def service():
    async with serving(names=("localhost", "other.test")) as service:
        yield service


@pytest.fixture
async def pool(ca):
    async with tunnel.open_pool(QUICK, ca_file=ca) as pool:
        yield pool


def url_of(service, host="localhost", scheme="https"):
    return f"{scheme}://{host}:{service.port}/"


async def ask(pool, service, **options):
    """One exchange over a connection of the pool; whether the connection was hot."""
    async with pool.connect(options.pop("url", url_of(service)), to=options.pop("to", service.address)) as stream:
        await exchange(stream)
        return stream.was_hot


async def exchange(stream):
    await stream.send_all(b"?")
    assert await stream.receive_some() == LINE


async def fault_of(pool, url, to="127.0.0.1"):
    with pytest.raises(tunnel.Unavailable) as caught:
        async with pool.connect(url, to=to):
            pytest.fail("it was lent")
    return caught.value.fault


async def test_the_name_comes_from_the_url_and_the_address_from_the_choice(pool):
    async with serving(address="127.0.3.7", names=("host.test",)) as service:
        async with pool.connect(f"https://host.test:{service.port}/path?query", to="127.0.3.7") as stream:
            await exchange(stream)
            assert stream.address == "127.0.3.7"
        assert service.names == ["host.test"]


async def test_a_connection_that_was_given_back_is_used_again(pool, service):
    assert [await ask(pool, service) for _ in range(4)] == [False, True, True, True]
    assert service.handshakes == 1


async def test_users_at_the_same_time_have_a_connection_each(pool, service):
    async with (
        pool.connect(url_of(service), to="127.0.0.1") as one,
        pool.connect(url_of(service), to="127.0.0.1") as two,
    ):
        await exchange(one)
        await exchange(two)
    assert service.handshakes == 2


async def test_two_names_at_one_address_never_share_a_connection(pool, service):
    for host in ("localhost", "other.test", "localhost", "other.test"):
        await ask(pool, service, url=url_of(service, host))
    assert service.names == ["localhost", "other.test"]


async def test_two_addresses_of_one_name_never_share_a_connection(pool, service):
    async with serving(address="127.0.0.2", port=service.port) as second:
        await ask(pool, service)
        await ask(pool, second)
        assert (service.handshakes, second.handshakes) == (1, 1)


async def test_tls_and_plain_tcp_to_one_address_never_share_a_connection(pool):
    async with serving(tls=False) as plain:
        await ask(pool, plain, url=url_of(plain, scheme="http"))
        fault = await fault_of(pool, url_of(plain))
        assert (fault.phase, plain.received[:1]) == (Phase.HANDSHAKE, [b"?"])


async def leave_by_an_exception(stream):
    raise KeyError


async def discard(stream):
    stream.discard()


async def close(stream):
    await stream.aclose()


async def stop_waiting(stream):
    with trio.move_on_after(0.01):
        await stream.receive_some()


async def read_to_the_end(stream):
    await stream.send_all(b"end")
    assert await stream.receive_some() == b""


@pytest.mark.parametrize("leave", [leave_by_an_exception, discard, close, stop_waiting, read_to_the_end])
async def test_a_connection_in_doubt_is_not_used_again(pool, service, leave):
    service.behave = "ends" if leave is read_to_the_end else "is silent"
    try:
        async with pool.connect(url_of(service), to="127.0.0.1") as stream:
            await leave(stream)
    except KeyError:
        assert leave is leave_by_an_exception
    service.behave = "answers"
    assert not await ask(pool, service)
    assert service.handshakes == 2


async def test_what_a_user_left_unread_is_not_read_by_the_next_one(pool, service):
    service.answer = b"an answer that was not read"
    async with pool.connect(url_of(service), to="127.0.0.1") as stream:
        await stream.send_all(b"?")
        await stream.receive_some(2)
    service.answer = LINE
    assert not await ask(pool, service)


async def test_a_stream_that_was_given_back_is_of_no_use_to_who_kept_it(pool, service):
    async with pool.connect(url_of(service), to="127.0.0.1") as kept:
        await exchange(kept)
    async with pool.connect(url_of(service), to="127.0.0.1") as stream:
        for use in (kept.send_all(b"?"), kept.receive_some(), kept.wait_send_all_might_not_block()):
            with pytest.raises(trio.ClosedResourceError):
                await use
        kept.discard()
        await exchange(stream)


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_connection_that_died_while_idle_is_replaced_at_once_and_unseen(pool, service, how):
    await ask(pool, service)
    raw = service.streams[0].transport_stream
    if how == "RST":
        raw.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raw.socket.close()
    began = trio.current_time()
    assert not await ask(pool, service)
    assert trio.current_time() - began < 1
    assert pool.stats()["retired"] == {"dead": 1}


async def test_an_idle_connection_that_fails_its_check_is_found_by_a_probe(ca, service):
    checked = trio.Event()

    async def check(stream, url):
        if service.received:
            checked.set()
            raise tunnel.RemoteProtocolError("not any more")

    config = tunnel.PoolConfig(probe_interval=0.02)
    async with tunnel.open_pool(config, ca_file=ca, check=check) as pool:
        await ask(pool, service)
        with trio.fail_after(2):
            await checked.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert pool.stats()["retired"] == {"dead": 1}


async def test_a_wrong_name_is_refused_and_not_tried_again(pool, service):
    fault = await fault_of(pool, url_of(service, "wrong.test"))
    assert (fault.phase, fault.kind, fault.retryable) == (Phase.HANDSHAKE, Kind.CERTIFICATE, False)
    assert (service.accepted, service.received) == (1, [])


async def test_an_unknown_authority_is_refused(service):
    async with tunnel.open_pool(QUICK) as pool:
        assert (await fault_of(pool, url_of(service))).kind == Kind.CERTIFICATE


async def test_a_pin_alone_is_proof_and_a_wrong_one_none(service, ca):
    der = ssl.PEM_cert_to_DER_cert(
        await trio.to_thread.run_sync(ssl.get_server_certificate, ("127.0.0.1", service.port))
    )
    async with tunnel.open_pool(QUICK, pin=spki_pin(der)) as pool:
        await ask(pool, service, url=url_of(service, "any.test"))
    for ca_file in (None, ca):
        async with tunnel.open_pool(QUICK, ca_file=ca_file, pin=bytes(32)) as pool:
            assert (await fault_of(pool, url_of(service))).kind == Kind.CERTIFICATE
    assert service.received == [b"?"]


@pytest.mark.parametrize(
    ("behaviour", "phase", "kind"),
    [("hangs", Phase.HANDSHAKE, Kind.TIMEOUT), ("resets", Phase.HANDSHAKE, Kind.RESET)],
)
@pytest.mark.slow
async def test_a_hostile_handshake_ends_in_time_after_every_retry(pool, service, behaviour, phase, kind):
    service.behave = behaviour
    began = trio.current_time()
    fault = await fault_of(pool, url_of(service))
    assert (fault.phase, fault.kind, service.accepted) == (phase, kind, 1 + QUICK.retry.max_retries)
    assert trio.current_time() - began < 3
    assert pool.stats()["retries"] == {f"{phase}.{kind}": QUICK.retry.max_retries}


async def test_a_refusal_is_told_and_the_next_try_may_go_well(ca):
    async with serving() as service:
        pass
    async with tunnel.open_pool(QUICK, ca_file=ca) as pool:
        fault = await fault_of(pool, url_of(service))
        assert (fault.phase, fault.kind) == (Phase.DIAL, Kind.REFUSED)
        async with serving(port=service.port) as service:
            await ask(pool, service)


async def test_a_request_outlives_a_handshake_that_was_reset(pool, service):
    service.behave = "resets"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, pool, service)
        while service.accepted < 1:
            await trio.sleep(0.001)
        service.behave = "answers"
    assert service.handshakes == 1


async def test_a_trickling_answer_does_not_keep_a_check_for_ever(ca, service):
    async def check(stream, url):
        await stream.send_all(b"?")
        while await stream.receive_some():
            pass

    service.behave = "trickles"
    config = tunnel.PoolConfig(validate_seconds=0.05, retry=LinearPolicy(max_retries=0))
    async with tunnel.open_pool(config, ca_file=ca, check=check) as pool:
        fault = await fault_of(pool, url_of(service))
    assert (fault.phase, fault.kind) == (Phase.VALIDATE, Kind.TIMEOUT)


async def test_http_check_validates_each_new_connection_once(ca, service):
    service.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + LINE
    async with tunnel.open_pool(QUICK, ca_file=ca, check=tunnel.http_check("/healthz")) as pool:
        for _ in range(2):
            async with pool.connect(url_of(service), to="127.0.0.1"):
                pass
    (asked,) = service.received
    assert asked.startswith(f"GET /healthz HTTP/1.1\r\nHost: localhost:{service.port}\r\n".encode())


async def test_a_service_that_answers_wrongly_is_never_lent(ca, service):
    service.answer = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
    async with tunnel.open_pool(QUICK, ca_file=ca, check=tunnel.http_check("/healthz")) as pool:
        fault = await fault_of(pool, url_of(service))
    assert (fault.phase, fault.kind, fault.retryable) == (Phase.VALIDATE, Kind.PROTOCOL, False)
    assert "status 500, not 200" in fault.message
    assert service.accepted == 1


async def test_a_warm_up_opens_each_address_once_and_says_why_others_are_not(pool, service):
    async with serving(address="127.0.0.3", port=service.port) as third:
        done = await pool.warm(url_of(service), to=["127.0.0.1", "127.0.0.3", "127.0.0.1", "127.0.0.4"])
        assert done.opened == 2
        assert {address: fault.kind for address, fault in done.failed.items()} == {"127.0.0.4": Kind.REFUSED}
        assert await ask(pool, service)
        assert await ask(pool, third)
        assert (await pool.warm(url_of(service), to=["127.0.0.1"])).opened == 1
        assert (service.handshakes, third.handshakes) == (1, 1)


class Resolver(trio.abc.HostnameResolver):
    """Knows `host.test`, which stands for the addresses given, and counts."""

    def __init__(self, *addresses):
        self.addresses = addresses
        self.asked = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        self.asked += 1
        if host != b"host.test":
            raise trio.socket.gaierror(trio.socket.EAI_NONAME, "Name or service not known")
        return [(trio.socket.AF_INET, type, proto, "", (address, port or 0)) for address in self.addresses]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def resolver():
    resolver = Resolver("127.0.0.1", "127.0.0.2")
    before = trio.socket.set_custom_hostname_resolver(resolver)
    yield resolver
    trio.socket.set_custom_hostname_resolver(before)


async def test_without_an_address_the_least_used_one_of_the_name_is_taken(resolver, pool):
    async with (
        serving(names=("host.test",)) as first,
        serving(address="127.0.0.2", port=first.port, names=("host.test",)) as second,
        pool.connect(url_of(first, "host.test")) as one,
        pool.connect(url_of(first, "host.test")) as two,
    ):
        assert (one.address, two.address) == ("127.0.0.1", "127.0.0.2")
        await exchange(one)
        await exchange(two)
        assert (first.handshakes, second.handshakes, resolver.asked) == (1, 1, 1)


async def test_an_address_of_the_name_that_refuses_is_passed_over(resolver, pool):
    async with serving(address="127.0.0.2", names=("host.test",)) as second:
        for hot in (False, True):
            assert await ask(pool, second, url=url_of(second, "host.test"), to=None) is hot


async def test_of_a_name_with_thousands_of_addresses_the_first_are_used(resolver):
    resolver.addresses = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(5000)]
    assert await Names().resolve("host.test") == resolver.addresses[:MAX_ADDRESSES]


async def test_when_the_resolver_fails_retries_are_within_the_budget(resolver, pool, monkeypatch):
    async def getaddrinfo(*args, **kwargs):
        resolver.asked += 1
        raise trio.socket.gaierror(trio.socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(resolver, "getaddrinfo", getaddrinfo)
    async with trio.open_nursery() as users:
        for _ in range(100):
            users.start_soon(fault_of, pool, "https://host.test", None)
    assert 101 <= resolver.asked <= 110  # each alone would have tried three times; two a second are free
    assert pool.stats()["denied_retries"] >= 90


async def test_a_name_nobody_knows_is_told_at_once(resolver, pool):
    fault = await fault_of(pool, "https://nobody.test", to=None)
    assert (fault.phase, fault.kind) == (Phase.RESOLVE, Kind.UNKNOWN_NAME)
    assert resolver.asked == 1
    assert pool.stats()["failures"] == {"resolve.unknown_name": 1}


async def test_an_address_in_the_url_is_its_own_candidate(pool):
    async with serving(names=("127.0.0.1",)) as service:
        await ask(pool, service, url=url_of(service, "127.0.0.1"), to=None)


async def test_ipv6_addresses_are_written_plainly_and_known_by_any_spelling(pool):
    try:
        async with serving(address="::1") as service:
            await ask(pool, service, to="::1")
            assert await ask(pool, service, to="0:0:0:0:0:0:0:1")
    except* OSError as group:
        if group.exceptions[0].errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:80", "write https://HOST"),
        ("ftp://localhost", "write https://HOST"),
        ("https://", "names no host"),
        ("https://me:secret@localhost", "without a user"),
        ("https://localhost:0", "1 to 65535"),
        ("https://localhost:70000", "1 to 65535"),
        ("https://localhost:http", "1 to 65535"),
    ],
)
async def test_a_url_that_leads_nowhere_is_refused_before_anything_is_done(pool, url, why):
    with pytest.raises(ValueError, match=why):
        async with pool.connect(url):
            pass
    assert pool.stats()["misses"] == 0


async def test_an_address_must_be_numeric(pool):
    with pytest.raises(ValueError, match="is not an IP address"):
        async with pool.connect("https://localhost", to="localhost"):
            pass


def test_ports_that_go_without_saying_are_left_out_of_an_origin():
    origins = ("https://a.test", "https://a.test:8443", "http://a.test", "http://a.test:443", "https://[::1]:1")
    assert [parse_url(f"{origin}/path").origin for origin in origins] == list(origins)
    assert parse_url("https://A.test:443") == parse_url("https://a.test/other")


async def test_leaving_the_pool_closes_every_connection_and_nothing_is_left_open(ca, service):
    before = len(os.listdir("/proc/self/fd"))

    async def leave_by_an_exception():
        async with tunnel.open_pool(QUICK, ca_file=ca) as pool:
            await pool.warm(url_of(service), to=["127.0.0.1"])
            raise KeyError

    with pytest.raises(KeyError):
        await leave_by_an_exception()
    while len(os.listdir("/proc/self/fd")) > before:  # the service's end goes when it has noticed
        await trio.sleep(0.001)


async def test_who_gives_up_waiting_leaves_nothing(ca, service):
    service.behave = "hangs"
    async with tunnel.open_pool(tunnel.PoolConfig(open_seconds=5.0), ca_file=ca) as pool:
        with trio.move_on_after(0.05):
            await ask(pool, service)
        stats = pool.stats()
        assert (stats["lent"], stats["waiting"]) == (0, 0)


async def test_who_keeps_a_connection_too_long_is_named(ca, service):
    async with tunnel.open_pool(tunnel.PoolConfig(lease_seconds=0.02), ca_file=ca) as pool:
        async with pool.connect(url_of(service), to="127.0.0.1", owner="the night job"):
            with trio.fail_after(2):
                while not pool.stats()["leaks"]:
                    await trio.sleep(0.005)
        assert pool.stats()["leaks"] == {"the night job": 1}


async def test_statistics_are_fit_for_json_and_name_the_endpoint(pool, service):
    await ask(pool, service)
    stats = json.loads(json.dumps(pool.stats()))
    assert list(stats["addresses"]) == [f"https://localhost:{service.port} at 127.0.0.1:{service.port}"]
    assert (stats["handshakes"], stats["leases"], stats["reuse"]) == (1, 1, 0.0)


async def test_a_ca_file_that_is_none_ends_the_start(tmp_path):
    with pytest.raises(tunnel.TunnelError, match=r"cannot use the CA file .*nowhere\.pem"):
        async with tunnel.open_pool(ca_file=tmp_path / "nowhere.pem"):
            pass
