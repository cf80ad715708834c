"""Which of a server's two sources of tokens counts where both know a client: what allows less."""

from tunnel import Grant, HostPort, ServerConfig, hash_token
from tunnel.addresses import PortRange
from tunnel.server.app import _grants
from tunnel.state import StateDir, find_grant

PORTS = (PortRange(8000, 8999),)


def config(*clients: Grant) -> ServerConfig:
    return ServerConfig(listen=(HostPort("127.0.0.1", 0),), clients=clients)


def test_an_entry_with_a_token_that_was_made_here_bounds_it(tmp_path):
    state = StateDir.open(tmp_path)
    token = state.new_token("home")
    entry = Grant("home", hash_token(token), allow_ports=PORTS)
    assert find_grant(_grants(config(entry), state), token) == entry


def test_an_entry_under_another_name_bounds_its_token_too(tmp_path):
    state = StateDir.open(tmp_path)
    token = state.new_token("first")
    entry = Grant("home", hash_token(token), allow_ports=PORTS)
    assert find_grant(_grants(config(entry), state), token) == entry


def test_an_entry_leaves_no_second_token_with_its_name(tmp_path):
    state = StateDir.open(tmp_path)
    token = state.new_token("home")
    assert find_grant(_grants(config(Grant("home", hash_token("other"), allow_ports=PORTS)), state), token) is None


def test_other_tokens_are_known_beside_the_entries(tmp_path):
    state = StateDir.open(tmp_path)
    token = state.new_token("office")
    found = find_grant(_grants(config(Grant("home", hash_token("other"), allow_ports=PORTS)), state), token)
    assert found is not None
    assert (found.name, found.allow_ports) == ("office", None)
    assert find_grant(_grants(config(), None), token) is None
