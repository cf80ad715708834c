"""How a notice reads, and what exactly is sent."""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from email import message_from_bytes
from email.policy import default

import pytest
from attrs import evolve
from notice_rig import AT, HOOK, Ear

from tunnel.addresses import HostPort
from tunnel.config.receivers import Email
from tunnel.notices.bodies import mail, request
from tunnel.notices.notice import Group, Notice, Sender, Subject
from tunnel.notices.words import next_step, text, title

SERVER = Sender("server", "tunnel-1", "trio-tunnel/1.0")
CLIENT = Sender("client", "attic", "trio-tunnel/1.0")
WEB = Subject("home", "web", "bind_failed", "addr_in_use", "port 8001 is taken", AT, where="0.0.0.0:8001")
OPS = Email(HostPort("smtp.example.com", 587), "tunnel@example.com", ("a@example.com", "b@example.com"))


def notice(kind: str, *subjects: Subject, sender: Sender = SERVER, count: int = 0) -> Notice:
    return Notice("0123", AT, "ops", sender, Group(kind, count or len(subjects), subjects))


LOST = Subject("home", "", "lost", "lost", "it went silent", AT, proxies=("web", "ssh"), proxies_total=9)
BACK = evolve(WEB, status="healthy", seconds=7200.0, was="bind_failed", times=3)
TITLES = [
    (notice("bind_failed", WEB), "proxy 'web' of 'home' has no public port"),
    (notice("unhealthy", evolve(WEB, client="")), "proxy 'web' cannot be reached"),
    (notice("session_lost", LOST), "client 'home' is gone"),
    (notice("session_lost", LOST, sender=CLIENT), "the session with the server is gone"),
    (notice("recovered", BACK), "proxy 'web' of 'home' is healthy again"),
    (notice("recovered", evolve(BACK, status="removed")), "proxy 'web' of 'home' is published no longer"),
    (notice("recovered", evolve(LOST, status="connected", was="session_lost")), "client 'home' is connected again"),
    (notice("recovered", Subject(status="renewed", was="certificate_expiring")), "the server's certificate is new"),
    (notice("recovered", Subject(status="in force", was="config_refused")), "a changed configuration is in force"),
    (notice("certificate_expiring", Subject()), "the server's certificate is about to end"),
    (notice("config_refused", Subject()), "a changed configuration was refused"),
    (notice("bind_failed", evolve(WEB, status="healthy")), "proxy 'web' of 'home' was in trouble, and is fine now"),
    (notice("bind_failed", WEB, count=1000), "1000 proxies (web, …) have no public port"),
    (notice("session_lost", LOST, LOST), "2 clients (home, home) are gone"),
    (notice("recovered", BACK, LOST), "2 proxies and clients (web, home) are fine"),
    (notice("test", Subject()), "test notice of 'ops'"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "words"), TITLES, ids=lambda one: one if isinstance(one, str) else "")
def test_the_title_is_the_whole_matter_in_one_line(told: Notice, words: str) -> None:
    assert title(told) == words


def test_the_text_says_what_since_when_why_and_what_to_do_next() -> None:
    assert text(notice("bind_failed", WEB)) == (
        "Proxy 'web' of 'home' has no public port.\n\n"
        "Proxy 'web' of 'home' at 0.0.0.0:8001: bind_failed\n"
        "Since: 2026-11-20 16:40:12 UTC\n"
        "Why: port 8001 is taken (addr_in_use)\n\n"
        "What to do next: On the server's host, see who has the port (ss -ltnp 'sport = :8001'); free it, or publish "
        "another one. Then: trio-tunnel retry home/web\n"
    )


def test_the_text_of_an_end_says_how_long_it_was_and_how_often_and_asks_for_nothing() -> None:
    said = text(notice("recovered", BACK))
    assert "Since: 2026-11-20 16:40:12 UTC, for 2 h\n" in said
    assert "Why it was: port 8001 is taken (addr_in_use)\nHow often: 3 times since the notice before\n" in said
    assert "What to do" not in said


def test_a_lost_client_is_told_with_what_went_with_it() -> None:
    assert "With it: 9 proxies (web, ssh, …)" in text(notice("session_lost", LOST))
    assert "reached from here" in text(notice("session_lost", LOST, sender=CLIENT))


def test_of_a_thousand_the_first_are_shown_and_the_rest_is_a_number() -> None:
    said = text(notice("bind_failed", *[evolve(WEB, proxy=f"p{number}") for number in range(20)], count=1000))
    assert "Proxy 'p19' of 'home'" in said
    assert "and 980 more: `trio-tunnel status` at the server shows all of them" in said
    assert "trio-tunnel retry" not in said


@pytest.mark.parametrize("kind", ["bind_failed", "unhealthy", "session_lost", "recovered", "config_refused"])
def test_nothing_that_rules_tell_is_without_words(kind: str) -> None:
    """Whatever the reason, a text comes of it, without a hole in it."""
    for reason in [
        "",
        "addr_in_use",
        "permission_denied",
        "addr_not_available",
        "not_allowed",
        "os_error",
        "target_down",
    ]:
        said = text(notice(kind, evolve(WEB, reason=reason, was="unhealthy")))
        assert "{" not in said
        assert said.count("\n") >= 4


def test_the_json_has_what_was_promised_and_is_signed_as_standard_webhooks_are() -> None:
    made = request(notice("bind_failed", WEB, count=3), evolve(HOOK, secret=b"key"), 1_800_000_000.9)
    assert json.loads(made.content) == {
        "version": 1, "id": "0123", "notice": "ops", "kind": "bind_failed", "at": AT,
        "role": "server", "host": "tunnel-1", "software": "trio-tunnel/1.0",
        "title": title(notice("bind_failed", WEB, count=3)), "text": text(notice("bind_failed", WEB, count=3)),
"next_step": next_step(notice("bind_failed", WEB, count=3)),
        "count": 3,
        "subjects": [{
            "client": "home", "proxy": "web", "status": "bind_failed", "reason": "addr_in_use",
            "message": "port 8001 is taken", "since": AT, "seconds": None, "times": 1, "where": "0.0.0.0:8001",
            "proxies": [], "proxies_total": 0, "was": "",
        }],
        "client": "home", "proxy": "web", "status": "bind_failed", "reason": "addr_in_use",
        "message": "port 8001 is taken", "since": AT, "seconds": None, "times": 1, "where": "0.0.0.0:8001",
        "proxies": [], "proxies_total": 0, "was": "",
    }  # fmt: skip
    assert made.headers["Idempotency-Key"] == made.headers["webhook-id"] == "0123"
    assert made.headers["webhook-timestamp"] == "1800000000"
    digest = hmac.new(b"key", b"0123.1800000000." + made.content, hashlib.sha256).digest()
    assert made.headers["webhook-signature"] == f"v1,{b64encode(digest).decode()}"
    assert len(b64decode(made.headers["webhook-signature"][3:])) == 32


def test_without_a_secret_nothing_is_signed() -> None:
    assert "webhook-signature" not in request(notice("bind_failed", WEB), HOOK, 0.0).headers


def test_a_chat_gets_a_text_in_which_nothing_calls_everybody() -> None:
    evil = evolve(WEB, message="<!channel> & co")
    said = json.loads(request(notice("bind_failed", evil), evolve(HOOK, format="slack"), 0.0).content)["text"]
    assert said.startswith("*[trio-tunnel tunnel-1] Proxy 'web' of 'home' has no public port*\n")
    assert "&lt;!channel&gt; &amp; co" in said


def test_ntfy_gets_a_title_and_a_priority_in_headers_that_are_ascii() -> None:
    made = request(notice("bind_failed", WEB, count=9), evolve(HOOK, format="ntfy"), 0.0)
    assert made.headers["Title"] == "[trio-tunnel tunnel-1] 9 proxies (web, ?) have no public port"
    assert made.headers["Priority"] == "high"
    assert request(notice("recovered", BACK), evolve(HOOK, format="ntfy"), 0.0).headers["Priority"] == "default"


def test_a_mail_is_whole_and_its_lines_are_not_too_long() -> None:
    read = message_from_bytes(mail([notice("bind_failed", WEB)], OPS).as_bytes(), policy=default)
    assert read["Subject"] == "[trio-tunnel tunnel-1] Proxy 'web' of 'home' has no public port"
    assert (read["From"], read["To"]) == ("tunnel@example.com", "a@example.com, b@example.com")
    assert (read["Message-ID"], read["Date"]) == ("<0123@example.com>", "Fri, 20 Nov 2026 16:40:12 +0000")
    assert read["Auto-Submitted"] == "auto-generated"
    body = read.get_content().replace("\r", "")
    assert body.startswith(text(notice("bind_failed", WEB)))
    assert "\r\n" in read.get_content()
    assert body.endswith(
        "-- \nTold by the server on tunnel-1, trio-tunnel/1.0, at 2026-11-20T16:40:12.000Z, as notice 'ops'.\n"
    )


def test_several_that_waited_together_are_one_mail() -> None:
    read = message_from_bytes(
        mail([notice("bind_failed", WEB), notice("recovered", BACK)], OPS).as_bytes(), policy=default
    )
    assert read["Subject"].endswith("has no public port (and 1 more)")
    assert text(notice("recovered", BACK)) in read.get_content().replace("\r", "")


def test_what_a_peer_wrote_adds_no_header() -> None:
    ear = Ear().status("web", "bind_failed", None, "x\r\nBcc: everybody@example.com\r\n\r\nbody")
    told = Notice("0123", AT, "ops", evolve(SERVER, host="h\r\nX-Evil: 1"), ear.groups[0])
    read = message_from_bytes(mail([told], OPS).as_bytes(), policy=default)
    assert read["Bcc"] is None
    assert read["X-Evil"] is None
    assert sorted(read.keys()) == [
        "Auto-Submitted", "Content-Transfer-Encoding", "Content-Type", "Date", "From", "MIME-Version", "Message-ID",
        "Subject", "To",
    ]  # fmt: skip
