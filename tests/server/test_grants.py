"""Whose token counts, and for what: entries of the configuration, tokens of the state directory, and both changing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tunnel import Grant, hash_token
from tunnel.addresses import PortRange
from tunnel.errors import TunnelError
from tunnel.messages import Farewell
from tunnel.server.identities import LOOK_SECONDS, Identities
from tunnel.state import StateDir, find_grant

PORTS = (PortRange(8000, 8999),)


class Stay:
    """A session, as far as it concerns identities."""

    def __init__(self, grant: Grant) -> None:
        self.client, self.grant = grant.name, grant
        self.regranted: list[Grant] = []
        self.closed: list[tuple[Farewell, str]] = []

    def regrant(self, grant: Grant) -> None:
        self.grant = grant
        self.regranted.append(grant)

    def close(self, reason: Farewell, message: str) -> None:
        self.closed.append((reason, message))


def entry(name: str = "home", token: str = "good") -> Grant:
    return Grant(name, hash_token(token), allow_ports=PORTS)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path)


# Which of two sources counts where both know a client: what allows less


def test_an_entry_with_a_token_that_was_made_here_bounds_it(state: StateDir) -> None:
    token = state.new_token("home")
    assert find_grant(Identities((entry(token=token),), state).grants(), token) == entry(token=token)


def test_an_entry_under_another_name_bounds_its_token_too(state: StateDir) -> None:
    token = state.new_token("first")
    assert find_grant(Identities((entry(token=token),), state).grants(), token) == entry(token=token)


def test_an_entry_leaves_no_second_token_with_its_name(state: StateDir) -> None:
    token = state.new_token("home")
    assert find_grant(Identities((entry(token="other"),), state).grants(), token) is None


def test_other_tokens_are_known_beside_the_entries(state: StateDir) -> None:
    token = state.new_token("office")
    found = find_grant(Identities((entry(),), state).grants(), token)
    assert found is not None
    assert (found.name, found.allow_ports) == ("office", None)
    assert find_grant(Identities((), None).grants(), token) is None


def test_nothing_is_nobodys_token(state: StateDir) -> None:
    """B4"""
    assert find_grant(Identities((entry(token=""),), state).grants(), "") is None


# What changes while the server runs


def test_a_token_counts_at_the_next_login_after_it_was_made_and_none_after_it_was_revoked(state: StateDir) -> None:
    identities = Identities((), state)
    token = state.new_token("lab")
    assert find_grant(identities.grants(), token) is not None
    state.revoke_token("lab")
    assert find_grant(identities.grants(), token) is None


def test_the_files_are_read_only_when_they_have_changed(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = Identities((), state)
    monkeypatch.setattr(StateDir, "grants", lambda self: pytest.fail("read again"))
    assert identities.grants() == ()


def test_no_entry_brings_a_revoked_token_back(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    token = state.new_token("home")
    bound, stay = entry(token=token), Stay(entry(token=token))
    identities = Identities((bound,), state)
    state.revoke_token("home")
    assert find_grant(identities.grants(), token) is None
    assert find_grant(Identities((bound,), state).grants(), token) is None
    identities.review([stay])
    assert [reason for reason, _ in stay.closed] == [Farewell.REVOKED]
    assert "client 'home' cannot log in: the token of its entry was revoked; give it another one" in caplog.text
    assert find_grant(Identities((evolve(bound, token_sha256=hash_token("new")),), state).grants(), "new") is not None


def test_a_token_that_only_an_entry_knows_can_be_revoked(state: StateDir) -> None:
    identities = Identities((entry(),), state)
    state.revoke_token("home", others=[hash_token("good")])
    assert identities.grants() == ()


def test_a_new_token_of_a_revoked_name_leaves_the_old_one_dead(state: StateDir) -> None:
    old = state.new_token("lab")
    state.revoke_token("lab")
    new = state.new_token("lab")
    grants = Identities((), state).grants()
    assert (find_grant(grants, old), find_grant(grants, new)) == (None, Grant("lab", hash_token(new), allow_ports=None))


def test_a_copy_of_the_tokens_that_is_put_back_brings_no_revoked_one_back(state: StateDir) -> None:
    """As a revoking leaves it that was killed, or met a full disk, between its two files."""
    dead, good = state.new_token("lab"), state.new_token("office")
    copy = (state.path / "tokens.json").read_bytes()
    state.revoke_token("lab")
    (state.path / "tokens.json").write_bytes(copy)
    grants = Identities((), state).grants()
    assert (find_grant(grants, dead), find_grant(grants, good)) == (None, Grant("office", hash_token(good), None))


@pytest.mark.parametrize("name", ["tokens.json", "revoked.json"])
def test_damaged_files_end_a_start_and_change_nothing_later(
    state: StateDir, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    state.new_token("gone")
    state.revoke_token("gone")
    token = state.new_token("lab")
    identities = Identities((), state)
    (state.path / name).write_text("{")
    for _ in range(3):
        assert find_grant(identities.grants(), token) is not None
    assert caplog.text.count("tokens count as before, for they cannot be read again") == 1
    assert f"{state.path / name} is damaged" in caplog.text
    with pytest.raises(TunnelError, match="is damaged"):
        Identities((), state)
    (state.path / name).chmod(0o644)
    (state.path / name).write_text("{}")
    assert len(identities.grants()) == 1
    assert f"other users may read or write {state.path / name}" in caplog.text


def test_revoked_tokens_are_kept_up_to_a_bound_the_newest_of_them(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.state.MAX_TOKENS", 3)
    digests = [bytes([number]) * 32 for number in range(5)]
    for digest in digests:
        state.revoke_token("x", others=[digest])
    assert state.revoked() == frozenset(digests[2:])
    assert json.loads((state.path / "revoked.json").read_text())[digests[4].hex()]["name"] == "x"


# What that means for sessions


def reviewed(before: Grant, *after: Grant) -> Stay:
    identities, stay = Identities((before,), None), Stay(before)
    identities.review([stay])
    assert (stay.closed, stay.regranted) == ([], [])
    identities.replace(after)
    identities.review([stay])
    identities.review([stay] if not stay.closed else [])
    return stay


def test_a_session_whose_client_may_do_something_else_is_held_to_it_once() -> None:
    less = evolve(entry(), allow_ports=())
    stay = reviewed(entry(), less)
    assert (stay.regranted, stay.closed) == ([less], [])


def test_a_session_goes_on_untouched_when_only_others_change() -> None:
    stay = reviewed(entry(), entry("lab", "x"), entry())
    assert (stay.regranted, stay.closed) == ([], [])


@pytest.mark.parametrize("after", [(), (entry(token="another"),), (entry("lab", "x"),)])
def test_a_session_whose_token_is_gone_or_another_ends_with_its_reason(after: tuple[Grant, ...]) -> None:
    stay = reviewed(entry(), *after)
    word = "the server knows no client 'home' with this token any more; ask there for another: trio-tunnel token new"
    assert stay.closed == [(Farewell.REVOKED, f"{word} NAME")]


def test_a_client_that_is_called_something_else_now_comes_back_as_that() -> None:
    stay = reviewed(entry(), entry("house"))
    assert stay.closed == [(Farewell.STOPPING, "this client is called 'house' now; it comes back as that")]


async def test_a_revoked_token_ends_its_session_within_a_second(
    state: StateDir, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # while a thread works, this clock would jump
    token = state.new_token("lab")
    identities = Identities((), state)
    grant = find_grant(identities.grants(), token)
    assert grant is not None
    stay = Stay(grant)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(identities.watch, lambda: [stay])
        await trio.sleep(LOOK_SECONDS + 0.1)
        state.revoke_token("lab")
        assert stay.closed == []
        await trio.sleep(LOOK_SECONDS)
        assert len(stay.closed) == 1
        nursery.cancel_scope.cancel()


async def at_once(function: Callable[..., object], *args: object, **_options: object) -> object:
    return function(*args)


async def test_a_session_that_came_with_a_grant_of_before_is_held_to_the_new_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The files changed between its login and its session."""
    identities, late = Identities((entry(),), None), Stay(evolve(entry(), max_proxies=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(identities.watch, lambda: [late])
        await trio.sleep(LOOK_SECONDS + 0.1)
        nursery.cancel_scope.cancel()
    assert late.regranted == [entry()]
