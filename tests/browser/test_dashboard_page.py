"""The dashboard in a real browser: it lives, it steers, it takes nothing for markup, and it tells when it is stale."""

import re

import pytest

from tunnel.admin import live
from tunnel.snapshot import EventStream

from .driver import until
from .page import Page
from .puppet import TOKEN, Puppet, proxy

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_what_changes_is_seen_without_a_reload(page: Page, puppet: Puppet) -> None:
    page.open(puppet)
    page.wait_row("web", "Healthy", "0.0.0.0:8001", "→ 127.0.0.1:8080")
    assert page.text("#headline") == "All 2 proxies are healthy"
    page.run("window.isSamePage = true")
    puppet.change("home", "web", status="unhealthy", reason="target_down", error_message="connection refused")
    page.wait_row("web", "Unhealthy", "target_down: connection refused")
    assert "Retry" not in page.row("web")  # what is waited for is its target
    assert page.text("#headline") == "1 of 2 proxies is not healthy"
    assert page.driver.title == "(1) trio-tunnel server"
    assert page.text("#announcer") == "web is unhealthy"
    assert page.names() == ["web", "ssh"]  # what is ill comes first
    puppet.put("lab", proxy("git", bytes_out=5))
    page.wait_row("git", "lab")
    puppet.change("lab", "git", visitors=3, bytes_out=2_000_005, bytes_in=1_000)
    page.wait_row("git", "3 visitors")
    assert page.text("#visitors") == "3"
    assert page.text("#total-out") == "2.0 MB in all"

    def shows_a_rate() -> bool:
        """A rate stands there from one look to the next, so bytes come until one is seen."""
        puppet.change("lab", "git", bytes_out=puppet.sessions["lab"]["git"].bytes_out + 1_000_000)
        return "MB/s" in page.row("git")

    until(shows_a_rate, "a rate")
    del puppet.sessions["lab"]
    until(lambda: not page.row("git"), "the row of a session that ended goes")
    assert page.run("return window.isSamePage") is True


def test_a_countdown_ticks_by_itself(page: Page, puppet: Puppet) -> None:
    puppet.retry_in("home", "ssh", 500, reason="addr_in_use", error_message="Port 8022 is taken", attempt=3)
    page.open(puppet)
    page.wait_row("ssh", "retry 3/10 in 8 min", "addr_in_use: Port 8022 is taken")
    puppet.retry_in("home", "ssh", 100, attempt=4)
    page.wait_row("ssh", "retry 4/10 in")
    seen = set()
    until(lambda: seen.add(re.findall(r"in (\d+) s", page.row("ssh"))[0]) or len(seen) >= 2, "two different seconds")
    puppet.change("home", "ssh", status="bind_failed", attempt=11)
    page.wait_row("ssh", "Bind failed", "gave up after 10 retries")


def test_events_are_shown_from_before_and_as_they_come(page: Page, puppet: Puppet) -> None:
    puppet.publish("session.started", client="home", peer="192.0.2.7:50001")
    page.open(puppet)
    until(lambda: "home session started from 192.0.2.7:50001" in page.text("#events"))
    puppet.publish("session.ended", client="lab", reason="lost", message="silent for 30 s", seconds=200)
    until(lambda: "lab session ended after 3 min — lost: silent for 30 s" in page.text("#events li:first-child"))
    assert len(page.texts("#events li")) == 2
    for _ in range(3):
        puppet.publish("proxy.status", client="lab", proxy="git", status="unhealthy", reason="target_down", attempt=1)
    until(lambda: "lab/git unhealthy — target_down× 3" in page.text("#events li:first-child"))
    assert len(page.texts("#events li")) == 3


def test_a_retry_asks_for_the_token_once_and_says_plainly_when_it_is_wrong(page: Page, puppet: Puppet) -> None:
    puppet.retry_in("home", "ssh", 60)
    page.open(puppet)
    page.button("Retry ssh").click()
    page.unlock("not-the-token")
    until(lambda: "not the admin token" in page.text("#token-problem"))
    assert puppet.retried == []
    page.unlock()
    until(lambda: puppet.retried == ["home/ssh"], "what was wanted is done")
    until(lambda: page.text("#toast") == "ssh starts afresh.")
    page.button("Retry ssh").click()
    until(lambda: len(puppet.retried) == 2, "a second time without a question")
    kept = page.run("return [location.href, document.cookie, JSON.stringify(localStorage), document.body.innerText]")
    assert TOKEN not in "".join(kept)
    page.click("#unlock")
    until(lambda: page.text("#unlock") == "Unlock")
    assert page.run("return sessionStorage.length") == 0


def test_a_session_is_closed_after_a_question(page: Page, puppet: Puppet) -> None:
    puppet.put("lab", proxy("git", visitors=4))
    page.open(puppet)
    page.button("Close the session of lab").click()
    assert "4 visitors will be cut off" in until(lambda: page.text("#confirm-dialog[open] #confirm-text"))
    page.click("#confirm-no")
    page.button("Close the session of lab").click()
    page.click("#confirm-yes")
    page.unlock()
    until(lambda: puppet.closed == ["lab"])
    until(lambda: "lab" not in page.text("#sessions"))


def test_what_peers_say_is_text_and_never_markup(page: Page, puppet: Puppet) -> None:
    puppet.put(HOSTILE, proxy(HOSTILE, status="unhealthy", target=HOSTILE, reason=HOSTILE, error_message=HOSTILE))
    puppet.put("home", proxy("odd", target="a\u202eb\u0000c", refused={HOSTILE: 2}))
    puppet.publish("proxy.status", client=HOSTILE, proxy=HOSTILE, status=HOSTILE, error_message=HOSTILE)
    puppet.publish(HOSTILE, client=HOSTILE, what=HOSTILE)
    puppet.extra = {"gate": {"logins": 1, "refusals": {HOSTILE: 3}}, "connection_pool": {"clients": {HOSTILE: {}}}}
    page.open(puppet)
    page.wait_row(HOSTILE, f"{HOSTILE}: {HOSTILE}", f"→ {HOSTILE}")
    page.wait_row("odd", "a\ufffdb\ufffdc", f"2 {HOSTILE}")
    until(lambda: page.text("#events").count(HOSTILE) >= 4)
    page.click("#proxies-rows .proxy-row .name")
    until(lambda: HOSTILE in page.text("#details[open]"))
    assert page.run("return [document.scripts.length, document.images.length]") == [3, 1]


def test_an_inline_script_would_not_run(page: Page, puppet: Puppet) -> None:
    page.open(puppet)
    page.run("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s)")
    page.run("document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click()")
    assert page.run("return window.ran ?? null") is None
    said: list[str] = []
    until(lambda: said.extend(page.log()) or len(said) >= 2, "both violations are told")
    assert len(said) == 2
    assert all("Content Security Policy" in line for line in said)


def test_it_says_when_nobody_answers_and_recovers_by_itself(page: Page, puppet: Puppet) -> None:
    page.open(puppet)
    page.wait_row("web", "Healthy")
    puppet.stop()
    until(lambda: re.fullmatch(r"No answer for \d+ s", page.feed()))
    assert page.run("return document.body.classList.contains('is-stale')") is True
    assert page.row("web")  # the last that is known
    assert re.match(r"Nothing was heard since \d\d:\d\d:\d\d", page.text("#subline"))
    puppet.put("home", proxy("new"))
    puppet.start()
    page.wait_live()
    page.wait_row("new", "Healthy")
    assert page.run("return document.body.classList.contains('is-stale')") is False


def test_after_a_restart_events_are_those_of_the_new_process_and_the_page_that_of_its_version(
    page: Page, puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        puppet.publish("session.started", client="old")
    page.open(puppet)
    page.run("window.isSamePage = true")
    until(lambda: "old" in page.text("#events"))
    puppet.stop()
    puppet.events = EventStream()
    puppet.start()
    puppet.publish("session.started", client="new")
    until(lambda: "new" in page.text("#events") and "old" not in page.text("#events"))
    assert page.run("return window.isSamePage") is True
    puppet.stop()
    monkeypatch.setattr(live, "__version__", "99.0")
    puppet.start()
    until(lambda: "version 99.0" in page.text("#facts"))
    assert page.run("return window.isSamePage ?? null") is None


def test_a_server_that_hangs_is_noticed_too(page: Page, puppet: Puppet) -> None:
    page.open(puppet)
    page.run("const now = performance.now.bind(performance); performance.now = () => now() + (window.later ?? 0)")
    with puppet.hung():
        assert page.feed() == "Live"  # a second or two are nothing
        page.run("window.later = 12000")
        until(lambda: re.fullmatch(r"No answer for \d\d s", page.feed()))
    page.wait_live()
