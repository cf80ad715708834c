"""What a session talks on: one control channel after another, if it must be, without a word lost, doubled or early.

    client                                                        server
      │ a new connection: GET /control, Trio-Tunnel-Session: ID ──▶ │   attached
      │ old: ControlMoved ────────────────────────────────────────▶ │   from here on the client writes to the new one
      │ ◀──────────────────────────────────────── old: ControlMoved │   and from here on the server, who reads it now
      │ the old one is closed; the new one is read                  │

`ControlMoved` is a side's last word on the old channel; the other reads the new one only after it. Until the client
says it, the new channel may break or come to nothing, and the session does not notice. From then on the loss of either
channel is an unplanned one and ends the session: what was on its way on the old one is gone with it.
"""

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import trio
from attrs import Factory, define, field

from tunnel.control import ControlChannel
from tunnel.errors import PeerLost, RemoteProtocolError
from tunnel.messages import ControlMoved, Message

HAND_OVER_SECONDS = 10.0  # from attaching a channel to the peer's last word on the old one; as for a login

Opening = AbstractAsyncContextManager[ControlChannel]


@define(eq=False)
class _Held:
    """One control channel of a line, from before it is open until it is closed. `scope` ends that."""

    scope: trio.CancelScope = Factory(trio.CancelScope)
    channel: ControlChannel = field(init=False)  # once `opened` is set, and the line still has this one
    opened: trio.Event = Factory(trio.Event)
    settled: trio.Event = Factory(trio.Event)  # whether it is used was decided
    is_used: bool = False
    leads: bool = False  # it is we who change to it


class ControlLine:
    """Made by `open_line`. One task may receive while others send."""

    def __init__(self, channels: trio.Nursery) -> None:
        self._channels = channels  # a task for each channel that was opened from this side
        self._source = self._sink = _Held(is_used=True)  # two channels only in the midst of a change
        self._newcomer: _Held | None = None
        self._held: set[_Held] = set()
        self._sending = trio.StrictFIFOLock()  # so that a message begun on the old channel comes before the last one
        self._has_forgotten = False
        self._is_over = False

    @property
    def is_changing(self) -> bool:
        """Whether a channel is being attached, or the change to it is under way. One at a time."""
        return self._newcomer is not None

    @property
    def peer(self) -> str:
        """The address at the other end, ``host:port``."""
        return self._sink.channel.peer

    async def send(self, message: Message) -> None:
        """Raises `PeerLost`. If cancelled midway the line is broken; end the session."""
        async with self._sending:
            await self._sink.channel.send(message)

    async def receive(self) -> Message:
        """The next message; hand a `ControlMoved` to `follow`. Raises `PeerLost`, `RemoteProtocolError`."""
        return await self._source.channel.receive()

    # Changing

    async def change_to(self, opening: Opening) -> None:
        """The client's part: attach the channel of `opening` and move there; returns once the server has followed.

        The caller has just seen that no change is under way. Raises `Refused` or `PeerLost` when it came to nothing;
        then either the line goes on as before, or it is lost and its nursery ends with that. Cancelled while the
        channel is being opened, it is given up; later, the change comes to its end, whichever, without the caller.
        """
        held = await self._channels.start(partial(self.attach, opening, leads=True))
        await held.settled.wait()
        if not held.is_used:
            raise PeerLost("the new control channel was lost before it was used", answered=True)

    async def attach(
        self,
        opening: Opening,
        *,
        leads: bool = False,
        task_status: trio.TaskStatus[_Held] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hold the channel of `opening`: attached, then in use, until it is left for another or the line ends.

        With `leads` we move first, else the peer. The caller has just seen that no change is under way. Raises what
        opening it raises, and `PeerLost` when it broke in the midst of a change or that took too long: the session is
        lost.
        """
        held = self._newcomer = _Held(leads=leads)
        try:
            await self._hold(held, opening, task_status)
        finally:
            if self._newcomer is held:
                self._newcomer, self._has_forgotten = None, True
            held.opened.set()
            held.settled.set()
        if self._sink is held and not held.is_used and not self._is_over:
            raise PeerLost("the change of the control channel broke off", answered=True)

    async def follow(self) -> None:
        """The peer has said its last word on the channel in use: say ours, unless it is said, and read the new one."""
        held = self._newcomer
        if held is None and self._has_forgotten:  # it broke, or waited for too long, before they could know
            raise PeerLost("the peer moved to a control channel that is gone", answered=True)
        if held is None:
            raise RemoteProtocolError("ControlMoved, and no other control channel is attached")
        with trio.move_on_after(HAND_OVER_SECONDS) as waiting:
            await held.opened.wait()  # their upgrade's answer may be there before our own task goes on
            await self._say_moved(held)
        if waiting.cancelled_caught or self._newcomer is not held or self._sink is not held:
            raise PeerLost("the change of the control channel broke off", answered=True)
        # No await: from here on the new one is the only one.
        left, self._source, self._newcomer = self._source, held, None
        held.is_used = True
        held.scope.deadline = math.inf
        held.settled.set()
        left.scope.cancel(reason="the session has another control channel")

    async def _say_moved(self, held: _Held) -> None:
        async with self._sending:
            if self._newcomer is held and self._sink is not held and not held.channel.ended.is_set():
                left, self._sink = self._sink, held
                await left.channel.send(ControlMoved())

    # Lifetime of a channel

    async def _hold(self, held: _Held, opening: Opening, task_status: trio.TaskStatus[_Held]) -> None:
        """Open it and stay until `held.scope` is cancelled, whichever that is: once open, its end is a polite one."""
        self._held.add(held)
        try:
            with held.scope:
                async with opening as held.channel:
                    deadline = math.inf if held.is_used else trio.current_time() + HAND_OVER_SECONDS
                    with trio.CancelScope(deadline=deadline) as held.scope:
                        held.opened.set()
                        task_status.started(held)
                        if held.leads:
                            await self._say_moved(held)
                        await held.channel.ended.wait()
                        if held.is_used:  # who receives hears of it, after what was said before
                            await trio.sleep_forever()
        finally:
            self._held.discard(held)
        if not held.opened.is_set():
            raise PeerLost("the session ended while a control channel was attached")

    def _end(self) -> None:
        self._is_over = True
        for held in self._held:
            held.scope.cancel(reason="the session is over")


@asynccontextmanager
async def open_line(opening: Opening) -> AsyncIterator[ControlLine]:
    """A line that begins with the control channel of `opening`, until the body ends; closes all its channels.

    Raises what opening the channel raises, and what the body raises. A change that breaks off cancels the body and
    comes as a group with `PeerLost`.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as channels:
        line = ControlLine(channels)
        try:
            await channels.start(line._hold, line._source, opening)
            yield line
        except Exception as exc:  # raised below: out of a nursery it would come as a group
            failure = exc
        finally:
            line._end()
        if _tells_a_loss(failure):
            channels.cancel_scope.cancel(reason="the peer is lost")  # no politeness for whoever is gone
    if failure is not None:
        raise failure


def _tells_a_loss(failure: Exception | None) -> bool:
    """A body with a nursery raises groups."""
    if isinstance(failure, ExceptionGroup):
        return failure.subgroup(PeerLost) is not None
    return isinstance(failure, PeerLost)
