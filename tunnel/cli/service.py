"""`trio-tunnel service`: systemd units for a server or a client, written, shown and taken away."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.options import FILE, FOLDER, SETTINGS
from tunnel.errors import TunnelError

if TYPE_CHECKING:  # at run time only where a command of these is given
    from tunnel.service.files import UnitFile
    from tunnel.service.plan import Plan, Wish
    from tunnel.service.systemctl import Systemctl

CONFIG_FOLDER = Path("/etc/trio-tunnel")
STANDINGS = {
    "absent": "not installed",
    "same": "installed, just so",
    "other": "installed, as of another time or of other options",
    "changed": "is there, but was changed by hand, or is not of `trio-tunnel service install`",
}


@click.group(context_settings=SETTINGS, short_help="systemd units for a server or a client.")
def service() -> None:
    """systemd units for a server or a client: hardened, watched, with the files that they need passed to them.

    \b
    Example:
      trio-tunnel service install server --socket
    """


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


which = _options(
    click.argument("role", type=click.Choice(["server", "client"])),
    click.option("--name", "instance", default="", metavar="INSTANCE", help="One of several of a kind."),
    click.option("--user-unit", "is_own", is_flag=True, help="Your own (systemctl --user), without root."),
    click.option("--unit-dir", type=FOLDER, help="Only files, and there, as for an image.  [default: systemd's]"),
)
what = _options(
    click.option(
        "-c", "--config", type=FILE, help="Its configuration.  [default: /etc/trio-tunnel/ROLE[-INSTANCE].toml]"
    ),
    click.option("--user", metavar="NAME", help="Run as this user.  [default: one that systemd makes up]"),
    click.option("--group", "groups", multiple=True, metavar="NAME", help="Also of this group; repeatable."),
    click.option("--socket", is_flag=True, help="systemd listens, so that a restart refuses no connection."),
    click.option(
        "--low-ports/--no-low-ports", default=None, help="May bind ports below 1024.  [default: as the file needs it]"
    ),
)


@service.command(context_settings=SETTINGS, short_help="Write the units, and start the service.")
@which
@what
@click.option("--print", "only_print", is_flag=True, help="Show the units, and write nothing.")
@click.option("--force", is_flag=True, help="Write also over units that were changed by hand.")
@click.option("--start/--no-start", default=True, help="Start it now, or only from the next boot on.")
def install(only_print: bool, force: bool, start: bool, unit_dir: Path | None, **wanted: Any) -> None:
    """Write systemd units that run this very trio-tunnel, and start them, now and at every boot.

    The configuration is checked first. Files that it names and the service could not read, such as a token's, are
    passed to it by systemd; nothing in the file has to change. A unit that was changed by hand is left alone: to change
    something, `systemctl edit`. Installed again, it follows the configuration (drain time, ports, files).

    \b
    Examples:
      trio-tunnel service install server --socket
      trio-tunnel service install client -c /etc/trio-tunnel/office.toml --name office
      trio-tunnel service install client -c client.toml --user-unit
    """
    from tunnel.service.deeds import lines_to_start, put, refuse_changed

    wish = _wish(**wanted)
    plan, files = _planned(wish, unit_dir)
    if only_print:
        _print_units(files)
        return
    _need_root(wish.is_own, unit_dir)
    if not force:
        refuse_changed(files, "write over it")
    asked, systemctl = _systemctl(wish.is_own, unit_dir)
    for note in plan.notes:
        click.echo(note)
    for word in put(files, systemctl, start=start):
        click.echo(word)
    if systemctl is None:
        click.echo(f"to start it, where systemd runs: {lines_to_start(files, asked, start=start)}")
    if wish.is_own:
        click.echo("to let it run while you are not logged in: loginctl enable-linger")


@service.command(context_settings=SETTINGS, short_help="Stop the service, and take the units away.")
@which
@click.option("--force", is_flag=True, help="Also units that were changed by hand.")
def uninstall(force: bool, unit_dir: Path | None, **wanted: Any) -> None:
    """Stop a service and take its units away: the reverse of `install`. Configuration and state stay.

    \b
    Example:
      trio-tunnel service uninstall client --name office
    """
    from tunnel.service.deeds import refuse_changed, take_away
    from tunnel.service.files import UnitFile, installed

    wish, folder = _wish(**wanted), _folder(wanted["is_own"], unit_dir)
    files = [UnitFile(folder / f"{wish.name}{kind}", "") for kind in (".service", ".socket")]
    files = [file for file in files if file.standing() != "absent"]
    if not files:
        known = ", ".join(installed(folder)) or "none"
        raise TunnelError(f"there is no {wish.name}.service in {folder}; services of trio-tunnel there: {known}")
    _need_root(wish.is_own, unit_dir)
    if not force:
        refuse_changed(files, "remove it")
    for word in take_away(files, _systemctl(wish.is_own, unit_dir)[1]):
        click.echo(word)


@service.command(context_settings=SETTINGS, short_help="What would be written, and how the service is.")
@which
@what
def show(unit_dir: Path | None, **wanted: Any) -> None:
    """Show the units as `install` would write them with the same options, whether they are installed, and how the
    service is.

    \b
    Example:
      trio-tunnel service show server -c server.toml
    """
    wish = _wish(**wanted)
    plan, files = _planned(wish, unit_dir)
    _print_units(files)
    for note in plan.notes:
        click.echo(f"# {note}")
    systemctl = _systemctl(wish.is_own, unit_dir)[1]
    for file in files:
        standing = file.standing()
        if file.text or standing != "absent":
            click.echo(f"# {file.path}: {STANDINGS[standing]}")
        if standing != "absent" and systemctl is not None:
            click.echo(
                "".join(f"#   {key}: {value}\n" for key, value in systemctl.state(file.path.name).items()), nl=False
            )


def _print_units(files: "list[UnitFile]") -> None:
    """With the name of each where there are several."""
    wanted = [file for file in files if file.text]
    for file in wanted:
        click.echo((f"# {file.path}\n" if len(wanted) > 1 else "") + file.whole)


def _wish(
    role: Any, instance: str, is_own: bool, config: Path | None = None, user: str | None = None,
    groups: tuple[str, ...] = (), socket: bool = False, low_ports: bool | None = None,
) -> "Wish":  # fmt: skip
    from tunnel.service.plan import Wish

    if is_own and (user or groups or low_ports):
        raise click.UsageError("--user-unit runs as yourself: --user, --group and --low-ports are for root's services")
    default = _config_folder(is_own) / f"{'-'.join(filter(None, (role, instance)))}.toml"
    return Wish(
        role, config or default, instance, user=user, groups=groups, socket=socket, low_ports=low_ports, is_own=is_own
    )


def _planned(wish: "Wish", unit_dir: Path | None) -> "tuple[Plan, list[UnitFile]]":
    from tunnel.service.access import Program
    from tunnel.service.deeds import unit_files
    from tunnel.service.plan import make_plan
    from tunnel.service.systemctl import systemd_version

    if not os.path.lexists(wish.config):
        folder = "" if wish.config.parent.is_dir() else f"mkdir -p {shlex.quote(str(wish.config.parent))} && "
        command = f"{folder}trio-tunnel init {wish.role} -o {shlex.quote(str(wish.config))}"
        raise TunnelError(f"there is no configuration {wish.config}; name it with -c, or write one: {command}")
    plan = make_plan(wish, Program.this(), systemd_version=systemd_version())
    return plan, unit_files(plan, _folder(wish.is_own, unit_dir))


def _config_folder(is_own: bool) -> Path:
    if not is_own:
        return CONFIG_FOLDER
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".config", "trio-tunnel")


def _folder(is_own: bool, unit_dir: Path | None) -> Path:
    from tunnel.service.files import SYSTEM_FOLDER, own_folder

    return unit_dir or (own_folder() if is_own else SYSTEM_FOLDER)


def _systemctl(is_own: bool, unit_dir: Path | None) -> "tuple[Systemctl, Systemctl | None]":
    """What a person would ask, and what we do: None where systemd does not run, or shall not be asked."""
    from tunnel.service.systemctl import Systemctl

    found = Systemctl(is_own=is_own)
    return found, found if unit_dir is None and found.is_running else None


def _need_root(is_own: bool, unit_dir: Path | None) -> None:
    if os.geteuid() and unit_dir is None and not is_own:
        raise TunnelError(
            f"the units of the machine are root's; run: sudo {shlex.join(sys.argv)}\n"
            "or give --user-unit for one of your own, or only look at it: trio-tunnel service show"
        )
