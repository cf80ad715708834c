"""A webhook over real sockets: what a receiver may do, and what it costs."""

import hashlib
import hmac
import json
import socket
import ssl
import tracemalloc
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trustme
from attrs import evolve
from notice_rig import AT

from tunnel.config.receivers import Webhook
from tunnel.notices.notice import Group, Notice, Sender, Subject
from tunnel.notices.outcome import Outcome
from tunnel.notices.webhook import MAX_REDIRECTS, post

SECRET_PATH = "/services/T0123456/B0123456/hunter2hunter2"
WEB = Subject("home", "web", "bind_failed", "addr_in_use", "port 8001 is taken", AT)
NOTICE = Notice("0123", AT, "ops", Sender("server", "h", "s"), Group("bind_failed", 1, (WEB,)))


class Hook:
    """A receiver that answers by a script; `heads` and `bodies` are what it got."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.bodies: list[bytes] = []
        self.written = 0
        self.url = ""

    async def read(self, stream: trio.abc.Stream) -> None:
        peer = h11.Connection(h11.SERVER)
        body = b""
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                peer.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                self.heads.append({name.decode(): value.decode() for name, value in event.headers})
                self.targets.append(event.target.decode())
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                self.bodies.append(body)
                return

    async def write(self, stream: trio.abc.Stream, data: bytes) -> None:
        await stream.send_all(data)
        self.written += len(data)


Script = Callable[[Hook, trio.abc.Stream], Awaitable[None]]


def answers(status: str, *headers: str, body: bytes = b"") -> Script:
    async def script(hook: Hook, stream: trio.abc.Stream) -> None:
        await hook.read(stream)
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        await hook.write(stream, "\r\n".join(head).encode() + body)

    return script


@asynccontextmanager
async def receiver(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Hook]:
    hook = Hook()

    async def serve(stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                await script(hook, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client may go whenever it likes

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        hook.url = f"http{'s' if tls else ''}://127.0.0.1:{port}{SECRET_PATH}"
        listeners: list[Any] = [listener if tls is None else trio.SSLListener(listener, tls)]
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        yield hook
        nursery.cancel_scope.cancel()


async def told(script: Script, **changes: Any) -> tuple[Hook, Outcome]:
    async with receiver(script) as hook:
        outcome = await post(NOTICE, evolve(Webhook(hook.url), **changes))
    assert "hunter2" not in str(outcome)
    return hook, outcome


def place(hook: Hook) -> str:
    return hook.url.removesuffix(SECRET_PATH)


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "202 Accepted", "204 No Content"])
async def test_a_receiver_that_takes_it_has_the_whole_notice_signed(status: str) -> None:
    hook, outcome = await told(
        answers(status), secret=b"key", headers=(("Authorization", "Bearer hunter2"), ("X-Team", "ops"))
    )
    assert outcome == Outcome(True, f"{place(hook)} answered {status[:3]}")
    (head,) = hook.heads
    assert json.loads(hook.bodies[0])["subjects"][0]["proxy"] == "web"
    assert hook.targets == [SECRET_PATH]
    assert (head["authorization"], head["x-team"], head["user-agent"]) == ("Bearer hunter2", "ops", "trio-tunnel")
    signed = f"0123.{head['webhook-timestamp']}.".encode() + hook.bodies[0]
    assert head["webhook-signature"] == "v1," + b64encode(hmac.digest(b"key", signed, hashlib.sha256)).decode()
    assert abs(int(head["webhook-timestamp"]) - __import__("time").time()) < 60


@pytest.mark.parametrize("status", ["400 No", "401 No", "403 No", "404 No", "410 No", "413 No", "418 No", "501 No"])
async def test_what_a_receiver_refuses_for_good_is_not_to_be_tried_again(status: str) -> None:
    hook, outcome = await told(answers(status, body=b"no_such\nchannel\x1b[2J"))
    assert (outcome.delivered, outcome.retry) == (False, False)
    assert outcome.said == f"{place(hook)} answered {status[:3]}: no_such channel?[2J"
    assert outcome.remedy


@pytest.mark.parametrize("status", ["408 No", "425 No", "429 No", "500 No", "502 No", "503 No", "504 No"])
async def test_what_may_pass_is_to_be_tried_again_when_the_receiver_says(status: str) -> None:
    _, outcome = await told(answers(status, "Retry-After: 7"))
    assert (outcome.delivered, outcome.retry, outcome.retry_after) == (False, True, 7.0)


async def test_a_receiver_that_repeats_our_secrets_does_not_get_them_into_the_log() -> None:
    repeated = f"bad path {SECRET_PATH} with Bearer hunter2 and part B0123456".encode()
    _, outcome = await told(answers("400 No", body=repeated), headers=(("Authorization", "Bearer hunter2"),))
    assert "B0123456" not in str(outcome)
    assert "(not shown)" in outcome.said


async def test_nobody_listening_is_told_and_may_pass() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}{SECRET_PATH}"
        outcome = await post(NOTICE, Webhook(url))
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert outcome.said.startswith(f"{url.removesuffix(SECRET_PATH)} could not be asked: ")
    assert "refused" in outcome.said


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".example"])
async def test_a_host_that_is_none_is_told(host: str) -> None:
    outcome = await post(NOTICE, Webhook(f"https://{host}{SECRET_PATH}"))
    assert not outcome.delivered
    assert outcome.said.startswith(f"https://{host} could not be asked: ")
    assert "hunter2" not in outcome.said


async def _nothing(hook: Hook, stream: trio.abc.Stream) -> None:
    """Closes at once."""


async def _silence(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await trio.sleep_forever()


async def _drip(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    while True:
        await hook.write(stream, b"H")
        await trio.sleep(0.05)


async def _dripping_head(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await hook.write(stream, b"HTTP/1.1 500 No\r\n")
    while True:
        await hook.write(stream, b"X-A: b\r\n")
        await trio.sleep(0.05)


async def _dripping_body(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await hook.write(stream, b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await hook.write(stream, b"x")
        await trio.sleep(0.05)


async def _nonsense(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await hook.write(stream, b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.slow
@pytest.mark.parametrize("script", [_silence, _dripping_head, _dripping_body])
async def test_a_receiver_that_hangs_or_drips_is_left_after_the_attempts_time(script: Script) -> None:
    _, outcome = await told(script, timeout=0.5)
    assert outcome.retry
    assert "0.5 s" in outcome.said or "could not be asked" in outcome.said


@pytest.mark.parametrize("script", [_nothing, _nonsense])
async def test_a_receiver_that_closes_or_talks_nonsense_is_no_receiver(script: Script) -> None:
    hook, outcome = await told(script)
    assert (outcome.delivered, outcome.retry) == (False, True)
    assert outcome.said.startswith(f"{place(hook)} could not be asked: ")


@pytest.mark.slow
@pytest.mark.parametrize("status", ["500 No", "200 OK"])
async def test_an_answer_of_a_gigabyte_is_cut_after_64_kib(status: str) -> None:
    async def script(hook: Hook, stream: trio.abc.Stream) -> None:
        await hook.read(stream)
        await hook.write(stream, f"HTTP/1.1 {status}\r\nContent-Length: {10**9}\r\n\r\n".encode())
        for _ in range(10**9 // 65536):
            await hook.write(stream, bytes(65536))

    tracemalloc.start()
    hook, outcome = await told(script, timeout=60.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.delivered is (status == "200 OK")
    assert hook.written < 32 * 1024 * 1024  # what the kernel's buffers took
    assert peak < 16 * 1024 * 1024
    assert len(outcome.said) < 400


async def test_a_head_without_end_is_cut() -> None:
    async def script(hook: Hook, stream: trio.abc.Stream) -> None:
        await hook.read(stream)
        await hook.write(stream, b"HTTP/1.1 200 OK\r\n")
        while True:
            await hook.write(stream, b"X-A: " + bytes([97]) * 1000 + b"\r\n")

    hook, outcome = await told(script, timeout=60.0)
    assert not outcome.delivered
    assert hook.written < 32 * 1024 * 1024


@pytest.mark.parametrize("status", ["307 Go", "308 Go"])
async def test_a_redirect_within_its_own_origin_is_followed_with_the_same_body(status: str) -> None:
    async def script(hook: Hook, stream: trio.abc.Stream) -> None:
        await (answers(status, "Location: /moved") if not hook.targets else answers("200 OK"))(hook, stream)

    hook, outcome = await told(script)
    assert outcome.delivered
    assert hook.targets == [SECRET_PATH, "/moved"]
    assert hook.bodies[0] == hook.bodies[1]


async def test_redirects_that_go_on_and_on_are_given_up() -> None:
    hook, outcome = await told(answers("308 Go", "Location: /again"))
    assert (outcome.delivered, outcome.retry, len(hook.targets)) == (False, False, MAX_REDIRECTS + 1)


@pytest.mark.parametrize("status", ["301 Go", "302 Go", "303 Go", "307 Go", "308 Go"])
async def test_a_redirect_to_another_host_is_not_followed(status: str) -> None:
    async with receiver(answers("200 OK")) as inside:
        hook, outcome = await told(answers(status, f"Location: {place(inside)}/latest/meta-data?hunter2"))
        assert (outcome.delivered, outcome.retry) == (False, False)
        assert outcome.said == (
            f"{place(hook)} answered {status[:3]}, a redirect to {place(inside)}, which is not followed"
        )
        assert inside.targets == []


@pytest.mark.parametrize(
    "where", ["//evil.example/x", "https://127.0.0.1/", "file:///etc/passwd", "http://[", "\x7f", ""]
)
async def test_a_redirect_to_another_scheme_or_to_nonsense_is_not_followed(where: str) -> None:
    hook, outcome = await told(answers("307 Go", f"Location: {where}"))
    assert not outcome.delivered
    assert len(hook.targets) <= MAX_REDIRECTS + 1


async def test_proxies_of_the_environment_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    _, outcome = await told(answers("200 OK"))
    assert outcome.delivered


async def test_a_proxy_of_the_configuration_gets_the_request() -> None:
    async with receiver(answers("200 OK")) as proxy:
        outcome = await post(NOTICE, Webhook("http://hooks.example/x", proxy=place(proxy)))
    assert outcome.delivered
    assert proxy.targets == ["http://hooks.example/x"]


# TLS


@pytest.fixture
def ca(tmp_path: Path) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca, tmp_path / "ca.pem"


def context(ca: trustme.CA, name: str) -> ssl.SSLContext:
    found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(found)
    return found


async def test_a_certificate_of_the_ca_that_is_named_is_trusted(ca: tuple[trustme.CA, Path]) -> None:
    async with receiver(answers("200 OK"), context(ca[0], "127.0.0.1")) as hook:
        assert (await post(NOTICE, Webhook(hook.url, ca_file=ca[1]))).delivered


@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_a_bad_certificate_is_told_and_gets_nothing(ca: tuple[trustme.CA, Path], name: str) -> None:
    ca_file = ca[1] if name == "other.example" else None
    async with receiver(answers("200 OK"), context(ca[0], name)) as hook:
        outcome = await post(NOTICE, Webhook(hook.url, ca_file=ca_file))
    assert (outcome.delivered, outcome.retry) == (False, False)
    assert outcome.said.startswith(f"the certificate of {place(hook)} cannot be trusted: ")
    assert "ca_file" in outcome.remedy
    assert hook.heads == []


async def test_a_ca_file_that_is_gone_by_now_is_told(tmp_path: Path) -> None:
    outcome = await post(NOTICE, Webhook("https://127.0.0.1:1/", ca_file=tmp_path / "gone.pem"))
    assert (outcome.delivered, outcome.retry) == (False, False)
    assert "gone.pem cannot be used: No such file" in outcome.said


async def test_what_libraries_log_at_their_most_talkative_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await told(answers("200 OK"), secret=b"hunter2", headers=(("Authorization", "Bearer hunter2"),))
    assert "hunter2" not in caplog.text


async def test_an_attempt_that_is_cancelled_in_any_phase_leaves_nothing_open(ca: tuple[trustme.CA, Path]) -> None:
    """A socket left to the garbage collector would be a ResourceWarning, which fails a test here."""

    async def mute(hook: Hook, stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, partial(mute, Hook()), [listener]))
        with trio.move_on_after(0.2) as scope:
            await post(NOTICE, Webhook(url, ca_file=ca[1]))  # within the handshake
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()
    __import__("gc").collect()
