"""One attempt to take a public address: what can go wrong, told by errno, in the seed's words."""

import errno
import os
import socket
from collections.abc import Callable

from tunnel.addresses import HostPort, is_ip
from tunnel.errors import TunnelError
from tunnel.messages import Reason
from tunnel.server.registry import Address

_RETRIED = {
    errno.EADDRINUSE: Reason.ADDR_IN_USE,
    errno.EACCES: Reason.PERMISSION_DENIED,
    errno.EPERM: Reason.PERMISSION_DENIED,
    errno.EADDRNOTAVAIL: Reason.ADDR_NOT_AVAILABLE,
    errno.EMFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENOBUFS: Reason.OUT_OF_MEMORY,
    errno.ENOMEM: Reason.OUT_OF_MEMORY,
}
_FINAL = {errno.EAFNOSUPPORT: Reason.FAMILY_NOT_SUPPORTED, errno.EINVAL: Reason.MALFORMED_ADDR}


class BindFailed(TunnelError):
    """An attempt failed. `final`: waiting cannot mend it, so it is not retried."""

    def __init__(self, reason: Reason, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.final = final


def check_address(addr: str) -> None:
    """`BindFailed` for what is no numeric address; a hand-made message may bring anything."""
    if not is_ip(addr):
        raise BindFailed(
            Reason.MALFORMED_ADDR, f"{addr!r} is not a numeric address; publish on an IP such as 0.0.0.0", final=True
        )


def bind(where: HostPort, *, listen: Callable[[str, int], socket.socket], held_by: Address | None) -> socket.socket:
    """Bind and listen, or raise `BindFailed`. `held_by` is which of our own listeners stands in the way."""
    check_address(where.host)
    if held_by is not None:
        raise BindFailed(Reason.ADDR_IN_USE, _taken_by_us(where.port, held_by))
    try:
        return listen(where.host, where.port)
    except OSError as exc:
        raise explain(where, exc) from exc
    except OverflowError as exc:
        raise BindFailed(
            Reason.MALFORMED_ADDR, f"{where.port} is not a port; publish on 0 to 65535", final=True
        ) from exc


def explain(where: HostPort, exc: OSError) -> BindFailed:
    """What an `OSError` of bind(2) or listen(2) means to a person."""
    code = exc.errno or 0
    reason = _RETRIED.get(code) or _FINAL.get(code) or Reason.OS_ERROR
    if isinstance(exc, socket.gaierror):  # its numbers are not errno's; the interface in a numeric address is missing
        code, reason = 0, Reason.ADDR_NOT_AVAILABLE
    if reason is Reason.ADDR_IN_USE:
        message = f"Port {where.port} is already in use by another process"
    elif reason is Reason.PERMISSION_DENIED:
        message = f"Permission denied to bind to {where} - may need administrator privileges"
    else:
        message = f"Failed to bind proxy listener on {where}: {os.strerror(code) if code else exc.strerror or exc}"
    return BindFailed(reason, message, final=code in _FINAL)


def _taken_by_us(port: int, holder: Address) -> str:
    if not holder.client:
        return f"Port {port} is already in use by this server itself ({holder.proxy})"
    return f"Port {port} is already published by client '{holder.client}' (proxy '{holder.proxy}')"
