"""Control messages: every one comes back as it was sent, and nothing but exactly one is taken."""

import json
import math
from typing import Any, get_args

import pytest
from attrs import fields
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.errors import RemoteProtocolError
from tunnel.messages import (
    MAX_INT,
    MAX_MESSAGE_BYTES,
    MAX_PROXIES,
    MAX_TEXT,
    Farewell,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    ProxySet,
    ProxySpec,
    ProxyStatusUpdate,
    Reason,
    Retry,
    Status,
    TargetHealth,
    TicketRequest,
    Tickets,
    Welcome,
    decode,
    encode,
)

# Every message, built from its annotations, so that a new field or message is covered by itself.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-MAX_INT, MAX_INT)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
for kind, strategy in ((str, TEXT), (int, WHOLE), (float, NUMBER)):
    st.register_type_strategy(kind, strategy)
KINDS = get_args(Message)
MESSAGES = st.one_of([st.from_type(kind) for kind in KINDS])

STATUS = ProxyStatusUpdate(
    proxy_name="ssh", status=Status.UNHEALTHY, error_message="Port 8022 is already in use by another process",
    retry_after_seconds=2, seq=7, reason=Reason.ADDR_IN_USE, attempt=1, max_retries=10, publish_addr="0.0.0.0",
    publish_port=8022, since="2026-01-01T00:00:00.000Z",
)  # fmt: skip


@given(MESSAGES)
def test_every_message_comes_back_as_it_was_sent(message: Message) -> None:
    assert decode(encode(message)) == message
    assert type(decode(encode(message))) is type(message)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_every_kind_names_itself_and_its_fields(kind: type, data: Any) -> None:
    message = data.draw(st.from_type(kind))
    assert list(json.loads(encode(message))) == ["type", *(field.name for field in fields(kind))]


def test_a_status_on_the_wire_is_flat_and_has_the_documented_keys() -> None:
    assert json.loads(encode(STATUS)) == {
        "type": "ProxyStatusUpdate", "proxy_name": "ssh", "status": "unhealthy",
        "error_message": "Port 8022 is already in use by another process", "retry_after_seconds": 2, "seq": 7,
        "reason": "addr_in_use", "attempt": 1, "max_retries": 10, "publish_addr": "0.0.0.0", "publish_port": 8022,
        "since": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


def test_no_message_to_the_client_can_name_a_target() -> None:
    """B41: a server has no word for it."""
    from_server = (Welcome, ProxyStatusUpdate, Tickets, Heartbeat, Goodbye)
    assert not [field.name for kind in from_server for field in fields(kind) if "target" in field.name]


def test_unknown_keys_are_ignored() -> None:
    assert decode('{"type":"Heartbeat","seq":1,"later":{"a":[null]}}') == Heartbeat(1)


def test_keys_with_a_default_may_be_missing_and_others_may_not() -> None:
    assert decode('{"type":"Hello","version":1}') == Hello(1)
    assert decode('{"type":"TargetHealth","proxy_name":"a","healthy":true}') == TargetHealth("a", True)
    older = '{"type":"Welcome","session":"s","client":"lab","tickets":[],"heartbeat_seconds":10,"software":"0.1"}'
    assert decode(older) == Welcome("s", "lab", (), 10.0, "0.1", features=())
    with pytest.raises(RemoteProtocolError, match="malformed Heartbeat: 'seq' is missing"):
        decode('{"type":"Heartbeat"}')


# Strictness: one field wrong, all the rest right.


SPEC = {"name": "ssh", "publish_addr": "0.0.0.0", "publish_port": 8022}
RETRY = {"initial_delay": 2, "factor": 2, "max_delay": 60, "max_retries": 10, "jitter": 0}
GOOD: dict[str, dict[str, Any]] = {
    "Hello": {"version": 1, "software": "1.0"},
    "Heartbeat": {"seq": 1},
    "TargetHealth": {"proxy_name": "a", "healthy": True, "error_message": None, "retry_after_seconds": 5},
    "Welcome": {"session": "s", "client": "lab", "tickets": ["t"], "heartbeat_seconds": 10.0},
    "Goodbye": {"reason": "stopping", "message": ""},
    "ProxyStatusUpdate": {key: value for key, value in json.loads(encode(STATUS)).items() if key != "type"},
    "ProxySet": {"version": 1, "proxies": [SPEC, {**SPEC, "name": "web", "bind_retry": RETRY}]},
}
WRONG: list[tuple[str, str, list[Any]]] = [
    ("Hello", "version", [True, False, "1", 1.0, 1.5, None, [1], {}, MAX_INT + 1, -MAX_INT - 1, 10**400]),
    ("Hello", "software", [1, True, None, ["a"], {}, "x" * (MAX_TEXT + 1), "\ud800"]),
    ("Heartbeat", "seq", [True, "0", None, 0.0]),
    ("TargetHealth", "healthy", [1, 0, "true", "", None, [], 1.0]),
    ("TargetHealth", "error_message", [0, False, [], {}]),
    ("TargetHealth", "retry_after_seconds", [True, "5", 5.0, 10**400]),
    ("Welcome", "heartbeat_seconds", [True, "10", None, [10], math.nan, math.inf, 10**400]),
    ("Welcome", "tickets", ["t", None, {}, [1], [None], [["t"]], {"0": "t"}, 5, ["x" * (MAX_TEXT + 1)]]),
    ("Hello", "features", ["silence", None, {}, [1], [None], ["x" * (MAX_TEXT + 1)]]),
    ("Welcome", "features", ["attach", None, {}, [1], [None], ["x" * (MAX_TEXT + 1)]]),
    ("Goodbye", "reason", ["STOPPING", "no_such", "", 1, True, None, ["stopping"], {}]),
    ("ProxyStatusUpdate", "status", ["HEALTHY", "healthy ", "", 0, None, "addr_in_use"]),
    ("ProxyStatusUpdate", "reason", ["ADDR_IN_USE", "", 0, False, "healthy", []]),
    ("ProxyStatusUpdate", "publish_port", [True, "8022", 8022.0, None]),
    ("ProxyStatusUpdate", "max_retries", ["10", False, 10.0]),
    ("ProxySet", "proxies", [None, {}, SPEC, "ssh", [None], ["ssh"], [[]], [1]]),
    ("ProxySet", "proxies", [[{**SPEC, "publish_port": wrong}] for wrong in (True, "8022", 80.5, None, [8022])]),
    ("ProxySet", "proxies", [[{**SPEC, "checked": wrong}] for wrong in (1, 0, "yes", None)]),
    ("ProxySet", "proxies", [[{**SPEC, "name": wrong}] for wrong in (1, None, ["ssh"], "x" * (MAX_TEXT + 1))]),
    ("ProxySet", "proxies", [[{**SPEC, "bind_retry": wrong}] for wrong in (True, 1, "x", [], {}, {"factor": 2})]),
    ("ProxySet", "proxies", [[{**SPEC, "bind_retry": {**RETRY, key: True}}] for key in RETRY]),
]
CASES = [(kind, key, value) for kind, key, values in WRONG for value in values]


@pytest.mark.parametrize("kind", GOOD)
def test_the_good_examples_are_good(kind: str) -> None:
    assert type(decode(json.dumps({"type": kind, **GOOD[kind]}))).__name__ == kind


@pytest.mark.parametrize(("kind", "key", "value"), CASES, ids=lambda value: repr(value)[:30])
def test_nothing_is_coerced_and_every_bound_is_kept(kind: str, key: str, value: Any) -> None:
    """B13, B41: booleans are no numbers, numbers no text, text no list."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(json.dumps({"type": kind, **GOOD[kind], key: value}))
    assert len(str(caught.value)) < 400


def test_whole_numbers_are_numbers() -> None:
    message = decode(json.dumps({"type": "Welcome", **GOOD["Welcome"], "heartbeat_seconds": 10}))
    assert isinstance(message, Welcome)
    assert (message.heartbeat_seconds, type(message.heartbeat_seconds)) == (10.0, float)


@pytest.mark.parametrize("value", [MAX_INT, -MAX_INT])
def test_numbers_up_to_the_bound_are_taken(value: int) -> None:
    assert decode(encode(Heartbeat(value))) == Heartbeat(value)


def test_texts_up_to_the_bound_are_taken() -> None:
    longest = Goodbye(Farewell.STOPPING, "é" * MAX_TEXT)
    assert decode(encode(longest)) == longest


# What is no message at all


NO_MESSAGES = {
    "nothing": "",
    "a word": "hello",
    "half": '{"type":"Heartbeat","seq":',
    "two": '{"type":"Heartbeat","seq":1}{"type":"Heartbeat","seq":2}',
    "a list": '[{"type":"Heartbeat","seq":1}]',
    "a number": "1",
    "null": "null",
    "a text": '"Heartbeat"',
    "no type": '{"seq":1}',
    "type of no kind": '{"type":"Nonsense","seq":1}',
    "type of a part": '{"type":"ProxySpec","name":"a","publish_addr":"::","publish_port":1}',
    "type of a part, again": '{"type":"Retry"}',
    "type in another case": '{"type":"heartbeat","seq":1}',
    "type a number": '{"type":1,"seq":1}',
    "type a list": '{"type":["Heartbeat"],"seq":1}',
    "type null": '{"type":null}',
    "type a private name": '{"type":"__class__"}',
    "a key twice": '{"type":"Heartbeat","seq":1,"seq":2}',
    "a type twice": '{"type":"Heartbeat","type":"Goodbye","seq":1}',
    "a key twice inside": '{"type":"Heartbeat","seq":1,"x":{"a":1,"a":1}}',
    "not a number": '{"type":"Welcome","session":"s","client":"c","tickets":[],"heartbeat_seconds":NaN}',
    "infinity": '{"type":"Welcome","session":"s","client":"c","tickets":[],"heartbeat_seconds":Infinity}',
    "infinity by overflow": '{"type":"Welcome","session":"s","client":"c","tickets":[],"heartbeat_seconds":1e999}',
    "a number without end": '{"type":"Heartbeat","seq":' + "9" * 5000 + "}",
    "deep": "[" * 100_000,
    "deep in an unknown key": '{"type":"Heartbeat","seq":1,"x":' + "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "trailing comma": '{"type":"Heartbeat","seq":1,}',
    "comment": '{"type":"Heartbeat","seq":1} // one',
    "byte order mark": '\ufeff{"type":"Heartbeat","seq":1}',
    "single quotes": "{'type':'Heartbeat','seq':1}",
    "over the bound": '{"type":"Heartbeat","seq":1}' + " " * MAX_MESSAGE_BYTES,
}  # fmt: skip


@pytest.mark.parametrize("text", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_message_is_the_peers_fault(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("place", ['{"type":%s}', '{"type":"Heartbeat","seq":%s}', '{"type":"Goodbye","reason":%s}'])
def test_nesting_of_any_depth_is_the_peers_fault(place: str) -> None:
    """Near Python's recursion limit as well, where parsing succeeds and what follows might not."""
    for depth in (*range(10, 800, 100), *range(900, 1010, 5)):
        for nested in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            with pytest.raises(RemoteProtocolError):
                decode(place % nested)


def test_a_message_of_exactly_the_bound_is_read() -> None:
    text = encode(Heartbeat(1))
    assert decode(text + " " * (MAX_MESSAGE_BYTES - len(text))) == Heartbeat(1)


def test_a_thousand_proxies_of_the_longest_names_fit_in_a_third_of_the_bound() -> None:
    name = "x" * 63
    spec = ProxySpec(name, "2001:db8:1234:1234:1234:1234:1234:1234", 65535, Retry(2.0, 2.0, 60.0, 10, 0.5), True, name)
    wanted = ProxySet(2**32 - 1, (spec,) * MAX_PROXIES)
    assert decode(encode(wanted)) == wanted
    assert len(encode(wanted)) < MAX_MESSAGE_BYTES * 0.37


@given(st.text())
@example("\ud800")
@example("\0")
def test_any_text_is_a_message_or_the_peers_fault(text: str) -> None:
    only_remote_protocol_error(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted({field.name for kind in KINDS for field in fields(kind)})
NAMES = st.sampled_from([kind.__name__ for kind in KINDS])


@given(JSON)
def test_any_json_is_a_message_or_the_peers_fault(value: Any) -> None:
    only_remote_protocol_error(json.dumps(value))


@given(NAMES, st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from([SPEC, [SPEC], RETRY]), max_size=12))
def test_any_values_under_the_right_keys_are_a_message_or_the_peers_fault(name: str, body: dict[str, Any]) -> None:
    only_remote_protocol_error(json.dumps({"type": name, **body}))


@given(MESSAGES, st.data())
def test_one_value_replaced_gives_a_message_or_the_peers_fault(message: Message, data: Any) -> None:
    body = json.loads(encode(message))
    key = data.draw(st.sampled_from(list(body)))
    body[key] = data.draw(JSON)
    only_remote_protocol_error(json.dumps(body))


def only_remote_protocol_error(text: str) -> None:
    try:
        message = decode(text)
    except RemoteProtocolError:
        return
    assert decode(encode(message)) == message


def test_a_count_is_not_bounded_here_but_by_the_law_of_the_session() -> None:
    assert decode(encode(TicketRequest(-1))) == TicketRequest(-1)
