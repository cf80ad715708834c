"""Mail over real sockets: a real SMTP receiver, and servers that do what servers do."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from attrs import evolve
from notice_rig import AT
from ports import free_port

from tunnel.addresses import HostPort
from tunnel.config.receivers import Email
from tunnel.notices.mail import MAX_ANSWER_BYTES, send_mail
from tunnel.notices.notice import Group, Notice, Sender, Subject
from tunnel.notices.outcome import Outcome

PASSWORD = "hunter2-hunter2"
WEB = Subject("home", "web", "bind_failed", "addr_in_use", "port 8001 is taken", AT)
NOTICE = Notice("0123", AT, "ops", Sender("server", "h", "s"), Group("bind_failed", 1, (WEB,)))
TO = ("a@example.com", "b@example.com")


async def send(to: Email) -> Outcome:
    outcome = await send_mail([NOTICE], to, trio.CapacityLimiter(1))
    assert "hunter2" not in str(outcome)
    return outcome


# A real receiver


class Inbox:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.answers: dict[str, str] = {}

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        self.got.append(envelope)
        return self.answers.get("DATA", "250 OK")


@contextmanager
def smtp(inbox: Inbox, **options: Any) -> Iterator[HostPort]:
    tls = options.pop("ssl_context", None)
    port = free_port()
    # Its own check that it listens would be a connection in plain text to one that speaks TLS at once.
    controller = Controller(inbox, hostname="127.0.0.1", port=port, ssl_context=tls, **options)
    controller.start()
    try:
        yield HostPort("127.0.0.1", port)
    finally:
        controller.stop()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[str], ssl.SSLContext], Path]:
    ca, path = trustme.CA(), tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))

    def context(name: str) -> ssl.SSLContext:
        found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert(name).configure_cert(found)
        return found

    return context, path


Tls = tuple[Callable[[str], ssl.SSLContext], Path]


async def test_a_mail_reaches_all_recipients_as_it_was_written() -> None:
    inbox = Inbox()
    with smtp(inbox) as where:
        outcome = await send(Email(where, "tunnel@example.com", TO, "none"))
    assert outcome == Outcome(True, f"the mail server {where} took it for a@example.com, b@example.com")
    (envelope,) = inbox.got
    assert (envelope.mail_from, tuple(envelope.rcpt_tos)) == ("tunnel@example.com", TO)
    read = message_from_bytes(envelope.content, policy=default)
    assert read["Subject"] == "[trio-tunnel h] Proxy 'web' of 'home' has no public port"
    assert "Why: port 8001 is taken (addr_in_use)" in read.get_content()


def authenticator(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (b"ops", PASSWORD.encode()), handled=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it does not count TLS from the start
@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("password", [PASSWORD, "another-hunter2"])
async def test_it_logs_in_over_verified_tls_of_both_kinds(tls: Tls, security: str, password: str) -> None:
    context = tls[0]("127.0.0.1")
    options = {"tls_context": context, "require_starttls": True} if security == "starttls" else {"ssl_context": context}
    inbox = Inbox()
    with smtp(
        inbox, auth_required=True, authenticator=authenticator, auth_require_tls=security == "starttls", **options
    ) as where:
        outcome = await send(
            Email(where, "t@example.com", TO, security, username="ops", password=password, ca_file=tls[1])
        )
    assert outcome.delivered is (password == PASSWORD)
    assert len(inbox.got) == outcome.delivered
    if not outcome.delivered:
        assert f"the mail server {where} does not take the login of 'ops': 535" in outcome.said
        assert not outcome.retry


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_a_bad_certificate_is_told_and_gets_nothing(tls: Tls, security: str, name: str) -> None:
    context = tls[0](name)
    options = {"tls_context": context} if security == "starttls" else {"ssl_context": context}
    inbox = Inbox()
    with smtp(inbox, **options) as where:
        ca_file = tls[1] if name == "other.example" else None
        outcome = await send(Email(where, "t@example.com", TO, security, ca_file=ca_file))
    assert (outcome.delivered, outcome.retry, inbox.got) == (False, False, [])
    assert outcome.said.startswith(f"the certificate of the mail server {where} cannot be trusted: ")


async def test_a_server_without_starttls_gets_nothing_in_the_clear() -> None:
    inbox = Inbox()
    with smtp(inbox) as where:
        outcome = await send(Email(where, "t@example.com", TO, "starttls", username="ops", password=PASSWORD))
    assert (outcome.delivered, outcome.retry, inbox.got) == (False, False, [])
    assert "STARTTLS" in outcome.said
    assert 'security = "tls"' in outcome.remedy


async def test_who_is_refused_of_several_is_told_and_the_rest_has_it() -> None:
    inbox = Inbox()
    inbox.answers["b@example.com"] = "550 no such user"
    with smtp(inbox) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.remedy) == (True, "mend `to`")
    assert outcome.said.endswith("took it for a@example.com, but not for b@example.com: no such user")


@pytest.mark.parametrize(("code", "retry"), [("550", False), ("451", True)])
async def test_all_recipients_refused_is_final_or_not_as_the_server_says(code: str, retry: bool) -> None:
    inbox = Inbox()
    inbox.answers = dict.fromkeys(TO, f"{code} not now")
    with smtp(inbox) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.retry) == (False, retry)
    assert "refuses all recipients: a@example.com: not now; b@example.com: not now" in outcome.said


@pytest.mark.parametrize(("code", "retry"), [("554", False), ("452", True)])
async def test_a_refused_mail_is_final_or_not_as_the_server_says(code: str, retry: bool) -> None:
    inbox = Inbox()
    inbox.answers["DATA"] = f"{code} no room"
    with smtp(inbox) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.retry) == (False, retry)
    assert outcome.said == f"the mail server {where} refuses: {code} no room"


# Servers that do what they like


@contextmanager
def server(act: Callable[[socket.socket], None]) -> Iterator[HostPort]:
    """One connection at a time, each handed to `act` in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            held.append(sock)
            try:
                act(sock)
            except OSError:
                sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield HostPort("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in held:
            sock.close()
        thread.join()


def silence(sock: socket.socket) -> None:
    """Keeps the connection, and says nothing."""


def drip(sock: socket.socket) -> None:
    """A greeting that never ends, a byte at a time: no single wait is long."""
    while True:
        sock.sendall(b"2")
        time.sleep(0.02)


def endless_greeting(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"220-" + b"x" * 1000 + b"\r\n")


def nonsense(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def closes(sock: socket.socket) -> None:
    sock.close()


def busy(sock: socket.socket) -> None:
    sock.sendall(b"421 too busy\r\n")
    sock.close()


def repeats(offer: bytes) -> Callable[[socket.socket], None]:
    """Answers each word with that word, and what it said before."""

    def act(sock: socket.socket) -> None:
        lines = sock.makefile("rb")
        sock.sendall(b"220 x\r\n")
        lines.readline()
        sock.sendall(b"250-x\r\n250 AUTH " + offer + b"\r\n")
        said = b""
        while line := lines.readline():
            said += line.strip() + b" "
            if line.startswith(b"QUIT"):
                return sock.close()
            is_first = offer == b"LOGIN" and line.startswith(b"AUTH")
            sock.sendall(b"334 UGFzc3dvcmQ6\r\n" if is_first else b"535 " + said + b"\r\n")
        return None

    return act


@pytest.mark.parametrize("offer", [b"LOGIN", b"PLAIN"])
async def test_a_server_that_repeats_the_login_does_not_make_us_tell_the_password(offer: bytes) -> None:
    with server(repeats(offer)) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none", username="ops", password=PASSWORD))
    assert "does not take the login of 'ops': 535 AUTH" in outcome.said
    assert "(not shown)" in outcome.said
    assert "aHVudGVyMi1odW50ZXIy" not in outcome.said
    assert "AG9wcwBodW50ZXIyLWh1bnRlcjI" not in outcome.said


@pytest.mark.slow
@pytest.mark.parametrize("act", [silence, drip])
@pytest.mark.parametrize("security", ["none", "tls"])
async def test_a_server_that_hangs_or_drips_is_left_after_the_attempts_time(
    act: Callable[[socket.socket], None], security: str
) -> None:
    with server(act) as where:
        outcome = await send(Email(where, "t@example.com", TO, security, timeout=0.5))
    assert (outcome.delivered, outcome.retry) == (False, True)


@pytest.mark.slow
async def test_the_thread_of_a_conversation_that_drips_ends_with_it() -> None:
    before = threading.active_count()
    limiter = trio.CapacityLimiter(1)
    with server(drip) as where:
        await send_mail([NOTICE], Email(where, "t@example.com", TO, "none", timeout=0.3), limiter)
        while limiter.borrowed_tokens:  # the thread has it until it ends
            await trio.sleep(0.01)
    assert threading.active_count() <= before + 1  # Trio keeps an idle one for a while


@pytest.mark.parametrize("act", [nonsense, closes, busy])
async def test_a_server_that_closes_or_talks_nonsense_is_asked_again_later(
    act: Callable[[socket.socket], None],
) -> None:
    with server(act) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert str(where) in outcome.said


async def test_a_server_that_talks_without_end_is_cut() -> None:
    with server(endless_greeting) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert f"more than {MAX_ANSWER_BYTES} bytes" in outcome.said


async def test_a_server_that_took_the_mail_and_hangs_then_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would be sent again, and again."""
    monkeypatch.setattr("tunnel.notices.mail.QUIT_SECONDS", 0.05)

    def takes(sock: socket.socket) -> None:
        lines = sock.makefile("rb")
        sock.sendall(b"220 hi\r\n")
        for answer in (b"250 hi", b"250 ok", b"250 ok", b"250 ok", b"354 go"):
            lines.readline()
            sock.sendall(answer + b"\r\n")
        while lines.readline() != b".\r\n":
            pass
        sock.sendall(b"250 taken\r\n")

    with server(takes) as where:
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert outcome.delivered


async def test_nobody_listening_is_told_and_may_pass() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        where = HostPort(*nobody.getsockname())
        outcome = await send(Email(where, "t@example.com", TO, "none"))
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert outcome.said.startswith(f"the mail server {where} could not be asked: ")


async def test_a_port_of_the_other_kind_of_tls_is_told_with_the_remedy(tls: Tls) -> None:
    with smtp(Inbox()) as where:
        outcome = await send(Email(where, "t@example.com", TO, "tls", ca_file=tls[1]))
    assert "587" in outcome.remedy


@pytest.mark.slow
async def test_a_conversation_that_is_cancelled_is_cut() -> None:
    came, gone = threading.Event(), threading.Event()

    def watch(sock: socket.socket) -> None:
        came.set()
        sock.sendall(b"220 hi\r\n")
        while sock.recv(4096):
            pass
        gone.set()

    with server(watch) as where, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, evolve(Email(where, "t@example.com", TO, "none"), timeout=300.0))
            while not came.is_set():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while not gone.is_set():
            await trio.sleep(0.01)
