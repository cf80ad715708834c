"""Reaching the server: one verified TLS connection, and when to try again (design §5)."""

import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import trio
from attrs import frozen

from tunnel.addresses import HostPort
from tunnel.config import ClientConfig
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.sockets import dial_tcp, tunnel_options
from tunnel.tls import TlsStream, client_context, pin_check

PAUSE_SECONDS = (0.7, 1.0)  # from one dial's start to the next while nothing answers
OVERLAP_SECONDS = 2.0  # a dial unanswered for so long is joined by another: a lost SYN or a dead route costs no more
MAX_DIALS = 3  # at a time
DIAL_SECONDS = 10.0  # each


class Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


@frozen
class Dialer:
    """How this client dials its server, and what it accepts as the server's proof."""

    server: HostPort
    context: ssl.SSLContext
    pin: bytes | None

    async def dial(self) -> TlsStream:
        """A TLS connection whose peer was verified; nothing but the handshake was sent before that.

        Raises `PeerLost` (`answered` tells whether anything was there), or `Refused` when the proof is not good.
        The caller holds the deadline.
        """
        sock = await dial_tcp(self.server)
        try:
            tunnel_options(sock)
            stream = TlsStream(sock, self.context, server_side=False, server_hostname=self.server.host)
        except BaseException:
            sock.close()
            raise
        try:
            await stream.do_handshake(pin_check(self.pin) if self.pin is not None else None)
        except ssl.SSLCertVerificationError as exc:
            stream.close()
            raise Refused(
                "certificate_untrusted",
                f"the certificate of {self.server} is not trusted: {exc.verify_message}; give the pin that "
                "`trio-tunnel serve` prints (--pin sha256:…), or the CA (ca_file)",
                trust=True,
            ) from exc
        except ssl.SSLError as exc:
            stream.close()
            raise PeerLost(f"{self.server} does not speak our TLS: {exc.reason or exc}", answered=True) from exc
        except trio.BrokenResourceError as exc:
            stream.close()
            raise PeerLost(f"{self.server} ended the connection in the TLS handshake", answered=True) from exc
        except BaseException:
            stream.abort()
            raise
        return stream


def make_dialer(config: ClientConfig) -> Dialer:
    """Raises `TunnelError` when the CA file cannot be used."""
    try:
        context = client_context(ca_file=config.ca_file, pinned=config.pin is not None)
    except (OSError, ssl.SSLError) as exc:
        raise TunnelError(f"cannot use the CA file {config.ca_file}: {exc}") from exc
    return Dialer(config.servers[0], context, config.pin)


async def reach(
    dial: Callable[[], Awaitable[T]],
    *,
    failed: Callable[[PeerLost], None],
    rand: Callable[[], float] = random.random,
    once: bool = False,
) -> T:
    """Dial until something answers, for ever; `failed` is told of each dial that found nobody.

    With `once`, the first failure is raised. Also raises what an answer brought: `Refused`, or `PeerLost` with
    `answered`. If cancelled, every dial under way is ended.
    """
    race = _Race(dial, failed, once=once)
    try:
        async with trio.open_nursery() as dials:
            while not race.answers:
                started = trio.current_time()
                race.running += 1
                dials.start_soon(race.attempt)
                with trio.move_on_after(OVERLAP_SECONDS):
                    await race.wait_end()
                while race.running >= MAX_DIALS and not race.answers:
                    await race.wait_end()
                low, high = PAUSE_SECONDS
                with trio.move_on_at(started + low + (high - low) * rand()):
                    await race.answered.wait()
            dials.cancel_scope.cancel(reason="something answered")
    except BaseException:
        race.close_all_but(None)  # cancelled in the very moment of an answer
        raise
    answer = race.answers[0]
    race.close_all_but(answer)
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Race(Generic[T]):
    """The dials under way, and what they brought: connections and exceptions, in their order."""

    def __init__(self, dial: Callable[[], Awaitable[T]], failed: Callable[[PeerLost], None], *, once: bool) -> None:
        self.answers: list[T | Exception] = []
        self.answered = trio.Event()
        self.running = 0
        self._dial = dial
        self._failed = failed
        self._once = once
        self._end = trio.Event()

    async def attempt(self) -> None:
        problem = PeerLost(f"no answer within {DIAL_SECONDS:g} s")
        try:
            with trio.move_on_after(DIAL_SECONDS):
                self._answer(await self._dial())
                return
        except PeerLost as exc:
            problem = exc
        except Exception as exc:
            self._answer(exc)
            return
        finally:
            self.running -= 1
            self._end.set()
        if problem.answered or self._once:
            self._answer(problem)
        else:
            self._failed(problem)

    def _answer(self, answer: T | Exception) -> None:
        self.answers.append(answer)
        self.answered.set()

    async def wait_end(self) -> None:
        """Until the next dial ends, whatever it brought."""
        self._end = trio.Event()
        await self._end.wait()

    def close_all_but(self, winner: T | Exception | None) -> None:
        for answer in self.answers:
            if answer is not winner and not isinstance(answer, Exception):
                answer.close()
