"""Takeover as hypothesis finds it: processes come, go, fall silent and knock again, in any order (B14, B16, B17)."""

from collections.abc import Generator
from typing import Any

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunnel.errors import RemoteProtocolError
from tunnel.messages import Goodbye, Heartbeat, Hello, Message, ProxySet, ProxySpec, TicketRequest, Welcome
from tunnel.protocol import HEARD_BY_SERVER, Law, Phase
from tunnel.server.registry import Address, Registry
from tunnel.server.takeover import Ask, End, Step, take_over

LAB = "lab"
PORT = 8001


@define(eq=False)
class Session:
    """What `Session` and `logins` do, without a socket."""

    instance: str
    epoch: int
    is_silent: bool = False
    has_ended: bool = False
    asked_by: set[str] = field(factory=set)  # instances to which it gave a sign of life
    was_silent_for: set[str] = field(factory=set)  # and to which it gave none
    law: Law = field(factory=lambda: Law(HEARD_BY_SERVER))
    tickets: list[str] = field(factory=list)
    address: Address | None = None


@define(eq=False)
class Newcomer:
    instance: str
    epoch: int
    steps: Generator[Step[Session], bool | None, str | None]
    step: Step[Session] | None = None


# By hand: the answers of the three


def begin(registry: Registry[Any], instance: str, epoch: int) -> tuple[Any, Any]:
    steps = take_over(registry, LAB, instance, epoch)
    return steps, next(steps)


def verdict(steps: Any, answer: bool) -> str | None:
    with pytest.raises(StopIteration) as end:
        steps.send(answer)
    return end.value.value


def test_one_that_yields_disturbs_no_holder_not_even_one_like_it() -> None:
    for holder_yields in (False, True):
        registry: Registry[str] = Registry()
        registry.enter(LAB, "old", instance="a", epoch=7, since="noon", yields=holder_yields)
        with pytest.raises(StopIteration) as end:
            next(take_over(registry, LAB, "b", 1, yields=True))
        assert end.value.value == f"client '{LAB}' is connected from another process since noon; it was not disturbed"


def test_one_that_yields_has_what_nobody_holds_and_gives_it_to_whoever_comes_unasked() -> None:
    registry: Registry[str] = Registry()
    with pytest.raises(StopIteration) as end:
        next(take_over(registry, LAB, "a", 1, yields=True))
    assert end.value.value is None
    registry.enter(LAB, "doctor", instance="a", epoch=1, since="noon", yields=True)
    _, step = begin(registry, "b", 1)
    assert isinstance(step, End)
    assert step.holder.session == "doctor"


def test_a_holder_that_answers_keeps_it_and_the_newcomer_is_told_since_when() -> None:
    registry: Registry[str] = Registry()
    registry.enter(LAB, "old", instance="a", epoch=7, since="noon")
    steps, step = begin(registry, "b", 99)
    assert step == Ask(registry.holder(LAB))
    words = verdict(steps, True)
    assert words is not None
    assert words.startswith("client 'lab' is connected from another process since noon")


def test_a_silent_holder_is_ended_and_a_second_newcomer_finds_the_first() -> None:
    registry: Registry[str] = Registry()
    registry.enter(LAB, "old", instance="a", epoch=7, since="noon")
    holder = registry.holder(LAB)
    first, _ = begin(registry, "b", 1)
    second, _ = begin(registry, "c", 1)
    assert first.send(False) == second.send(False) == End(holder)
    registry.leave("old")
    assert verdict(first, False) is None
    registry.enter(LAB, "new", instance="b", epoch=1, since="one")
    assert second.send(False) == Ask(registry.holder(LAB)), "and not ended unasked"
    assert "since one" in (verdict(second, True) or "")


def test_the_same_process_asks_nobody() -> None:
    registry: Registry[str] = Registry()
    registry.enter(LAB, "old", instance="a", epoch=7, since="noon")
    steps, step = begin(registry, "a", 8)
    assert step == End(registry.holder(LAB))
    registry.leave("old")
    assert verdict(steps, False) is None
    with pytest.raises(StopIteration) as end:
        next(take_over(registry, LAB, "a", 7))
    assert end.value.value is None, "nobody holds it now"


# By machine


class Takeover(RuleBasedStateMachine):
    """One identity, three processes; what each has is looked at after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[Session] = Registry()
        self.now = 0.0
        self.epochs = {"a": 0, "b": 0, "c": 0}
        self.sessions: list[Session] = []
        self.newcomers: list[Newcomer] = []

    @property
    def living(self) -> list[Session]:
        return [session for session in self.sessions if not session.has_ended]

    # Knocking, and what the server does about it

    @rule(instance=st.sampled_from("abc"), age=st.integers(0, 2))
    def knock(self, instance: str, age: int) -> None:
        """With the next epoch, or as a connection that was under way for long."""
        if not age:
            self.epochs[instance] += 1
        epoch = max(self.epochs[instance] - age, 0)
        newcomer = Newcomer(instance, epoch, take_over(self.registry, LAB, instance, epoch))
        self.newcomers.append(newcomer)
        self.go_on(newcomer, None)

    def go_on(self, newcomer: Newcomer, answer: bool | None) -> None:
        try:
            newcomer.step = newcomer.steps.send(answer)
        except StopIteration as end:
            self.newcomers.remove(newcomer)
            if end.value is None:
                self.enter(newcomer)
            else:
                self.refused(newcomer)

    def enter(self, newcomer: Newcomer) -> None:
        session = Session(newcomer.instance, newcomer.epoch)
        self.registry.enter(LAB, session, instance=session.instance, epoch=session.epoch, since="")
        self.sessions.append(session)

    def refused(self, newcomer: Newcomer) -> None:
        holder = self.registry.holder(LAB)
        assert holder is not None or self.living == [], "nobody is refused for the sake of nobody"

    @precondition(lambda self: self.newcomers)
    @rule(data=st.data())
    def take_the_next_step(self, data: Any) -> None:
        newcomer = data.draw(st.sampled_from(self.newcomers))
        session = newcomer.step.holder.session
        if isinstance(newcomer.step, Ask):
            answers = not session.has_ended and not session.is_silent
            (session.asked_by if answers else session.was_silent_for).add(newcomer.instance)
            self.go_on(newcomer, answers)
        else:
            if not session.has_ended:
                self.replaced(session, newcomer)
            self.go_on(newcomer, False)

    def replaced(self, session: Session, newcomer: Newcomer) -> None:
        if session.instance == newcomer.instance:
            assert session.epoch < newcomer.epoch, "an older connection never ends a newer one"
        else:
            assert newcomer.instance in session.was_silent_for, "nobody is ended by another unasked"
        self.end(session)

    @precondition(lambda self: self.newcomers)
    @rule(data=st.data())
    def a_newcomer_leaves(self, data: Any) -> None:
        newcomer = data.draw(st.sampled_from(self.newcomers))
        newcomer.steps.close()
        self.newcomers.remove(newcomer)

    # The life of a session

    @precondition(lambda self: self.living)
    @rule(is_silent=st.booleans())
    def fall_silent_or_wake(self, is_silent: bool) -> None:
        self.living[0].is_silent = is_silent

    @precondition(lambda self: self.living)
    @rule()
    def lost(self) -> None:
        self.end(self.living[0])

    @precondition(lambda self: self.living)
    @rule(what=st.sampled_from(["hello", "beat", "proxies", "tickets", "goodbye", "nonsense"]))
    def speak(self, what: str) -> None:
        session = self.living[0]
        spoken: dict[str, Message] = {
            "hello": Hello(1), "beat": Heartbeat(1), "proxies": ProxySet(session.law._proxy_set_version + 1, (
                ProxySpec("web", "127.0.0.1", PORT),
            )), "tickets": TicketRequest(1), "goodbye": Goodbye("stopping"), "nonsense": Welcome("", "", (), 1.0),
        }  # fmt: skip
        if session.law.phase is Phase.GREETING:
            spoken["beat"] = spoken["proxies"] = spoken["tickets"] = Hello(1)
        message = spoken[what]
        try:
            session.law.heard(message)
        except RemoteProtocolError:
            self.end(session)
            return
        match message:
            case TicketRequest(count):
                expires = self.now + 10
                session.tickets += self.registry.issue_tickets(session, count, expires=expires, now=self.now)
            case ProxySet() if session.address is None:
                assert self.registry.taken_by("127.0.0.1", PORT) is None, "the one before it has let go"
                session.address = Address("127.0.0.1", PORT, LAB, "web")
                self.registry.publish(session.address)
            case Goodbye():
                self.end(session)

    def end(self, session: Session) -> None:
        """In the order of `Session._free`."""
        if session.address is not None:
            self.registry.withdraw(session.address)
        self.registry.leave(session)
        session.has_ended = True

    @rule()
    def wait(self) -> None:
        self.now += 5

    # What always holds

    @invariant()
    def one_session_and_the_registry_knows_it(self) -> None:
        holder = self.registry.holder(LAB)
        assert [holder and holder.session] == (self.living or [None])

    @invariant()
    def one_listener_at_most_and_it_is_the_living_ones(self) -> None:
        held = [session.address for session in self.living if session.address is not None]
        assert list(self.registry._addresses) == held

    @invariant()
    def no_ticket_outlives_its_session(self) -> None:
        owners = {session for session, _ in self.registry._tickets.values()} | set(self.registry._issued)
        assert owners <= set(self.living)

    @invariant()
    def every_process_may_come_back(self) -> None:
        """With its next epoch it is never told that a newer session of its own is there."""
        for instance, epoch in self.epochs.items():
            assert self.registry.claim(LAB, instance, epoch + 1).verdict != "stale"


TestTakeover = Takeover.TestCase
TestTakeover.settings = settings(stateful_step_count=40)
