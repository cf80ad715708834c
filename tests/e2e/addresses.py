"""What the tests of several addresses share: forwarders in front of one server, and visitors at a steady rate."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import trio
from attrs import define, field, frozen
from processes import LOOPBACK, Client, Stage, free_port, slowness

WORD = b"a short visit\n"


class Forwarder:
    """One address of the server that can be made to fail; see `forwarder.py`. `with` ends it."""

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self._server_port = server_port
        self.start()

    def start(self) -> None:
        words = [sys.executable, Path(__file__).with_name("forwarder.py"), str(self.port), str(self._server_port)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, words: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        return self.process.stdout.readline().strip()

    def count(self) -> tuple[int, int, int]:
        """Connections now, accepted in all, bytes forwarded."""
        now, accepted, forwarded = map(int, self.tell("count").split())
        return now, accepted, forwarded

    @property
    def where(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> "Forwarder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.kill()


@frozen
class Visit:
    """`began` is seconds of `time.monotonic`, `seconds` those until its first answer; None: it failed."""

    began: float
    seconds: float | None


@define
class Visitors:
    """Short visits to an echoing proxy at a steady rate, in a thread, while the body runs. On a slow machine it is a
    slower one, and who did not come while the machine stood still is not made up for by a crowd.

    Each stays for `linger` seconds after the first answer: so many are inside together that all addresses are used.
    """

    port: int
    per_second: float = 200.0
    linger: float = 0.05
    patience: float = 3.0  # seconds, then a visit has failed
    visits: list[Visit] = field(factory=list)
    _over: threading.Event = field(factory=threading.Event)
    _thread: Any = None

    def __enter__(self) -> "Visitors":
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(self.patience + 10)

    async def _run(self) -> None:
        async with trio.open_nursery() as inside:
            due, between = trio.current_time(), slowness() / self.per_second
            while not self._over.is_set():
                inside.start_soon(self._visit)
                due = max(due + between, trio.current_time())
                await trio.sleep_until(due)

    async def _visit(self) -> None:
        began = time.monotonic()
        seconds, answer = None, b""
        try:
            with trio.move_on_after(self.patience) as waiting:
                async with await trio.open_tcp_stream(LOOPBACK, self.port) as stream:
                    await stream.send_all(WORD)
                    answer = await stream.receive_some()
                    seconds = time.monotonic() - began
                    await trio.sleep(self.linger)
                    await stream.send_all(WORD)
                    await stream.send_eof()
                    answer += b"".join([piece async for piece in stream])
            if waiting.cancelled_caught or answer != WORD * 2:
                seconds = None
        except (OSError, trio.BrokenResourceError):
            seconds = None
        self.visits.append(Visit(began, seconds))

    def late(self, since: float, *, limit: float = 0.5) -> list[Visit]:
        """Those begun since then that failed or took longer."""
        return [v for v in self.visits if v.began >= since and (v.seconds is None or v.seconds > limit)]


def pool(client: Client) -> dict[str, Any]:
    return client.stats()["connection_pool"]["data_channels"]


def ready(client: Client, where: str) -> int:
    """Channels to that address of the server that are in service."""
    found = pool(client)
    if found is None:  # there is no session
        return 0
    states = found["addresses"].get(where, {"states": {}})["states"]
    return states.get("available", 0) + states.get("in_use", 0)


def wait_ready(stage: Stage, client: Client, *addresses: str, seconds: float = 30.0) -> float:
    """Until there is a channel to each; returns how long it took."""
    began = time.monotonic()
    stage.until(lambda: all(ready(client, where) for where in addresses), f"channels to {addresses}", seconds)
    return time.monotonic() - began
