"""What this process may hold: descriptors, and how many visitors and other sockets fit in them."""

import ctypes
import sys

from attrs import evolve

from tunnel.config import Limits

RESERVED = 128  # descriptors kept for sessions, channels, handshakes, listeners, files
APART = 192  # of them outside the relay: a hundred strangers at the gate, files, pipes, the admin address, dials


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit to the hard one (idle visitors cost a descriptor each); the limit, or None where unknown."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass  # macOS names an unlimited hard limit that it does not grant
    return None if soft == resource.RLIM_INFINITY else soft


_M_ARENA_MAX = -8  # glibc's malloc.h


def share_one_arena() -> None:
    """Have all threads of this process allocate from one arena, where the C library is glibc: the few there are run one
    at a time anyhow, and an arena of its own costs each 0.8 MiB at rest (measured), and more as it crumbles. For the
    start of a process that is ours alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def visitor_bound(limits: Limits, descriptors: int | None = None) -> Limits:
    """`limits` with `max_visitors` derived from the descriptors where it is not set, so that they never run out."""
    if limits.max_visitors is not None:
        return limits
    if descriptors is None:
        descriptors = raise_descriptor_limit()
    if descriptors is None:
        return limits
    return evolve(limits, max_visitors=max(descriptors - min(RESERVED, descriptors // 2), 1))


def socket_bound(descriptors: int | None = None) -> int | None:
    """How many sockets the relay may hold in all, visitors, listeners and channels; None where nobody knows a limit."""
    if descriptors is None:
        descriptors = raise_descriptor_limit()
    return None if descriptors is None else max(descriptors - min(APART, descriptors // 2), 1)


def stranger_bound(most: int) -> int:
    """How many unauthenticated connections may be there: `most`, or a quarter of the descriptors."""
    descriptors = raise_descriptor_limit()
    return most if descriptors is None else max(min(most, descriptors // 4), 1)
