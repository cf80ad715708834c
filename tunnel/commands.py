"""What `serve` and `connect` do as processes: signals, what is printed, how they end."""

import logging
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio
from attrs import evolve

from tunnel import logs
from tunnel.addresses import HostPort
from tunnel.api import Client, Server, run_client, serve
from tunnel.certificates import certificate_pin_of_file, pin_text
from tunnel.client.make_view import make_view
from tunnel.client.table import TableView
from tunnel.client.view import SessionState, View
from tunnel.config import ClientConfig, ServerConfig
from tunnel.config_diff import Action
from tunnel.errors import TunnelError, unwrapped
from tunnel.profile import Profile, relay_figures
from tunnel.reload import Reloader
from tunnel.snapshot import Event, Snapshot
from tunnel.state import StateDir, default_state_dir

NOWHERE = "127.0.0.1", "::1"  # for an IPv4 and an IPv6 wildcard, where there is no default route
FORCED = 130  # exit code after a second signal
FIRST_CLIENT = "default"  # the name of the client whose token the first start makes
LogFormat = Literal["text", "json"]

log = logging.getLogger(__name__)


class Stopping:
    """The first signal asks for a graceful end (`drain`), the second cuts (`scope`)."""

    def __init__(self) -> None:
        self.drain = trio.Event()
        self.scope = trio.CancelScope()
        self.forced = False

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        wanted = [signal.SIGINT, signal.SIGTERM]
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for _ in signals:
                if self.drain.is_set():
                    self.forced = True
                    self.scope.cancel(reason="a second signal")
                else:
                    log.info("stopping once the visitors inside have finished; a second signal stops at once")
                self.drain.set()


def _sections(side: Server | Client) -> dict[str, Any]:
    """What a dump shows beside tasks and steps."""
    return {"relay": relay_figures(side.engine)}


# serve


def run_serve(
    config: ServerConfig,
    *,
    introduce: bool,
    public_host: str | None,
    reload: Callable[[], ServerConfig] | None,
    profile_dir: Path | None,
    log_format: LogFormat,
    verbose: int,
) -> int:
    """Serve until a signal; returns the exit code. `introduce` prints the line to paste at a client; `reload` reads
    the configuration again."""

    def complete(config: ServerConfig) -> ServerConfig:
        return evolve(config, state_dir=config.state_dir or default_state_dir())

    config = complete(config)
    with logs.configure(verbose, log_format):
        announce = partial(_announce, config=config, introduce=introduce, public_host=public_host)
        profile = Profile("server", profile_dir)
        again = None if reload is None else lambda: complete(reload())
        return trio.run(_serve, config, again, announce, profile, instruments=profile.instruments)


async def _serve(
    config: ServerConfig,
    reload: Callable[[], ServerConfig] | None,
    announce: Callable[[Server], None],
    profile: Profile,
) -> int:
    stopping = Stopping()
    reloader = Reloader(reload, drain=stopping.drain)
    async with unwrapped(), trio.open_nursery() as root:
        await root.start(stopping.watch)
        await root.start(reloader.watch, name="reload requests")
        await root.start(profile.watch, name="dumps")
        with stopping.scope:
            async with trio.open_nursery() as nursery:
                server = await nursery.start(partial(serve, config, drain=stopping.drain, linger=True))
                profile.sections = partial(_sections, server)
                announce(server)
                root.start_soon(reloader.run, config, lambda now, _: server.apply(now), name="reload")
        root.cancel_scope.cancel(reason="the server has ended")
    return FORCED if stopping.forced else 0


def _first_token(config: ServerConfig) -> str | None:
    """A token for the first start with this state; None later."""
    assert config.state_dir is not None
    state = StateDir.open(config.state_dir)
    return None if state.grants() else state.new_token(FIRST_CLIENT)


def _announce(server: Server, *, config: ServerConfig, introduce: bool, public_host: str | None) -> None:
    # The token is made only now: a start that failed must not use up the one showing.
    token = _first_token(config) if introduce else None
    try:
        _print_introduction(server, token, config.state_dir, introduce=introduce, public_host=public_host)
    except OSError as exc:
        sys.stdout = None  # or the interpreter tries once more at exit, and complains
        if token is not None and config.state_dir is not None:
            StateDir.open(config.state_dir).revoke_token(FIRST_CLIENT)
        raise TunnelError(f"cannot write to standard output ({exc.strerror}); give it somewhere to go") from exc


def _print_introduction(
    server: Server, token: str | None, state_dir: Path | None, *, introduce: bool, public_host: str | None
) -> None:
    pin = pin_text(certificate_pin_of_file(server.cert_file))
    if introduce:
        servers = " ".join(shlex.quote(str(where)) for where in reachable(server.addresses, public_host))
        line = f"trio-tunnel connect {servers} --pin {pin}"
        if token is not None:
            print(f"TRIO_TUNNEL_TOKEN={token} {line}")  # noqa: T201
        else:
            print(line)  # noqa: T201
            where_kept = "" if state_dir == default_state_dir() else f" --state-dir {shlex.quote(str(state_dir))}"
            print(f"# with the token of that client; to make another: trio-tunnel token new NAME{where_kept}")  # noqa: T201
    else:
        log.info("clients can verify this server by its pin: %s", pin)
    print("\n".join(f"listening on {where}" for where in server.addresses), flush=True)  # noqa: T201


def reachable(bound: tuple[HostPort, ...], public_host: str | None) -> tuple[HostPort, ...]:
    """How others may reach what we listen on, each address once. A further wildcard of a family without a way out is
    left out: there would be this host's loopback, where a client has its own."""
    found = {HostPort(public_host or reachable_host(bound[0].host), bound[0].port): None}
    for where in bound[1:]:
        host = public_host or reachable_host(where.host)
        if host == where.host or host not in NOWHERE:
            found[HostPort(host, where.port)] = None
    return tuple(found)


def reachable_host(bound: str) -> str:
    """How others may reach an address we listen on: itself, or for a wildcard the address of the default route."""
    if bound not in ("0.0.0.0", "::"):  # noqa: S104  compared with, not bound
        return bound
    family, somewhere = (socket.AF_INET6, "2001:db8::1") if bound == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))  # documentation addresses; a datagram socket sends nothing by this
            return str(probe.getsockname()[0])
        except OSError:
            return NOWHERE[bound == "::"]


# connect


def run_connect(
    config: ClientConfig,
    *,
    once: bool,
    as_json: bool,
    reload: Callable[[], ClientConfig] | None,
    profile_dir: Path | None,
    log_format: LogFormat,
    verbose: int,
) -> int:
    """Be a client until a signal; returns the exit code, or raises why a single session (`once`) ended. `reload` reads
    the configuration again."""

    def complete(config: ClientConfig) -> ClientConfig:
        needed = config.admin is not None and config.state_dir is None
        return evolve(config, state_dir=default_state_dir()) if needed else config

    config = complete(config)
    clients: list[Client] = []

    def snapshot() -> Snapshot:
        return clients[0].snapshot() if clients else Snapshot("client", "", ())

    view = make_view("json" if as_json else "auto", server=str(config.servers[0]), snapshot=snapshot)
    on_screen = isinstance(view, TableView) and sys.stderr.isatty()
    with logs.configure(verbose, log_format, stream=view.log_stream if on_screen else None):
        profile = Profile("client", profile_dir)
        again = None if reload is None else lambda: complete(reload())
        run = partial(_connect, config, again, once=once, view=view, made=clients.append, profile=profile)
        return trio.run(run, instruments=profile.instruments)


async def _connect(
    config: ClientConfig,
    reload: Callable[[], ClientConfig] | None,
    *,
    once: bool,
    view: View,
    made: Callable[[Client], None],
    profile: Profile,
) -> int:
    stopping = Stopping()
    reloader = Reloader(reload, drain=stopping.drain)

    def apply(_config: ClientConfig, actions: Sequence[Action]) -> None:
        client.apply(actions)
        _show_proxies(view, client)

    async with unwrapped(), trio.open_nursery() as root:
        await root.start(stopping.watch)
        await root.start(reloader.watch, name="reload requests")
        await root.start(profile.watch, name="dumps")
        with stopping.scope:
            async with trio.open_nursery() as nursery:
                client = await nursery.start(partial(run_client, config, once=once, drain=stopping.drain, linger=True))
                made(client)
                profile.sections = partial(_sections, client)
                root.start_soon(view.run, name="view")
                root.start_soon(show, client, view, name="statuses")
                root.start_soon(reloader.run, config, apply, name="reload")
        root.cancel_scope.cancel(reason="the client has ended")
    return FORCED if stopping.forced else 0


async def show(client: Client, view: View) -> None:
    """Feed a view with every status and session change, until cancelled."""
    changed = trio.Event()

    def wake() -> None:
        changed.set()

    with client.events.follow() as follower:
        follower.wake = wake
        _show_proxies(view, client)
        if not client.config.proxies:
            hint = "no proxy is published; add one with -p NAME=PUBLISH:TARGET, such as -p web=8001:8080"
            print(hint, file=sys.stderr)  # noqa: T201
        _show_connection(view, client)
        for update in client.statuses.values():
            view.status(update)
        while True:
            changed = trio.Event()
            for event in follower.drain():
                _show_event(view, event)
            await changed.wait()


def _show_proxies(view: View, client: Client) -> None:
    view.proxies({proxy.name: ", ".join(map(str, proxy.targets)) for proxy in client.config.proxies})


def _show_connection(view: View, client: Client) -> None:
    now = client.connection
    view.session(SessionState(now.state), now.detail, retry_in=now.retry_in)


def _show_event(view: View, event: Event) -> None:
    if event.kind == "proxy.status":
        view.status(event.fields["update"])
    elif event.kind.startswith("session."):
        state = SessionState(event.kind.removeprefix("session."))
        view.session(state, event.fields["detail"], retry_in=event.fields["retry_in"])
