"""The relay's one task: it waits for the poller and takes turns."""

import gc
import logging
import math
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import trio

from tunnel.config import Limits
from tunnel.frames import Abort
from tunnel.relay.bounds import Bounds
from tunnel.relay.channel import STEP_BYTES, Channel
from tunnel.relay.deadlines import DeadlineQueue
from tunnel.relay.ledger import Ledger
from tunnel.relay.listener import Listener
from tunnel.relay.poller import Entry, Poller, available
from tunnel.relay.pulse import DOUBT_SECONDS
from tunnel.relay.room import Room
from tunnel.relay.session import RelaySession, Route
from tunnel.relay.stream import Stream
from tunnel.relay.tempo import (
    ALONE,
    BESIDE,
    CAPACITY,
    TURN_SECONDS,
    WATCH_SECONDS,
    Courtesy,
    Mixture,
    Rota,
    Share,
    Watch,
    offer_core,
)

log = logging.getLogger(__name__)

PING_SECONDS = 20.0  # a data channel's sign of life; under the 30 s after which impatient NAT boxes forget a flow
PONG_SECONDS = 10.0  # with PING_SECONDS a dead channel is noticed in 30 s (design §5)
SHORTAGE_SECONDS = 0.1  # accepting pauses so long when descriptors or memory run out
LINGER_SECONDS = 0.002  # in all, before going back through Trio; measured: at 1 and at 64 connections a tenth less CPU
LINGER_WAIT = 0.001  # at a time


class Member(Entry, Protocol):
    """An entry that can be ended by the wall around it."""

    def fail(self, exc: Exception) -> None: ...


M = TypeVar("M", bound=Member)


class Engine:
    """One a process. `run` ends when cancelled; sessions attach to it and leave before.

    `linger` trades up to 2 ms of the other Trio tasks' time for fewer passes through Trio: only for a process that is
    nothing but one tunnel end (two lingering engines in one run starve each other, measured). Elsewhere others may
    have copies of our descriptors, for a fork has, so there sockets are shut and unregistered before they are closed.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        poller: Callable[[], Poller] | None = None,
        linger: bool = False,
        room: Room | None = None,
    ) -> None:
        limits = limits or Limits()
        self.sessions: set[RelaySession] = set()
        self.stirred: list[Channel] = []  # have something to send
        self.unfollowed: set[Channel] = set()  # far ones that sent little, and perhaps nothing since
        self.rereads: Rota[Channel] = Rota()  # had more than a turn's share
        self.mixture = Mixture()
        self.share = ALONE
        self._inbound = memoryview(bytearray(ALONE.inbound))
        self.inbound_view = self._inbound  # as long as the share
        self.plain_view = memoryview(bytearray(2 * STEP_BYTES))
        self.batch = bytearray(CAPACITY)  # filled, encrypted and empty again within one channel's pump
        self.batch_view = memoryview(self.batch)
        self.bounds: Bounds[Listener] = Bounds(limits, room or Room(), now=self.now, wake=self.wake)
        self.pings = self._deadlines(PING_SECONDS, Channel.ping)
        self.pongs = self._deadlines(PONG_SECONDS, Channel.unanswered)
        self.doubts = self._deadlines(DOUBT_SECONDS, Channel.doubted)
        self.dials = self._deadlines(limits.dial_seconds, _dial_timed_out)
        self.waits = self._deadlines(limits.channel_wait_seconds, _no_channel_came)
        self.half_closed = self._deadlines(limits.half_closed_seconds, self._silent)
        self.pauses = self._deadlines(SHORTAGE_SECONDS, Listener.resume)
        self.errors = 0  # caught by walls
        self.ledger = Ledger()
        self.turns = 0
        self.is_late = False  # this turn has taken long: who is not served yet has the next one
        self._late_at = 0.0
        self._queues: tuple[DeadlineQueue[Any], ...] = (
            self.pings, self.pongs, self.doubts, self.dials, self.waits, self.half_closed, self.pauses,
        )  # fmt: skip
        self._entries: dict[int, Member] = {}
        self._left: set[int] = set()  # numbers unregistered since the last poll, whose events may still be in hand
        self._arrived: dict[int, Member] = {}  # and who got such a number since: not to be told of those events
        self._poller: Poller = (poller or available()[0])()
        self.tells_errors = self._poller.tells_errors
        self.is_alone = linger  # in its process
        self._linger = linger and self._poller.waits
        self._watch = Watch()
        self._courtesy = Courtesy()
        self._waker, wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee = _Wakee(wakee)
        self.register(wakee.fileno(), self._wakee, level=True)
        self._last_shortage = 0.0
        self._alarm = trio.Event()

    now = staticmethod(time.monotonic)

    def apply(self, limits: Limits) -> None:
        """Other bounds from now on. Nobody inside goes; deadlines under way are as much later or sooner."""
        self.bounds.apply(limits)
        self.dials.become(limits.dial_seconds)
        self.waits.become(limits.channel_wait_seconds)
        self.half_closed.become(limits.half_closed_seconds)
        self._alarm.set()

    def attach(
        self, *, route: Callable[[int, int], Route | None] | None = None, max_streams: int | None = None
    ) -> RelaySession:
        """A session's place in the relay; use it in a `with`."""
        return RelaySession(self, route=route, max_streams=max_streams)

    # The task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take turns until cancelled. What is attached stays usable only while this runs."""
        try:
            async with trio.open_nursery() as helpers:
                helpers.start_soon(self._watch_deadlines, name="relay deadlines")
                if self._linger:
                    gc.collect()
                    gc.freeze()  # what exists by now stays: a full collection need not walk it again
                task_status.started()
                is_hot = False
                while True:
                    if is_hot or self.stirred or self.rereads:
                        await trio.lowlevel.checkpoint()
                    else:
                        await self._poller.wait()
                    self.turn(0)  # what woke us was not watched for, and must not count as if
                    is_hot = self._linger and self._take_turns()
        finally:
            self.close()

    def _take_turns(self) -> bool:
        """Turns while there is traffic, for LINGER_SECONDS at most before others in this Trio run have theirs; False
        when there was none any more."""
        end = self.now() + LINGER_SECONDS
        while True:
            ready = self.turn(0) if self.stirred or self.rereads else self._handle(self._next_events())
            if self.share is BESIDE:
                self._offer_core()
            if not ready and not (self.stirred or self.rereads):
                if self.unfollowed:
                    self._follow_up()
                return False
            if self.now() >= end:
                return True

    def _follow_up(self) -> None:
        """There was a moment's silence after what these channels sent."""
        channels, self.unfollowed = self.unfollowed, set()
        for channel in channels:
            try:
                channel.follow_up()
            except Exception as exc:
                self.wall(channel, exc)

    def _next_events(self) -> list[tuple[int, int]]:
        """What comes next, or nothing within LINGER_WAIT; watched for if that pays, else slept until."""
        poll, now, watch = self._poller.poll, self.now, self._watch
        if watch.pays:
            end = now() + WATCH_SECONDS
            while not (events := poll(0)):
                if now() >= end or not self._offer_core():
                    watch.was_in_vain()
                    return poll(LINGER_WAIT)
            watch.paid()
            return events
        began = now()
        events = poll(LINGER_WAIT)
        watch.slept(now() - began)
        return events

    def _offer_core(self) -> bool:
        """Let who else is ready run first; False if that would be no good."""
        if offer_core is None or not self._courtesy.may_offer():
            return False
        began = self.now()
        offer_core()
        self._courtesy.took(self.now() - began)
        return True

    def turn(self, timeout: float) -> int:
        """Handle everything that is ready; returns how many sockets were."""
        return self._handle(self._poller.poll(timeout))

    def _handle(self, events: list[tuple[int, int]]) -> int:
        self.turns += 1
        self._begin_clock()
        entries = self._entries
        if self._left:
            self._left.clear()
            entries.update(self._arrived)
            self._arrived.clear()
        for fd, event in events:
            entry = entries.get(fd)
            if entry is None:
                continue  # unregistered within this turn
            try:
                entry.on_event(event)
            except Exception as exc:
                self.wall(entry, exc)
        if self.rereads:
            self._reread()
        if self.stirred:
            self._begin_clock()
            self._pump()
        if self.bounds.waiting.unseen:
            self._go_on()
        share = self.mixture.share(self.turns)
        if share is not self.share:
            self._change_share(share)
        return len(events)

    def _reread(self) -> None:
        """One channel of each session that has more; those for whom it has got late are first in the next turn."""
        for _ in range(len(self.rereads)):
            channel = self.rereads.next()
            try:
                channel.reread()
            except Exception as exc:
                self.wall(channel, exc)
            if self.is_late:
                return

    def _pump(self) -> None:
        channels, self.stirred = self.stirred, []
        for at, channel in enumerate(channels):
            channel.stirred = False
            if channel.alive:
                try:
                    channel.pump()
                except Exception as exc:
                    self.wall(channel, exc)
            if self.is_late:
                self.stirred = channels[at + 1 :] + self.stirred
                return

    def _change_share(self, share: Share) -> None:
        self.share = share
        self.inbound_view = self._inbound[: share.inbound]

    def _begin_clock(self) -> None:
        self.is_late = False
        self._late_at = self.now() + TURN_SECONDS

    def look_at_clock(self) -> bool:
        """Called by who has just done much: whether this turn has taken so long that the rest is for the next one."""
        self.is_late = self.now() >= self._late_at
        return self.is_late

    def wall(self, member: Member, exc: Exception) -> None:
        """Around each socket and each channel: end that one, count it, go on."""
        self.errors += 1
        log.debug("wall", extra={"member": type(member).__name__}, exc_info=exc)
        try:
            member.fail(exc)
        except Exception:
            log.exception("ending a relay member failed")

    def wake(self) -> None:
        """Something was changed from outside a turn: take one soon."""
        try:
            self._waker.send(b"\0")
        except (BlockingIOError, InterruptedError):
            pass  # wake-ups enough are on their way

    async def _watch_deadlines(self) -> None:
        """Sleep until the next deadline, at most a second: one added meanwhile is at most that late, and adding one
        costs the hot path nothing."""
        while True:
            self.expire(self.now())
            deadlines = [deadline for queue in self._queues if (deadline := queue.next()) is not None]
            with trio.move_on_after(min(max(min(deadlines, default=math.inf) - self.now(), 0.01), 1.0)):
                await self._alarm.wait()
            self._alarm = trio.Event()

    def expire(self, now: float) -> None:
        """Act on every deadline that has come."""
        for queue in self._queues:
            deadline = queue.next()
            if deadline is not None and deadline <= now:
                queue.expire(now)
                self.wake()

    def _deadlines(self, seconds: float, act: Callable[[M], None]) -> DeadlineQueue[M]:
        def expired(owner: M) -> None:
            try:
                act(owner)
            except Exception as exc:
                self.wall(owner, exc)

        return DeadlineQueue(seconds, expired)

    def _silent(self, stream: Stream) -> None:
        if stream.moved != stream.silent_at:
            stream.session.half_closed(stream)  # not silent: another term
        else:
            stream.abort(Abort.IDLE)

    # For streams, channels and listeners

    def register(self, fd: int, entry: Member, *, level: bool = False) -> None:
        (self._poller.register_level if level else self._poller.register)(fd, entry)
        (self._arrived if fd in self._left else self._entries)[fd] = entry

    def unregister(self, fd: int) -> None:
        """Hear no more of it."""
        self._forget(fd)
        self._poller.unregister(fd)

    def closing(self, fd: int) -> None:
        """Hear no more of it; in place of `unregister` for who closes it next, and has no copy of it."""
        self._forget(fd)
        if self.is_alone:
            self._poller.closing(fd)
        else:
            self._poller.unregister(fd)

    def _forget(self, fd: int) -> None:
        if self._arrived.pop(fd, None) is None:
            del self._entries[fd]
        self._left.add(fd)

    def _go_on(self) -> None:
        listener = self.bounds.next()
        if listener is not None:
            try:
                listener.resume()
            except Exception as exc:
                self.wall(listener, exc)

    def short_of(self, listener: Listener, exc: Exception) -> None:
        """Accepting failed for want of descriptors or memory: try again shortly, say so at most once a minute."""
        now = self.now()
        self.rest(listener)
        if now - self._last_shortage > 60 or not self._last_shortage:
            self._last_shortage = now
            log.error("accepting visitors pauses: %s", exc)

    def rest(self, listener: Listener) -> None:
        """Let a paused listener accept again in a moment."""
        self.pauses.add(listener, self.now())
        self._alarm.set()

    def watch(self, channel: Channel, now: float) -> None:
        """Ask about a channel's silence soon; unlike other deadlines this one may not be a second late."""
        if not self.doubts:
            self._alarm.set()
        self.doubts.add(channel, now)

    def close(self) -> None:
        """End everything that is still attached, and the poller."""
        for session in list(self.sessions):
            session.close()
        self.unregister(self._wakee.fileno())
        self._wakee.sock.close()
        self._waker.close()
        self._poller.close()


def _dial_timed_out(stream: Stream) -> None:
    stream.refuse(Abort.DIAL_TIMEOUT)


def _no_channel_came(stream: Stream) -> None:
    stream.refuse(Abort.CHANNEL_LOST)


class _Wakee:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fileno = sock.fileno

    def on_event(self, event: int) -> None:
        self.sock.recv(4096)

    def wants(self) -> int:
        return 1

    def fail(self, exc: Exception) -> None:
        """There is nothing to end: the next wake-up reads again."""
