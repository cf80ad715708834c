"""A client of its own, written from `deploy/docs/protocol.md` alone: nothing of trio-tunnel is imported here.

It does what the page calls the least: verifies the pin, logs in, publishes, keeps two data channels, serves visitors.
What it leaves out is what a client may leave out: reconnecting, health, moving streams of its own, retiring channels.
"""

import base64
import hashlib
import json
import os
import ssl
import struct
from collections import deque

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

OPEN, DATA, FIN, CREDIT, RST, MOVE, RETIRE = range(1, 8)
FIRST_WINDOW = 65_536
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """Messages over a verified TLS connection. Several tasks may send."""

    def __init__(self, stream, rest):
        self._stream, self._buffer = stream, rest
        self._lock = trio.Lock()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await trio.aclose_forcefully(self._stream)

    async def send(self, opcode, payload):
        mask, size = os.urandom(4), len(payload)
        length = struct.pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else None
        length = length or (struct.pack("!BBH", 0x80 | opcode, 0xFE, size) if size < 65536 else None)
        head = length or struct.pack("!BBQ", 0x80 | opcode, 0xFF, size)
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        masked = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
        async with self._lock:
            await self._stream.send_all(head + mask + masked)

    async def receive(self):
        """The payload of the next frame that is no ping, with its opcode (0 for what continues)."""
        while True:
            first, second = await self._exactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(await self._exactly(2 if size == 126 else 8), "big")
            payload = await self._exactly(size)
            if first & 0x0F == PING:
                await self.send(PONG, payload)
            elif first & 0x0F == CLOSE:
                raise EOFError
            elif first & 0x0F != PONG:
                return first & 0x0F, payload

    async def _exactly(self, size):
        while len(self._buffer) < size:
            more = await self._stream.receive_some(65536)
            if not more:
                raise EOFError
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


async def connect(host, port, pin, path, headers):
    """Verify the server's key, then upgrade."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    stream = trio.SSLStream(
        await trio.open_tcp_stream(host, port), context, server_hostname=host, https_compatible=True
    )
    await stream.do_handshake()
    key = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True)).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    assert f"sha256:{digest}" == pin, "somebody is in between"
    lines = {
        "Host": f"{host}:{port}", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(), **headers,
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    await stream.send_all(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = await stream.receive_some(4096)
        assert more, "closed without an answer"
        answer += more
    answer, _, rest = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return WebSocket(stream, rest)


class Stream:
    """One visitor: where its DATA comes from, what it may still send, what waits for its target."""

    def __init__(self, number, channel):
        self.number, self.home = number, channel
        self.credit, self.credited = FIRST_WINDOW, trio.Event()
        self.to_target, self.queued = deque(), trio.Event()  # bytes; None is FIN
        self.elsewhere = deque()  # what came on another channel before MOVE was seen on `home`

    def queue(self, item):
        self.to_target.append(item)
        self.queued.set()


class LeastClient:
    """`statuses` has the newest of each proxy; `moved` counts the streams that the server moved."""

    def __init__(self, host, port, pin, token, proxies):
        self.where = host, port, pin
        self.token, self.proxies = token, proxies  # proxies: (ProxySpec as JSON, (host, port) of its target)
        self.statuses, self.streams, self.moved = {}, {}, 0
        self.channels = 0

    async def run(self):
        """Until the session ends."""
        headers = {
            "Authorization": f"Bearer {self.token}", "Trio-Tunnel-Instance": os.urandom(16).hex(),
            "Trio-Tunnel-Epoch": "1",
        }  # fmt: skip
        self.control = await connect(*self.where, "/control", headers)
        async with self.control:
            await self.talk()

    async def talk(self):
        await self.say("Hello", version=1)
        welcome = json.loads((await self.control.receive())[1])
        assert welcome["type"] == "Welcome", welcome
        async with trio.open_nursery() as self.tasks:
            self.tasks.start_soon(self.beat, welcome["heartbeat_seconds"])
            for ticket in welcome["tickets"][:2]:
                self.tasks.start_soon(self.serve_channel, ticket)
            await self.say("ProxySet", version=1, proxies=[spec for spec, _ in self.proxies])
            while True:
                message = json.loads((await self.control.receive())[1])
                if message["type"] == "ProxyStatusUpdate":
                    self.statuses[message["proxy_name"]] = message
                elif message["type"] == "Heartbeat":
                    await self.say("HeartbeatReply", seq=message["seq"])
                elif message["type"] == "Goodbye":
                    self.tasks.cancel_scope.cancel()

    async def say(self, kind, **fields):
        await self.control.send(TEXT, json.dumps({"type": kind, **fields}).encode())

    async def beat(self, seconds):
        seq = 0
        while True:
            await trio.sleep(seconds)
            seq += 1
            await self.say("Heartbeat", seq=seq)

    # Data channels

    async def serve_channel(self, ticket):
        channel = await connect(*self.where, "/data", {"Authorization": f"Bearer {ticket}"})
        async with channel:
            await self.read_frames(channel)

    async def read_frames(self, channel):
        self.channels += 1
        pending = b""
        while True:
            opcode, payload = await channel.receive()
            assert opcode in (BINARY, 0)
            pending += payload
            while len(pending) >= 8:
                word, number = struct.unpack("!II", pending[:8])
                kind, count = word >> 24, word & 0xFFFFFF
                size = count if kind in (OPEN, DATA) else 0
                if len(pending) < 8 + size:
                    break
                self.handle(channel, kind, number, count, pending[8 : 8 + size])
                pending = pending[8 + size :]

    def handle(self, channel, kind, number, count, payload):
        if kind == OPEN:
            index, _version = struct.unpack("!II", payload[:8])
            stream = self.streams[number] = Stream(number, channel)
            self.tasks.start_soon(self.serve_visitor, stream, self.proxies[index][1])
        stream = self.streams.get(number)
        if stream is None:
            return  # it crossed our RST
        if kind == CREDIT:
            stream.credit += count
            stream.credited.set()
        elif kind == RST:
            stream.scope.cancel()
        elif kind == MOVE:
            self.moved += 1
            stream.home = None  # whichever it speaks on next
            waiting, stream.elsewhere = stream.elsewhere, deque()
            for there, what, data in waiting:
                self.handle(there, what, number, 0, data)
        elif kind in (DATA, FIN) and stream.home not in (None, channel):
            stream.elsewhere.append((channel, kind, payload))
        elif kind in (DATA, FIN):
            stream.home = channel
            if kind == FIN or payload:
                stream.queue(payload if kind == DATA else None)

    async def put(self, stream, kind, count=0, payload=b""):
        await stream.speaks.send(BINARY, struct.pack("!II", kind << 24 | count, stream.number) + payload)

    # Visitors

    async def serve_visitor(self, stream, target):
        stream.scope, stream.speaks = trio.CancelScope(), stream.home
        with stream.scope:
            try:
                socket = await trio.open_tcp_stream(*target)
                async with socket, trio.open_nursery() as ways:
                    ways.start_soon(self.to_target, stream, socket)
                    ways.start_soon(self.from_target, stream, socket)
            except* (OSError, trio.BrokenResourceError):
                await self.put(stream, RST, 1)
        del self.streams[stream.number]

    async def to_target(self, stream, socket):
        while True:
            while not stream.to_target:
                stream.queued = trio.Event()
                await stream.queued.wait()
            data = stream.to_target.popleft()
            if data is None:
                await socket.send_eof()
                return
            await socket.send_all(data)
            await self.put(stream, CREDIT, len(data))

    async def from_target(self, stream, socket):
        while data := await socket.receive_some(16_384):
            while data:
                while not stream.credit:
                    stream.credited = trio.Event()
                    await stream.credited.wait()
                part, data = data[: stream.credit], data[stream.credit :]
                stream.credit -= len(part)
                await self.put(stream, DATA, len(part), part)
        await self.put(stream, FIN)
