"""Sends a test notice to each receiver, once, and tells what became of it; for `trio-tunnel notify test`."""

from collections.abc import Sequence

import trio
from attrs import frozen

from tunnel.config import NoticeConfig
from tunnel.config.receivers import Webhook
from tunnel.notices.board import notice, process
from tunnel.notices.courier import sender
from tunnel.notices.notice import TEST, Group, Sender, Subject
from tunnel.notices.outcome import Outcome


@frozen
class Trial:
    """What came of one, by the name of its notice."""

    name: str
    type: str
    outcome: Outcome


async def try_all(notices: Sequence[NoticeConfig], role: str) -> list[Trial]:
    """All at once, each for its own `timeout` at most; in the order of the configuration."""
    outcomes: dict[str, Outcome] = {}
    us = process(role)
    async with trio.open_nursery() as nursery:
        for config in notices:
            nursery.start_soon(_try, config, us, outcomes, name=f"notice {config.name}")
    return [Trial(config.name, _type(config), outcomes[config.name]) for config in notices]


async def _try(config: NoticeConfig, us: Sender, outcomes: dict[str, Outcome]) -> None:
    test = Group(TEST, 1, (Subject(status=TEST, message="Somebody ran `trio-tunnel notify test`."),))
    outcomes[config.name] = await sender(config, trio.CapacityLimiter(1))([notice(config.name, test, us)])


def _type(config: NoticeConfig) -> str:
    return "webhook" if isinstance(config.to, Webhook) else "email"
