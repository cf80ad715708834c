"""Notices of a real server and client: they arrive, and receivers that misbehave disturb neither visitors nor the end
(B36)."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve
from home_rig import open_home
from test_webhook import SECRET_PATH, Hook, answers, receiver

from tunnel.addresses import HostPort
from tunnel.config import NoticeConfig
from tunnel.config.actions import SetNotices
from tunnel.config.receivers import Email, Webhook


async def _hangs(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await trio.sleep_forever()


async def _gigabyte(hook: Hook, stream: trio.abc.Stream) -> None:
    await hook.read(stream)
    await hook.write(stream, f"HTTP/1.1 500 No\r\nContent-Length: {10**9}\r\n\r\n".encode())
    while True:
        await hook.write(stream, bytes(65536))


def notice(name: str, to: Webhook | Email) -> NoticeConfig:
    return NoticeConfig(name, to, after=0.0, gather=0.0, interval=0.0)


async def until(is_true: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not is_true():
            await trio.sleep(0.01)


def kinds(hook: Hook) -> list[str]:
    return [json.loads(body)["kind"] for body in hook.bodies]


@pytest.mark.slow
async def test_a_lost_session_reaches_who_listens_whatever_the_other_receivers_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        receiver(answers("200 OK")) as good, receiver(answers("200 OK")) as near, receiver(_hangs) as hung,
        receiver(_gigabyte) as vast, receiver(answers("307 Go", "Location: http://127.0.0.1:1/")) as sly,
    ):  # fmt: skip
        async with open_home(tmp_path) as home:
            await reload_both(home, good, near, hung, vast, sly)
            visitor = await home.visit()
            await visitor.aclose()
            assert home.server.close_session("home") == ["home"]
            await until(lambda: kinds(good) == ["session_lost", "recovered"] and "recovered" in kinds(near))
            await home.until_back()
            await until(lambda: bool(hung.heads and sly.heads and vast.written > 64 * 1024))
            for _ in range(20):
                visitor = await home.visit()
                await visitor.aclose()
            await until(lambda: home.server.stats()["notices"]["good"]["sent"] == 2)
            figures = home.server.stats()["notices"]
            assert figures["good"]["failed"] == 0
            assert figures["hung"]["sent"] == figures["vast"]["sent"] == figures["mail"]["sent"] == 0
            began = trio.current_time()
        assert trio.current_time() - began < 10  # 1.5 s for the hung one, and a loaded machine
    assert "not sent before the end" in caplog.text
    assert SECRET_PATH not in caplog.text
    assert "hunter2" not in caplog.text


async def reload_both(home: object, good: Hook, near: Hook, hung: Hook, vast: Hook, sly: Hook) -> None:
    hooks = {"good": good, "hung": hung, "vast": vast, "sly": sly}
    notices = [notice(name, Webhook(hook.url, b"hunter2-hunter2")) for name, hook in hooks.items()]
    notices.append(notice("mail", Email(HostPort("127.0.0.1", 1), "a@b", ("c@d",), "none")))
    server, client = home.server, home.client  # type: ignore[attr-defined]
    server.apply(evolve(server.config, notices=tuple(notices)))
    client.apply([SetNotices((notice("near", Webhook(near.url)),))])
    assert set(server.stats()["notices"]) == {*hooks, "mail"}
    assert set(client.stats()["notices"]) == {"near"}


@pytest.mark.slow
async def test_a_thousand_events_at_once_with_a_receiver_that_hangs_are_bounded_and_cost_no_visitor_anything(
    tmp_path: Path,
) -> None:
    async with receiver(_hangs) as hung, open_home(tmp_path) as home:
        home.server.apply(evolve(home.server.config, notices=(notice("hung", Webhook(hung.url)),)))
        for number in range(1000):
            home.server.events.publish("certificate.expiring", not_after=str(number), days=1)
            home.server.events.publish("config.refused", mistakes=[str(number)])
        visitor = await home.visit()
        await visitor.aclose()
        await until(lambda: bool(hung.heads))
        figures = home.server.stats()["notices"]["hung"]
        assert figures["waiting"] <= 11
        assert figures["sent"] == 0
