"""A reload: all of a configuration or nothing of it, and a line for each thing that changed or was wrong."""

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import HostPort, Target
from tunnel.backoff import RetryPolicy
from tunnel.client import app as app_module
from tunnel.client.app import Client
from tunnel.config import ClientConfig, Limits, ProxyConfig, ServerConfig
from tunnel.config.actions import (
    Action,
    DropProxy,
    NeedsRestart,
    SetBindRetry,
    SetLimits,
    SetProxy,
    SetTargets,
    SetToken,
)
from tunnel.config.diff import diff
from tunnel.config.file import ClientOptions, load_client
from tunnel.errors import ConfigError, Mistake, TunnelError
from tunnel.messages import ProxyStatusUpdate, Status
from tunnel.reload import Reloader
from tunnel.snapshot import EventStream

TOKEN = "s3cret-Token"
WEB = ProxyConfig("web", HostPort("0.0.0.0", 8001), (Target("tcp", "127.0.0.1", 80),))
SSH = ProxyConfig("ssh", HostPort("0.0.0.0", 8022), (Target("tcp", "127.0.0.1", 22),))
CLIENT = ClientConfig((HostPort("a", 8443),), TOKEN, proxies=(WEB, SSH), limits=Limits(max_visitors=10))


class Process:
    """What was applied, and what the process said."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "tunnel")
        self.applied: list[tuple[Any, list[Action]]] = []
        self.drain = trio.Event()
        self._caplog = caplog

    def apply(self, config: Any, actions: Sequence[Action]) -> None:
        self.applied.append((config, list(actions)))

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(record.levelname, record.getMessage()) for record in self._caplog.records]


@pytest.fixture
def process(caplog: pytest.LogCaptureFixture) -> Process:
    return Process(caplog)


class Files:
    """Stands for the files: what a reading finds, and how often there was one. `hold` makes readings wait."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.readings = 0
        self.hold: threading.Event | None = None

    def load(self) -> Any:
        self.readings += 1
        found = self.found
        if self.hold is not None:
            assert self.hold.wait(5)
        if isinstance(found, Exception):
            raise found
        return found


async def until_read(files: Files, count: int) -> None:
    with trio.fail_after(30):
        while files.readings < count:
            await trio.sleep(0.001)


async def until_said(process: Process, count: int) -> None:
    with trio.fail_after(30):
        while len(process.said) < count:
            await trio.sleep(0.001)


async def test_what_changed_is_applied_and_told_line_by_line(process: Process, nursery: trio.Nursery) -> None:
    new = evolve(CLIENT, token="another", proxies=(evolve(WEB, targets=SSH.targets),), admin=HostPort("::1", 1))
    reloader = Reloader(lambda: new, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await until_said(process, 5)
    now = evolve(CLIENT, proxies=new.proxies, token="another")
    wanted = [SetToken("another"), DropProxy("ssh"), SetTargets("web", SSH.targets, WEB.pool, None)]
    assert process.applied == [(now, wanted)]
    assert process.said == [
        ("INFO", "the token is another one: a new session begins with it, at once"),
        ("INFO", "proxy 'ssh' is closed; visitors inside may finish"),
        ("INFO", "proxy 'web' keeps its listener; its targets are 127.0.0.1:22"),
        ("WARNING", "admin.listen needs a restart: it has changed (none is in force, [::1]:1 in the file)"),
        ("INFO", "the configuration was read again: 3 changes"),
    ]
    nursery.cancel_scope.cancel()


async def test_the_next_reading_is_compared_with_what_is_in_force_by_then(
    process: Process, nursery: trio.Nursery
) -> None:
    old = ServerConfig()
    files = Files(evolve(old, bind_retry=RetryPolicy(max_retries=1), listen=(HostPort("::", 1),)))
    reloader = Reloader(files.load, drain=process.drain)
    nursery.start_soon(reloader.run, old, process.apply)
    reloader.request()
    await until_said(process, 3)
    reloader.request()
    await until_said(process, 5)
    assert [actions for _, actions in process.applied] == [[SetBindRetry(RetryPolicy(max_retries=1))]]
    assert process.said[3:] == [
        ("WARNING", "listen needs a restart: it has changed (0.0.0.0:8443 is in force, [::]:1 in the file)"),
        ("INFO", "the configuration was read again: nothing to change without a restart"),
    ]
    nursery.cancel_scope.cancel()


async def test_a_file_with_mistakes_changes_nothing_and_each_is_told(
    process: Process, nursery: trio.Nursery, tmp_path: Path
) -> None:
    path = tmp_path / "client.toml"
    path.write_text('server = "a"\nresolve_seconds = 0\nhot = 3\n[[proxies]]\nname = "half-writ')
    reloader = Reloader(partial(load_client, path, ClientOptions(token=TOKEN)), drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await until_said(process, 4)
    assert process.applied == []
    assert [level for level, _ in process.said] == ["ERROR"] * 4
    told = [message.split(": ")[0] for _, message in process.said[:3]]
    assert told == [f"{path}:2", f"{path}:3", f"{path}:5"]
    assert process.said[3][1] == "the configuration was not changed: 3 mistakes to mend"
    path.write_text('server = "a"\n')
    reloader.request()
    await until_said(process, 8)
    dropped = [DropProxy("web"), DropProxy("ssh")]
    assert [actions for _, actions in process.applied] == [[*dropped, SetLimits(Limits())]]
    nursery.cancel_scope.cancel()


async def test_what_the_process_itself_finds_wrong_changes_nothing_and_what_is_good_is_told_on(
    process: Process, nursery: trio.Nursery
) -> None:
    checked: list[tuple[Any, Any]] = []
    read: list[int] = []

    def check(running: ClientConfig, wanted: ClientConfig) -> None:
        checked.append((running, wanted))
        if not wanted.proxies:
            raise ConfigError(Mistake("", 0, "tls", "", "cannot be", "mend it"))

    files = Files(evolve(CLIENT, proxies=()))
    reloader = Reloader(files.load, drain=process.drain)
    nursery.start_soon(partial(reloader.run, CLIENT, process.apply, check=check, read=lambda: read.append(1)))
    reloader.request()
    await until_said(process, 2)
    assert (process.applied, read, checked) == ([], [], [(CLIENT, files.found)])
    assert process.said == [
        ("ERROR", "tls: cannot be; mend it"),
        ("ERROR", "the configuration was not changed: 1 mistake to mend"),
    ]
    files.found = CLIENT
    reloader.request()
    await until_said(process, 3)
    assert read == [1]  # also where nothing has changed
    nursery.cancel_scope.cancel()


async def test_a_change_that_could_not_be_carried_out_is_tried_again_by_the_next_request(
    process: Process, nursery: trio.Nursery
) -> None:
    """A certificate, say, that was replaced between the look at it and its use."""
    broken = [TunnelError("cert.pem holds no certificate; put one there")]

    def apply(config: Any, actions: Sequence[Action]) -> None:
        if broken:
            raise broken.pop()
        process.apply(config, actions)

    wanted = evolve(CLIENT, proxies=(WEB,))
    reloader = Reloader(lambda: wanted, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, apply)
    reloader.request()
    await until_said(process, 1)
    word = "the configuration was not changed: cert.pem holds no certificate; put one there; then send SIGHUP again"
    assert process.said == [("ERROR", word)]
    reloader.request()
    await until_said(process, 3)
    assert process.applied == [(wanted, [DropProxy("ssh")])]
    nursery.cancel_scope.cancel()


async def test_a_reading_that_fails_in_another_way_ends_nothing(process: Process, nursery: trio.Nursery) -> None:
    files = Files(RuntimeError("our bug"))
    reloader = Reloader(files.load, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await until_said(process, 1)
    assert process.said == [("ERROR", "the configuration could not be read again; nothing was changed")]
    files.found = CLIENT
    reloader.request()
    await until_said(process, 2)
    assert process.said[1] == ("INFO", "the configuration was read again: nothing to change")
    assert process.applied == []
    nursery.cancel_scope.cancel()


async def test_requests_during_a_reading_are_one_more_reading_and_the_loop_goes_on_meanwhile(
    process: Process, nursery: trio.Nursery
) -> None:
    files = Files(CLIENT)
    files.hold = threading.Event()
    reloader = Reloader(files.load, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await until_read(files, 1)  # it waits in its thread, and this task runs
    files.found = evolve(CLIENT, resolve_seconds=1.0)
    for _ in range(3):
        reloader.request()
    files.hold.set()
    await until_said(process, 3)
    await wait_all_tasks_blocked()
    assert (files.readings, len(process.applied)) == (2, 1)
    nursery.cancel_scope.cancel()


async def test_a_reading_that_hangs_does_not_hold_up_the_end(process: Process) -> None:
    files = Files(CLIENT)
    files.hold = threading.Event()
    reloader = Reloader(files.load, drain=process.drain)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reloader.run, CLIENT, process.apply)
            reloader.request()
            await until_read(files, 1)
            nursery.cancel_scope.cancel()
    files.hold.set()


async def test_while_stopping_nothing_is_read_or_applied(process: Process, nursery: trio.Nursery) -> None:
    files = Files(evolve(CLIENT, proxies=()))
    files.hold = threading.Event()
    reloader = Reloader(files.load, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await until_read(files, 1)
    process.drain.set()
    files.hold.set()
    reloader.request()
    await until_said(process, 1)
    await wait_all_tasks_blocked()
    assert (files.readings, process.applied) == (1, [])
    assert process.said == [("INFO", "the configuration is not read again while stopping")]
    nursery.cancel_scope.cancel()


async def test_without_a_file_it_says_so_and_goes_on(process: Process, nursery: trio.Nursery) -> None:
    reloader: Reloader[ClientConfig] = Reloader(None, drain=process.drain)
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    reloader.request()
    await wait_all_tasks_blocked()
    assert process.said == [("WARNING", "there is no configuration file to read again; give one with -c")]
    nursery.cancel_scope.cancel()


async def test_a_request_from_before_the_start_is_served_after_it(process: Process, nursery: trio.Nursery) -> None:
    reloader = Reloader(lambda: evolve(CLIENT, proxies=(WEB,)), drain=process.drain)
    reloader.request()
    nursery.start_soon(reloader.run, CLIENT, process.apply)
    await until_said(process, 2)
    assert [actions for _, actions in process.applied] == [[DropProxy("ssh")]]
    nursery.cancel_scope.cancel()


# What a client does with the actions

HEALTHY = ProxyStatusUpdate("web", Status.HEALTHY, None, None, 5, None, 0, 10, "0.0.0.0", 8001, "then")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(app_module, "Engine", lambda *_, **__: None)  # its sockets are not for here
    client = Client(CLIENT)
    client._post(HEALTHY)
    return client


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        (evolve(WEB, targets=SSH.targets), True),
        (evolve(WEB, pool=evolve(WEB.pool, min=2)), True),
        (evolve(WEB, bind_retry=RetryPolicy(max_retries=1)), True),
        (evolve(WEB, publish=HostPort("0.0.0.0", 8002)), False),
        (evolve(WEB, name="other"), False),
    ],
)
async def test_a_proxy_keeps_its_status_as_long_as_its_listener_stays(
    client: Client, changed: ProxyConfig, stays: bool
) -> None:
    new = evolve(CLIENT, proxies=(changed, SSH))
    client.apply(diff(CLIENT, new))
    assert {proxy.name: proxy for proxy in client.config.proxies} == {changed.name: changed, "ssh": SSH}
    assert set(client.statuses) == {changed.name, "ssh"}
    assert (client.statuses[changed.name] is HEALTHY) is stays


async def test_a_client_takes_over_what_is_no_proxys_and_leaves_what_needs_a_restart(client: Client) -> None:
    pool = evolve(CLIENT.data_channels, min=5)
    new = evolve(CLIENT, data_channels=pool, servers=(HostPort("b", 1),), resolve_seconds=2.0, watch=False)
    client.apply(diff(CLIENT, new))
    assert client.config == evolve(new, watch=True)
    assert client.statuses["web"] is HEALTHY


async def test_a_client_publishes_what_is_new_and_forgets_what_is_gone(client: Client) -> None:
    new = evolve(SSH, name="new")
    client.apply([DropProxy("ssh"), NeedsRestart("token", "", ""), SetProxy(new)])
    assert client.config.proxies == (WEB, new)
    assert set(client.statuses) == {"web", "new"}


async def test_what_was_read_and_what_was_refused_are_events(
    process: Process, nursery: trio.Nursery, tmp_path: Path
) -> None:
    events = EventStream()
    path = tmp_path / "client.toml"
    path.write_text('server = "a"\nresolve_seconds = 0\n')
    reloader = Reloader(partial(load_client, path, ClientOptions(token=TOKEN)), drain=process.drain)
    running = evolve(CLIENT, proxies=(), limits=Limits())
    nursery.start_soon(partial(reloader.run, running, process.apply, tell=events.publish))
    reloader.request()
    await until_said(process, 2)
    path.write_text('server = "a"\nresolve_seconds = 5\n')
    reloader.request()
    await until_said(process, 4)
    reloader.request()
    await until_said(process, 5)
    refused, changed, same = [(event.kind, event.fields) for event in events.recent]
    assert refused[0] == "config.refused"
    assert refused[1]["mistakes"] == [f"{path}:2: resolve_seconds: 0: is out of range; write a number from 1 to 86400"]
    assert changed == ("config.reloaded", {"changes": ["names are looked up every 5 s"]})
    assert same == ("config.reloaded", {"changes": []})
    nursery.cancel_scope.cancel()
