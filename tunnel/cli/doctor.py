"""`trio-tunnel doctor`: reads what `connect` would, looks at every step, prints a line for each."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from tunnel.cli.options import FILE, SETTINGS, config_option, json_option, via_option

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(context_settings=SETTINGS, short_help="Look at every step between here and a served visitor.")
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@config_option
@click.option("-p", "--proxy", "proxies", multiple=True, metavar="NAME=PUBLISH:TARGET", help="Look at this, too.")
@click.option("--token-file", type=FILE, help="File with the token (else TRIO_TUNNEL_TOKEN).")
@click.option("--pin", metavar="sha256:HEX", help="The server's key, as `serve` prints it.")
@click.option("--cert-file", type=FILE, help="Certificate to show a server that wants one of its clients (PEM).")
@click.option("--key-file", type=FILE, help="Its key, which nobody else can read.")
@via_option
@json_option
def doctor(
    servers: tuple[str, ...], config: Path | None, proxies: tuple[str, ...], token_file: Path | None, pin: str | None,
    cert_file: Path | None, key_file: Path | None, via: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Look at every step between this machine, SERVER and the services beside this machine: a line for each, with the
    remedy for what fails.

    A living session of the same client is left alone: the server only says that it is there. Where there is none, one
    is had for a moment, in which the ports are published without serving anybody; a client that connects meanwhile
    gets its place at once. Without a token all that needs none is looked at.

    With --json the answer is {"servers", "exit_code", "summary", "checks": [{"check", "verdict": ok, warn, fail or
    skip, "message", "remedy", "milliseconds"}]}.

    Exit codes: 0 all is well, 1 something failed, 2 usage or configuration, 3 somebody does not trust somebody (pin,
    certificate, token, the proxy's password).

    \b
    Examples:
      trio-tunnel doctor -c client.toml
      trio-tunnel doctor tunnel.example.com --pin sha256:… --token-file home.token -p web=8001:8080
    """
    import trio

    from tunnel.config.file import ClientOptions
    from tunnel.config.forward import forward_variables
    from tunnel.doctor.examine import examine
    from tunnel.doctor.findings import Report

    token = os.environ.get("TRIO_TUNNEL_TOKEN")
    said = ClientOptions(
        servers, proxies, token_file, pin, None, token, cert_file, key_file, via=via, environ=forward_variables()
    )
    read, token_problem = _read(config, said)
    report = Report() if as_json else Report(say=_show, skipped=_show_skipped)

    async def look() -> None:
        await examine(read, report, token_problem=token_problem)

    trio.run(look)
    if as_json:
        _print_json(read, report)
    else:
        click.echo(report.summary)
    sys.exit(report.exit_code)


def _read(path: Path | None, said: Any) -> tuple[Any, Any]:
    """The configuration, and what is wrong with its token, which is a finding and no reason to look at nothing."""
    from tunnel.config.file import load_client
    from tunnel.errors import ConfigError

    config = load_client(path, said, need_token=False)
    try:
        return load_client(path, said), None
    except ConfigError as exc:
        problem = exc.mistakes[0]
    return config, None if problem.problem == "is missing" else problem


def _show(finding: Any) -> None:
    word = finding.verdict.value
    took = "" if finding.seconds is None else f"  {finding.seconds * 1000:.1f} ms"
    shown = click.style(f"{'FAIL' if word == 'fail' else word:<4}", fg=_COLOURS[word], bold=word == "fail")
    click.echo(f"{shown}  {finding.check:<11}  {finding.message}{took}")
    if finding.remedy:
        click.echo(f"{'':19}→ {finding.remedy}")


def _show_skipped(why: str, checks: tuple[str, ...]) -> None:
    click.echo(f"skip  {', '.join(checks):<11}  {why}" if len(checks) == 1 else f"skip  {', '.join(checks)}: {why}")


def _print_json(config: Any, report: Any) -> None:
    import json

    body = {
        "servers": [str(server) for server in config.servers],
        "exit_code": report.exit_code,
        "summary": report.summary,
        "checks": [finding.to_json() for finding in report.findings],
    }
    click.echo(json.dumps(body, indent=2))
