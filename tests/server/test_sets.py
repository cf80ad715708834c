"""A client that sends set after set of proxies is slowed down, alone."""

import pytest
import trio
from test_living_grants import open_lab, specs

from tunnel.messages import ProxySet
from tunnel.server import session as session_module


async def test_sets_are_taken_as_slowly_as_they_are_long(files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SET_SECONDS", 0.01)
    async with open_lab(files) as lab:
        began = trio.current_time()
        for version in range(1, 4):
            await lab.control.send(ProxySet(version, specs(*[0] * 10)))
        await lab.control.send(ProxySet(4, specs(0)))
        while len(lab.session.proxies) != 1:
            await trio.sleep(0.01)
        assert trio.current_time() - began >= 0.3  # three times ten proxies
