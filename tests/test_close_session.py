"""A session closed on request, at the server and at its client: both in one Trio run, over real sockets."""

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from home_rig import Home, open_home

import tunnel
from tunnel import HostPort, ServerConfig


@pytest.mark.slow
async def test_a_session_closed_at_the_server_is_told_why_loses_its_visitors_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    async with open_home(tmp_path) as home, await home.visit() as visitor:
        port = home.client.statuses["web"].publish_port
        with pytest.raises(LookupError, match="no client 'lab' is connected, only home"):
            home.server.close_session("lab")
        assert home.server.close_session("home") == ["home"]
        with pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some()
        await home.until_back()
        assert home.ends() == [("closed", "the server's operator closed this session")]
        assert home.told() == [
            ("session.connected", "home"),
            ("session.lost", "the server's operator closed this session"),
            ("session.connected", "home"),
        ]
        assert home.client.statuses["web"].publish_port == port
        await (await home.visit()).aclose()
    assert "the session of client 'home' is closed on request" in caplog.messages
    assert "no session: the server's operator closed this session" in caplog.messages


@pytest.mark.slow
async def test_a_client_that_closes_its_session_says_so_and_is_back_at_once_again_and_again(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        with pytest.raises(LookupError, match="this client is 'home', not 'lab'"):
            home.client.close_session("lab")
        for times in (1, 2, 3):
            assert home.client.close_session("home") == ["home"]
            await home.until_back(times)
        word = "this client's operator closed the session"
        assert home.ends() == [("goodbye", word)] * 3
        assert home.told()[1::2] == [("session.lost", word)] * 3
        lost = [event for event in home.client.events.recent if event.kind == "session.lost"]
        assert [event.fields["retry_in"] for event in lost] == [0.0] * 3
        await (await home.visit()).aclose()


@pytest.mark.slow  # makes a key
async def test_closing_what_nobody_is_connected_to_says_so(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(tunnel.serve, ServerConfig(listen=(HostPort("127.0.0.1", 0),), state_dir=tmp_path))
        with pytest.raises(LookupError, match="no client 'home' is connected, and no other"):
            server.close_session("home")
        nursery.cancel_scope.cancel()


async def is_visited(home: Home) -> bool:
    try:
        await (await home.visit()).aclose()
    except (OSError, trio.BrokenResourceError, AssertionError):
        return False
    return True


@pytest.mark.slow
async def test_a_session_may_be_closed_at_any_moment_from_either_side_and_it_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_home(tmp_path) as home:
        for step in range(40):  # in a greeting, in an upgrade, between two sessions
            home.client.close_session()
            await trio.sleep(step % 8 / 1000)
            with suppress(LookupError):
                home.server.close_session("home")
            await trio.sleep(step % 5 / 500)
        while not await is_visited(home):  # what was closed last may still be ending
            await trio.sleep(0.01)
    assert not [record for record in caplog.records if record.exc_info]
