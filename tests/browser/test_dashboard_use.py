"""The dashboard in hands: by keyboard, on a phone, in the dark, with ten thousand rows."""

import time

import pytest
from selenium.webdriver.common.keys import Keys

from .driver import colours, resize, until
from .page import Page
from .puppet import Puppet, proxy

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_everything_is_reached_by_keyboard(page: Page, puppet: Puppet) -> None:
    puppet.retry_in("home", "ssh", 90)
    page.open(puppet)
    page.wait_row("ssh", "retry")
    order = []
    for _ in range(17):
        page.press(Keys.TAB)
        order.append(page.focused())
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"no outline at {order[-1]}"
    heads = ["Proxy", "State", "Public address and target", "Visitors", "Traffic"]
    chips = ["All2", "Healthy1", "Unhealthy1", "Bind failed0"]
    assert order[:12] == ["Skip to the proxies", "unlock", "Dark colours", *chips, "Search proxies", *heads[:4]]
    assert order[12:16] == ["Traffic", "ssh", "Retry ssh", "Close the session of home"]  # one row of the list
    page.press("/", "w", "e", "b")
    assert page.focused() == "Search proxies"
    until(lambda: page.names() == ["web"])
    page.press(*[Keys.BACKSPACE] * 3)
    until(lambda: len(page.names()) == 2)
    page.press(*[Keys.TAB] * 6, Keys.ARROW_DOWN)
    assert page.focused() == "web"
    page.press(Keys.ENTER)
    until(lambda: "home/web" in page.text("#details[open]"))
    page.press(Keys.ESCAPE)
    until(lambda: page.focused() == "web", "the focus is back")


def test_columns_sort_both_ways_and_say_so(page: Page, puppet: Puppet) -> None:
    puppet.put("home", proxy("web", visitors=1), proxy("ssh", visitors=9), proxy("git", visitors=5))
    page.open(puppet)
    for expected, order in ((["ssh", "git", "web"], "descending"), (["web", "git", "ssh"], "ascending")):
        page.click("#column-visitors button")
        assert page.names() == expected
        assert page.find("#column-visitors").get_attribute("aria-sort") == order
    page.click('.chip[data-state="bind_failed"]')
    assert page.text("#proxies-empty") == "No proxy matches. Clear the search, or show all."


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_phone_need_not_scroll_sideways(page: Page, role: str) -> None:
    puppet = Puppet(role)
    long = "a-proxy-with-a-very-long-name-that-goes-on-and-on-and-on-" + "x" * 40
    puppet.put("home" * 12, proxy(long, target="unix:/" + "y" * 200), proxy("web", bytes_in=10**15, visitors=10**6))
    puppet.retry_in("home" * 12, long, 9, error_message="z" * 300, reason="addr_in_use")
    puppet.publish_later("session.lost", client="home", detail="w" * 300)
    puppet.extra = {"connection": {"state": "lost", "detail": "v" * 300, "servers": ["s" * 200]}, "gate": {"logins": 1}}
    puppet.start()
    resize(page.driver, 390, 844)
    page.open(puppet)
    page.wait_row(long, "addr_in_use")
    widest = """
        const all = [...document.querySelectorAll("body *")].filter((each) => !each.closest(".visually-hidden, .skip"));
        return Math.max(...all.map((each) => each.getBoundingClientRect().right));
    """
    assert page.run("return document.documentElement.scrollWidth") == 390
    assert page.run(widest) <= 390
    puppet.stop()


def test_a_client_shows_its_server_and_its_pools(page: Page) -> None:
    puppet = Puppet("client")
    puppet.ready = False
    state = {"state": "lost", "detail": "no route", "servers": ["tunnel.example.com:8443"], "retry_after_seconds": 7}
    puppet.extra = {"connection": state}
    puppet.start()
    page.open(puppet)
    until(lambda: page.text("#headline") == "No session with the server")
    assert page.text("#subline") == "Lost tunnel.example.com:8443: no route; trying again in 7 s"
    assert page.driver.execute_script("return document.getElementById('sessions-panel').hidden") is True
    pool = {
        "states": {"available": 2}, "min": 2, "max": 8, "waiting": 0, "lent": 0, "hits": 1, "misses": 1,
        "waits": {"p95": None}, "failures": {}, "leaks": {}, "addresses": {},
    }  # fmt: skip
    puppet.extra = {"connection": state, "connection_pool": {"data_channels": pool, "targets": {"web": pool}}}
    until(lambda: "50.0 % of 2 found one ready" in page.text("#pools"))
    assert page.text("#pools").count("found one ready") == 1  # data channels are shared, and tell none
    puppet.publish("session.lost", client="home", detail="closed", retry_in=0.3)
    puppet.publish("session.lost", client="home", detail="no route", retry_in=7.9)
    until(lambda: "no session — no route; next try in 7 s" in page.text("#events"))
    assert "no session — closed\n" in page.text("#events") + "\n"
    puppet.stop()


def test_colours_follow_the_system_until_a_person_chooses(page: Page, puppet: Puppet) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    page.open(puppet)
    light = page.run(ground)
    colours(page.driver, "dark")
    dark = until(lambda: page.run(ground) != light and page.run(ground))
    page.click("#theme")
    assert page.run(ground) == light
    page.driver.refresh()
    page.wait_live()
    assert page.run(ground) == light
    page.click("#theme")
    assert page.run(ground) == dark


def test_ten_thousand_proxies_stay_usable(page: Page, puppet: Puppet) -> None:
    for client in range(10):
        views = (proxy(f"proxy-{n:03}", publish_port=1024 + n, visitors=n, status="healthy") for n in range(1000))
        puppet.put(f"client-{client}", *views)
    began = time.monotonic()
    page.open(puppet)
    until(lambda: page.text("#headline") == "All 10,002 proxies are healthy")
    rendered = time.monotonic() - began
    assert len(page.names()) < 60
    scrolled = page.driver.execute_async_script(
        """
        const [done] = arguments;
        const rows = document.getElementById("proxies-rows");
        const frames = [];
        let last = performance.now();
        function step(now) {
          frames.push(now - last);
          last = now;
          rows.scrollTop += 7919;
          if (frames.length < 60) requestAnimationFrame(step); else done(frames.slice(1).sort((a, b) => a - b));
        }
        requestAnimationFrame(step);
        """
    )
    page.run("document.getElementById('proxies-rows').scrollTop = 1e9")
    until(lambda: "web" in page.names(), "the last row")
    page.find("#search").send_keys("client-7 proxy-99")
    until(lambda: len(page.names()) == 10)
    page.click("#column-visitors button")
    assert page.names()[0] == "proxy-999"
    puppet.change("client-7", "proxy-991", status="bind_failed", reason="not_allowed", error_message="no")
    page.wait_row("proxy-991", "Bind failed")
    until(lambda: page.text("#headline") == "1 of 10,002 proxies is not healthy")
    print(f"10,002 proxies: first shown after {rendered:.2f} s, a frame of scrolling {scrolled[29]:.0f} ms (median), "
          f"{scrolled[-1]:.0f} ms (longest)")  # fmt: skip
    assert scrolled[29] < 1000


def test_nothing_jumps_while_it_lives(page: Page, puppet: Puppet) -> None:
    page.open(puppet)
    page.wait_row("web", "Healthy")
    page.run("""
        window.shifts = 0;
        new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shifts += entry.value; }))
          .observe({type: "layout-shift"});
    """)
    for visitors in range(1, 4):
        puppet.change("home", "web", visitors=visitors, bytes_in=10**visitors, bytes_out=100**visitors)
        page.wait_row("web", f"{visitors} visitor")
    assert page.run("return window.shifts") < 0.01  # where a figure gets longer; a good page may have 0.1
