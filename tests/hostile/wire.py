"""Bytes as no honest peer sends them, and the honest ones around them."""

import ssl
import struct

from tunnel.frames import FRAME, OPEN, OPEN_PAYLOAD, WS_ROOM, control_message, put_message_head

BINARY, TEXT = 2, 1
PING = control_message(9, b"are you there?", masked=True)
CLOSE = control_message(8, struct.pack("!H", 1000), masked=True)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


def client_hello(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What a client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def request(path: str, secret: str = "", **headers: str | None) -> bytes:
    """An upgrade's head as our client sends it, save for what `headers` change; None leaves one out."""
    pairs: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Authorization": f"Bearer {secret}",
        "Trio-Tunnel-Instance": "1" * 32,
        "Trio-Tunnel-Epoch": "1",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in pairs.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def message(body: bytes, opcode: int = BINARY, *, masked: bool = True) -> bytes:
    """One whole WebSocket message."""
    head = bytearray(WS_ROOM)
    at = put_message_head(head, len(body), masked=masked, opcode=opcode)
    return bytes(head[at:]) + body


def text(words: str, *, masked: bool = True) -> bytes:
    return message(words.encode(), TEXT, masked=masked)


def fragment(body: bytes, *, first: bool = False, opcode: int = TEXT) -> bytes:
    """A piece of a message that does not end; at most 125 bytes."""
    return bytes([opcode if first else 0, 0x80 | len(body)]) + bytes(4) + body


def frame(word: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME.pack(word, stream) + payload


def open_frame(stream: int, index: int = 0, version: int = 1) -> bytes:
    return frame(OPEN | OPEN_PAYLOAD.size, stream, OPEN_PAYLOAD.pack(index, version))
