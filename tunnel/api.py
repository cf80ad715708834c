"""The Python API: `serve` and `connect`, each living in the caller's own nursery and cancelled with it.

The command line is written on these two.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from tunnel.activation import Passed
from tunnel.beside import start_beside
from tunnel.client.app import Client, open_client
from tunnel.config import ClientConfig, ServerConfig
from tunnel.errors import unwrapped
from tunnel.server.app import Server, open_server
from tunnel.state import hash_token

__all__ = ["Client", "Server", "connect", "hash_token", "run_client", "serve"]


async def serve(
    config: ServerConfig,
    *,
    drain: trio.Event | None = None,
    linger: bool = False,
    passed: Sequence[Passed] = (),
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until cancelled, or until `drain` is set and the visitors inside are done.

    `started` gives the `Server` once it can be used: ``server = await nursery.start(tunnel.serve, config)``. Raises
    `TunnelError` when it cannot start. Cancelled, it cuts everything at once. `linger` is for a process that is nothing
    but this server (see `Engine`); so is `passed`: the sockets that systemd made for it (see `activation`).
    """
    async with unwrapped(), open_server(config, linger=linger, passed=passed) as server, trio.open_nursery() as side:
        await start_beside(side, config, server)
        task_status.started(server)
        await (trio.Event() if drain is None else drain).wait()
        await server.drain(server.config.limits.drain_seconds)
        side.cancel_scope.cancel(reason="the server has drained")


@asynccontextmanager
async def connect(config: ClientConfig) -> AsyncIterator[Client]:
    """A client that connects, and reconnects for ever, while the body runs; see `Client` for what it tells.

    Raises `TunnelError` when the configuration cannot be used. Leaving the body ends the session at once.
    """
    async with unwrapped(), open_client(config) as client, trio.open_nursery() as side:
        side.start_soon(client.run, name="client")
        yield client
        side.cancel_scope.cancel(reason="the client is closing")


async def run_client(
    config: ClientConfig,
    *,
    once: bool = False,
    drain: trio.Event | None = None,
    linger: bool = False,
    task_status: trio.TaskStatus[Client] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`connect` as a task: runs until cancelled, or `drain` is set; with `once` raises why the one session ended."""
    async with unwrapped(), open_client(config, linger=linger) as client, trio.open_nursery() as side:
        await start_beside(side, config, client)
        task_status.started(client)
        side.start_soon(_run_once_or_ever, client, once, side.cancel_scope)
        await (trio.Event() if drain is None else drain).wait()
        await client.drain(client.config.limits.drain_seconds)
        side.cancel_scope.cancel(reason="the client has drained")


async def _run_once_or_ever(client: Client, once: bool, scope: trio.CancelScope) -> None:
    await client.run(once=once)
    scope.cancel()
