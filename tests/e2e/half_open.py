"""A client that is cut off again and again: each time its connections stay open, and it comes back with the next epoch.

Runs in the test's own process, beside a forwarder that freezes what has been used.
"""

from collections.abc import Callable
from pathlib import Path

import trio
from addresses import Forwarder

from tunnel.addresses import HostPort
from tunnel.client.dialer import Dialer
from tunnel.client.resolver import ServerAddress
from tunnel.control import ControlChannel, open_client_control
from tunnel.messages import Hello, ProxySet, ProxySpec, ProxyStatusUpdate, Status, Welcome
from tunnel.tls import client_context
from tunnel.upgrade import request_upgrade


class HalfOpen:
    """`connect` N times; each leaves a control channel and a data channel that nobody will ever answer on."""

    def __init__(self, forwarder: Forwarder, *, token: str, ca_file: Path, public: int) -> None:
        self._forwarder = forwarder
        self._token = token
        self._public = public
        self._dialer = Dialer(client_context(ca_file=ca_file, pinned=False), None)
        self._where = ServerAddress("127.0.0.1", forwarder.port, HostPort("127.0.0.1", forwarder.port))

    def run(self, times: int, then: Callable[[], None]) -> None:
        """`then` is called, in a thread, while the last one is alive."""
        trio.run(self._run, times, then)

    async def _run(self, times: int, then: Callable[[], None]) -> None:
        async with trio.open_nursery() as sessions:
            for epoch in range(1, times + 1):
                with trio.fail_after(10):
                    await sessions.start(self._session, epoch)
                if epoch < times:
                    self._forwarder.tell("freeze 0")
            await trio.to_thread.run_sync(then)
            sessions.cancel_scope.cancel(reason="nobody answers a polite end")

    async def _session(self, epoch: int, *, task_status: trio.TaskStatus[None]) -> None:
        headers = {
            "Authorization": f"Bearer {self._token}", "Trio-Tunnel-Instance": "5" * 32, "Trio-Tunnel-Epoch": str(epoch),
        }  # fmt: skip
        stream = await self._dialer.dial(self._where)
        async with open_client_control(stream, host="127.0.0.1", path="/control", headers=headers) as control:
            await control.send(Hello(1, "half open"))
            welcome = await _receive(control, Welcome)
            data = await self._dialer.dial(self._where)
            try:
                await request_upgrade(data, "127.0.0.1", "/data", {"Authorization": f"Bearer {welcome.tickets[0]}"})
                await control.send(ProxySet(1, (ProxySpec("echo", "127.0.0.1", self._public),)))
                while (await _receive(control, ProxyStatusUpdate)).status is not Status.HEALTHY:
                    pass
                task_status.started()
                await trio.sleep_forever()
            finally:
                data.close()


async def _receive(control: ControlChannel, kind: type) -> object:
    while not isinstance(message := await control.receive(), kind):
        pass
    return message
