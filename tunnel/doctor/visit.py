"""What is tried in a session: the round trip, a data channel, the ports.

A port that is published for that moment serves nobody: its target is said to be down.
"""

from collections.abc import Callable
from statistics import median
from typing import NoReturn

import trio

from tunnel.addresses import HostPort
from tunnel.client.dialer import Dialer
from tunnel.client.resolver import ServerAddress
from tunnel.config import ClientConfig
from tunnel.control import ControlChannel
from tunnel.doctor.findings import STEP_SECONDS, Report, parts
from tunnel.errors import PeerLost, TunnelError
from tunnel.messages import (
    PROTOCOL_VERSION,
    Farewell,
    Goodbye,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Message,
    ProxySet,
    ProxySpec,
    ProxyStatusUpdate,
    Reason,
    Status,
    TargetHealth,
    Welcome,
)
from tunnel.relay import Engine
from tunnel.upgrade import request_upgrade
from tunnel.version import __version__

BEATS = 5
SLOW_SECONDS = 0.5  # a round trip that makes every page slow
LOOKING = "trio-tunnel doctor looks at the port; no visitor is served"
PROBE = "doctor"  # the name of the proxy that is published where none is configured
_REMEDIES = {
    Reason.ADDR_IN_USE: "free it at the server, or publish another port; a client would keep trying (bind_retry)",
    Reason.PERMISSION_DENIED: "publish a port from 1024 on, or give the server CAP_NET_BIND_SERVICE",
    Reason.ADDR_NOT_AVAILABLE: "publish an address that the server's host has, or 0.0.0.0",
}


class Over(PeerLost):
    """The session has ended before all was tried."""


class Visit:
    """The few seconds in session; one task speaks and listens by turns."""

    def __init__(
        self, config: ClientConfig, dialer: Dialer, address: ServerAddress, control: ControlChannel, report: Report
    ) -> None:
        self._config = config
        self._dialer = dialer
        self._address = address
        self._control = control
        self._report = report

    async def run(self) -> None:
        await self._control.send(Hello(PROTOCOL_VERSION, __version__))
        with trio.move_on_after(STEP_SECONDS) as waiting:
            welcome = await self._hear(lambda message: isinstance(message, Welcome))
        if waiting.cancelled_caught:
            raise PeerLost("the server did not answer the greeting")
        assert isinstance(welcome, Welcome)
        version = f" ({welcome.software})" if welcome.software else ""
        self._report.ok("token", f"good, of client '{welcome.client}'; nobody else is connected with it{version}")
        await self._beat()
        await self._open_channel(welcome.tickets)
        await self._publish()
        await self._control.send(Goodbye(Farewell.STOPPING, "trio-tunnel doctor has looked"))

    async def _hear(self, is_wanted: Callable[[Message], bool]) -> Message:
        """The next message that is wanted; others are answered or left. The caller holds the deadline."""
        while True:
            message = await self._control.receive()
            if is_wanted(message):
                return message
            if isinstance(message, Heartbeat):
                await self._control.send(HeartbeatReply(message.seq))
            if isinstance(message, Goodbye):
                _end(message)

    async def _beat(self) -> None:
        trips = []
        with trio.move_on_after(STEP_SECONDS):
            for seq in range(1, BEATS + 1):
                began = trio.current_time()
                await self._control.send(Heartbeat(seq))
                await self._hear(HeartbeatReply(seq).__eq__)
                trips.append(trio.current_time() - began)
        if len(trips) < BEATS:
            word = f"{BEATS - len(trips)} of {BEATS} heartbeats were not answered within {STEP_SECONDS:g} s"
            self._report.fail("latency", word, "something between holds WebSocket messages back; try another way there")
            return
        seconds, words = (
            median(trips),
            f"round trip of a heartbeat ({min(trips) * 1000:.1f} to {max(trips) * 1000:.1f} ms)",
        )
        if seconds > SLOW_SECONDS:
            self._report.warn("latency", words, "a server nearer to visitors and service is faster", seconds=seconds)
        else:
            self._report.ok("latency", words, seconds=seconds)

    async def _open_channel(self, tickets: tuple[str, ...]) -> None:
        if not tickets:
            self._report.fail("channel", "the server gave no ticket for one", "look at the server's log")
            return
        began = trio.current_time()
        try:
            with trio.fail_after(STEP_SECONDS):
                echo = await self._echo(tickets[0])
        except trio.TooSlowError:
            word = f"no data came back on one within {STEP_SECONDS:g} s"
            self._report.fail("channel", word, "something between holds WebSocket messages back; try another way there")
        except TunnelError as exc:
            message, remedy = parts(exc)
            self._report.fail("channel", f"none can be opened: {message}", remedy)
        else:
            words = f"one opened, and a nonce came back in {echo * 1000:.1f} ms"
            self._report.ok("channel", words, seconds=trio.current_time() - began - echo)

    async def _echo(self, ticket: str) -> float:
        """Seconds that a nonce needs there and back on a data channel, which is closed then."""
        engine = Engine()
        async with trio.open_nursery() as relay:
            await relay.start(engine.run)
            with engine.attach(route=lambda _index, _version: None) as session:
                try:
                    stream = await self._dialer.dial(self._address)
                    try:
                        headers = {"Authorization": f"Bearer {ticket}", "Trio-Tunnel-Place": self._address.place}
                        stream.push_back(await request_upgrade(stream, str(self._address.server), "/data", headers))
                        parts_of_it = stream.detach()
                    except BaseException:
                        stream.close()
                        raise
                    channel = session.add_channel(
                        parts_of_it, masks=True, on_lost=lambda _why: None, place=str(self._address)
                    )
                    await channel.wait_proven()
                    return await channel.echo()
                finally:
                    relay.cancel_scope.cancel(reason="the data channel was tried")

    # Ports

    async def _publish(self) -> None:
        """All proxies at once, for a moment."""
        wanted = {proxy.name: proxy.publish for proxy in self._config.proxies} or {PROBE: HostPort("0.0.0.0", 0)}  # noqa: S104
        await self._control.send(ProxySet(1, tuple(_spec(name, publish) for name, publish in wanted.items())))
        for name in wanted:
            await self._control.send(TargetHealth(name, False, LOOKING))
        with trio.move_on_after(STEP_SECONDS):
            waiting = set(wanted)
            while waiting:
                update = await self._hear(lambda message: isinstance(message, ProxyStatusUpdate))
                assert isinstance(update, ProxyStatusUpdate)
                if update.proxy_name in waiting and update.reason is not Reason.PENDING:
                    waiting.discard(update.proxy_name)
                    self._report_port(update, is_wanted=bool(self._config.proxies))
            return
        for name in sorted(waiting):
            self._report.fail("port", f"{name}: the server said nothing of it", "look at the server's log")

    def _report_port(self, update: ProxyStatusUpdate, *, is_wanted: bool) -> None:
        where = f"{update.publish_addr}:{update.publish_port}"
        if update.status is Status.HEALTHY or update.reason is Reason.TARGET_DOWN:
            what = "can be published" if is_wanted else "can be had (the server chose it, for a moment)"
            self._report.ok("port", f"{update.proxy_name}: {where} {what}" if is_wanted else f"{where} {what}")
            return
        message, _, remedy = (update.error_message or str(update.reason)).partition("; ")
        remedy = _REMEDIES.get(update.reason, remedy) if update.reason is not None else remedy
        if is_wanted:
            self._report.fail("port", f"{update.proxy_name}: {message}", remedy)
        else:
            self._report.warn("port", message, "name the proxies that are meant, with -c client.toml or -p")


def _spec(name: str, publish: HostPort) -> ProxySpec:
    """With a target that is checked, so that it can be said to be down."""
    return ProxySpec(name, publish.host, publish.port, checked=True, target="trio-tunnel doctor")


def _end(goodbye: Goodbye) -> NoReturn:
    if goodbye.reason is Farewell.REPLACED:
        raise Over("a client of this identity came meanwhile and has the place")
    if goodbye.reason is Farewell.VERSION_UNSUPPORTED:
        raise PeerLost(goodbye.message or "the server speaks another version; upgrade the older one")
    raise PeerLost(f"the server ended the session: {goodbye.message or goodbye.reason.value}")
