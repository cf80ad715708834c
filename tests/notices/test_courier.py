"""Each notice is tried until it is taken, refused for good, or tried enough; times are exact."""

import logging
from typing import Any

import pytest
import trio
from attrs import evolve
from notice_rig import AT, config

from tunnel.addresses import HostPort
from tunnel.backoff import RetryPolicy
from tunnel.config.receivers import Email
from tunnel.notices.courier import MAX_SECONDS, MAX_WAITING, Courier
from tunnel.notices.notice import Group, Notice, Sender, Subject
from tunnel.notices.outcome import MAX_RETRY_AFTER, Outcome, hide, retry_after

TAKEN, LATER = Outcome(True, "it answered 200"), Outcome(False, "it answered 503", "see it", retry=True)
NEVER = Outcome(False, "it answered 404", "see url")
STEADY = RetryPolicy(initial_delay=2.0, factor=2.0, max_delay=60.0, max_retries=4)


def notice(number: int) -> Notice:
    return Notice(str(number), AT, "ops", Sender("server", "h", "s"), Group("bind_failed", 1, (Subject(),)))


class Receiver:
    """Answers what it was told to, the last for ever, and keeps who came when."""

    def __init__(self, *answers: Outcome, seconds: float = 0.0) -> None:
        self.came: list[tuple[float, str]] = []
        self._answers = list(answers)
        self._seconds = seconds

    async def __call__(self, notices: list[Notice]) -> Outcome:
        self.came.append((trio.current_time(), "+".join(notice.id for notice in notices)))
        await trio.sleep(self._seconds)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def hire(nursery: trio.Nursery, receiver: Receiver, **changes: Any) -> Courier:
    courier = Courier(config(**{"retry": STEADY, **changes}), receiver)
    nursery.start_soon(courier.run)
    return courier


async def test_notices_go_out_one_after_the_other_in_order(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    receiver = Receiver(TAKEN, seconds=1.0)
    courier = hire(nursery, receiver)
    for number in range(3):
        courier.offer(notice(number))
    await trio.sleep(10)
    courier.offer(notice(3))
    await trio.sleep(10)
    assert receiver.came == [(0, "0"), (1, "1"), (2, "2"), (10, "3")]
    assert (courier.sent, courier.failed, courier.retried, courier.unsent) == (4, 0, 0, 0)


async def test_what_may_pass_is_tried_again_by_the_policy_and_then_given_up(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(LATER)
    courier = hire(nursery, receiver)
    courier.offer(notice(0))
    await trio.sleep(1000)
    assert [at for at, _ in receiver.came] == [0, 2, 6, 14, 30]
    assert (courier.sent, courier.failed, courier.retried, courier.unsent) == (0, 1, 4, 0)
    assert "notice 'ops' (bind_failed) was given up: it answered 503; see it" in caplog.text


async def test_what_was_refused_for_good_is_not_tried_again_and_the_next_goes_at_once(
    nursery: trio.Nursery,
    autojump_clock: trio.abc.Clock,
) -> None:
    receiver = Receiver(NEVER, TAKEN)
    courier = hire(nursery, receiver)
    courier.offer(notice(0))
    courier.offer(notice(1))
    await trio.sleep(1000)
    assert receiver.came == [(0, "0"), (0, "1")]
    assert (courier.sent, courier.failed) == (1, 1)
    assert courier.last == "it answered 200"


async def test_a_receiver_that_says_when_is_asked_then(nursery: trio.Nursery, autojump_clock: trio.abc.Clock) -> None:
    receiver = Receiver(evolve(LATER, retry_after=100.0), LATER, TAKEN)
    hire(nursery, receiver).offer(notice(0))
    await trio.sleep(1000)
    assert [at for at, _ in receiver.came] == [0, 100, 104]


async def test_one_that_always_says_later_is_given_up_in_the_end(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    receiver = Receiver(evolve(LATER, retry_after=MAX_RETRY_AFTER))
    courier = hire(nursery, receiver, retry=RetryPolicy(max_retries=100))
    courier.offer(notice(0))
    await trio.sleep(80_000)
    assert courier.failed == 1
    assert receiver.came[-1][0] <= MAX_SECONDS


async def test_while_one_is_tried_only_so_many_wait_and_the_oldest_give_way(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    receiver = Receiver(LATER, LATER, TAKEN)
    courier = hire(nursery, receiver)
    courier.offer(notice(0))
    await trio.sleep(1)
    for number in range(1, MAX_WAITING + 51):
        courier.offer(notice(number))
    assert (courier.unsent, courier.dropped) == (MAX_WAITING + 1, 50)
    await trio.sleep(1000)
    assert [who for _, who in receiver.came[2:5]] == ["0", "51", "52"]
    assert (courier.sent, courier.dropped) == (MAX_WAITING + 1, 50)


async def test_a_mail_server_gets_what_waits_in_one_mail(nursery: trio.Nursery, autojump_clock: trio.abc.Clock) -> None:
    receiver = Receiver(TAKEN, seconds=1.0)
    courier = hire(nursery, receiver, to=Email(HostPort("h", 25), "a@b", ("c@d",)))
    courier.offer(notice(0))
    await trio.sleep(0.5)
    for number in range(1, 26):
        courier.offer(notice(number))
    await trio.sleep(10)
    assert receiver.came == [
        (0, "0"), (1, "+".join(map(str, range(1, 21)))), (2, "+".join(map(str, range(21, 26)))),
    ]  # fmt: skip
    assert courier.sent == 26


async def test_what_was_being_tried_when_the_process_ends_gets_one_last_attempt(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    receiver = Receiver(LATER, TAKEN)
    courier = Courier(config(retry=STEADY), receiver)
    courier.offer(notice(0))
    courier.offer(notice(1))
    with trio.move_on_after(1):
        await courier.run()
    assert courier.unsent == 2
    await courier.close()
    courier.give_up()
    assert [who for _, who in receiver.came] == ["0", "0", "1"]
    assert (courier.sent, courier.dropped) == (2, 0)
    assert caplog.text == ""


async def test_what_is_not_sent_before_the_end_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    courier = Courier(config(), Receiver(TAKEN))
    courier.offer(notice(0))
    courier.offer(notice(1))
    courier.give_up()
    assert "notice 'ops': 2 not sent before the end: bind_failed, bind_failed" in caplog.text
    assert (courier.dropped, courier.unsent) == (2, 0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0), ("", 0.0), ("7", 7.0), ("-7", 0.0), ("99999999999999999999", 0.0), ("86400", MAX_RETRY_AFTER),
        ("soon", 0.0), ("Fri, 20 Nov 2026 16:40:42 GMT", 30.0), ("Fri, 20 Nov 2026 16:40:02 GMT", 0.0),
        ("Fri, 99 Nov 2026 16:40:02 GMT", 0.0), ("\x00", 0.0),
    ],
)  # fmt: skip
def test_a_retry_after_is_read_in_both_its_forms_and_bounded(header: str | None, seconds: float) -> None:
    from datetime import datetime

    assert retry_after(header, datetime.fromisoformat(AT)) == seconds


def test_what_a_receiver_repeats_of_our_secrets_is_not_shown() -> None:
    assert hide("token hunter2-long\nis bad", ["hunter2-long", "", "is"]) == "token (not shown) is bad"
