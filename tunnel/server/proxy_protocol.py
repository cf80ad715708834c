"""The header in which a balancer tells for whom it connects: HAProxy's PROXY protocol, versions 1 and 2. Pure.

    v1   "PROXY TCP4 192.0.2.1 198.51.100.1 56324 8443\\r\\n"        at most 107 bytes
    v2   signature (12) │ version, command │ family, transport │ length (2, big-endian) │ addresses │ TLVs

Whoever may send one could claim any source, so the gate reads it from the peers that the configuration names, and from
nobody else. TLS follows at once: nothing behind the header may be taken from the socket, hence `missing`.
"""

import ipaddress
import re
from collections.abc import Iterable

MAX_HEADER_BYTES = 536  # what v2 promises to keep to; a header with more TLVs is refused
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_START, _V1_SHORTEST, _V1_MAX = b"PROXY ", len(b"PROXY UNKNOWN\r\n"), 107
_V2_HEAD = 16
_LOCAL, _PROXY = 0x20, 0x21  # with the version, which is 2
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_NONE = "is missing, and something else came; have it send one, or take it out of proxy_protocol_from"


def is_start(data: bytes) -> bool:
    """Whether the first `len(SIGNATURE)` bytes of a connection, if so many came, can be nothing but a header's."""
    return data.startswith((SIGNATURE, _V1_START))


def missing(header: bytes) -> int:
    """How many bytes more belong to the header for sure; 0 when it is whole. `ValueError` when it is none."""
    if len(header) < len(SIGNATURE):
        if not (SIGNATURE.startswith(header) or _V1_START.startswith(header[: len(_V1_START)])):
            raise ValueError(_NONE)
        return len(SIGNATURE) - len(header)
    if header.startswith(SIGNATURE):
        return _missing_v2(header)
    if not header.startswith(_V1_START):
        raise ValueError(_NONE)
    if header.endswith(b"\n"):
        return 0
    if len(header) >= _V1_MAX:
        raise ValueError(f"has no end within {_V1_MAX} bytes")
    return max(_V1_SHORTEST - len(header), 1)  # the lines are of any length: to its end, byte by byte


def _missing_v2(header: bytes) -> int:
    if len(header) < _V2_HEAD:
        return _V2_HEAD - len(header)
    whole = _V2_HEAD + int.from_bytes(header[14:16])
    if whole > MAX_HEADER_BYTES:
        raise ValueError(f"is {whole} bytes long, over {MAX_HEADER_BYTES}")
    return whole - len(header)


def source_address(header: bytes) -> str | None:
    """For whom the connection is, of a whole header; None for the balancer's own (a health check, say), and where it
    does not know. `ValueError` for what the protocol does not allow."""
    return _v2_source(header) if header.startswith(SIGNATURE) else _v1_source(header)


def _v1_source(header: bytes) -> str | None:
    if not header.endswith(b"\r\n"):
        raise ValueError("does not end in CRLF")
    words = header[:-2].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return None  # what else it says is not to be read
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):
        raise ValueError("is no version 1 header")
    if not all(_PORT.fullmatch(port) and int(port) <= 65535 for port in words[4:]):
        raise ValueError("names no port")
    is_ip4 = words[1] == b"TCP4"
    source, _destination = (_literal(word, is_ip4=is_ip4) for word in words[2:4])
    return source


def _literal(word: bytes, *, is_ip4: bool) -> str:
    text = word.decode("ascii", "replace")
    try:
        address = ipaddress.IPv4Address(text) if is_ip4 else ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("names no address") from None
    if "%" in text:  # an interface of the balancer's
        raise ValueError("names no address")
    return str(address)


def _v2_source(header: bytes) -> str | None:
    command, family, rest = header[12], header[13], header[_V2_HEAD:]
    if command == _LOCAL:
        return None
    if command != _PROXY:
        raise ValueError("is of another version, or has an unknown command")
    if family in (_UNSPECIFIED, _UNIX):
        return None
    size = {_TCP4: 4, _TCP6: 16}.get(family)
    if size is None or len(rest) < 2 * size + 4:
        raise ValueError("is for no TCP connection, or is cut short")
    return str(ipaddress.ip_address(rest[:size]))


class TrustedPeers:
    """Who may say for whom it connects. `networks` are addresses and CIDRs, as the configuration has them."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)
