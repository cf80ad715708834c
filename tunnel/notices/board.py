"""The notices of a running server or client: hears its events, lets rules judge them, has couriers deliver.

One `Post` for each ``[[notices]]`` entry, alive while the entry is in force. Events are heard at once, in the task that
publishes them, so that not even ten thousand in a moment are missed; all else is done by tasks of this board.
"""

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import trio
from attrs import define, evolve, field

from tunnel.config import NoticeConfig
from tunnel.notices.courier import CLOSING_SECONDS, Courier, Send, sender
from tunnel.notices.notice import Group, Notice, Sender
from tunnel.notices.rules import Rules
from tunnel.snapshot import Event, EventStream, Follower, Snapshot, utc_now
from tunnel.version import __version__

log = logging.getLogger(__name__)

Deliver = Callable[[NoticeConfig], Send]


class Watched(Protocol):
    """What is asked of a server or a client."""

    events: EventStream

    def snapshot(self) -> Snapshot: ...

    def is_ready(self) -> bool: ...


def process(role: str) -> Sender:
    """This one, as receivers are told of it."""
    return Sender(role, socket.gethostname(), f"trio-tunnel/{__version__}")


def notice(to: str, group: Group, process: Sender) -> Notice:
    return Notice(secrets.token_hex(16), utc_now(), to, process, group)


class Board:
    """`run` until cancelled, `apply` meanwhile; what is left at the end is sent within 2 s, or counted as dropped."""

    def __init__(self, source: Watched, *, deliver: Deliver | None = None) -> None:
        self._source = source
        self._deliver = deliver or partial(sender, threads=trio.CapacityLimiter(1))
        self._process = process(source.snapshot().role)
        self._posts: dict[str, Post] = {}
        self._running: trio.Nursery | None = None
        self._is_broken = False

    def apply(self, notices: Sequence[NoticeConfig]) -> None:
        """These and no others from now on. What stays as it was keeps what it has told, and what waits."""
        wanted = {config.name: config for config in notices}
        for name in self._posts.keys() - wanted.keys():
            self._posts.pop(name).scope.cancel(reason="the notice was taken out of the configuration")
        for name, config in wanted.items():
            if name in self._posts:
                self._posts[name].apply(config, self._seed, self._deliver)
            else:
                rules = Rules(config, is_server=self._process.role == "server")
                self._seed(rules)
                for event in self._certificate():
                    rules.hear(event, trio.current_time())
                self._posts[name] = Post(rules, Courier(config, self._deliver(config)), self._process)
                self._start(self._posts[name])

    async def run(
        self, notices: Sequence[NoticeConfig], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Nothing that happens after `started` is missed, and of what was before it the state is seen."""
        with self._source.events.follow() as follower:
            follower.wake = partial(self._hear, follower)
            async with trio.open_nursery() as posts:
                self._running = posts
                self.apply(notices)
                task_status.started()
                await trio.sleep_forever()

    def stats(self) -> dict[str, Any]:
        """The figures of each, by its name."""
        return {name: {**post.courier.stats(), "ignored": post.rules.ignored} for name, post in self._posts.items()}

    def _seed(self, rules: Rules) -> None:
        now = trio.current_time()
        rules.seed(self._source.snapshot(), now, at=utc_now(), is_ready=self._source.is_ready())

    def _certificate(self) -> list[Event]:
        """The last word of it: it is told once a day, and no state shows it."""
        return [event for event in self._source.events.recent if event.kind.startswith("certificate.")][-1:]

    def _start(self, post: "Post") -> None:
        assert self._running is not None
        self._running.start_soon(self._run, post, name=f"notice {post.courier.config.name}")

    async def _run(self, post: "Post") -> None:
        """A wall: what is wrong in here costs this notice, and not the tunnel."""
        try:
            with post.scope:
                await post.run()
        except* Exception:
            log.exception("notice '%s' has failed and is left out until a restart", post.courier.config.name)

    def _hear(self, follower: Follower) -> None:
        """Called by whoever publishes; raises nothing."""
        now = trio.current_time()
        for event in follower.drain():
            for post in self._posts.values():
                try:
                    post.hear(event, now)
                except Exception:
                    if not self._is_broken:
                        log.exception("an event could not be judged; notices of the like will be missing")
                    self._is_broken = True


@define(eq=False)
class Post:
    """One receiver: its rules and its courier."""

    rules: Rules
    courier: Courier
    process: Sender
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _heard: trio.Event = field(factory=trio.Event, init=False)

    def hear(self, event: Event, now: float) -> None:
        self.rules.hear(event, now)
        self._heard.set()

    def apply(self, config: NoticeConfig, seed: Callable[[Rules], None], deliver: Deliver) -> None:
        before = self.courier.config
        if config == before:
            return
        if evolve(config, to=before.to, retry=before.retry) != before:
            self.rules.apply(config, trio.current_time())
            seed(self.rules)
        self.courier.config, self.courier.send = config, deliver(config)
        self._heard.set()

    async def run(self) -> None:
        """Until cancelled, and `CLOSING_SECONDS` longer at most, where something is left to be sent."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.courier.run, name="courier")
                await self._judge()
        finally:
            self._offer(self.rules.flush(trio.current_time()))
            if self.courier.unsent:
                with trio.move_on_after(CLOSING_SECONDS, shield=True):
                    await self.courier.close()
            self.courier.give_up()

    async def _judge(self) -> None:
        while True:
            self._heard = trio.Event()  # before the look: what is heard after this line sets *this* event
            self._offer(self.rules.due(trio.current_time()))
            with trio.move_on_at(self.rules.next_at):
                await self._heard.wait()

    def _offer(self, groups: list[Group]) -> None:
        for group in groups:
            self.courier.offer(notice(self.courier.config.name, group, self.process))
