"""`trio-tunnel completion`: the script by which a shell completes commands, options and names."""

import os
from pathlib import Path
from typing import Any

import click

from tunnel.cli.options import SETTINGS
from tunnel.errors import TunnelError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_TRIO_TUNNEL_COMPLETE"  # the script asks this program by it, and click answers
OTHER_SHELL = "name your shell: trio-tunnel completion bash, zsh or fish"


@click.command(context_settings=SETTINGS, short_help="Completion of commands, options and names.")
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.option("--install", is_flag=True, help="Put it where your shell finds it.")
@click.pass_context
def completion(context: click.Context, shell: str | None, install: bool) -> None:
    """Print the script by which a shell completes commands, options, and the names of proxies and clients; or install
    it for you alone. Without SHELL it is the one that you use.

    \b
    Examples:
      trio-tunnel completion --install
      trio-tunnel completion zsh > ~/.zfunc/_trio-tunnel
    """
    shell = shell or _shell_of_user()
    script = _script(shell, context.find_root().command)
    if not install:
        click.echo(f"{script}\n# To install it for you: trio-tunnel completion {shell} --install")
        return
    path = _place(shell)
    _write(path, script)
    click.echo(f"wrote {path}")
    click.echo(_what_is_left(shell, path))


def _shell_of_user() -> str:
    name = os.path.basename(os.environ.get("SHELL", ""))
    if name not in SHELLS:
        raise click.UsageError(OTHER_SHELL)
    return name


def _script(shell: str, command: click.Command) -> str:
    from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

    class Bash(BashComplete):
        @staticmethod
        def _check_version() -> None:
            """Not here: the script may be for another machine."""

    kinds: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": ZshComplete, "fish": FishComplete}
    return kinds[shell](command, {}, "trio-tunnel", VARIABLE).source()


def _place(shell: str) -> Path:
    """Where this user's shell looks by itself, or nearly."""
    data, config = _base("XDG_DATA_HOME", ".local/share"), _base("XDG_CONFIG_HOME", ".config")
    match shell:
        case "bash":
            return _base("BASH_COMPLETION_USER_DIR", data / "bash-completion") / "completions" / "trio-tunnel"
        case "zsh":
            return data / "zsh" / "site-functions" / "_trio-tunnel"
        case _:
            return config / "fish" / "completions" / "trio-tunnel.fish"


def _base(variable: str, default: Any) -> Path:
    folder = os.environ.get(variable, "")
    try:
        return Path(folder) if os.path.isabs(folder) else Path.home() / default
    except RuntimeError as exc:
        raise TunnelError("this user has no home directory; print the script instead, and put it somewhere") from exc


def _write(path: Path, script: str) -> None:
    try:
        if path.exists() and VARIABLE not in path.read_text("utf-8", "replace"):
            raise TunnelError(f"{path} is there, and not of this program; move it away first")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, "utf-8")
    except OSError as exc:
        raise TunnelError(f"{path} cannot be written: {exc.strerror}; print the script, and put it elsewhere") from exc


def _what_is_left(shell: str, path: Path) -> str:
    match shell:
        case "bash":
            return f"it works in new shells, with the package bash-completion; without, add to ~/.bashrc: source {path}"
        case "zsh":
            return f"add to ~/.zshrc, before compinit: fpath=({path.parent} $fpath)"
        case _:
            return "it works in new shells"
