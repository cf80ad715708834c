"""One browser for all tests of a run; a puppet for each."""

from collections.abc import Iterator

import pytest

from tunnel.admin import live

from .driver import browser, colours, missing, resize
from .page import Page
from .puppet import Puppet, proxy

QUICK_SECONDS = 0.2  # between two looks, so that no test waits long for one


@pytest.fixture(scope="session")
def _tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if why := missing():
        pytest.skip(why)
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        page = Page(driver)
        driver.get("about:blank")
        page.hosts_asked()  # of the browser's own first page
        yield page


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", QUICK_SECONDS)
    monkeypatch.setattr(live, "LOOK_SHARE", 0.2)


@pytest.fixture
def page(_tab: Page) -> Iterator[Page]:
    """Afterwards nothing may have been asked of another host, and the console has nothing to say: no violation of the
    policy, no error."""
    resize(_tab.driver, 1280, 900)
    colours(_tab.driver, "light")
    yield _tab
    asked, said = _tab.hosts_asked(), _tab.log()
    _tab.driver.get("about:blank")
    assert asked <= {"127.0.0.1", "about"}
    assert said == []


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    puppet = Puppet()
    puppet.put("home", proxy("web"), proxy("ssh", publish_port=8022))
    puppet.start()
    yield puppet
    puppet.stop()
