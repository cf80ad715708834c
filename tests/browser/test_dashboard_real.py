"""The dashboards of a real server and a real client: what their buttons do is done."""

import sys
from pathlib import Path

import pytest

from .driver import until
from .page import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from processes import Stage, echoes, free_port, held_port, proxy_toml
from services import Services, echo

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def token(state: Path) -> str:
    return (state / "admin.token").read_text().strip()


def test_a_port_that_is_free_again_is_taken_at_a_click_and_a_closed_session_comes_back(
    page: Page, tmp_path: Path
) -> None:
    with Services() as services, Stage(tmp_path) as stage:
        port = free_port()
        target = services.add(echo)
        server = stage.serve()
        with held_port(port):
            never_by_itself = "[proxies.bind_retry]\ninitial_delay = 300\nmax_delay = 300\n"
            client = stage.connect(server, config=proxy_toml("late", port, target, never_by_itself), admin=True)
            client.wait_status("late", reason="addr_in_use")
            page.visit(f"http://127.0.0.1:{server.admin}/")
            page.wait_row("late", "Unhealthy", "addr_in_use", "retry")
        page.button("Retry late").click()
        page.unlock(token(server.state))
        page.wait_row("late", "Healthy")
        until(lambda: echoes(port))
        name = page.text("#sessions .name")
        page.button(f"Close the session of {name}").click()
        page.click("#confirm-yes")
        until(lambda: "session ended" in page.text("#events"), "the end of the session")
        page.wait_row("late", "Healthy")
        until(lambda: echoes(port))
        page.visit(f"http://127.0.0.1:{client.admin}/")
        until(lambda: page.text("#role") == "client" and "Connected to 127.0.0.1" in page.text("#subline"))
        page.wait_row("late", "Healthy")
        until(lambda: "Data channels to the server" in page.text("#pools"))
        server.kill()
        until(lambda: page.text("#headline") == "No session with the server")
        page.find("#again").click()
        page.unlock(token(client.state))
        until(lambda: page.text("#toast") == "Trying again now.")
