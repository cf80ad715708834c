"""Reaching the server: one verified TLS connection, and when to try again (design §5)."""

import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

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
    return Dialer(config.server, context, config.pin)


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
    answers: list[T | Exception] = []
    running = 0
    changed = trio.Event()

    async def attempt() -> None:
        nonlocal running
        problem = PeerLost(f"no answer within {DIAL_SECONDS:g} s")
        try:
            with trio.move_on_after(DIAL_SECONDS):
                found = await dial()
                if answers and not isinstance(answers[0], Exception):
                    found.close()  # another dial was first
                answers.append(found)
                return
        except PeerLost as exc:
            problem = exc
        except Exception as exc:
            answers.append(exc)
            return
        finally:
            running -= 1
            changed.set()
        if problem.answered or once:
            answers.append(problem)
        failed(problem)

    async with trio.open_nursery() as dials:
        while not answers:
            started, changed = trio.current_time(), trio.Event()
            running += 1
            dials.start_soon(attempt)
            with trio.move_on_after(OVERLAP_SECONDS):
                await changed.wait()
            while running >= MAX_DIALS and not answers:
                changed = trio.Event()
                await changed.wait()
            if not answers:
                low, high = PAUSE_SECONDS
                await trio.sleep_until(started + low + (high - low) * rand())
        dials.cancel_scope.cancel(reason="something answered")
    answer = answers[0]
    if isinstance(answer, Exception):
        raise answer
    return answer
