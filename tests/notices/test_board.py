"""The notices of a running process: live changes, its end, and what a fault in here may cost."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from notice_rig import AT, config, update

from tunnel.config import NoticeConfig
from tunnel.messages import Reason
from tunnel.notices.board import Board
from tunnel.notices.courier import CLOSING_SECONDS, Send
from tunnel.notices.notice import Notice
from tunnel.notices.outcome import Outcome
from tunnel.snapshot import EventStream, SessionView, Snapshot

OPS = config()


class Side:
    """Stands for a server, and for all receivers: `got` has what each of them was sent, and when."""

    def __init__(self) -> None:
        self.events = EventStream()
        self.sessions: tuple[SessionView, ...] = ()
        self.got: list[tuple[float, str, str, int]] = []
        self.answer: Callable[[], Any] = lambda: Outcome(True, "taken")
        self.seconds = 0.0

    def snapshot(self) -> Snapshot:
        return Snapshot("server", "", self.sessions)

    def is_ready(self) -> bool:
        return True

    def deliver(self, to: NoticeConfig) -> Send:
        async def send(notices: list[Notice]) -> Outcome:
            for notice in notices:
                self.got.append((trio.current_time(), to.name, notice.kind, notice.group.count))
            await trio.sleep(self.seconds)
            outcome: Outcome = self.answer()
            return outcome

        return send

    def fail(self, name: str = "web") -> None:
        failed = update(name, "bind_failed", Reason.ADDR_IN_USE, "taken")
        self.events.publish("proxy.status", client="home", proxy=name, update=failed)

    def heal(self, name: str = "web") -> None:
        self.events.publish("proxy.status", client="home", proxy=name, update=update(name, "healthy"))


@asynccontextmanager
async def board(side: Side, *notices: NoticeConfig) -> AsyncIterator[Board]:
    found = Board(side, deliver=side.deliver)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run, notices)
        yield found
        nursery.cancel_scope.cancel()


async def test_what_happens_is_sent_to_each_receiver_when_its_rules_say_so(autojump_clock: trio.abc.Clock) -> None:
    side = Side()
    async with board(
        side, OPS, config(name="slow", gather=30.0), config(name="deaf", events=("session_lost",))
    ) as found:
        await trio.sleep(10)
        side.fail()
        await trio.sleep(100)
        assert side.got == [(10, "ops", "bind_failed", 1), (40, "slow", "bind_failed", 1)]
        assert found.stats()["ops"] == {
            "type": "webhook", "sent": 1, "failed": 0, "dropped": 0, "retried": 0, "waiting": 0, "last": "taken",
            "ignored": 0,
        }  # fmt: skip
        assert found.stats()["deaf"]["sent"] == 0


@pytest.mark.slow
async def test_not_even_ten_thousand_events_in_one_moment_are_missed(autojump_clock: trio.abc.Clock) -> None:
    side = Side()
    async with board(side, config(gather=5.0)):
        for number in range(10_000):
            side.fail(f"p{number}")
        await trio.sleep(10)
        assert side.got == [(5, "ops", "bind_failed", 10_000)]


async def test_a_receiver_that_is_new_goes_by_what_there_is_and_one_that_is_gone_gets_no_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    side = Side()
    async with board(side, OPS) as found:
        side.sessions = (SessionView("home", AT, ()),)
        found.apply([config(name="new")])
        side.fail()
        side.events.publish("session.ended", client="home", reason="lost", message="")
        await trio.sleep(100)
        assert side.got == [(0, "new", "bind_failed", 1), (60, "new", "session_lost", 1)]
        assert list(found.stats()) == ["new"]


async def test_a_receiver_that_changed_keeps_what_was_told_and_what_waits(autojump_clock: trio.abc.Clock) -> None:
    side = Side()
    side.answer = lambda: Outcome(False, "no", retry=True)
    async with board(side, OPS) as found:
        side.fail()
        await trio.sleep(1)
        side.answer = lambda: Outcome(True, "taken")
        found.apply([evolve(OPS, to=evolve(OPS.to, format="slack"))])
        await trio.sleep(100)
        side.heal()
        await trio.sleep(100)
        assert [kind for _, _, kind, _ in side.got] == ["bind_failed", "bind_failed", "recovered"]
        assert found.stats()["ops"]["retried"] == 1


async def test_a_changed_file_that_mends_a_refused_one_is_told_also_to_whom_it_changes(
    autojump_clock: trio.abc.Clock,
) -> None:
    side = Side()
    async with board(side, OPS) as found:
        side.events.publish("config.refused", mistakes=["no"])
        await trio.sleep(10)
        found.apply([config(after=7.0)])
        side.events.publish("config.reloaded", changes=[])
        await trio.sleep(10)
        assert side.got == [(0, "ops", "config_refused", 1), (10, "ops", "recovered", 1)]


async def test_the_end_waits_two_seconds_at_most_for_what_is_unsent_and_counts_it(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side()
    side.seconds = 1000.0
    async with board(side, config(gather=5.0), config(name="other", gather=0.0)) as found:
        side.fail()
        await trio.sleep(1)
    assert trio.current_time() == 1 + CLOSING_SECONDS
    assert sorted(side.got) == [
        (0, "other", "bind_failed", 1), (1, "ops", "bind_failed", 1), (1, "other", "bind_failed", 1),
    ]  # fmt: skip
    assert [found.stats()[name]["dropped"] for name in ("ops", "other")] == [1, 1]
    assert "notice 'ops': 1 not sent before the end: bind_failed" in caplog.text


async def test_the_end_sends_what_was_being_gathered_and_is_not_held_up_otherwise(
    autojump_clock: trio.abc.Clock,
) -> None:
    side = Side()
    async with board(side, config(gather=5.0)):
        side.fail()
        await trio.sleep(1)
    assert side.got == [(1, "ops", "bind_failed", 1)]
    assert trio.current_time() == 1
    async with board(side, OPS):
        pass
    assert trio.current_time() == 1


async def test_a_fault_in_a_courier_costs_that_receiver_only(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side()

    def boom() -> Outcome:
        raise RuntimeError("boom")

    side.answer = boom
    async with board(side, OPS):
        side.fail()
        await trio.sleep(100)
    assert "notice 'ops' has failed and is left out until a restart" in caplog.text
    assert len(side.got) <= 2


async def test_a_fault_in_the_rules_does_not_reach_who_publishes(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side()
    async with board(side, OPS):
        for _ in range(3):
            side.events.publish("proxy.status", client="home", proxy="web", update=None)
        side.fail()
        await trio.sleep(1)
    assert side.got == [(0, "ops", "bind_failed", 1)]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_a_certificate_that_was_told_before_anybody_listened_is_heard_of(autojump_clock: trio.abc.Clock) -> None:
    side = Side()
    side.events.publish("certificate.expiring", not_after="soon", days=3)
    side.fail()
    async with board(side, OPS):
        await trio.sleep(1)
        assert side.got == [(0, "ops", "certificate_expiring", 1)]
    side.events.publish("certificate.loaded", not_after="later")
    async with board(side, OPS):
        await trio.sleep(1)
    assert len(side.got) == 1
