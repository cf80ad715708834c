"""Whether the server is who it should be, until when, and whether its clock and ours agree.

A certificate that is not trusted is looked at once more for the message, by a handshake that tells nothing of us.
"""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import h11
import trio

from tunnel.addresses import HostPort
from tunnel.certificates import expiry, pin_text, spki_pin
from tunnel.client.dialer import Dialer
from tunnel.client.resolver import ServerAddress
from tunnel.config import ClientConfig
from tunnel.doctor.findings import STEP_SECONDS, Finding, Report, Verdict, parts
from tunnel.errors import PeerLost, Refused, TunnelError
from tunnel.tls import TlsStream, client_context
from tunnel.upgrade import MAX_HEAD_BYTES
from tunnel.version import __version__

SOON_DAYS = 14  # a certificate that ends earlier: whoever renews it by itself (ACME) has done so by then
AGREES_SECONDS = 3.0  # a Date is to the second, and some of it was on the way
CLOCK_OFF_SECONDS = 30.0  # from there on logs of both sides do not fit together


async def check_tls(
    config: ClientConfig, dialer: Dialer, address: ServerAddress, sock: socket.socket, report: Report, *, is_first: bool
) -> bool:
    """Whether the server at `address` is trusted; of the first such, certificate and clock are looked at, too. Closes
    `sock`."""
    began = trio.current_time()
    try:
        with trio.fail_after(STEP_SECONDS):
            stream = await dialer.shake_hands(sock, address)
    except trio.TooSlowError:
        word = f"{address} does not shake hands within {STEP_SECONDS:g} s"
        report.fail("tls", word, "something listens there that speaks no TLS, or the server is overloaded")
        return False
    except (PeerLost, Refused) as exc:
        await _report_untrusted(config, dialer, address, exc, report)
        return False
    seconds = trio.current_time() - began
    try:
        clock = await _look_at_clock(stream, address) if is_first else None
    finally:
        stream.close()
    if stream.refused is not None:  # with TLS 1.3 that is learnt from what is read first
        report.fail("tls", *parts(stream.refused), is_trust=True)
        return False
    report.ok("tls", f"{address}: verified by {_proof(config)}; {stream.cipher}", seconds=seconds)
    if clock is not None:
        _check_certificate(stream.peer_certificate, report)
        report.add(clock)
    return True


def _proof(config: ClientConfig) -> str:
    ways = ["the pin"] if config.pin is not None else []
    ways += [f"the CA in {config.ca_file}"] if config.ca_file is not None else []
    return " and ".join(ways) or "the system's CAs"


async def _report_untrusted(
    config: ClientConfig, dialer: Dialer, address: ServerAddress, problem: TunnelError, report: Report
) -> None:
    message, remedy = parts(problem)
    if isinstance(problem, Refused) and problem.reason == "certificate_untrusted":
        shown = await _look_at_certificate(config, dialer, address)
        if shown is not None:
            ends, pin = shown
            message += f" (it ends {ends:%Y-%m-%d}; this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC)"
            remedy = f"if `trio-tunnel serve` prints {pin} there, give that as pin; else give its CA as ca_file"
    if config.via is not None and isinstance(problem, Refused):
        remedy += f". Or {config.via} opens TLS: have it leave this server alone"
    report.fail("tls", message, remedy, is_trust=isinstance(problem, Refused) and problem.trust)


async def _look_at_certificate(
    config: ClientConfig, dialer: Dialer, address: ServerAddress
) -> tuple[datetime, str] | None:
    """What somebody we do not trust shows; it is told nothing but our greeting."""
    context = client_context(ca_file=None, pinned=True, min_version=config.tls_min_version)
    found: list[bytes] = []

    def look(tls: ssl.SSLObject) -> None:
        found.append(tls.getpeercert(binary_form=True) or b"")
        raise PeerLost("seen")

    with trio.move_on_after(STEP_SECONDS):
        try:
            sock = await dialer.connect(address)
            stream = TlsStream(sock, context, server_side=False, server_hostname=address.server.host)
            try:
                await stream.do_handshake(look)
            finally:
                stream.close()
        except (TunnelError, OSError, trio.BrokenResourceError):
            pass  # it was only for the message
    try:
        return (expiry(found[0]), pin_text(spki_pin(found[0]))) if found else None
    except ValueError:
        return None


def _check_certificate(der: bytes, report: Report) -> None:
    try:
        ends = expiry(der)
    except ValueError as exc:
        report.warn("certificate", f"it cannot be read: {exc}", "replace it")
        return
    left = ends - datetime.now(UTC)
    days, has_ended = abs(left).days, left < timedelta()
    words = f"ended {ends:%Y-%m-%d}, {days} days ago" if has_ended else f"ends {ends:%Y-%m-%d}, in {days} days"
    if has_ended:
        report.warn("certificate", f"{words}; who has its pin does not mind, all others do", "renew it at the server")
    elif days < SOON_DAYS:
        report.warn(
            "certificate", words, "renew it at the server; a reload there takes it without a dropped connection"
        )
    else:
        report.ok("certificate", words)


# What answers there


async def _look_at_clock(stream: TlsStream, address: ServerAddress) -> Finding:
    """Makes a request that a server of ours answers with 404 and its time."""
    remedy = "is it a trio-tunnel server?"
    try:
        with trio.fail_after(STEP_SECONDS):
            began = datetime.now(UTC)
            date = await _ask_date(stream, address.server)
    except trio.TooSlowError:
        return Finding("clock", Verdict.FAIL, f"{address} does not answer HTTP within {STEP_SECONDS:g} s", remedy)
    except (trio.BrokenResourceError, h11.RemoteProtocolError, PeerLost) as exc:
        return Finding("clock", Verdict.FAIL, f"{address} does not answer HTTP: {exc}", remedy)
    if date is None:
        return Finding("clock", Verdict.SKIP, "the server's answer has no Date to compare with")
    off = (date - began).total_seconds()
    if abs(off) <= CLOCK_OFF_SECONDS:
        agrees = abs(off) < AGREES_SECONDS
        return Finding(
            "clock", Verdict.OK, "agrees with the server's" if agrees else f"{abs(off):.0f} s from the server's"
        )
    which = "behind" if off > 0 else "ahead of"
    word = f"this machine's is {abs(off):.0f} s {which} the server's"
    return Finding("clock", Verdict.WARN, word, "set both by NTP: certificates and logs go by them")


async def _ask_date(stream: TlsStream, server: HostPort) -> datetime | None:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    host = str(server).encode("ascii", "replace").decode()
    headers = [("Host", host), ("User-Agent", f"trio-tunnel/{__version__} doctor"), ("Connection", "close")]
    await stream.send_all(parser.send(h11.Request(method="GET", target="/", headers=headers)) or b"")
    parser.send(h11.EndOfMessage())
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Response):
            said = [value for name, value in event.headers if name == b"date"]
            try:
                return parsedate_to_datetime(said[0].decode("latin-1")).astimezone(UTC) if said else None
            except ValueError:
                return None
        if event is h11.NEED_DATA:
            data = await stream.receive_some(MAX_HEAD_BYTES)
            if not data:
                raise PeerLost("it hung up")
            parser.receive_data(data)
