"""What `serve` and `connect` do as processes: what is attended to beside the tunnel, what is shown, how they end."""

import faulthandler
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

import trio
from attrs import evolve, frozen

from tunnel import logs
from tunnel.activation import Passed, take_passed
from tunnel.api import Client, Server, run_client, serve
from tunnel.cli.introduction import announce
from tunnel.client.make_view import make_view
from tunnel.client.table import TableView
from tunnel.client.view import SessionState, View
from tunnel.config import ClientConfig, ServerConfig
from tunnel.config.actions import Action
from tunnel.errors import unwrapped
from tunnel.limits import share_one_arena
from tunnel.notify_socket import NotifySocket
from tunnel.profile import Profile, relay_figures
from tunnel.reload import C, Reloader
from tunnel.server.certificate import check_change
from tunnel.snapshot import Event, Snapshot
from tunnel.state import default_state_dir
from tunnel.stopping import Stopping
from tunnel.supervision import Supervision, describe_client, describe_server
from tunnel.watching import Reading, Watch

FORCED = 130  # exit code after a second signal


@frozen(kw_only=True)
class ProcessOptions(Generic[C]):
    """What a command line says of the process, whatever it runs. `reload` reads the configuration again, as at the
    start; None where there is no file. With `watch` (and the configuration's) changed files have the same effect. A
    `profile_dir` takes the dumps that SIGUSR2 asks for."""

    reload: Reading[C] | None = None
    watch: bool = True
    profile_dir: Path | None = None
    log_format: logs.Format = "text"
    verbose: int = 0

    def completed(self, complete: Callable[[C], C]) -> "ProcessOptions[C]":
        """With `complete` applied to what a reload reads."""
        if self.reload is not None:
            self.reload.then(complete)
        return self

    def watched(
        self, config: C, request: Callable[[], object], *, but: Callable[[], Sequence[Path]] = tuple
    ) -> Watch | None:
        """What asks for a reading when a file has changed; None where nobody wants that."""
        if self.reload is None or not (self.watch and config.watch):
            return None
        reading = self.reload
        return Watch(lambda: reading.files, request, but=but)


def _sections(side: Server | Client) -> dict[str, Any]:
    """What a dump shows beside tasks and steps."""
    return {"relay": relay_figures(side.engine), **side.stats()}


def _take_notify_socket() -> NotifySocket:
    notify = NotifySocket.take()
    if notify.watchdog_seconds is not None and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # a stalled process gets SIGABRT: the log then shows where it stood
    return notify


# serve


def run_serve(
    config: ServerConfig, options: ProcessOptions[ServerConfig], *, introduce: bool, public_host: str | None
) -> int:
    """Serve until a signal; returns the exit code. `introduce` prints the line to paste at a client."""

    def complete(config: ServerConfig) -> ServerConfig:
        return evolve(config, state_dir=config.state_dir or default_state_dir())

    config, options = complete(config), options.completed(complete)
    share_one_arena()
    with logs.configure(options.verbose, options.log_format):
        profile = Profile("server", options.profile_dir)
        say = partial(announce, config=config, introduce=introduce, public_host=public_host)
        passed, notify = take_passed(), _take_notify_socket()
        logs.set_level(config.log_level, options.verbose)
        run = partial(_serve, config, options, announce=say, profile=profile, notify=notify, passed=passed)
        return trio.run(run, instruments=profile.instruments)


async def _serve(
    config: ServerConfig,
    options: ProcessOptions[ServerConfig],
    *,
    announce: Callable[[Server], None],
    profile: Profile,
    notify: NotifySocket,
    passed: Sequence[Passed],
) -> int:
    stopping = Stopping()
    reloader = Reloader(options.reload, drain=stopping.drain)
    async with unwrapped(), trio.open_nursery() as root:
        await root.start(stopping.watch, reloader.request)
        await root.start(profile.watch, name="dumps")
        with stopping.scope:
            async with trio.open_nursery() as nursery:
                run = partial(serve, config, drain=stopping.drain, linger=True, passed=passed)
                server = await nursery.start(run)
                profile.sections = partial(_sections, server)
                announce(server)
                supervision = Supervision(notify, partial(describe_server, server))
                root.start_soon(partial(supervision.run, server.events, drain=stopping.drain), name="systemd")
                root.start_soon(partial(_reload, reloader, config, server, supervision, options), name="reload")
                if watch := options.watched(config, reloader.request, but=server.watched_files):
                    root.start_soon(watch.run, name="changed files")
        root.cancel_scope.cancel(reason="the server has ended")
    return FORCED if stopping.forced else 0


async def _reload(
    reloader: Reloader[ServerConfig],
    config: ServerConfig,
    server: Server,
    supervision: Supervision,
    options: ProcessOptions[ServerConfig],
) -> None:
    def apply(now: ServerConfig, _: Sequence[Action]) -> None:
        server.apply(now)
        logs.set_level(now.log_level, options.verbose)

    await reloader.run(
        config, apply, check=check_change, read=server.look_at_certificate, tell=server.events.publish,
        around=supervision.reloading,
    )  # fmt: skip


# connect


def run_connect(config: ClientConfig, options: ProcessOptions[ClientConfig], *, once: bool, as_json: bool) -> int:
    """Be a client until a signal; returns the exit code, or raises why a single session (`once`) ended."""

    def complete(config: ClientConfig) -> ClientConfig:
        needed = (config.admin is not None or config.history.enabled) and config.state_dir is None
        return evolve(config, state_dir=default_state_dir()) if needed else config

    config, options = complete(config), options.completed(complete)
    clients: list[Client] = []

    def snapshot() -> Snapshot:
        return clients[0].snapshot() if clients else Snapshot("client", "", ())

    view = make_view("json" if as_json else "auto", server=str(config.servers[0]), snapshot=snapshot)
    on_screen = isinstance(view, TableView) and sys.stderr.isatty()
    share_one_arena()
    with logs.configure(options.verbose, options.log_format, stream=view.log_stream if on_screen else None):
        profile = Profile("client", options.profile_dir)
        logs.set_level(config.log_level, options.verbose)
        run = partial(
            _connect, config, options, once=once, view=view, made=clients.append, profile=profile,
            notify=_take_notify_socket(),
        )  # fmt: skip
        return trio.run(run, instruments=profile.instruments)


async def _connect(
    config: ClientConfig,
    options: ProcessOptions[ClientConfig],
    *,
    once: bool,
    view: View,
    made: Callable[[Client], None],
    profile: Profile,
    notify: NotifySocket,
) -> int:
    stopping = Stopping()
    reloader = Reloader(options.reload, drain=stopping.drain)

    def apply(now: ClientConfig, actions: Sequence[Action]) -> None:
        client.apply(actions)
        logs.set_level(now.log_level, options.verbose)
        _show_proxies(view, client)

    async with unwrapped(), trio.open_nursery() as root:
        await root.start(stopping.watch, reloader.request)
        await root.start(profile.watch, name="dumps")
        with stopping.scope:
            async with trio.open_nursery() as nursery:
                client = await nursery.start(partial(run_client, config, once=once, drain=stopping.drain, linger=True))
                made(client)
                profile.sections = partial(_sections, client)
                root.start_soon(view.run, name="view")
                root.start_soon(show, client, view, name="statuses")
                supervision = Supervision(notify, partial(describe_client, client))
                root.start_soon(partial(supervision.run, client.events, drain=stopping.drain), name="systemd")
                serve_reloads = partial(
                    reloader.run, config, apply, tell=client.events.publish, around=supervision.reloading
                )
                root.start_soon(serve_reloads, name="reload")
                if watch := options.watched(config, reloader.request):
                    root.start_soon(watch.run, name="changed files")
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
