"""Hashed traffic, and the verdict on each transfer: complete, ended by a visible error, or a lie.

An upload ends with FIN and is answered with the SHA-256 of what came; a download is so many bytes of a pattern and FIN.
A lie is an end that looks clean and is not: a FIN before the last byte, on either side; bytes other than those sent; or
no end at all.
"""

import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable

import trio
from attrs import define, field
from processes import LOOPBACK

PATTERN = random.Random(4).randbytes(1 << 20)  # no period that a lost piece could hide in
MAX_BYTES = 12 * 1024 * 1024
END_SECONDS = 20.0  # a transfer in which nothing moves for so long never ends
HEAD = struct.Struct("!QQ")  # which transfer, how many bytes
DIGEST_BYTES = 32


class Lie(Exception):
    """A clean end that was none."""


@define
class Tally:
    """Shared by threads; each counts under the lock."""

    complete: int = 0
    broken: int = 0  # visibly
    refused: int = 0  # nobody listened
    moved_bytes: int = 0
    lies: list[str] = field(factory=list)
    arrived: dict[int, int] = field(factory=dict)  # at the service: bytes of uploads that it saw end cleanly
    sent: dict[int, int] = field(factory=dict)  # by the visitor, of uploads that it ended itself
    lock: threading.Lock = field(factory=threading.Lock)

    def lied(self, words: str) -> None:
        with self.lock:
            self.lies.append(words)

    def judge(self) -> None:
        """Once all is over: what the service took for an end was one."""
        for number, count in self.arrived.items():
            if self.sent.get(number) != count:
                self.lied(f"upload {number}: the service saw FIN after {count} bytes of {self.sent.get(number)}")


def pattern(offset: int, size: int) -> bytes:
    start = offset % len(PATTERN)
    piece = PATTERN[start : start + size]
    return piece if len(piece) == size else piece + pattern(0, size - len(piece))


# Services, in Trio


def upload_service(tally: Tally) -> Callable[[trio.SocketStream], object]:
    async def handle(stream: trio.SocketStream) -> None:
        digest, count = hashlib.sha256(), 0
        head = await _head(stream)
        if head is None:
            return
        while data := await stream.receive_some(262144):
            digest.update(data)
            count += len(data)
        with tally.lock:
            tally.arrived[head[0]] = count
        await stream.send_all(digest.digest())
        await stream.send_eof()

    return handle


async def download_service(stream: trio.SocketStream) -> None:
    head = await _head(stream)
    if head is None:
        return
    at, size = 0, head[1]
    while at < size:
        piece = pattern(at, min(262144, size - at))
        await stream.send_all(piece)
        at += len(piece)
    await stream.send_eof()


async def _head(stream: trio.SocketStream) -> tuple[int, int] | None:
    """None for one that ended before it said what it wants: nothing was promised."""
    data = b""
    while len(data) < HEAD.size:
        if not (more := await stream.receive_some(HEAD.size - len(data))):
            return None
        data += more
    number, size = HEAD.unpack(data)
    return number, size


# Visitors, in threads


def upload(port: int, tally: Tally, number: int, size: int) -> None:
    """Raises `OSError` for a visible error, `Lie` for the other thing."""
    with socket.create_connection((LOOPBACK, port), timeout=END_SECONDS) as sock:
        sock.sendall(HEAD.pack(number, size))
        digest, at = hashlib.sha256(), 0
        while at < size:
            piece = pattern(at, min(65536, size - at))
            sock.sendall(piece)
            digest.update(piece)
            at += len(piece)
        with tally.lock:
            tally.sent[number] = size
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    if answer != digest.digest():
        raise Lie(f"upload {number}: {len(answer)} of {DIGEST_BYTES} bytes of the answer, or others, and FIN")


def download(port: int, _tally: Tally, number: int, size: int) -> None:
    with socket.create_connection((LOOPBACK, port), timeout=END_SECONDS) as sock:
        sock.sendall(HEAD.pack(number, size))
        at = 0
        while data := sock.recv(262144):
            if data != pattern(at, len(data)):
                raise Lie(f"download {number}: other bytes after {at}")
            at += len(data)
    if at != size:
        raise Lie(f"download {number}: FIN after {at} of {size} bytes")


Transfer = Callable[[int, Tally, int, int], None]


class Traffic:
    """Threads that transfer while the body runs. `small` transfers are most of a real proxy's."""

    def __init__(self, tally: Tally, ports: dict[Transfer, int], *, threads: int = 2) -> None:
        self._tally = tally
        self._over = threading.Event()
        self._numbers = iter(range(1, 1 << 62))
        self._threads = [
            threading.Thread(target=self._run, args=(transfer, port, random.Random(lane)), daemon=True)
            for lane, (transfer, port) in enumerate([*ports.items()] * threads)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * END_SECONDS)
            if thread.is_alive():
                self._tally.lied("a transfer neither ends nor fails")
        self._tally.judge()

    def _run(self, transfer: Transfer, port: int, dice: random.Random) -> None:
        while not self._over.is_set():
            with self._tally.lock:
                number = next(self._numbers)
            size = int(MAX_BYTES ** dice.random())
            try:
                transfer(port, self._tally, number, size)
            except TimeoutError:
                self._tally.lied(f"transfer {number}: nothing moved for {END_SECONDS:g} s")
            except ConnectionRefusedError:
                with self._tally.lock:
                    self._tally.refused += 1
                self._over.wait(0.01)
            except OSError:
                with self._tally.lock:
                    self._tally.broken += 1
            except Lie as lie:
                self._tally.lied(str(lie))
            else:
                with self._tally.lock:
                    self._tally.complete += 1
                    self._tally.moved_bytes += size
