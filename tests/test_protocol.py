"""The law of a session: who may say what, when, and how much."""

from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunnel.errors import RemoteProtocolError
from tunnel.messages import (
    MAX_PROXIES,
    ChannelsSilent,
    ControlMoved,
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProxySet,
    ProxySpec,
    ProxyStatusUpdate,
    Reason,
    RetryProxy,
    Status,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
)
from tunnel.protocol import EPOCH, HEARD_BY_CLIENT, HEARD_BY_SERVER, INSTANCE, MAX_TICKETS, Law, Phase


def status(seq: int = 1) -> ProxyStatusUpdate:
    return ProxyStatusUpdate("ssh", Status.UNHEALTHY, None, None, seq, Reason.PENDING, 0, 10, "0.0.0.0", 1, "")


def proxies(*names: str, version: int = 1) -> ProxySet:
    return ProxySet(version, tuple(ProxySpec(name, "0.0.0.0", 8000 + number) for number, name in enumerate(names)))


EXAMPLES: dict[type, Message] = {
    Hello: Hello(1),
    Welcome: Welcome("id", "lab", ("t",), 10.0),
    ProxySet: proxies("ssh"),
    ProxyStatusUpdate: status(),
    TargetHealth: TargetHealth("ssh", True),
    RetryProxy: RetryProxy("ssh"),
    TicketRequest: TicketRequest(1),
    Tickets: Tickets(("t",)),
    Heartbeat: Heartbeat(1),
    HeartbeatReply: HeartbeatReply(1),
    ChannelsSilent: ChannelsSilent(),
    ControlMoved: ControlMoved(),
    Goodbye: Goodbye(Farewell.STOPPING),
}
# What each side hears: greeting, ready (written here once more, by hand: the table is the specification).
MAY: dict[str, tuple[set[type], set[type]]] = {
    "server": (
        {Hello},
        {ProxySet, TargetHealth, RetryProxy, TicketRequest, Heartbeat, HeartbeatReply, ControlMoved, Goodbye},
    ),
    "client": (
        {Welcome, Goodbye},
        {ProxyStatusUpdate, Tickets, ChannelsSilent, Heartbeat, HeartbeatReply, ControlMoved, Goodbye},
    ),
}
TABLES = {"server": HEARD_BY_SERVER, "client": HEARD_BY_CLIENT}
GREETING: dict[str, Message] = {"server": EXAMPLES[Hello], "client": EXAMPLES[Welcome]}


def law(side: str, phase: Phase) -> Law:
    made = Law(TABLES[side])
    if phase is not Phase.GREETING:
        made.heard(GREETING[side])
    if phase is Phase.ENDED:
        made.heard(EXAMPLES[Goodbye])
    assert made.phase is phase
    return made


def is_refused(judge: Law, message: Message) -> bool:
    before = judge.phase
    try:
        judge.heard(message)
    except RemoteProtocolError:
        assert judge.phase is before
        return True
    return False


def test_every_message_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(get_args(Message))


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("side", TABLES)
def test_who_may_say_what_in_which_phase(side: str, phase: Phase, kind: type) -> None:
    """B41"""
    greeting, ready = MAY[side]
    allowed = {Phase.GREETING: greeting, Phase.READY: ready, Phase.ENDED: set()}[phase]
    assert is_refused(law(side, phase), EXAMPLES[kind]) is (kind not in allowed)


def test_what_was_refused_is_named_with_its_phase() -> None:
    with pytest.raises(RemoteProtocolError, match="ProxySet in phase greeting"):
        law("server", Phase.GREETING).heard(EXAMPLES[ProxySet])


@pytest.mark.parametrize("side", TABLES)
def test_nothing_follows_goodbye(side: str) -> None:
    judge = law(side, Phase.ENDED)
    assert all(is_refused(judge, message) for message in EXAMPLES.values())


def test_a_server_may_say_goodbye_instead_of_welcome() -> None:
    judge = law("client", Phase.GREETING)
    judge.heard(EXAMPLES[Goodbye])
    assert judge.phase is Phase.ENDED


@pytest.mark.parametrize(("versions", "last_is_good"), [
    ((1,), True), ((0,), False), ((-1,), False), ((1, 2), True), ((1, 1), False), ((2, 1), False), ((1, 7), True),
    ((2**32 - 1,), True), ((2**32,), False),
])  # fmt: skip
def test_versions_of_the_proxy_set_only_grow_and_fit_in_a_frame(versions: tuple[int, ...], last_is_good: bool) -> None:
    judge = law("server", Phase.READY)
    refused = [is_refused(judge, proxies("ssh", version=version)) for version in versions]
    assert refused == [False] * (len(versions) - 1) + [not last_is_good]


SETS = {
    "none": (proxies(), True),
    "two": (proxies("ssh", "web"), True),
    "as many as allowed": (proxies(*(f"p{number}" for number in range(MAX_PROXIES))), True),
    "too many": (proxies(*(f"p{number}" for number in range(MAX_PROXIES + 1))), False),
    "a name twice": (proxies("ssh", "web", "ssh"), False),
    "a name in markup": (proxies("<script>"), False),
    "a name with an escape": (proxies("a\x1b[2J"), False),
    "an empty name": (proxies(""), False),
    "a long name": (proxies("a" * 64), False),
}


@pytest.mark.parametrize(("wanted", "good"), SETS.values(), ids=SETS)
def test_a_proxy_set_is_bounded_and_its_names_are_names(wanted: ProxySet, good: bool) -> None:
    """B34, B41"""
    assert is_refused(law("server", Phase.READY), wanted) is not good


def test_a_refused_set_does_not_use_up_its_version() -> None:
    judge = law("server", Phase.READY)
    assert is_refused(judge, proxies("", version=5))
    assert not is_refused(judge, proxies("ssh", version=5))


@pytest.mark.parametrize(("count", "good"), {-1: False, 0: False, 1: True, MAX_TICKETS: True, 17: False}.items())
def test_tickets_are_asked_for_by_the_handful(count: int, good: bool) -> None:
    assert is_refused(law("server", Phase.READY), TicketRequest(count)) is not good


@pytest.mark.parametrize(("count", "good"), {0: True, MAX_TICKETS: True, MAX_TICKETS + 1: False}.items())
def test_tickets_are_given_by_the_handful(count: int, good: bool) -> None:
    tickets = ("t",) * count
    assert is_refused(law("client", Phase.READY), Tickets(tickets)) is not good
    assert is_refused(law("client", Phase.GREETING), Welcome("id", "lab", tickets, 10.0)) is not good


def test_statuses_come_in_order() -> None:
    judge = law("client", Phase.READY)
    assert [is_refused(judge, status(seq)) for seq in (1, 2, 2, 1, 7, 3, 0, -1, 8)] == [
        False, False, True, True, False, True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "good"),
    [("0" * 32, True), ("0123456789abcdef" * 2, True), ("0" * 31, False), ("0" * 33, False), ("A" * 32, False),
     ("0" * 32 + "\n", False), ("٠" * 32, False), ("", False)],
)  # fmt: skip
def test_an_instance_is_128_bits_in_hex(text: str, good: bool) -> None:
    assert bool(INSTANCE.match(text)) is good


@pytest.mark.parametrize(
    ("text", "good"), [("0", True), ("9" * 15, True), ("9" * 16, False), ("-1", False), ("1\n", False), ("", False)]
)
def test_an_epoch_is_a_number_of_at_most_fifteen_digits(text: str, good: bool) -> None:
    assert bool(EPOCH.match(text)) is good


class Conversation(RuleBasedStateMachine):
    """One side hears any messages in any order; a plain model says which are lawful."""

    side = ""

    @initialize(side=st.sampled_from(list(TABLES)))
    def begin(self, side: str) -> None:
        self.side = side
        self.law = Law(TABLES[side])
        self.phase = Phase.GREETING
        self.version = self.seq = 0

    def hear(self, message: Message, *, well_formed: bool = True) -> bool:
        greeting, ready = MAY[self.side]
        allowed = {Phase.GREETING: greeting, Phase.READY: ready, Phase.ENDED: set()}[self.phase]
        good = type(message) in allowed and well_formed
        assert is_refused(self.law, message) is not good
        if good:
            self.phase = Phase.ENDED if isinstance(message, Goodbye) else Phase.READY
        return good

    @rule()
    def greet(self) -> None:
        self.hear(GREETING[self.side])

    @precondition(lambda self: self.phase is Phase.READY)  # else most conversations would end at once
    @rule(message=st.sampled_from([m for m in EXAMPLES.values() if not isinstance(m, (ProxySet, ProxyStatusUpdate))]))
    def hear_anything(self, message: Message) -> None:
        self.hear(message)

    @rule(version=st.integers(0, 9), names=st.lists(st.sampled_from(["ssh", "web", "<b>"]), max_size=3))
    def hear_proxies(self, version: int, names: list[str]) -> None:
        fine = version > self.version and len(set(names)) == len(names) and "<b>" not in names
        if self.hear(proxies(*names, version=version), well_formed=fine):
            self.version = version

    @rule(seq=st.integers(0, 9))
    def hear_status(self, seq: int) -> None:
        if self.hear(status(seq), well_formed=seq > self.seq):
            self.seq = seq

    @rule(count=st.integers(-1, MAX_TICKETS + 1))
    def hear_of_tickets(self, count: int) -> None:
        self.hear(TicketRequest(count), well_formed=1 <= count <= MAX_TICKETS)
        self.hear(Tickets(("t",) * max(count, 0)), well_formed=count <= MAX_TICKETS)

    @invariant()
    def the_phase_is_the_models(self) -> None:
        if self.side:
            assert self.law.phase is self.phase


TestConversation = Conversation.TestCase
TestConversation.settings = settings(stateful_step_count=25)
