"""`trio-tunnel demo`: a server, a sample web service and a client in one process, over real TLS on loopback."""

import logging
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tunnel import logs
from tunnel.addresses import HostPort, Target
from tunnel.api import Client, connect, serve
from tunnel.certificates import certificate_pin_of_file
from tunnel.cli.commands import show
from tunnel.client.make_view import make_view
from tunnel.client.view import View
from tunnel.config import ClientConfig, ProxyConfig, ServerConfig
from tunnel.errors import TunnelError, unwrapped
from tunnel.messages import Status
from tunnel.state import StateDir
from tunnel.stopping import Stopping

CHECK_SECONDS = 9.5  # for `demo --check`, all in all
HELD_SECONDS = 20.0  # the port of the second proxy is freed after so long, to show how it recovers
LOOPBACK = "127.0.0.1"
PAGE = b"<!doctype html><title>trio-tunnel</title><h1>It works</h1><p>This page came through the tunnel.</p>\n"

log = logging.getLogger(__name__)


def run_demo(*, check: bool, verbose: int) -> int:
    """Run it; returns the exit code."""
    with _folder() as folder, socket.socket() as busy:
        busy.bind((LOOPBACK, 0))
        busy.listen()
        if check:
            with logs.configure(verbose) if verbose else logs.configure(0, descriptor=_nowhere()):
                return trio.run(_check, Path(folder), busy)
        return _show_demo(Path(folder), busy, verbose)


def _folder() -> "tempfile.TemporaryDirectory[str]":
    """For the demo's state, and gone with it."""
    try:
        return tempfile.TemporaryDirectory(prefix="trio-tunnel-demo-")
    except OSError as exc:  # a container whose file system is read-only
        raise TunnelError(
            f"no directory for temporary files can be used ({exc.strerror}); name one in TMPDIR, or give /tmp to it: "
            f"docker run --tmpfs /tmp"
        ) from exc


def _nowhere() -> int:
    import os

    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


@asynccontextmanager
async def _tunnel(folder: Path, busy: socket.socket) -> AsyncIterator[tuple[Client, HostPort]]:
    """A sample service, a server, and a client that publishes the service once well and once on a taken port."""
    token = StateDir.open(folder).new_token("demo")
    config = ServerConfig(listen=(HostPort(LOOPBACK, 0),), state_dir=folder)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, _serve_page, 0, host=LOOPBACK))
        target = Target("tcp", LOOPBACK, listeners[0].socket.getsockname()[1])
        server = await nursery.start(serve, config)
        proxies = (
            ProxyConfig("web", HostPort(LOOPBACK, 0), (target,)),
            ProxyConfig("busy", HostPort(LOOPBACK, busy.getsockname()[1]), (target,)),
        )
        pin = certificate_pin_of_file(server.cert_file)
        async with connect(ClientConfig(servers=(server.where,), token=token, pin=pin, proxies=proxies)) as client:
            yield client, server.where
        nursery.cancel_scope.cancel(reason="the demo is over")


async def _serve_page(stream: trio.SocketStream) -> None:
    """A web service in eight lines: one answer to whatever asks, then the end."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\nConnection: close\r\n\r\n"
    try:
        asked = b""
        while b"\r\n\r\n" not in asked and len(asked) < 16384 and (more := await stream.receive_some()):
            asked += more
        await stream.send_all(head.encode() + PAGE)
    except trio.BrokenResourceError:
        pass  # they did not wait for the page


# demo


def _show_demo(folder: Path, busy: socket.socket, verbose: int) -> int:
    clients: list[Client] = []
    print("trio-tunnel demo: a server, a web service and a client in this process. Ctrl-C ends it.")  # noqa: T201
    print(f"The port of proxy 'busy' is held by the demo itself, and freed after {HELD_SECONDS:.0f} s.", flush=True)  # noqa: T201
    view = make_view("auto", server="this process", snapshot=lambda: clients[0].snapshot())
    with logs.configure(verbose, descriptor=None if verbose else _nowhere()):
        return trio.run(_demo, folder, busy, view, clients)


async def _demo(folder: Path, busy: socket.socket, view: View, clients: list[Client]) -> int:
    stopping = Stopping()
    async with unwrapped(), trio.open_nursery() as root:
        await root.start(stopping.watch, _no_reload)
        async with _tunnel(folder, busy) as (client, _):
            clients.append(client)
            with trio.move_on_after(5):
                await client.wait_healthy("web")
            web = client.statuses["web"]
            print(f"\n    http://{web.publish_addr}:{web.publish_port}/\n", flush=True)  # noqa: T201
            root.start_soon(view.run, name="view")
            root.start_soon(show, client, view, name="statuses")
            with trio.move_on_after(HELD_SECONDS):
                await stopping.drain.wait()
            busy.close()
            await stopping.drain.wait()
        root.cancel_scope.cancel(reason="the demo is over")
    return 0


def _no_reload() -> None:
    log.warning("the demo has no configuration to read again")


# demo --check


async def _check(folder: Path, busy: socket.socket) -> int:
    try:
        async with unwrapped():
            with trio.fail_after(CHECK_SECONDS):
                await _steps(folder, busy)
    except (TunnelError, OSError, trio.TooSlowError) as exc:
        print(f"FAILED: {str(exc) or f'not done within {CHECK_SECONDS:g} s'}", file=sys.stderr)  # noqa: T201
        return 1
    print("all of it works", flush=True)  # noqa: T201
    return 0


def _done(step: str) -> None:
    print(f"ok  {step}", flush=True)  # noqa: T201


async def _steps(folder: Path, busy: socket.socket) -> None:
    async with _tunnel(folder, busy) as (client, where):
        _done(f"server listening on {where}, TLS 1.3, its own certificate")
        await client.wait_healthy("web")
        web = client.statuses["web"]
        _done(
            "client connected, its server verified by pin; "
            f"proxy 'web' is healthy at {web.publish_addr}:{web.publish_port}"
        )
        await _fetch(HostPort(web.publish_addr, web.publish_port))
        _done("the page came through the tunnel")
        async for status in client.follow():
            if status.proxy_name == "busy" and status.attempt:
                break
        taken = client.statuses["busy"]
        if taken.status is not Status.UNHEALTHY:
            raise TunnelError(f"proxy 'busy' is {taken.status}, though its port is taken")
        _done(
            f"proxy 'busy' is {taken.status} ({taken.reason}): {taken.error_message}; "
            f"retry in {taken.retry_after_seconds} s"
        )
        busy.close()
        _done(f"port {taken.publish_port} was freed")
        await client.wait_healthy("busy")
        await _fetch(HostPort(taken.publish_addr, taken.publish_port))
        _done("proxy 'busy' became healthy at its next attempt, and serves the page too")


async def _fetch(where: HostPort) -> None:
    async with await trio.open_tcp_stream(where.host, where.port) as stream:
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        answer = b""
        while more := await stream.receive_some():
            answer += more
    if not answer.endswith(PAGE):
        raise TunnelError(f"the tunnel brought something else than the page: {answer[:80]!r}")
