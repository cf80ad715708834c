"""Who holds what: identities, addresses, ports and tickets, as tables and as hypothesis finds them."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tunnel.server.registry import MAX_TICKETS_HELD, Address, Registry

# Identities


@pytest.mark.parametrize(
    ("instance", "epoch", "verdict"),
    [("one", 5, "stale"), ("one", 4, "stale"), ("one", 6, "replace"), ("two", 5, "contest"), ("two", 6, "contest")],
)
def test_what_a_newcomer_may_do_goes_by_instance_and_epoch(instance: str, epoch: int, verdict: str) -> None:
    """B16, B17"""
    registry: Registry[str] = Registry()
    registry.enter("lab", "session", instance="one", epoch=5, since="noon")
    claim = registry.claim("lab", instance, epoch)
    assert claim.verdict == verdict
    assert claim.holder == registry.holder("lab")
    assert claim.holder is not None
    assert (claim.holder.session, claim.holder.since) == ("session", "noon")


def test_a_free_identity_may_be_entered() -> None:
    registry: Registry[str] = Registry()
    claim = registry.claim("lab", "one", 1)
    assert (claim.verdict, claim.holder, registry.holder("lab")) == ("enter", None, None)


def test_one_that_was_replaced_takes_nothing_with_it_when_it_leaves() -> None:
    registry: Registry[str] = Registry()
    registry.enter("lab", "old", instance="one", epoch=1, since="")
    (old_ticket,) = registry.issue_tickets("old", 1, expires=10.0, now=0.0)
    registry.enter("lab", "new", instance="one", epoch=2, since="")
    (new_ticket,) = registry.issue_tickets("new", 1, expires=10.0, now=0.0)
    registry.leave("old")
    holder = registry.holder("lab")
    assert holder is not None
    assert holder.session == "new"
    assert registry.redeem(old_ticket, now=1.0) is None
    assert registry.redeem(new_ticket, now=1.0) == "new"


# Addresses


OVERLAPS = [
    ("0.0.0.0", "0.0.0.0", True),
    ("0.0.0.0", "127.0.0.1", True),
    ("127.0.0.1", "0.0.0.0", True),
    ("127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1", "127.0.0.2", False),
    ("::", "::1", True),
    ("::1", "::", True),
    ("::1", "::1", True),
    ("::1", "::2", False),
    ("::", "0.0.0.0", False),
    ("0.0.0.0", "::1", False),
    ("::1", "0:0:0:0:0:0:0:1", True),
    ("::1", "0::0:1", True),
    ("0::0", "::1", True),
    ("2001:DB8::1", "2001:db8::1", True),
    ("fe80::1%eth0", "fe80::1%eth1", False),
    ("fe80::1%eth0", "::", True),
]


@pytest.mark.parametrize(("held", "wanted", "clash"), OVERLAPS)
def test_wildcards_and_spellings_overlap_and_families_do_not(held: str, wanted: str, clash: bool) -> None:
    """B10"""
    registry: Registry[str] = Registry()
    address = Address(held, 8001, "lab", "ssh")
    registry.publish(address)
    assert registry.taken_by(wanted, 8001) == (address if clash else None)
    assert registry.taken_by(wanted, 8002) is None
    registry.withdraw(address)
    registry.withdraw(address)
    assert registry.taken_by(wanted, 8001) is None


def test_a_port_that_is_not_chosen_yet_is_in_nobodys_way() -> None:
    registry: Registry[str] = Registry()
    registry.publish(Address("0.0.0.0", 0, "", "its own port for clients"))
    assert registry.taken_by("0.0.0.0", 0) is None


def test_the_servers_own_address_may_be_a_name() -> None:
    registry: Registry[str] = Registry()
    registry.publish(Address("localhost", 8443, "", "its own port for clients"))
    assert registry.taken_by("127.0.0.1", 8443) is None
    assert registry.taken_by("0.0.0.0", 8443) is not None


V4 = st.sampled_from(["0.0.0.0", "127.0.0.1", "10.0.0.1"])
V6 = st.sampled_from(["::", "::1", "2001:db8::1"])


@given(V4 | V6, V4 | V6, st.booleans())
def test_overlap_is_symmetric_and_ignores_spelling(one: str, two: str, long: bool) -> None:
    spelled = ipaddress.ip_address(two).exploded if long else two
    clash = Address(one, 80, "", "").overlaps(spelled, 80)
    assert clash == Address(spelled, 80, "", "").overlaps(one, 80)
    assert clash == Address(one, 80, "", "").overlaps(two, 80)


# Ports


def test_a_chosen_port_is_kept_for_the_client_and_the_name() -> None:
    """B12"""
    registry: Registry[str] = Registry()
    assert registry.chosen_port("lab", "ssh") == 0
    assert registry.choose_port("lab", "ssh", 40_000)
    assert not registry.choose_port("lab", "ssh", 40_000)
    registry.leave("session")
    chosen = [registry.chosen_port(*who) for who in (("lab", "ssh"), ("lab", "web"), ("home", "ssh"))]
    assert chosen == [40_000, 0, 0]
    assert registry.choose_port("lab", "ssh", 40_001)
    assert registry.chosen_port("lab", "ssh") == 40_001


def test_a_port_chosen_by_an_earlier_process_is_recalled_and_no_news() -> None:
    registry: Registry[str] = Registry(recall=lambda client, proxy: 40_000 if (client, proxy) == ("lab", "ssh") else 0)
    assert registry.chosen_port("lab", "ssh") == 40_000
    assert not registry.choose_port("lab", "ssh", 40_000)
    assert registry.choose_port("lab", "ssh", 40_001)
    assert registry.chosen_port("lab", "ssh") == 40_001


# Tickets


def test_a_ticket_works_once_and_for_its_own_session() -> None:
    """B41"""
    registry: Registry[str] = Registry()
    one, two = registry.issue_tickets("session", 2, expires=10.0, now=0.0)
    (other,) = registry.issue_tickets("another", 1, expires=10.0, now=0.0)
    assert [registry.redeem(ticket, now=9.9) for ticket in (one, one, other, two)] == [
        "session", None, "another", "session",
    ]  # fmt: skip
    assert len({one, two, other}) == 3
    assert all(len(bytes.fromhex(ticket)) == 16 for ticket in (one, two, other))


def test_a_ticket_expires() -> None:
    registry: Registry[str] = Registry()
    one, two = registry.issue_tickets("session", 2, expires=10.0, now=0.0)
    assert registry.redeem(one, now=10.0) is None
    assert registry.redeem(two, now=9.0) == "session"


@pytest.mark.parametrize("guess", ["", "0" * 32, "\0", "é"])
def test_a_guess_redeems_nothing(guess: str) -> None:
    registry: Registry[str] = Registry()
    registry.issue_tickets("session", 3, expires=10.0, now=0.0)
    assert registry.redeem(guess, now=1.0) is None


def test_a_session_holds_so_many_tickets_and_expired_ones_make_room() -> None:
    registry: Registry[str] = Registry()
    counts = [len(registry.issue_tickets("session", 40, expires=10.0, now=0.0)) for _ in range(3)]
    assert counts == [40, MAX_TICKETS_HELD - 40, 0]
    assert len(registry.issue_tickets("another", 40, expires=10.0, now=0.0)) == 40
    assert len(registry.issue_tickets("session", 40, expires=20.0, now=10.0)) == 40
    registry.leave("another")
    assert len(registry._tickets) == 40


class RegistryModel(RuleBasedStateMachine):
    """Sessions of two clients come and go; the registry agrees with plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[int] = Registry()
        self.now = 0.0
        self.sessions = 0
        self.held: dict[str, tuple[int, str, int]] = {}
        self.tickets: dict[str, tuple[int, float]] = {}
        self.used: list[str] = []
        self.addresses: set[Address] = set()

    @rule(client=st.sampled_from(["lab", "home"]), instance=st.sampled_from("ab"), epoch=st.integers(1, 3))
    def knock(self, client: str, instance: str, epoch: int) -> None:
        claim = self.registry.claim(client, instance, epoch)
        holder = self.held.get(client)
        if holder is None:
            assert claim.verdict == "enter"
        else:
            _, its_instance, its_epoch = holder
            newer = "replace" if epoch > its_epoch else "stale"
            assert claim.verdict == ("contest" if instance != its_instance else newer)
            assert claim.holder is not None
            assert claim.holder.session == holder[0]
        if claim.verdict in ("enter", "replace"):
            self.sessions += 1
            self.registry.enter(client, self.sessions, instance=instance, epoch=epoch, since="")
            self.held[client] = (self.sessions, instance, epoch)

    @rule(session=st.integers(1, 6))
    def leave(self, session: int) -> None:
        self.registry.leave(session)
        self.held = {client: holder for client, holder in self.held.items() if holder[0] != session}
        self.used += [ticket for ticket, (owner, _) in self.tickets.items() if owner == session]
        self.tickets = {ticket: held for ticket, held in self.tickets.items() if held[0] != session}

    @rule(session=st.integers(1, 6), count=st.integers(1, 40))
    def issue(self, session: int, count: int) -> None:
        held = sum(1 for owner, expires in self.tickets.values() if owner == session and expires > self.now)
        issued = self.registry.issue_tickets(session, count, expires=self.now + 10, now=self.now)
        assert len(issued) == max(0, min(count, MAX_TICKETS_HELD - held))
        assert not set(issued) & (set(self.tickets) | set(self.used))
        self.tickets |= dict.fromkeys(issued, (session, self.now + 10))

    @rule(data=st.data())
    def redeem(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from([*self.tickets, *self.used, "guess"]))
        owner, expires = self.tickets.pop(ticket, (None, 0.0))
        assert self.registry.redeem(ticket, now=self.now) == (owner if expires > self.now else None)
        self.used.append(ticket)

    @rule(addr=V4 | V6, port=st.integers(80, 81), client=st.sampled_from(["lab", "home"]))
    def publish_if_free(self, addr: str, port: int, client: str) -> None:
        taken = self.registry.taken_by(addr, port)
        if taken is None:
            address = Address(addr, port, client, "web")
            self.registry.publish(address)
            self.addresses.add(address)
        else:
            assert taken in self.addresses

    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        if self.addresses:
            address = data.draw(st.sampled_from(sorted(self.addresses, key=str)))
            self.registry.withdraw(address)
            self.addresses.remove(address)

    @rule(seconds=st.sampled_from([1, 5, 10]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def one_holder_for_each_identity(self) -> None:
        for client in ("lab", "home"):
            holder = self.registry.holder(client)
            assert (holder and (holder.session, holder.instance, holder.epoch)) == self.held.get(client)

    @invariant()
    def held_addresses_never_overlap(self) -> None:
        held = list(self.addresses)
        assert not any(one.overlaps(two.addr, two.port) for one in held for two in held if one is not two)


TestRegistryModel = RegistryModel.TestCase
TestRegistryModel.settings = settings(stateful_step_count=30)
