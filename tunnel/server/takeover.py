"""Whose an identity is when a second connection asks for it (design §5). Sans IO: it decides, `logins` carries out.

The same process with a higher epoch takes its own old session's place at once. Another process has to wait for the
holder's sign of life: with one it is refused, without one the holder is replaced. Two that live never take turns.

One that yields (`trio-tunnel doctor`) only ever has what nobody holds: no holder is asked for its sake, and whoever
comes has its place at once.
"""

from collections.abc import Generator
from typing import Generic, TypeVar

from attrs import frozen

from tunnel.server.registry import Holder, Registry

S = TypeVar("S")  # a session; opaque here


@frozen
class Ask(Generic[S]):
    """Ask the holder for a sign of life, and send back whether it gave one."""

    holder: Holder[S]


@frozen
class End(Generic[S]):
    """End the holder's session, unless it has ended, and send anything back once all that it held is free."""

    holder: Holder[S]


Step = Ask[S] | End[S]


def take_over(
    registry: Registry[S], client: str, instance: str, epoch: int, *, yields: bool = False
) -> Generator[Step[S], bool | None, str | None]:
    """Yields what is to be done; returns None once the identity is the newcomer's, who must enter before any await,
    or why it is not.

    Who it belongs to is asked again after every step, for it may have changed meanwhile.
    """
    while True:
        claim = registry.claim(client, instance, epoch, yields=yields)
        holder = claim.holder
        if holder is None:
            return None
        if claim.verdict == "stale":
            return f"client '{client}' already has a newer session of this very process"
        word = f"client '{client}' is connected from another process since {holder.since}"
        if claim.verdict == "held":
            return f"{word}; it was not disturbed"
        if claim.verdict == "contest" and (yield Ask(holder)):
            return f"{word}; stop that one, or use another token here"
        yield End(holder)
