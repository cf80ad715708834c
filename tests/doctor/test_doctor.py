"""`trio-tunnel doctor` against real servers, proxies and services on loopback: what it says, and what it leaves."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from attrs import define, evolve
from forward_rig import Proxy
from relay_rig import echo, quiet, start_target, until

import tunnel
from tunnel.addresses import HostPort, Target
from tunnel.certificates import certificate_pin_of_file, make_self_signed, pin_text
from tunnel.config import ClientConfig, Grant, HealthCheck, ProxyConfig, ServerConfig
from tunnel.doctor import findings, here, network, trust, visit
from tunnel.doctor.examine import examine
from tunnel.doctor.findings import Finding, Report, Verdict
from tunnel.errors import Mistake
from tunnel.server import logins

TOKEN = "a-token-of-more-than-forty-characters-0123456789"
ORDER = [
    "program", "descriptors", "dns", "tcp", "tls", "certificate", "clock", "websocket", "token", "latency", "channel",
    "port", "target",
]  # fmt: skip
OK, WARN, FAIL, SKIP = Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.SKIP


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is slow here is the machine, and no warning."""
    monkeypatch.setattr(visit, "SLOW_SECONDS", 60.0)


@define
class House:
    """A server, a config for it, and an echoing service."""

    server: tunnel.Server
    config: ClientConfig
    service: int

    def publishing(self, name: str = "web", port: int = 0, target: int | None = None, **more: Any) -> ClientConfig:
        to = Target("tcp", "127.0.0.1", self.service if target is None else target)
        proxy = ProxyConfig(name, HostPort("127.0.0.1", port), (to,), **more)
        return evolve(self.config, proxies=(*self.config.proxies, proxy))


@cache
def pair() -> tuple[bytes, bytes]:
    """Making one takes a third of a second, or more on a loaded machine."""
    return make_self_signed(())


@asynccontextmanager
async def open_house(tmp_path: Path, server: dict[str, Any] | None = None, **grant: Any) -> AsyncIterator[House]:
    client = Grant("home", tunnel.hash_token(TOKEN), **{"allow_ports": None, **grant})
    for name, pem in zip(("server.crt", "server.key"), pair(), strict=True):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(pem)
    config = ServerConfig((HostPort("127.0.0.1", 0),), state_dir=tmp_path, clients=(client,), **(server or {}))
    async with trio.open_nursery() as nursery:
        _, service = await start_target(nursery, quiet(echo))
        running = await nursery.start(tunnel.serve, config)
        pin = certificate_pin_of_file(running.cert_file)
        yield House(running, ClientConfig((running.where,), TOKEN, pin=pin), service)
        nursery.cancel_scope.cancel()


async def look(config: ClientConfig, **more: Any) -> Report:
    report = Report()
    with trio.fail_after(60):
        await examine(config, report, **more)
    return report


def verdicts(report: Report) -> dict[str, Verdict]:
    return {finding.check: finding.verdict for finding in report.findings}


def of(report: Report, check: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.check == check]
    return finding


def assert_skipped_from(report: Report, check: str) -> None:
    """Everything behind it until the services beside us."""
    for name in ORDER[ORDER.index(check) : -1]:
        assert of(report, name).verdict is SKIP, name
        assert of(report, name).message


async def test_where_all_is_well_each_step_has_one_line_in_order(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        report = await look(house.publishing())
        assert verdicts(report) == dict.fromkeys(ORDER, OK)
        assert [finding.check for finding in report.findings] == ORDER
        assert (report.exit_code, report.summary) == (0, "all is well")
        assert "verified by the pin; TLSv1.3" in of(report, "tls").message
        assert of(report, "token").message.startswith("good, of client 'home'; nobody else")
        timed = {finding.check for finding in report.findings if finding.seconds is not None}
        assert timed == {"tcp", "tls", "websocket", "latency", "channel", "target"}


async def test_it_leaves_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Not even the port that was chosen for a moment: the client that comes chooses, and is remembered."""
    async with open_house(tmp_path) as house:
        port = int(of(await look(house.publishing()), "port").message.split()[1].rpartition(":")[2])
        await until(lambda: not house.server.snapshot().sessions)
        with socket.create_server(("127.0.0.1", port)):
            async with tunnel.connect(house.publishing()) as client:
                await client.wait_healthy()
                assert client.statuses["web"].publish_port != port


async def test_it_is_not_taken_for_the_return_of_a_client_that_is_away(tmp_path: Path) -> None:
    """By who watches: neither history nor notices hear of it."""
    async with open_house(tmp_path) as house:
        async with tunnel.connect(house.publishing()) as client:
            await client.wait_healthy()
        await until(lambda: house.server.events.recent[-1].kind == "session.ended")
        before = [event.id for event in house.server.events.recent]
        assert (await look(house.publishing())).exit_code == 0
        await until(lambda: not house.server.snapshot().sessions)
        assert [event.id for event in house.server.events.recent] == before


async def test_its_ports_serve_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither it nor a client that says of itself that it only looks, and would not be heard of."""
    tell, seen = visit.Visit._report_port, []
    async with open_house(tmp_path) as house, trio.open_nursery() as nursery:

        async def come(port: int) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"hello")
            with suppress(trio.BrokenResourceError):
                seen.append(await stream.receive_some())
            await stream.aclose()
            seen.append(b"gone")

        def tell_and_come(self: Any, update: Any, **more: Any) -> None:
            tell(self, update, **more)
            nursery.start_soon(come, update.publish_port)

        async def stay(self: Any) -> None:
            await publish(self)
            await trio.testing.wait_all_tasks_blocked(0.05)
            (session,) = house.server.snapshot().sessions
            assert [proxy.visitors_total for proxy in session.proxies] == [0]

        publish = visit.Visit._publish
        monkeypatch.setattr(visit.Visit, "_report_port", tell_and_come)
        monkeypatch.setattr(visit.Visit, "_publish", stay)
        report = await look(house.publishing())
        with trio.fail_after(30):
            await until(lambda: b"gone" in seen)
    assert of(report, "port").verdict is OK
    assert seen in ([b"gone"], [b"", b"gone"])


async def test_who_says_to_look_only_may_do_so_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "LOOK_SECONDS", 2.5)  # time to be greeted, also on a machine that stands still

    async def beat_for_ever(stay: Any) -> None:
        await stay._hear(lambda _message: False)

    monkeypatch.setattr(visit.Visit, "_beat", beat_for_ever)
    async with open_house(tmp_path) as house:
        report = await look(house.config)
    assert (of(report, "token").verdict, of(report, "latency").verdict) == (OK, FAIL)


async def test_a_living_session_is_told_of_and_not_disturbed(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        async with tunnel.connect(house.publishing()) as client:
            await client.wait_healthy()
            (before,) = house.server.snapshot().sessions
            stream = await trio.open_tcp_stream("127.0.0.1", client.statuses["web"].publish_port)
            await stream.send_all(b"hello")
            report = await look(house.publishing())
            (after,) = house.server.snapshot().sessions
            assert after.since == before.since
            assert await stream.receive_some() == b"hello"
            await stream.aclose()
        assert report.exit_code == 0
        assert "client 'home' is connected from another process since" in of(report, "token").message
        for check in ("latency", "channel", "port"):
            assert of(report, check).verdict is SKIP
            assert "left alone" in of(report, check).message


async def test_a_client_that_comes_meanwhile_has_the_place_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = trio.Event()

    async def beat_for_ever(stay: Any) -> None:
        looking.set()
        await stay._hear(lambda _message: False)

    monkeypatch.setattr(visit.Visit, "_beat", beat_for_ever)
    async with open_house(tmp_path) as house, trio.open_nursery() as nursery:
        report = Report()
        nursery.start_soon(examine, house.config, report)
        await looking.wait()
        async with tunnel.connect(house.publishing()) as client:
            with trio.fail_after(30):
                await client.wait_healthy()
                await until(lambda: "target" in verdicts(report))
        assert "came meanwhile" in of(report, "latency").message
        assert (of(report, "token").verdict, of(report, "port").verdict) == (OK, SKIP)
        assert report.exit_code == 0


async def test_a_wrong_token_is_refused_trust(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        report = await look(evolve(house.config, token="wrong-" + TOKEN))
        assert (of(report, "websocket").verdict, of(report, "token").verdict) == (OK, FAIL)
        assert "token new" in of(report, "token").remedy
        assert report.exit_code == 3
        assert_skipped_from(report, "latency")


async def test_a_penalty_for_guesses_from_here_is_named_as_what_it_may_be(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        for _ in range(3):
            wrong = await look(evolve(house.config, token="wrong-" + TOKEN))
        assert (of(wrong, "token").verdict, wrong.exit_code) == (FAIL, 3)
        report = await look(house.config)
        failed = next(finding for finding in report.findings if finding.verdict is FAIL)
        assert failed.check in ("tls", "tcp")  # as quickly as the server closed it
        assert "too many wrong tokens" in failed.remedy
        assert_skipped_from(report, "certificate")


async def test_without_a_token_all_else_is_looked_at(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        report = await look(evolve(house.publishing(), token=""))
        assert of(report, "clock").verdict is OK
        assert_skipped_from(report, "websocket")
        assert (of(report, "target").verdict, report.exit_code) == (OK, 0)


async def test_a_token_file_that_cannot_be_used_fails_as_a_line(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        mistake = Mistake("home.token", 0, "", "", "can be read by others (mode 0644)", "run: chmod 600 home.token")
        report = await look(evolve(house.config, token=""), token_problem=mistake)
        assert of(report, "token").message == "home.token: can be read by others (mode 0644)"
        assert of(report, "token").remedy == "run: chmod 600 home.token"
        assert report.exit_code == 1


async def test_a_wrong_pin_ends_before_a_secret_is_sent(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        report = await look(evolve(house.config, pin=bytes(32)))
        assert (of(report, "tls").verdict, report.exit_code) == (FAIL, 3)
        assert "not the pinned" in of(report, "tls").message
        assert_skipped_from(report, "certificate")


async def test_a_server_that_wants_a_certificate_and_gets_none_or_another_is_told(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "clients.pem")
    pairs = {}
    for name, issuer in (("good", ca), ("bad", other)):
        issued = issuer.issue_cert("client.example")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        pairs[name] = {"cert_file": tmp_path / f"{name}.pem", "key_file": tmp_path / f"{name}.key"}
    async with open_house(tmp_path, server={"client_ca_file": tmp_path / "clients.pem"}) as house:
        for more, words in (({}, "it wants one, and none was given"), (pairs["bad"], "it does not know the CA")):
            report = await look(evolve(house.config, **more))
            assert words in of(report, "tls").message
            assert "client_ca_file" in of(report, "tls").remedy
            assert_skipped_from(report, "certificate")
            assert report.exit_code == 3
        assert (await look(evolve(house.config, **pairs["good"]))).exit_code == 0


async def test_a_server_that_stops_is_no_wrong_token(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.server._gate.is_draining = True
        report = await look(house.config)
    assert (of(report, "token").verdict, report.exit_code) == (WARN, 0)
    assert "the server is stopping" in of(report, "token").message
    assert_skipped_from(report, "latency")


async def test_an_untrusted_certificate_is_shown_with_its_pin(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        report = await look(evolve(house.config, pin=None))
        finding = of(report, "tls")
        assert "not trusted: self-signed certificate (it ends 20" in finding.message
        assert house.config.pin is not None
        assert pin_text(house.config.pin) in finding.remedy
        assert report.exit_code == 3


async def test_nobody_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        report = await look(ClientConfig((HostPort(*nobody.getsockname()),), TOKEN, pin=bytes(32)))
    assert "Connection refused" in of(report, "tcp").message
    assert "trio-tunnel serve" in of(report, "tcp").remedy
    assert_skipped_from(report, "tls")
    assert report.exit_code == 1


async def test_one_address_that_is_down_beside_one_that_is_up_is_a_warning(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            servers = (HostPort(*nobody.getsockname()), *house.config.servers)
            report = await look(evolve(house.config, servers=servers))
        assert [finding.verdict for finding in report.findings if finding.check == "tcp"] == [WARN, OK]
        assert report.exit_code == 0


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_args: object, **_more: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    report = await look(ClientConfig((HostPort("tunnel.invalid", 1),), TOKEN))
    assert "cannot be resolved (Name or service not known)" in of(report, "dns").message
    assert_skipped_from(report, "tcp")


async def test_at_most_four_addresses_shake_hands_so_that_no_penalty_comes_of_it(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        port = house.server.where.port
        monkey = [network.ServerAddress("127.0.0.1", port, HostPort(f"n{n}", port)) for n in range(9)]

        async def names(_config: object, _report: object) -> list[network.ServerAddress]:
            return monkey

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(network, "_check_names", names)
            report = await look(house.config)
        assert sum(finding.check == "tcp" for finding in report.findings) == 9
        assert sum(finding.check == "tls" for finding in report.findings) == network.MAX_HANDSHAKES
        assert of(report, "token").verdict is OK


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_something_else_that_listens_there_is_told(nursery: trio.Nursery, says: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(says)
        await stream.receive_some()

    where = HostPort(*await start_target(nursery, quiet(serve)))
    report = await look(ClientConfig((where,), TOKEN, pin=bytes(32)))
    assert of(report, "tls").verdict is FAIL
    assert of(report, "tls").remedy
    assert_skipped_from(report, "certificate")


async def test_something_that_never_answers_is_cut_by_the_deadline(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "STEP_SECONDS", 0.05)

    async def hang(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    where = HostPort(*await start_target(nursery, hang))
    report = await look(ClientConfig((where,), TOKEN, pin=bytes(32)))
    assert "does not shake hands within 0.05 s" in of(report, "tls").message


HTML = b"HTTP/1.1 {} No\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope"


async def test_a_web_server_that_knows_no_upgrade_is_told_from_a_server_of_ours(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, context, server_side=True, https_compatible=True) as tls:
            await tls.receive_some()
            await tls.send_all(HTML.replace(b"{}", b"404"))

    where = HostPort(*await start_target(nursery, quiet(serve)))
    report = await look(ClientConfig((where,), TOKEN, ca_file=tmp_path / "ca.pem"))
    assert "the CA in" in of(report, "tls").message
    assert of(report, "clock").verdict is SKIP  # it sends no Date
    assert "does not upgrade /control: HTTP 404" in of(report, "websocket").message
    assert "must pass WebSockets" in of(report, "websocket").remedy
    assert_skipped_from(report, "token")
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("off", "verdict", "words"), [(5, OK, "s from"), (3600, WARN, "ahead of"), (-60, WARN, "behind")]
)
async def test_a_clock_that_is_off_is_told_with_its_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: int, verdict: Verdict, words: str
) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=off)

    monkeypatch.setattr(trust, "datetime", Now)
    async with open_house(tmp_path) as house:
        finding = of(await look(house.config), "clock")
    assert finding.verdict is verdict
    assert words in finding.message


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [(400, OK, "in 399 days"), (13, WARN, "in 12 days"), (-2, WARN, "days ago; who has its pin")],
)
def test_a_certificates_end_is_a_warning_two_weeks_before(days: int, verdict: Verdict, words: str) -> None:
    ca = trustme.CA()
    ends = datetime.now(UTC) + timedelta(days=days)
    issued = ca.issue_cert("a.example", not_after=ends, not_before=ends - timedelta(days=500))
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    report = Report()
    trust._check_certificate(der, report)
    assert report.findings[0].verdict is verdict
    assert words in report.findings[0].message


async def test_a_port_that_is_taken_and_one_that_is_not_allowed_fail_with_their_remedies(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        ranges = (tunnel.PortRange(taken, taken),)
        async with open_house(tmp_path, allow_ports=ranges) as house:
            web, mail = house.publishing("web", taken).proxies, house.publishing("mail", 25).proxies
            config = evolve(house.config, proxies=(*web, *mail))
            report = await look(config)
    ports = {finding.message.partition(":")[0]: finding for finding in report.findings if finding.check == "port"}
    assert f"Port {taken} is already in use" in ports["web"].message
    assert "free it at the server" in ports["web"].remedy
    assert "does not allow port 25" in ports["mail"].message
    assert "change allow_ports" in ports["mail"].remedy
    assert report.exit_code == 1


async def test_without_proxies_any_free_port_will_do_and_none_is_no_failure(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        assert of(await look(house.config), "port").verdict is OK
    (tmp_path / "other").mkdir()
    async with open_house(tmp_path / "other", allow_ports=()) as house:
        report = await look(house.config)
        assert (of(report, "port").verdict, report.exit_code) == (WARN, 0)


async def test_targets_are_looked_at_as_their_health_check_does(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    _, sick = await start_target(nursery, quiet(answer))
    report = Report()
    good = await start_target(nursery, quiet(echo))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = nobody.getsockname()[1]
        proxies = (
            ProxyConfig(
                "sick", HostPort("::", 1), (Target("tcp", "127.0.0.1", sick),), health_check=HealthCheck("http")
            ),
            ProxyConfig("dead", HostPort("::", 2), (Target("tcp", "127.0.0.1", dead),)),
            ProxyConfig("two", HostPort("::", 3), (Target("tcp", *good), Target("tcp", "127.0.0.1", dead))),
        )
        await here.check_targets(proxies, report)
    told = [(finding.verdict, finding.message) for finding in report.findings]
    assert told == [
        (FAIL, f"sick: 127.0.0.1:{sick}: GET / answered 503"),
        (FAIL, f"dead: cannot reach 127.0.0.1:{dead}: Connection refused"),
        (OK, f"two: 127.0.0.1:{good[1]} answers"),
        (WARN, f"two: cannot reach 127.0.0.1:{dead}: Connection refused; another target of it is up"),
    ]


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_it_all_works_through_a_proxy(tmp_path: Path, nursery: trio.Nursery, scheme: str) -> None:
    proxy = await Proxy(scheme, auth="me:word").start(nursery)
    async with open_house(tmp_path) as house:
        report = await look(evolve(house.publishing(), via=proxy.value("me", "word")))
        assert set(verdicts(report).values()) == {OK}
        assert of(report, "proxy").message == f"{proxy.url}, as me"
        assert len(proxy.asked) >= 3
        refused = await look(evolve(house.publishing(), via=proxy.value("me", "other")))
        assert (of(refused, "proxy").verdict, of(refused, "tcp").verdict) == (OK, FAIL)
        assert refused.exit_code == 3
    gone = evolve(house.config, via=evolve(proxy.value(), where=HostPort("127.0.0.1", 1)))
    report = await look(gone)
    assert of(report, "proxy").verdict is FAIL
    assert_skipped_from(report, "tcp")


def test_few_descriptors_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for hard, verdict in ((256, WARN), (4096, OK), (resource.RLIM_INFINITY, OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, hard=hard: (64, hard))
        report = Report()
        here.check_descriptors(report)
        assert report.findings[0].verdict is verdict


def test_a_summary_counts_what_is_not_well() -> None:
    report = Report()
    report.ok("a", "good")
    assert (report.summary, report.exit_code) == ("all is well", 0)
    report.warn("b", "so so")
    report.skip("why", "c", "d")
    assert (report.summary, report.exit_code) == ("all is well (1 warning, 2 skipped)", 0)
    report.fail("e", "bad", "mend it")
    assert (report.summary, report.exit_code) == ("1 failed, 1 warning, 2 skipped", findings.FAILED)
    report.fail("f", "no", is_trust=True)
    assert report.exit_code == findings.REFUSED
    assert report.findings[4].to_json() == {
        "check": "e", "verdict": "fail", "message": "bad", "remedy": "mend it", "milliseconds": None,
    }  # fmt: skip
