"""The certificate's end is told once a day while it is near, whatever the wall clock does meanwhile."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from tunnel.server import expiry
from tunnel.server.expiry import LOOK_SECONDS, TELL_SECONDS, watch_expiry
from tunnel.snapshot import EventStream

HOUR, DAY = 3600.0, 86_400.0
START = datetime(2026, 11, 20, tzinfo=UTC)


class Certificate:
    """Stands for the one in force."""

    def __init__(self, days: float) -> None:
        self.not_after: datetime | None = START + timedelta(days=days)
        self.files = self
        self.cert_file = Path("cert.pem")


class WallClock(datetime):
    """Goes with Trio's clock, and may be put wrong."""

    wrong_by = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return START + timedelta(seconds=trio.current_time()) + cls.wrong_by


@pytest.fixture
def lifetime(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """In days; a thread would let the clock jump."""
    made_for = {"days": 90.0}

    async def here(function: Any, *args: object, **_options: object) -> Any:
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    monkeypatch.setattr(expiry, "lifetime_of_file", lambda path: timedelta(days=made_for["days"]))
    monkeypatch.setattr(expiry, "datetime", WallClock)
    monkeypatch.setattr(WallClock, "wrong_by", timedelta())
    return made_for


async def told(
    certificate: Certificate, days: float, events: EventStream | None = None
) -> list[tuple[float, str, Any]]:
    """What was published, as times in days, kinds, and days left."""
    events = events or EventStream()
    found: list[tuple[float, str, Any]] = []
    with events.follow() as follower:

        def wake() -> None:
            at = round(trio.current_time() / DAY, 1)
            found.extend(
                (at, event.kind.removeprefix("certificate."), event.fields.get("days")) for event in follower.drain()
            )

        follower.wake = wake
        with trio.move_on_after(days * DAY):
            await watch_expiry(certificate, events)  # type: ignore[arg-type]
    return found


async def test_the_end_is_told_once_a_day_from_thirty_days_before_it_on_and_after_it(
    lifetime: dict[str, float], autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    lifetime["days"] = 365
    found = await told(Certificate(32.5), 34.2)
    assert found == [(day + 2.5, "expiring", 30 - day) for day in range(32)]
    assert "the certificate cert.pem ends in 28 days, at 2026-12-22 12:00:00+00:00; put a new one there" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR
    assert "has ended" in caplog.text


async def test_one_that_is_made_for_a_week_is_near_its_end_in_its_last_third(
    lifetime: dict[str, float], autojump_clock: trio.abc.Clock
) -> None:
    lifetime["days"] = 6
    assert await told(Certificate(6), 5.5) == [
        (4.0, "expiring", 2), (5.0, "expiring", 1),
    ]  # fmt: skip


async def test_a_new_certificate_is_told_within_a_minute_and_ends_the_warnings(
    lifetime: dict[str, float], autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    certificate = Certificate(10)

    async def renew() -> None:
        await trio.sleep(1.5 * DAY)
        certificate.not_after = START + timedelta(days=90)

    nursery.start_soon(renew)
    assert await told(certificate, 20) == [
        (0.0, "expiring", 10), (1.0, "expiring", 9), (1.5, "loaded", None),
    ]  # fmt: skip
    assert LOOK_SECONDS <= 60.0


async def test_a_wall_clock_that_jumps_makes_no_flood(
    lifetime: dict[str, float], autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    async def jump() -> None:
        for number in range(100):
            WallClock.wrong_by = timedelta(days=(number % 2) * 400)
            await trio.sleep(HOUR)

    nursery.start_soon(jump)
    found = await told(Certificate(60), 100 * HOUR / DAY)
    assert [kind for _, kind, _ in found].count("expiring") <= 100 * HOUR / TELL_SECONDS + 1


async def test_a_certificate_whose_end_nobody_can_read_is_no_news(
    lifetime: dict[str, float], autojump_clock: trio.abc.Clock
) -> None:
    certificate = Certificate(1)
    certificate.not_after = None
    assert await told(certificate, 20) == []
