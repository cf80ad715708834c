"""The command line: parses, calls, prints.

Exit codes: 0 done, 1 failed, 2 usage or config, 3 refused, 130 second signal.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from tunnel.cli.close import close
from tunnel.cli.completion import completion
from tunnel.cli.doctor import doctor
from tunnel.cli.events import events
from tunnel.cli.healthcheck import healthcheck
from tunnel.cli.history import history
from tunnel.cli.notify import notify
from tunnel.cli.options import (
    FILE,
    SETTINGS,
    config_option,
    format_option,
    json_option,
    profile_option,
    state_option,
    verbose_option,
    via_option,
    watch_option,
)
from tunnel.cli.retry import retry
from tunnel.cli.service import service
from tunnel.cli.status import status
from tunnel.cli.token import token
from tunnel.cli.top import top
from tunnel.errors import ConfigError, Refused, TunnelError
from tunnel.version import __version__

FAILED, USAGE, REFUSED = 1, 2, 3
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)
TOKEN_VARIABLE = "TRIO_TUNNEL_TOKEN"  # noqa: S105  a name, no secret


def main() -> NoReturn:
    """Run a command; errors become a message with the next step, and an exit code."""
    if os.getpid() == 1:  # in a container: the kernel ignores SIGTERM there until somebody handles it
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # `serve` and `connect` have their own, once they run
    try:
        code = cli.main(prog_name="trio-tunnel", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except ConfigError as exc:
        click.echo(str(exc), err=True)
        code = USAGE
    except TunnelError as exc:
        click.echo(f"trio-tunnel: {exc}", err=True)
        code = REFUSED if isinstance(exc, Refused) and exc.trust else FAILED
    except OSError as exc:
        if exc.errno not in UNWRITABLE:
            raise
        if exc.errno != errno.EPIPE:  # else whoever read our output has gone, and needs no message
            message = f"cannot write to standard output ({exc.strerror}); give it somewhere to go"
            click.echo(f"trio-tunnel: {message}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is tried once more at exit
        code = FAILED
    sys.exit(code)


def _version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import platform
        import ssl

        click.echo(f"trio-tunnel {__version__} (Python {platform.python_version()}, {ssl.OPENSSL_VERSION})")
        context.exit()


@click.group(context_settings=SETTINGS)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show it and exit.")
def cli() -> None:
    """A reverse tunnel: publish services behind NAT on a public host, and know at every moment whether each can be
    reached, and why not.

    \b
    On the public host:   trio-tunnel serve
    Beside the service:   paste the line that `serve` prints, and append
                          -p web=8001:127.0.0.1:8080

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 refused (token, pin, certificate, identity held by
    another process), 130 second signal.
    """


@cli.command(context_settings=SETTINGS)
@config_option
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Where clients connect; repeatable.  [default: 0.0.0.0:8443]"
)
@click.option("--admin", metavar="HOST:PORT", help="Admin address, or off.  [default: 127.0.0.1:8480]")
@click.option("--public-host", metavar="HOST", help="How clients reach this host, for the line that is printed.")
@state_option
@profile_option
@watch_option
@format_option
@verbose_option
def serve(
    config: Path | None, listen: tuple[str, ...], admin: str | None, public_host: str | None,
    state_dir: Path | None, profile_dir: Path | None, watch: bool, log_format: Any, verbose: int,
) -> None:  # fmt: skip
    """Run the server.

    Without a config it makes a key, a certificate and a token on first start, and prints one line to paste beside the
    service. A config that has changed is read again, at once with SIGHUP; SIGTERM lets visitors inside finish, a second
    one does not.

    \b
    Examples:
      trio-tunnel serve --public-host tunnel.example.com
      trio-tunnel serve -c server.toml
    """
    from functools import partial

    from tunnel.cli.commands import ProcessOptions, run_serve
    from tunnel.config.file import ServerOptions, load_server
    from tunnel.watching import Reading

    load = Reading(partial(load_server, config, ServerOptions(listen, admin, state_dir)))
    options = ProcessOptions(
        reload=load if config is not None else None, watch=watch, profile_dir=profile_dir, log_format=log_format,
        verbose=verbose,
    )  # fmt: skip
    sys.exit(run_serve(load(), options, introduce=config is None, public_host=public_host))


@cli.command(context_settings=SETTINGS)
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@config_option
@click.option(
    "-p", "--proxy", "proxies", multiple=True, metavar="NAME=PUBLISH:TARGET", help="Publish this; repeatable."
)
@click.option("--token-file", type=FILE, help=f"File with the token (else {TOKEN_VARIABLE}).")
@click.option("--pin", metavar="sha256:HEX", help="The server's key, as `serve` prints it.")
@click.option("--cert-file", type=FILE, help="Certificate to show a server that wants one of its clients (PEM).")
@click.option("--key-file", type=FILE, help="Its key, which nobody else can read.")
@via_option
@click.option("--admin", metavar="HOST:PORT", help="Open an admin address for `trio-tunnel status`.")
@click.option("--once", is_flag=True, help="One session; exit when it ends instead of reconnecting.")
@click.option("--json", "as_json", is_flag=True, help="Write each status update as one JSON line.")
@state_option
@profile_option
@watch_option
@format_option
@verbose_option
def connect(
    servers: tuple[str, ...], config: Path | None, proxies: tuple[str, ...], token_file: Path | None, pin: str | None,
    cert_file: Path | None, key_file: Path | None, via: str | None, admin: str | None, once: bool, as_json: bool,
    state_dir: Path | None, profile_dir: Path | None, watch: bool, log_format: Any, verbose: int,
) -> None:  # fmt: skip
    """Connect to SERVER and publish services there. Several are addresses of one server.

    PUBLISH is PORT, ADDR:PORT or 0 (the server chooses); TARGET is PORT, HOST:PORT, tls://HOST:PORT or unix:/path.
    A config that has changed is read again, at once with SIGHUP; SIGTERM lets visitors inside finish, a second one does
    not.

    \b
    Examples:
      trio-tunnel connect tunnel.example.com --pin sha256:… --token-file home.token \\
          -p web=8001:8080 -p ssh=8022:22
      trio-tunnel connect -c client.toml
    """
    from attrs import evolve

    from tunnel.cli.commands import ProcessOptions, run_connect
    from tunnel.config.file import ClientOptions, load_client
    from tunnel.config.forward import forward_variables
    from tunnel.watching import Reading

    said = ClientOptions(
        servers, proxies, token_file, pin, admin, os.environ.get(TOKEN_VARIABLE), cert_file, key_file,
        via=via, environ=forward_variables(),
    )  # fmt: skip

    def read() -> Any:
        loaded = load_client(config, said)
        return loaded if state_dir is None else evolve(loaded, state_dir=state_dir)

    load = Reading(read)
    options = ProcessOptions(
        reload=load if config is not None else None, watch=watch, profile_dir=profile_dir, log_format=log_format,
        verbose=verbose,
    )  # fmt: skip
    sys.exit(run_connect(load(), options, once=once, as_json=as_json))


@cli.command(context_settings=SETTINGS, short_help="Server, sample service and client in one process.")
@click.option("--check", is_flag=True, help="Try it all, print each step, and exit.")
@verbose_option
def demo(check: bool, verbose: int) -> None:
    """A server, a sample web service and a client in one process, to see what this is for.

    One proxy works; a second one's port is taken on purpose, so that you see it being retried. Ctrl-C ends it.

    \b
    Example:
      trio-tunnel demo --check
    """
    from tunnel.cli.demo import run_demo

    sys.exit(run_demo(check=check, verbose=verbose))


@cli.command(context_settings=SETTINGS, short_help="Report every mistake of a configuration file.")
@click.argument("file", type=FILE)
@click.option("--as", "kind", type=click.Choice(["server", "client"]), help="Which kind of file it is.")
@json_option
def check(file: Path, kind: Any, as_json: bool) -> None:
    """Report every mistake of a configuration file at once, with line, key, value and remedy; exit code 2 if there
    are any.

    \b
    Example:
      trio-tunnel check server.toml
    """
    from tunnel.config.file import check_file

    report = check_file(file, kind)
    if as_json:
        _print_report(report)
    else:
        for warning in report.warnings:
            click.echo(f"warning: {warning}")
        for mistake in report.mistakes:
            click.echo(str(mistake))
        if not report.mistakes:
            click.echo(f"{file}: good, as a {report.kind}'s configuration")
    sys.exit(USAGE if report.mistakes else 0)


def _print_report(report: Any) -> None:
    import json

    from attrs import asdict

    body = {"valid": not report.mistakes, **asdict(report)}
    click.echo(json.dumps(body, indent=2))


@cli.command(context_settings=SETTINGS)
@click.argument("kind", type=click.Choice(["server", "client"]))
@click.option("-o", "--output", type=FILE, help="Write to this file (never over one that exists).")
def init(kind: Any, output: Path | None) -> None:
    """Print a commented configuration file to start from.

    \b
    Example:
      trio-tunnel init client -o client.toml
    """
    from tunnel.config.templates import init_text

    if output is None:
        click.echo(init_text(kind), nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(init_text(kind))
    except OSError as exc:
        raise TunnelError(f"cannot write {output}: {exc.strerror}; choose another name, or remove it first") from exc
    click.echo(f"wrote {output}; edit it, then: trio-tunnel check {output}")


cli.add_command(status)
cli.add_command(retry)
cli.add_command(token)
cli.add_command(service)
cli.add_command(completion)
cli.add_command(history)
cli.add_command(healthcheck)
cli.add_command(close)
cli.add_command(events)
cli.add_command(doctor)
cli.add_command(top)
cli.add_command(notify)
