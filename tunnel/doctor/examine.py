"""All checks in their order: this machine, the way there, the login, the services beside it."""

from tunnel.client.dialer import make_dialer
from tunnel.config import ClientConfig
from tunnel.doctor.findings import Report
from tunnel.doctor.here import check_descriptors, check_program, check_targets
from tunnel.doctor.login import IN_SESSION, check_login
from tunnel.doctor.network import check_way
from tunnel.errors import Mistake, TunnelError


async def examine(config: ClientConfig, report: Report, *, token_problem: Mistake | None = None) -> None:
    """Tell `report` all that can be found; ends in well under a minute, whatever the server does.

    `token_problem` is why there is no token, where one was named. Whoever has none at all learns what can be told
    without.
    """
    check_program(report)
    check_descriptors(report)
    try:
        dialer = make_dialer(config)
    except TunnelError as exc:
        report.fail("tls", str(exc))
        report.skip("TLS cannot be spoken", "dns", "tcp", "token", *IN_SESSION)
    else:
        verified = await check_way(config, dialer, report)
        if verified is None:
            report.skip("no connection to the server was verified", "websocket", "token", *IN_SESSION)
        elif token_problem is not None:
            message = f"{token_problem.file}: {token_problem.problem}"
            report.fail("token", message, token_problem.remedy)
            report.skip("there is no token to log in with", "websocket", *IN_SESSION)
        elif not config.token:
            report.skip("no token is given (--token-file, or TRIO_TUNNEL_TOKEN)", "websocket", "token", *IN_SESSION)
        else:
            await check_login(config, dialer, verified, report)
    await check_targets(config.proxies, report)
