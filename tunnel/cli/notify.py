"""`trio-tunnel notify`: parses, calls, prints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunnel.cli.options import FILE, SETTINGS, json_option
from tunnel.errors import ConfigError, TunnelError

if TYPE_CHECKING:
    from tunnel.config import NoticeConfig
    from tunnel.notices.trial import Trial

FAILED = 1


@click.group(context_settings=SETTINGS, short_help="Try the notices of a configuration file.")
def notify() -> None:
    """Notices: webhooks and e-mail that tell when a proxy fails, a session is lost, or a certificate ends.

    They are the [[notices]] of a server's or a client's file; `trio-tunnel init server` shows every key.

    \b
    Example:
      trio-tunnel notify test -c server.toml
    """


@notify.command(context_settings=SETTINGS, short_help="Send a test notice to each receiver, and tell what it answered.")
@click.option("-c", "--config", type=FILE, required=True, help="The server's or client's file (TOML).")
@click.option("--name", "names", multiple=True, metavar="NAME", help="Only this notice; repeatable.")
@json_option
def test(config: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Send a test notice to each receiver in a server's or client's file, and tell what each answered, with the remedy
    where one failed; exit code 1 if one did. Each is tried once. Nothing has to run.

    Run it as the user that the tunnel runs as: that user must be able to read the files with the secrets.

    \b
    Examples:
      trio-tunnel notify test -c server.toml
      trio-tunnel notify test -c client.toml --name ops --json
    """
    import trio

    from tunnel.notices.trial import try_all

    role, notices = _load(config, names)
    trials = trio.run(try_all, notices, role)
    if as_json:
        _print_json(trials)
    else:
        for trial in trials:
            word = "sent" if trial.outcome.delivered else "FAILED"
            click.echo(f"{trial.name} ({trial.type}): {word}: {trial.outcome}")
    sys.exit(0 if all(trial.outcome.delivered for trial in trials) else FAILED)


def _load(config: Path, names: tuple[str, ...]) -> "tuple[str, tuple[NoticeConfig, ...]]":
    from tunnel.config.file import check_file, load_client, load_server

    report = check_file(config)
    if report.kind is None:
        raise ConfigError(*report.mistakes)
    loaded = load_server(config) if report.kind == "server" else load_client(config, need_token=False)
    if not loaded.notices:
        raise TunnelError(f"{config} has no [[notices]]; `trio-tunnel init {report.kind}` shows how they are written")
    there = [notice.name for notice in loaded.notices]
    for name in names:
        if name not in there:
            raise click.UsageError(f"{config} has no notice {name!r}; there are {', '.join(there)}")
    return report.kind, tuple(notice for notice in loaded.notices if not names or notice.name in names)


def _print_json(trials: "list[Trial]") -> None:
    import json

    results = [
        {
            "name": trial.name, "type": trial.type, "delivered": trial.outcome.delivered, "said": trial.outcome.said,
            "remedy": trial.outcome.remedy,
        }
        for trial in trials
    ]  # fmt: skip
    click.echo(json.dumps({"results": results}, indent=2))
