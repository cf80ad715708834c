"""The words on the control channel: JSON objects with a `type`, structured strictly, versioned by `Hello`.

    client                                        server
      │ GET /control  Authorization: Bearer TOKEN    │   TLS, then the WebSocket upgrade; 401/409 refuse here
      │   Trio-Tunnel-Instance, Trio-Tunnel-Epoch    │
      │ Hello(version) ────────────────────────────▶ │
      │ ◀─────────── Welcome(session, client, tickets) │
      │ ProxySet(version, proxies) ────────────────▶ │   again whenever the set changes
      │ ◀──────────── ProxyStatusUpdate(seq, …) each change; a snapshot of all after a reconnect
      │ TicketRequest(count) ─▶ ◀─ Tickets(tickets)  │   one ticket opens one data channel, once, within 10 s
      │ TargetHealth, RetryProxy ──────────────────▶ │
      │ ◀───────────────────────────── ChannelsSilent │   visitors come, and no data channel answers
      │ ControlMoved ──▶ ◀── ControlMoved            │   each side's last word on this connection: it goes on on
      │                                              │   another one, which control_line.py draws
      │ ◀── Heartbeat / HeartbeatReply, both ways ──▶ │
      │ ◀───────────── Goodbye(reason) either way ──▶ │   nothing follows it

Unknown keys are ignored (a newer peer may say more); unknown types, wrong types and anything over a bound are
`RemoteProtocolError`.

version 1: as drawn. What came later is used only where the other side's `features` name it: ``attach`` (ControlMoved)
in the Welcome, ``silence`` (ChannelsSilent) in the Hello.
"""

import json
import math
from enum import StrEnum
from typing import Any, Union, get_args

from attrs import field, frozen
from cattrs import BaseValidationError, Converter
from cattrs.gen import make_dict_structure_fn

from tunnel.errors import RemoteProtocolError

PROTOCOL_VERSION = 1
ATTACH = "attach"  # a server's feature: another control channel can be attached to a living session
SILENCE = "silence"  # a client's feature: it wants to hear when its data channels do not answer
MAX_MESSAGE_BYTES = 1024 * 1024  # design limit; 1,000 proxies of the longest names fit in a third of it
MAX_PROXIES = 1000  # of one client
MAX_TEXT = 1024  # characters of any one string field that a peer sends
MAX_INT = 2**53  # either way: what every JSON parser keeps exactly, and a clock can be added to


class Status(StrEnum):
    """The seed's three words for a proxy."""

    HEALTHY = "healthy"  # listening, and its target answers where a health check is set
    UNHEALTHY = "unhealthy"  # for now not available, and being retried
    BIND_FAILED = "bind_failed"  # given up; `retry`, a reload or a reconnect starts afresh


class Reason(StrEnum):
    """Why a proxy is not healthy: a closed list, stable, for programs."""

    PENDING = "pending"  # accepted, first attempt under way
    ADDR_IN_USE = "addr_in_use"
    PERMISSION_DENIED = "permission_denied"
    ADDR_NOT_AVAILABLE = "addr_not_available"
    OUT_OF_DESCRIPTORS = "out_of_descriptors"
    OUT_OF_MEMORY = "out_of_memory"
    OS_ERROR = "os_error"
    MALFORMED_ADDR = "malformed_addr"
    FAMILY_NOT_SUPPORTED = "family_not_supported"
    NOT_ALLOWED = "not_allowed"
    LISTENER_LOST = "listener_lost"
    TARGET_DOWN = "target_down"
    INTERNAL_ERROR = "internal_error"
    DRAINING = "draining"  # stopping: no new visitors, those inside finish
    CONNECTING = "connecting"  # client's own word: no session yet
    SESSION_LOST = "session_lost"  # client's own word: the session ended, reconnecting


class Farewell(StrEnum):
    """Why a side says goodbye."""

    STOPPING = "stopping"  # will not come back by itself
    DRAINING = "draining"  # a restart: come back as soon as somebody listens
    REPLACED = "replaced"  # a newer session of the same client took over
    REVOKED = "revoked"  # the token is no longer valid
    PROTOCOL_ERROR = "protocol_error"
    VERSION_UNSUPPORTED = "version_unsupported"


@frozen
class Retry:
    """A bind-retry policy on its way to the server; fields as in `RetryPolicy`."""

    initial_delay: float
    factor: float
    max_delay: float
    max_retries: int | None
    jitter: float
    step: float | None = None  # of a linear policy; the other delays are then those of a policy much like it


@frozen
class ProxySpec:
    """What the server must know of a proxy. The target is not in it: only the client's own config names that."""

    name: str
    publish_addr: str
    publish_port: int
    bind_retry: Retry | None = None
    checked: bool = False  # the client will report the target's health, and it counts
    target: str = ""  # for display only; the server never dials it
    when_down: str = "keep"  # "close": the address is released while the target is down


@frozen
class Hello:
    """The instance (one per client process) and epoch (its session counter) stand in the upgrade's head already."""

    version: int
    software: str = ""
    features: tuple[str, ...] = ()  # what this client understands beyond the first of its version


@frozen
class Welcome:
    session: str
    client: str  # the name this token stands for
    tickets: tuple[str, ...] = field(repr=False)  # each as good as a token, once, for seconds
    heartbeat_seconds: float
    software: str = ""
    features: tuple[str, ...] = ()  # what this server can do beyond the first of its version


@frozen
class ProxySet:
    """The whole set the client wants published; OPEN frames name a proxy by its index here and this version."""

    version: int
    proxies: tuple[ProxySpec, ...]


@frozen
class ProxyStatusUpdate:
    """The seed's four fields and what a person asks next. `since` is ISO 8601 in UTC, of entering this status."""

    proxy_name: str
    status: Status
    error_message: str | None
    retry_after_seconds: int | None
    seq: int
    reason: Reason | None
    attempt: int
    max_retries: int | None
    publish_addr: str
    publish_port: int
    since: str


@frozen
class TargetHealth:
    proxy_name: str
    healthy: bool
    error_message: str | None = None
    retry_after_seconds: int | None = None  # until the next check


@frozen
class RetryProxy:
    proxy_name: str


@frozen
class TicketRequest:
    count: int


@frozen
class Tickets:
    tickets: tuple[str, ...] = field(repr=False)


@frozen
class ChannelsSilent:
    """Visitors were put on every data channel, and nothing comes back on any."""


@frozen
class Heartbeat:
    seq: int


@frozen
class HeartbeatReply:
    seq: int


@frozen
class ControlMoved:
    """The last word on a control channel whose session goes on on another one."""


@frozen
class Goodbye:
    reason: Farewell
    message: str = ""


Message = Union[  # noqa: UP007  get_args() below wants the typing form on every version
    Hello, Welcome, ProxySet, ProxyStatusUpdate, TargetHealth, RetryProxy,
    TicketRequest, Tickets, ChannelsSilent, Heartbeat, HeartbeatReply, ControlMoved, Goodbye,
]  # fmt: skip
_BY_TYPE: dict[str, type[Any]] = {cls.__name__: cls for cls in get_args(Message)}


def encode(message: Message) -> str:
    """The message as JSON text."""
    body = wire.unstructure(message)
    return json.dumps({"type": type(message).__name__, **body}, separators=(",", ":"))


def decode(text: str) -> Message:
    """JSON text as a message; `RemoteProtocolError` for everything that is not exactly one."""
    if len(text) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"control message of {len(text)} characters; at most {MAX_MESSAGE_BYTES}")
    try:
        body = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as exc:  # RecursionError: json.loads recurses for each level of nesting
        raise RemoteProtocolError(f"control message is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise RemoteProtocolError("control message is not a JSON object")
    kind = body.pop("type", None)
    cls = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise RemoteProtocolError(f"unknown message type {str(kind)[:40]!r}")
    try:
        message: Message = wire.structure(body, cls)
    except (BaseValidationError, TypeError, ValueError, OverflowError) as exc:
        raise RemoteProtocolError(f"malformed {kind}: {_first_cause(exc)}") from exc
    return message


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a key stands twice")
    return body


def _first_cause(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return (f"{exc} is missing" if isinstance(exc, KeyError) else str(exc))[:200]


def strict_converter(*, forbid_extra_keys: bool) -> Converter:
    """A cattrs converter that coerces nothing: ``"8080"`` is no number, ``1`` no boolean, ``"abc"`` no list."""
    converter = Converter(forbid_extra_keys=forbid_extra_keys)
    for exact, words in ((int, "a whole number"), (str, "a text"), (bool, "true or false")):
        converter.register_structure_hook(exact, _exactly(exact, words))
    converter.register_structure_hook(float, _number)
    for closed_list in (Status, Reason, Farewell):  # each by name: the hook for `str` would catch a StrEnum too
        converter.register_structure_hook(closed_list, _member)
    converter.register_structure_hook_factory(
        lambda cls: hasattr(cls, "__attrs_attrs__"),
        lambda cls, conv: _only_from_dict(
            make_dict_structure_fn(cls, conv, _cattrs_forbid_extra_keys=forbid_extra_keys)
        ),
    )
    converter.register_structure_hook_func(_is_tuple, lambda value, cls: _tuple(converter, value, cls))
    return converter


def _exactly(exact: type, words: str) -> Any:
    def hook(value: Any, _cls: Any) -> Any:
        if type(value) is not exact:
            raise TypeError(f"expected {words}, not {value!r:.60}")
        return value

    return hook


def _number(value: Any, _cls: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"expected a number, not {value!r:.60}")
    return float(value)


def _member(value: Any, cls: type[StrEnum]) -> StrEnum:
    if type(value) is not str or value not in cls.__members__.values():
        raise ValueError(f"expected one of {', '.join(cls)}, not {value!r:.60}")
    return cls(value)


def _only_from_dict(structure: Any) -> Any:
    def hook(value: Any, cls: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"expected a table, not {value!r:.60}")
        return structure(value, cls)

    return hook


def _is_tuple(cls: Any) -> bool:
    return getattr(cls, "__origin__", None) is tuple


def _tuple(converter: Converter, value: Any, cls: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, not {value!r:.60}")
    return tuple(converter.structure(item, cls.__args__[0]) for item in value)


def _bounded_text(value: Any, _cls: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a text, not {value!r:.60}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value)} characters; at most {MAX_TEXT}")
    value.encode()  # JSON can spell half of a surrogate pair, which nothing could print: UnicodeEncodeError
    return value


def _bounded_int(value: Any, _cls: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, not {value!r:.60}")
    if abs(value) > MAX_INT:
        raise ValueError(f"a number of {value.bit_length()} bits; at most 53")
    return value


wire = strict_converter(forbid_extra_keys=False)
wire.register_structure_hook(str, _bounded_text)
wire.register_structure_hook(int, _bounded_int)
