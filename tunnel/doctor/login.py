"""A login as `connect` makes it; `visit` tries what can be tried in the session.

It yields: where another process holds the identity the server says so without asking that one, and whoever comes
meanwhile has the place at once.
"""

import secrets

import trio

from tunnel.client.dialer import Dialer
from tunnel.client.resolver import ServerAddress
from tunnel.config import ClientConfig
from tunnel.control import open_client_control
from tunnel.doctor.findings import STEP_SECONDS, Report, parts
from tunnel.doctor.visit import Over, Visit
from tunnel.errors import PeerLost, Refused, RemoteProtocolError

IN_SESSION = ("latency", "channel", "port")
_NO_ANSWERS = ("client_certificate_refused", "certificate_untrusted", "pin_mismatch", "proxy_auth", "proxy_refused")


async def check_login(config: ClientConfig, dialer: Dialer, address: ServerAddress, report: Report) -> None:
    """From the upgrade on; `report` has a line for each check, also for those that could not be made."""
    began = trio.current_time()
    try:
        with trio.fail_after(3 * STEP_SECONDS):
            stream = await dialer.dial(address)
            instance = secrets.token_hex(16)
            headers = {
                "Authorization": f"Bearer {config.token}", "Trio-Tunnel-Instance": instance, "Trio-Tunnel-Epoch": "1",
                "Trio-Tunnel-Yields": "1",
            }  # fmt: skip
            opening = open_client_control(stream, host=str(address.server), path="/control", headers=headers)
            async with opening as control:
                report.ok("websocket", f"{address} upgrades /control", seconds=trio.current_time() - began)
                await Visit(config, dialer, address, control, report).run()
    except Refused as exc:
        _report_refused(address, exc, report)
    except (PeerLost, RemoteProtocolError, trio.TooSlowError) as exc:
        _report_lost(exc, report)


def _report_refused(address: ServerAddress, exc: Refused, report: Report) -> None:
    message, remedy = parts(exc)
    if exc.reason in _NO_ANSWERS:
        report.fail("websocket", message, remedy, is_trust=exc.trust)
        report.skip("there is no connection", "token", *IN_SESSION)
        return
    if exc.reason == "http_error":
        remedy = "what stands before the server must pass WebSockets: Upgrade and Connection headers, HTTP/1.1"
        report.fail("websocket", f"{address} does not upgrade /control: {message}", remedy)
        report.skip("there is no WebSocket", "token", *IN_SESSION)
        return
    report.ok("websocket", f"{address} answers /control")
    if not exc.trust and exc.reason != "bad_request":
        report.warn("token", f"not tried yet: {message}", remedy or "try again in a while")
        report.skip("there is no session", *IN_SESSION)
        return
    if exc.reason == "identity_held":
        report.ok("token", f"good; {message}")
        report.skip("a session of this identity is alive and was left alone; ask it: trio-tunnel status", *IN_SESSION)
        return
    report.fail("token", message, remedy, is_trust=exc.trust)
    report.skip("there is no session", *IN_SESSION)


def _report_lost(exc: Exception, report: Report) -> None:
    """What was not told of before is skipped."""
    done = {finding.check for finding in report.findings}
    message, remedy = parts(exc) if str(exc) else (f"no answer within {3 * STEP_SECONDS:g} s", "")
    missing = [check for check in ("websocket", "token", *IN_SESSION) if check not in done]
    if not missing:
        report.warn("channel", f"the session ended before its time: {message}", remedy)
    elif isinstance(exc, Over):
        report.skip(message, *missing)
    else:
        report.fail(missing[0], message, remedy)
        report.skip(f"{missing[0]} failed", *missing[1:])
